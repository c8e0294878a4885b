// CPU boundary of rms_norm, add_rms_norm, silu_mul: checks, then rows shared over threads.
#include "cpu/dtype.h"
#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "host/check.h"

namespace seekernel::cpu {
namespace {

constexpr auto kActivations = {ScalarType::Float, ScalarType::BFloat16};
constexpr int64_t kElementsPerChunk = 16384;  // below this a second thread costs more than it saves

int64_t rows_per_chunk(int64_t n) { return n >= kElementsPerChunk ? 1 : kElementsPerChunk / n; }

void run_rms_norm(const RmsNormArgs& args, int64_t m) {
  parallel_chunks(m, rows_per_chunk(args.n),
                  [&](int64_t begin, int64_t end) { kernels().norm.rms_norm(args, begin, end); });
}

void rms_norm(const Tensor& x, const Tensor& weight, double eps, const Tensor& out) {
  Checker check("rms_norm");
  Dim m("m"), n("n");
  check("x", x).shape({m, n}).dtype(kActivations).last_dim_contiguous();
  check("weight", weight).shape({n}).dtype(kActivations).contiguous();
  check("out", out).shape({m, n}).same_dtype("x", x).last_dim_contiguous();
  if (m == 0 || n == 0) return;
  run_rms_norm({.dtype = dtype_of(x),
                .weight_dtype = dtype_of(weight),
                .n = n,
                .stride_x_m = x.stride(0),
                .stride_residual_m = 0,
                .stride_out_m = out.stride(0),
                .x = x.const_data_ptr(),
                .residual = nullptr,
                .weight = weight.const_data_ptr(),
                .eps = static_cast<float>(eps),
                .out = out.mutable_data_ptr()},
               m);
}

void add_rms_norm(const Tensor& x, const Tensor& residual, const Tensor& weight, double eps,
                  const Tensor& out) {
  Checker check("add_rms_norm");
  Dim m("m"), n("n");
  check("x", x).shape({m, n}).dtype(kActivations).last_dim_contiguous();
  check("residual", residual).shape({m, n}).same_dtype("x", x).last_dim_contiguous();
  check("weight", weight).shape({n}).dtype(kActivations).contiguous();
  check("out", out).shape({m, n}).same_dtype("x", x).last_dim_contiguous();
  if (m == 0 || n == 0) return;
  run_rms_norm({.dtype = dtype_of(x),
                .weight_dtype = dtype_of(weight),
                .n = n,
                .stride_x_m = x.stride(0),
                .stride_residual_m = residual.stride(0),
                .stride_out_m = out.stride(0),
                .x = x.const_data_ptr(),
                .residual = residual.mutable_data_ptr(),
                .weight = weight.const_data_ptr(),
                .eps = static_cast<float>(eps),
                .out = out.mutable_data_ptr()},
               m);
}

void silu_mul(const Tensor& x, const Tensor& out) {
  Checker check("silu_mul");
  Dim m("m"), n("n");
  check("out", out).shape({m, n}).dtype(kActivations).last_dim_contiguous();
  check("x", x).shape({m, 2 * n.value()}).same_dtype("out", out).last_dim_contiguous();
  if (m == 0 || n == 0) return;
  const SiluMulArgs args{.dtype = dtype_of(x),
                         .n = n,
                         .stride_x_m = x.stride(0),
                         .stride_out_m = out.stride(0),
                         .x = x.const_data_ptr(),
                         .out = out.mutable_data_ptr()};
  parallel_chunks(m, rows_per_chunk(n),
                  [&](int64_t begin, int64_t end) { kernels().norm.silu_mul(args, begin, end); });
}

}  // namespace
}  // namespace seekernel::cpu

STABLE_TORCH_LIBRARY_IMPL(seekernel, CPU, m) {
  m.impl("rms_norm", TORCH_BOX(&seekernel::cpu::rms_norm));
  m.impl("add_rms_norm", TORCH_BOX(&seekernel::cpu::add_rms_norm));
  m.impl("silu_mul", TORCH_BOX(&seekernel::cpu::silu_mul));
}
