// moe_finalize: the weighted sum of each token's routed rows, and what follows it in a layer.
//
//   sum = sum_j weights[t, j] * y[token_row[t, j]] (+ shared[t]), rounded to bfloat16
//   out = sum, and/or residual += sum; then, given a norm's weight, normed, q, scale of residual as
//   in fused/norm_quantize.cuh
//
// Shapes: y [rows, n], shared, out, residual [m, n] bf16, rows strided, starting at multiples of 16
//   bytes, n % 8 == 0; token_row [m, top_k] int32 (-1, or no row of y: left out), weights [m,
//   top_k] fp32. out, shared, residual may be null.
// Roles: one CTA per token, kSteps times 8 columns a thread; 8 (or 4) rows of y in flight a thread,
// summed
//   in fp32 in the order of j, whatever the launch: the bits never change.
// Bound: HBM: 2 (top_k + 1) bytes read a column at 1 token per row of y. README.md.
#pragma once

#include <seekernel/fused/norm_quantize.cuh>

namespace seekernel {

struct finalize_input_t {
  const bfloat16_t* y;
  const int32_t* token_row;
  const float* weights;
  const bfloat16_t* shared;
  bfloat16_t* out;
  bfloat16_t* residual;
  int64_t stride_y_m, stride_shared_m, stride_out_m, stride_residual_m;
  int32_t m, n, top_k, num_rows;
};

// Adds the weighted rows of one token at `column` to sum.
template <int kInFlight>
SEEKERNEL_DEVICE void add_rows(float (&sum)[8], const finalize_input_t& from, const int32_t* rows,
                               const float* weights, int column) {
  for (int first = 0; first < from.top_k; first += kInFlight) {
    uint4 raw[kInFlight];
    float weight[kInFlight];
    bool present[kInFlight];
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      const int row = first + i < from.top_k ? rows[first + i] : -1;
      present[i] = row >= 0 && row < from.num_rows;
      if (!present[i]) continue;
      weight[i] = weights[first + i];
      raw[i] = *reinterpret_cast<const uint4*>(from.y + row * from.stride_y_m + column);
    }
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      if (!present[i]) continue;
      float y[8];
      unpack(y, raw[i]);
#pragma unroll
      for (int j = 0; j < 8; ++j) sum[j] += weight[i] * y[j];
    }
  }
}

template <typename W, int kSteps>
__global__ void __launch_bounds__(1024)
    moe_finalize(const finalize_input_t from, const norm_output_t<W> to) {
  ptx::griddepcontrol_wait();
  ptx::griddepcontrol_launch_dependents();
  const int64_t row = blockIdx.x;
  float v[kSteps][8] = {};
#pragma unroll
  for (int s = 0; s < kSteps; ++s) {
    const int column = (s * blockDim.x + threadIdx.x) * 8;
    if (column >= from.n) continue;
    add_rows<kSteps == 1 ? 8 : 4>(v[s], from, from.token_row + row * from.top_k,
                                  from.weights + row * from.top_k, column);
    if (from.shared != nullptr) {
      float shared[8];
      load(shared, from.shared + row * from.stride_shared_m + column);
#pragma unroll
      for (int j = 0; j < 8; ++j) v[s][j] += shared[j];
    }
    if (from.out != nullptr) store(from.out + row * from.stride_out_m + column, v[s]);
    if (from.residual != nullptr) {
      round_to(v[s], from.y);
      bfloat16_t* p = from.residual + row * from.stride_residual_m + column;
      float residual[8];
      load(residual, p);
#pragma unroll
      for (int j = 0; j < 8; ++j) v[s][j] += residual[j];
      store_rounded(p, v[s]);
    }
  }
  if (to.weight != nullptr) norm_quantize_row<kSteps>(to, v, row, from.m, from.n);
}

}  // namespace seekernel
