// CUDA boundary of add_rms_norm_quantize, silu_mul_quantize: checks, grid, launch.
#include <algorithm>

// The host's headers come first: seekernel/ptx/types.cuh gives the integer names of NVRTC.
#include "host/check.h"
#include "host/launch.h"
//
#include "host/fused_launch.h"
//
#include <seekernel/fused/silu_quantize.cuh>

namespace seekernel::cuda {
namespace {

constexpr auto kWeights = {ScalarType::Float, ScalarType::BFloat16};

template <class W>
void launch_norm_quantize(const norm_input_t& from, const norm_output_t<W>& to,
                          cudaStream_t stream) {
  const LaunchShape shape{
      .grid = {static_cast<unsigned>(from.m)}, .block = {row_threads(from.n)}, .pdl = true};
  const int64_t steps = (from.n + kRowVector * kRowThreads - 1) / (kRowVector * kRowThreads);
  launch(shape, stream, "add_rms_norm_quantize",
         steps <= 1   ? seekernel::add_rms_norm_quantize<W, 1>
         : steps <= 2 ? seekernel::add_rms_norm_quantize<W, 2>
                      : seekernel::add_rms_norm_quantize<W, 4>,
         from, to);
}

void add_rms_norm_quantize(OptionalTensor x, const Tensor& residual, const Tensor& weight,
                           double eps, OptionalTensor out, OptionalTensor q, OptionalTensor scale,
                           OptionalTensor token_ids, OptionalTensor embedding) {
  const Checker check("add_rms_norm_quantize");
  Dim m("m"), n("n"), vocabulary("vocabulary");
  check("residual", residual).shape({m, n}).dtype({ScalarType::BFloat16}).last_dim_contiguous();
  if (x) {
    check("x", *x).shape({m, n}).same_dtype("residual", residual).last_dim_contiguous();
    check("x", *x).same_device("residual", residual);
  }
  check("weight", weight).shape({n}).dtype(kWeights).contiguous().same_device("residual", residual);
  const NormOutputs outputs{out, q, scale};
  check_norm_outputs(check, "out", outputs, m, n, "residual", residual);
  check.require(token_ids.has_value() == embedding.has_value(),
                "token_ids and embedding: expected both or neither");
  if (embedding) {
    check("embedding", *embedding).shape({vocabulary, n}).dtype({ScalarType::BFloat16});
    check("embedding", *embedding).last_dim_contiguous().same_device("residual", residual);
    check("token_ids", *token_ids).shape({m}).dtype({ScalarType::Long}).contiguous();
    check("token_ids", *token_ids).same_device("residual", residual);
    require_rows_at(check, "embedding", *embedding, 2, 16);
  }
  require_row_size(check, m, n, 4 * kRowVector * kRowThreads);
  require_rows_at(check, "residual", residual, 2, 16);
  if (x) require_rows_at(check, "x", *x, 2, 16);
  require_rows_at(check, "weight", weight, 2, 16);
  require_norm_rows(check, "out", outputs);
  if (m == 0 || n == 0) return;
  const norm_input_t from{
      .x = x ? static_cast<const bfloat16_t*>(x->const_data_ptr()) : nullptr,
      .residual = static_cast<bfloat16_t*>(residual.mutable_data_ptr()),
      .token_ids =
          token_ids ? static_cast<const seekernel::int64_t*>(token_ids->const_data_ptr()) : nullptr,
      .embedding =
          embedding ? static_cast<const bfloat16_t*>(embedding->const_data_ptr()) : nullptr,
      .stride_x_m = row_stride_of(x),
      .stride_residual_m = residual.stride(0),
      .stride_embedding = row_stride_of(embedding),
      .vocabulary = embedding ? vocabulary.value() : 0,
      .m = static_cast<int>(m),
      .n = static_cast<int>(n)};
  const DeviceGuard guard(residual.get_device_index());
  const cudaStream_t stream = current_stream(residual.get_device_index());
  if (weight.scalar_type() == ScalarType::Float) {
    return launch_norm_quantize(from, norm_output<float>(weight, eps, outputs), stream);
  }
  launch_norm_quantize(from, norm_output<bfloat16_t>(weight, eps, outputs), stream);
}

void silu_mul_quantize(const Tensor& x, const Tensor& q, const Tensor& scale) {
  const Checker check("silu_mul_quantize");
  Dim m("m"), n("n");
  check("q", q).shape({m, n});
  check("x", x).shape({m, 2 * n.value()}).dtype({ScalarType::BFloat16}).last_dim_contiguous();
  check_quantized(check, "q", q, "scale", scale, m, n, "x", x);
  require_row_size(check, m, n, 65535 * 128);
  require_rows_at(check, "x", x, 2, 16);
  require_rows_at(check, "q", q, 1, 8);
  if (m == 0 || n == 0) return;
  constexpr int kGroupsPerCta = kSiluThreads / kQuantizeLanes;
  int rows = 1;
  while (rows < kGroupsPerCta && rows < m) rows *= 2;
  const int64_t groups = (n + kQuantizeGroup - 1) / kQuantizeGroup;
  const DeviceGuard guard(x.get_device_index());
  launch({.grid = {static_cast<unsigned>((m + rows - 1) / rows),
                   static_cast<unsigned>((groups * rows + kGroupsPerCta - 1) / kGroupsPerCta)},
          .block = {kSiluThreads},
          .pdl = true},
         current_stream(x.get_device_index()), "silu_mul_quantize",
         seekernel::silu_mul_quantize<kSiluThreads>,
         static_cast<const bfloat16_t*>(x.const_data_ptr()),
         static_cast<uint8_t*>(q.mutable_data_ptr()), static_cast<float*>(scale.mutable_data_ptr()),
         m.value(), n.value(), rows, x.stride(0), q.stride(0), scale.stride(0));
}

}  // namespace
}  // namespace seekernel::cuda

STABLE_TORCH_LIBRARY_IMPL(seekernel, CUDA, m) {
  m.impl("add_rms_norm_quantize", TORCH_BOX(&seekernel::cuda::add_rms_norm_quantize));
  m.impl("silu_mul_quantize", TORCH_BOX(&seekernel::cuda::silu_mul_quantize));
}
