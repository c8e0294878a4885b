// Merges the partial results of split items, in ascending order of keys.
//
//   lse = log2(sum of 2^lse_i);  out = sum of 2^(lse_i - lse) * out_i
//
// Shapes: partial_out [partial_rows, 512] and partial_lse [partial_rows] fp32, base 2; out [s *
// h_q, d_v] in T, lse [s * h_q] natural. The plan says which splits are
//   whose.
// Roles: any number of CTAs share the split rows; a CTA of 256 threads takes a row at a time: half
// h
//   sums the splits h, h + 2, ..., four columns a thread, then the first half adds both.
// Bound: the latency of its loads: they are independent, kAhead of them are in flight per thread.
#pragma once

#include <seekernel/attention/mla_decode_plan.cuh>
#include <seekernel/fused/vector.cuh>
#include <seekernel/ptx/barrier.cuh>
#include <seekernel/ptx/exp2.cuh>
#include <seekernel/ptx/matrix.cuh>

namespace seekernel {

namespace mla_combine_detail {

constexpr int kValues = 512, kThreads = 256, kColumns = 4, kAhead = 8;
constexpr float kNegInfinity = -__builtin_huge_valf();

SEEKERNEL_DEVICE void store_row(bfloat16_t* out, const float4& v) {
  *reinterpret_cast<uint2*>(out) =
      make_uint2(ptx::pack_bf16x2(v.x, v.y), ptx::pack_bf16x2(v.z, v.w));
}
SEEKERNEL_DEVICE void store_row(float16_t* out, const float4& v) {
  *reinterpret_cast<uint2*>(out) = make_uint2(ptx::pack_f16x2(v.x, v.y), ptx::pack_f16x2(v.z, v.w));
}

// log2 of the sum of 2^lse over the splits, in every lane, in an order that only their number
// fixes.
SEEKERNEL_DEVICE float merged_lse(const float* lse, int num_splits, int64_t stride) {
  const int lane = threadIdx.x % 32;
  float top = kNegInfinity, total = 0.0f;
  for (int i = lane; i < num_splits; i += 32) top = fmaxf(top, lse[i * stride]);
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    top = fmaxf(top, __shfl_xor_sync(0xFFFFFFFFu, top, step));
  }
  if (top == kNegInfinity) top = 0.0f;
  for (int i = lane; i < num_splits; i += 32) total += ptx::ex2(lse[i * stride] - top);
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    total += __shfl_xor_sync(0xFFFFFFFFu, total, step);
  }
  return total == 0.0f ? kNegInfinity : top + ptx::lg2(total);
}

}  // namespace mla_combine_detail

template <typename T>
__global__ void __launch_bounds__(256)
    mla_combine(const mla_item_t* items, const float* partial_out, const float* partial_lse, T* out,
                float* lse, int rows_per_item) {
  namespace detail = mla_combine_detail;
  __shared__ float4 other_half[detail::kThreads / 2];
  const int half = threadIdx.x / 128, column = detail::kColumns * (threadIdx.x % 128);
  ptx::griddepcontrol_wait();
  ptx::griddepcontrol_launch_dependents();

  const int64_t num_rows =
      static_cast<int64_t>(reinterpret_cast<const mla_plan_size_t*>(items)->num_split_items) *
      rows_per_item;
  for (int64_t i = blockIdx.x; i < num_rows; i += gridDim.x) {
    const mla_item_t item = items[1 + items[1 + i / rows_per_item].split_item];
    const int local = static_cast<int>(i % rows_per_item);
    if (local >= item.num_rows) continue;
    const int64_t first = item.first_partial + local;
    const float* weights = partial_lse + first;
    const float merged = detail::merged_lse(weights, item.num_splits, item.num_rows);
    const float base = merged == detail::kNegInfinity ? 0.0f : merged;
    const float* rows = partial_out + first * detail::kValues + column;
    const int64_t stride = static_cast<int64_t>(item.num_rows) * detail::kValues;
    float4 sum = {0.0f, 0.0f, 0.0f, 0.0f};
    for (int split = half; split < item.num_splits; split += 2 * detail::kAhead) {
      float4 row[detail::kAhead];
      float weight[detail::kAhead];
#pragma unroll
      for (int k = 0; k < detail::kAhead; ++k) {
        const int at = split + 2 * k;
        const bool valid = at < item.num_splits;
        row[k] = valid ? *reinterpret_cast<const float4*>(rows + at * stride)
                       : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        weight[k] =
            valid ? ptx::ex2(weights[static_cast<int64_t>(at) * item.num_rows] - base) : 0.0f;
      }
#pragma unroll
      for (int k = 0; k < detail::kAhead; ++k) {
        sum.x += weight[k] * row[k].x;
        sum.y += weight[k] * row[k].y;
        sum.z += weight[k] * row[k].z;
        sum.w += weight[k] * row[k].w;
      }
    }
    if (half == 1) other_half[threadIdx.x - 128] = sum;
    __syncthreads();
    if (half == 0) {
      const float4 other = other_half[threadIdx.x];
      sum = {sum.x + other.x, sum.y + other.y, sum.z + other.z, sum.w + other.w};
      detail::store_row(out + (item.row + local) * static_cast<int64_t>(detail::kValues) + column,
                        sum);
      if (threadIdx.x == 0) lse[item.row + local] = merged * 0.693147180559945f;
    }
    __syncthreads();
  }
}

}  // namespace seekernel
