// CUDA boundary of moe_finalize, moe_permute_fp8: checks, grid, launch.

// The host's headers come first: seekernel/ptx/types.cuh gives the integer names of NVRTC.
#include "host/check.h"
#include "host/launch.h"
//
#include "host/fused_launch.h"
#include "host/moe_check.h"
//
#include <seekernel/moe/finalize.cuh>
#include <seekernel/moe/permute.cuh>

namespace seekernel::cuda {
namespace {

template <class W>
void launch_finalize(const finalize_input_t& from, const norm_output_t<W>& to,
                     cudaStream_t stream) {
  const LaunchShape shape{
      .grid = {static_cast<unsigned>(from.m)}, .block = {row_threads(from.n)}, .pdl = true};
  launch(shape, stream, "moe_finalize",
         from.n <= kRowVector * kRowThreads ? seekernel::moe_finalize<W, 1>
                                            : seekernel::moe_finalize<W, 2>,
         from, to);
}

void moe_finalize(const Tensor& y, const Tensor& token_row, const Tensor& weights,
                  OptionalTensor shared, OptionalTensor out, OptionalTensor residual,
                  OptionalTensor norm_weight, double eps, OptionalTensor normed, OptionalTensor q,
                  OptionalTensor scale) {
  const Checker check("moe_finalize");
  const FinalizeTensors tensors{y,   token_row, weights,     shared,
                                out, residual,  norm_weight, {normed, q, scale}};
  const FinalizeSizes sizes = check_finalize(check, tensors);
  check("y", y).dtype({ScalarType::BFloat16});
  if (norm_weight) {
    check("norm_weight", *norm_weight).dtype({ScalarType::Float, ScalarType::BFloat16});
    require_rows_at(check, "norm_weight", *norm_weight, 2, 16);
  }
  require_row_size(check, sizes.m, sizes.n, 2 * kRowVector * kRowThreads);
  require_rows_at(check, "y", y, 2, 16);
  if (shared) require_rows_at(check, "shared", *shared, 2, 16);
  if (out) require_rows_at(check, "out", *out, 2, 16);
  if (residual) require_rows_at(check, "residual", *residual, 2, 16);
  require_norm_rows(check, "normed", tensors.norm);
  check.require(sizes.rows <= INT_MAX && sizes.top_k <= INT_MAX,
                "y: expected fewer than 2^31 rows, got " + std::to_string(sizes.rows));
  if (sizes.m == 0 || sizes.n == 0) return;
  const finalize_input_t from{
      .y = static_cast<const bfloat16_t*>(y.const_data_ptr()),
      .token_row = static_cast<const int32_t*>(token_row.const_data_ptr()),
      .weights = static_cast<const float*>(weights.const_data_ptr()),
      .shared = shared ? static_cast<const bfloat16_t*>(shared->const_data_ptr()) : nullptr,
      .out = writable_data<bfloat16_t>(out),
      .residual = writable_data<bfloat16_t>(residual),
      .stride_y_m = y.stride(0),
      .stride_shared_m = row_stride_of(shared),
      .stride_out_m = row_stride_of(out),
      .stride_residual_m = row_stride_of(residual),
      .m = static_cast<int>(sizes.m),
      .n = static_cast<int>(sizes.n),
      .top_k = static_cast<int>(sizes.top_k),
      .num_rows = static_cast<int>(sizes.rows)};
  const DeviceGuard guard(y.get_device_index());
  const cudaStream_t stream = current_stream(y.get_device_index());
  if (norm_weight && norm_weight->scalar_type() == ScalarType::Float) {
    return launch_finalize(from, norm_output<float>(norm_weight, eps, tensors.norm), stream);
  }
  launch_finalize(from, norm_output<bfloat16_t>(norm_weight, eps, tensors.norm), stream);
}

void moe_permute_fp8(const Tensor& q, const Tensor& scale, const Tensor& row_token,
                     const Tensor& q_out, const Tensor& scale_out) {
  const Checker check("moe_permute_fp8");
  const PermuteSizes sizes = check_permute(check, q, scale, row_token, q_out, scale_out);
  check.require(sizes.n % 16 == 0 && sizes.n <= INT_MAX && sizes.rows <= INT_MAX - kPermuteRows,
                "q: expected n a multiple of 16 and fewer than 2^31 rows, got n=" +
                    std::to_string(sizes.n) + ", rows=" + std::to_string(sizes.rows));
  require_rows_at(check, "q", q, 1, 16);
  require_rows_at(check, "q_out", q_out, 1, 16);
  if (sizes.rows == 0 || sizes.n == 0) return;
  const DeviceGuard guard(q.get_device_index());
  launch({.grid = {static_cast<unsigned>((sizes.rows + kPermuteRows - 1) / kPermuteRows)},
          .block = {kPermuteThreads},
          .pdl = true},
         current_stream(q.get_device_index()), "moe_permute_fp8",
         seekernel::moe_permute_fp8<kPermuteThreads>,
         static_cast<const uint8_t*>(q.const_data_ptr()),
         static_cast<const float*>(scale.const_data_ptr()),
         static_cast<const int32_t*>(row_token.const_data_ptr()),
         static_cast<uint8_t*>(q_out.mutable_data_ptr()),
         static_cast<float*>(scale_out.mutable_data_ptr()), sizes.m, sizes.rows, sizes.n,
         sizes.groups, q.stride(0), scale.stride(0), q_out.stride(0), scale_out.stride(0));
}

}  // namespace
}  // namespace seekernel::cuda

STABLE_TORCH_LIBRARY_IMPL(seekernel, CUDA, m) {
  m.impl("moe_finalize", TORCH_BOX(&seekernel::cuda::moe_finalize));
  m.impl("moe_permute_fp8", TORCH_BOX(&seekernel::cuda::moe_permute_fp8));
}
