// moe_permute_fp8: rows of tokens into the order of a plan, with their scales.
//
//   q_out[r] = q[row_token[r]];  scale_out[:, r] = scale[:, row_token[r]];  rows of -1 are left out
//
// Shapes: q [m, n], q_out [rows, n] e4m3, rows strided, starting at multiples of 16 bytes, n % 16
//   == 0; scale [groups, stride >= m], scale_out [groups, stride >= rows] fp32; row_token [rows]
//   int32.
// Roles: a CTA of kThreads threads takes 32 rows: a warp copies rows warp, warp + 8, ... by 16
// bytes
//   a lane; then groups warp, warp + 8, ... of the scales, a lane per row, written side by side.
// Bound: HBM: 2 n + 8 groups bytes a row (the reads of a token's row hit L2 after the first).
#pragma once

#include <seekernel/ptx/barrier.cuh>
#include <seekernel/ptx/types.cuh>

namespace seekernel {

constexpr int kPermuteRows = 32, kPermuteThreads = 256;

template <int kThreads>
__global__ void __launch_bounds__(kThreads)
    moe_permute_fp8(const uint8_t* q, const float* scale, const int32_t* row_token, uint8_t* q_out,
                    float* scale_out, int m, int num_rows, int n, int num_groups,
                    int64_t stride_q_m, int64_t stride_scale, int64_t stride_q_out_m,
                    int64_t stride_scale_out) {
  ptx::griddepcontrol_wait();
  ptx::griddepcontrol_launch_dependents();
  constexpr int kWarps = kThreads / 32;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kPermuteRows;
  const int64_t mine = first + lane;
  int token = mine < num_rows ? row_token[mine] : -1;
  if (token >= m) token = -1;
  for (int i = warp; i < kPermuteRows; i += kWarps) {
    const int64_t source = __shfl_sync(0xffffffffu, token, i);
    if (source < 0) continue;
    const uint4* from = reinterpret_cast<const uint4*>(q + source * stride_q_m);
    uint4* to = reinterpret_cast<uint4*>(q_out + (first + i) * stride_q_out_m);
#pragma unroll 4
    for (int j = lane; j < n / 16; j += 32) to[j] = from[j];
  }
  if (token < 0) return;
  for (int group = warp; group < num_groups; group += kWarps) {
    scale_out[group * stride_scale_out + mine] = scale[group * stride_scale + token];
  }
}

}  // namespace seekernel
