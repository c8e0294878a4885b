// CPU boundary of rms_norm, add_rms_norm, silu_mul and what quantises behind them: checks, then
// rows shared over threads.
#include "cpu/dtype.h"
#include "cpu/isa.h"
#include "cpu/norm_quantize.h"
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

const int64_t* checked_token_ids(const Checker& check, const Tensor& token_ids, Dim& m,
                                 int64_t vocabulary) {
  check("token_ids", token_ids).shape({m}).dtype({ScalarType::Long}).contiguous();
  const int64_t* ids = static_cast<const int64_t*>(token_ids.const_data_ptr());
  for (int64_t i = 0; i < m; ++i) {
    check.require(ids[i] >= 0 && ids[i] < vocabulary, "token_ids: expected 0 to " +
                                                          std::to_string(vocabulary - 1) +
                                                          ", got " + std::to_string(ids[i]));
  }
  return ids;
}

void add_rms_norm_quantize(OptionalTensor x, const Tensor& residual, const Tensor& weight,
                           double eps, OptionalTensor out, OptionalTensor q, OptionalTensor scale,
                           OptionalTensor token_ids, OptionalTensor embedding) {
  Checker check("add_rms_norm_quantize");
  Dim m("m"), n("n");
  check("residual", residual).shape({m, n}).dtype(kActivations).last_dim_contiguous();
  if (x) check("x", *x).shape({m, n}).same_dtype("residual", residual).last_dim_contiguous();
  check("weight", weight).shape({n}).dtype(kActivations).contiguous();
  const NormOutputs outputs{out, q, scale};
  check_norm_outputs(check, "out", outputs, m, n, "residual", residual);
  check.require(token_ids.has_value() == embedding.has_value(),
                "token_ids and embedding: expected both or neither");
  const int64_t* ids = nullptr;
  if (embedding) {
    Dim vocabulary("vocabulary");
    check("embedding", *embedding).shape({vocabulary, n}).dtype(kActivations);
    check("embedding", *embedding).last_dim_contiguous();
    ids = checked_token_ids(check, *token_ids, m, vocabulary);
  }
  if (m == 0 || n == 0) return;
  const NormQuantize norm(residual, weight, eps, outputs);
  const EmbedArgs embed{.dtype = dtype_of(residual),
                        .table_dtype = embedding ? dtype_of(*embedding) : Dtype::kFloat32,
                        .n = n,
                        .stride_table = embedding ? embedding->stride(0) : 0,
                        .stride_out_m = residual.stride(0),
                        .table = embedding ? embedding->const_data_ptr() : nullptr,
                        .ids = ids,
                        .out = residual.mutable_data_ptr()};
  const AddArgs add{.dtype = dtype_of(residual),
                    .n = n,
                    .stride_x_m = x ? x->stride(0) : 0,
                    .stride_out_m = residual.stride(0),
                    .x = x ? x->const_data_ptr() : nullptr,
                    .out = residual.mutable_data_ptr()};
  parallel_chunks(m, rows_per_chunk(n), [&](int64_t begin, int64_t end) {
    if (ids != nullptr) kernels().norm.embed(embed, begin, end);
    if (add.x != nullptr) kernels().norm.add(add, begin, end);
    norm.run(begin, end);
  });
}

void silu_mul_quantize(const Tensor& x, const Tensor& q, const Tensor& scale) {
  Checker check("silu_mul_quantize");
  Dim m("m"), n("n");
  check("q", q).shape({m, n});
  check("x", x).shape({m, 2 * n.value()}).dtype(kActivations).last_dim_contiguous();
  check_quantized(check, "q", q, "scale", scale, m, n, "x", x);
  if (m == 0 || n == 0) return;
  const SiluMulArgs silu{.dtype = dtype_of(x),
                         .n = n,
                         .stride_x_m = x.stride(0),
                         .stride_out_m = 0,
                         .x = x.const_data_ptr(),
                         .out = nullptr};
  const QuantizeFp8Args quantize{.dtype = dtype_of(x),
                                 .m = m,
                                 .k = n,
                                 .stride_x_m = 0,
                                 .stride_q_m = q.stride(0),
                                 .stride_scale = scale.stride(0),
                                 .x = nullptr,
                                 .q = static_cast<float8_e4m3*>(q.mutable_data_ptr()),
                                 .scale = static_cast<float*>(scale.mutable_data_ptr())};
  for (int64_t group = 0; group < scale.size(0); ++group) {
    for (int64_t row = m; row < scale.size(1); ++row) {
      quantize.scale[group * quantize.stride_scale + row] = 0.0f;
    }
  }
  const int64_t element_bytes = silu.dtype == Dtype::kFloat32 ? 4 : 2;
  parallel_chunks(m, rows_per_chunk(n), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      SiluMulArgs one = silu;
      one.x = static_cast<const char*>(silu.x) + row * silu.stride_x_m * element_bytes;
      one.out = thread_scratch(n);
      kernels().norm.silu_mul(one, 0, 1);
      QuantizeFp8Args to = quantize;
      to.x = one.out;
      to.q += row * to.stride_q_m;
      to.scale += row;
      kernels().quantize.fp8_1x128(to, 0, 1);
    }
  });
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
  m.impl("add_rms_norm_quantize", TORCH_BOX(&seekernel::cpu::add_rms_norm_quantize));
  m.impl("silu_mul_quantize", TORCH_BOX(&seekernel::cpu::silu_mul_quantize));
  m.impl("silu_mul", TORCH_BOX(&seekernel::cpu::silu_mul));
}
