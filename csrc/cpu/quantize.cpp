// CPU boundary of quantize_fp8_1x128, quantize_fp8_128x128, dequantize_fp8_128x128,
// quantize_int4_g128.
#include "cpu/dtype.h"
#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "host/check.h"

namespace seekernel::cpu {
namespace {

constexpr auto kActivations = {ScalarType::Float, ScalarType::BFloat16};
constexpr int64_t kGroup = 128;
constexpr int64_t kElementsPerChunk = 16384;

int64_t num_groups(int64_t size) { return (size + kGroup - 1) / kGroup; }
int64_t rows_per_chunk(int64_t k) { return k >= kElementsPerChunk ? 1 : kElementsPerChunk / k; }

QuantizeFp8Args quantize_args(const Tensor& x, const Tensor& q, const Tensor& scale) {
  return {.dtype = dtype_of(x),
          .m = x.size(0),
          .k = x.size(1),
          .stride_x_m = x.stride(0),
          .stride_q_m = q.stride(0),
          .stride_scale = scale.stride(0),
          .x = x.const_data_ptr(),
          .q = static_cast<float8_e4m3*>(q.mutable_data_ptr()),
          .scale = static_cast<float*>(scale.mutable_data_ptr())};
}

void quantize_fp8_1x128(const Tensor& x, const Tensor& q, const Tensor& scale) {
  Checker check("quantize_fp8_1x128");
  Dim m("m"), k("k");
  check("x", x).shape({m, k}).dtype(kActivations).last_dim_contiguous();
  check("q", q).shape({m, k}).dtype({ScalarType::Float8_e4m3fn}).last_dim_contiguous();
  Dim groups("ceil(k/128)", num_groups(k)), padded_m("round_up(m, 4)", (m + 3) / 4 * 4);
  check("scale", scale).shape({groups, padded_m}).dtype({ScalarType::Float}).last_dim_contiguous();
  if (m == 0 || k == 0) return;
  const QuantizeFp8Args args = quantize_args(x, q, scale);
  for (int64_t group = 0; group < groups; ++group) {
    for (int64_t row = m; row < padded_m; ++row) args.scale[group * args.stride_scale + row] = 0.0f;
  }
  parallel_chunks(m, rows_per_chunk(k), [&](int64_t begin, int64_t end) {
    kernels().quantize.fp8_1x128(args, begin, end);
  });
}

void quantize_fp8_128x128(const Tensor& w, const Tensor& q, const Tensor& scale) {
  Checker check("quantize_fp8_128x128");
  Dim n("n"), k("k");
  check("w", w).shape({n, k}).dtype(kActivations).last_dim_contiguous();
  check("q", q).shape({n, k}).dtype({ScalarType::Float8_e4m3fn}).last_dim_contiguous();
  Dim blocks_n("ceil(n/128)", num_groups(n)), blocks_k("ceil(k/128)", num_groups(k));
  check("scale", scale)
      .shape({blocks_n, blocks_k})
      .dtype({ScalarType::Float})
      .last_dim_contiguous();
  if (n == 0 || k == 0) return;
  const QuantizeFp8Args args = quantize_args(w, q, scale);
  parallel_chunks(blocks_n, 1, [&](int64_t begin, int64_t end) {
    kernels().quantize.fp8_128x128(args, begin, end);
  });
}

void dequantize_fp8_128x128(const Tensor& q, const Tensor& scale, const Tensor& out) {
  Checker check("dequantize_fp8_128x128");
  Dim n("n"), k("k");
  check("q", q).shape({n, k}).dtype({ScalarType::Float8_e4m3fn}).last_dim_contiguous();
  Dim blocks_n("ceil(n/128)", num_groups(n)), blocks_k("ceil(k/128)", num_groups(k));
  check("scale", scale)
      .shape({blocks_n, blocks_k})
      .dtype({ScalarType::Float})
      .last_dim_contiguous();
  check("out", out).shape({n, k}).dtype(kActivations).last_dim_contiguous();
  if (n == 0 || k == 0) return;
  const DequantizeFp8Args args{.dtype = dtype_of(out),
                               .n = n,
                               .k = k,
                               .stride_q_n = q.stride(0),
                               .stride_scale_n = scale.stride(0),
                               .stride_out_n = out.stride(0),
                               .q = static_cast<const float8_e4m3*>(q.const_data_ptr()),
                               .scale = static_cast<const float*>(scale.const_data_ptr()),
                               .out = out.mutable_data_ptr()};
  parallel_chunks(n, rows_per_chunk(k), [&](int64_t begin, int64_t end) {
    kernels().quantize.dequantize_fp8_128x128(args, begin, end);
  });
}

void quantize_int4_g128(const Tensor& w, const Tensor& q, const Tensor& scale) {
  Checker check("quantize_int4_g128");
  Dim n("n"), k("k");
  check("w", w).shape({n, k}).dtype(kActivations).last_dim_contiguous();
  check.require(k % 2 == 0, "expected k to be even, got " + k.describe());
  Dim half_k("k/2", k / 2), groups("ceil(k/128)", num_groups(k));
  check("q", q).shape({n, half_k}).dtype({ScalarType::Byte}).last_dim_contiguous();
  check("scale", scale).shape({n, groups}).dtype({ScalarType::Float}).last_dim_contiguous();
  if (n == 0 || k == 0) return;
  const QuantizeInt4Args args{.dtype = dtype_of(w),
                              .k = k,
                              .stride_w_n = w.stride(0),
                              .stride_q_n = q.stride(0),
                              .stride_scale_n = scale.stride(0),
                              .w = w.const_data_ptr(),
                              .q = static_cast<uint8_t*>(q.mutable_data_ptr()),
                              .scale = static_cast<float*>(scale.mutable_data_ptr())};
  parallel_chunks(n, rows_per_chunk(k), [&](int64_t begin, int64_t end) {
    kernels().quantize.int4_g128(args, begin, end);
  });
}

}  // namespace
}  // namespace seekernel::cpu

STABLE_TORCH_LIBRARY_IMPL(seekernel, CPU, m) {
  m.impl("quantize_fp8_1x128", TORCH_BOX(&seekernel::cpu::quantize_fp8_1x128));
  m.impl("quantize_fp8_128x128", TORCH_BOX(&seekernel::cpu::quantize_fp8_128x128));
  m.impl("quantize_int4_g128", TORCH_BOX(&seekernel::cpu::quantize_int4_g128));
  m.impl("dequantize_fp8_128x128", TORCH_BOX(&seekernel::cpu::dequantize_fp8_128x128));
}
