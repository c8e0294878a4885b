// add_rms_norm_quantize: what stands between two linear layers, in one pass over the row.
//
//   residual = embedding[token_ids] (given them), or residual + x (given x), or residual
//   out = residual / sqrt(mean(residual^2) + eps) * weight, of residual as it is stored
//   s = max(amax(|128 columns of out|), 1e-4) / 448;  q = e4m3(out / s), of out as bfloat16
//
// Shapes: x, residual, out [m, n] bf16, weight [n] in W = float or bfloat16_t, q [m, n] e4m3, scale
//   [ceil(n / 128), stride >= round_up(m, 4)] fp32, embedding [vocabulary, n] bf16, token_ids [m]
//   int64. Rows are strided and start at multiples of 16 bytes (q: 8), n % 8 == 0. out may be null;
//   q and scale are null together. A token id outside the vocabulary gives a row of NaN.
// Roles: one CTA per row, whole warps, kSteps times 8 columns a thread, held in registers from the
//   only read to the last write; 16 lanes share a group of 128. As many threads as rms_norm takes:
//   the sums have its order, and so the bits are those of add_rms_norm, then quantize_fp8_1x128.
// Shared memory: 32 floats, one per warp, and one barrier between their writes and reads.
// Bound: HBM: 4 bytes read and 5 written a value (6 + 5 with x). README.md of moe/.
#pragma once

#include <seekernel/fused/quantize_group.cuh>
#include <seekernel/fused/vector.cuh>
#include <seekernel/ptx/barrier.cuh>

namespace seekernel {

// The norm at the end of a fused kernel; weight is null where there is none.
template <typename W>
struct norm_output_t {
  const W* weight;
  bfloat16_t* out;
  uint8_t* q;
  float* scale;
  int64_t stride_out_m, stride_q_m, stride_scale;
  float eps;
  int32_t reserved;
};

SEEKERNEL_DEVICE void store_rounded(bfloat16_t* p, float (&v)[8]) {
  store(p, v);
  round_to(v, p);
}

// Normalises a row that the CTA's threads hold, v[s] being columns 8 (s blockDim.x + thread), and
// writes it in up to two formats.
template <int kSteps, typename W>
SEEKERNEL_DEVICE void norm_quantize_row(const norm_output_t<W>& to, float (&v)[kSteps][8],
                                        int64_t row, int m, int n) {
  __shared__ float scratch[32];
  float squares = 0.0f;
#pragma unroll
  for (int s = 0; s < kSteps; ++s) {
#pragma unroll
    for (int j = 0; j < 8; ++j) squares += v[s][j] * v[s][j];
  }
  const float mean = block_sum(squares, scratch) / static_cast<float>(n);
  const float inverse = 1.0f / sqrtf(mean + to.eps);
#pragma unroll
  for (int s = 0; s < kSteps; ++s) {
    const int column = (s * blockDim.x + threadIdx.x) * 8;
    const bool inside = column < n;
    if (inside) {
      float w[8];
      load(w, to.weight + column);
#pragma unroll
      for (int j = 0; j < 8; ++j) v[s][j] = v[s][j] * inverse * w[j];
      round_to(v[s], to.out);
      if (to.out != nullptr) store(to.out + row * to.stride_out_m + column, v[s]);
    }
    if (to.q == nullptr) continue;
    const quantized_t group = quantize_group(v[s]);
    if (!inside) continue;
    *reinterpret_cast<uint2*>(to.q + row * to.stride_q_m + column) = group.codes;
    if (column % kQuantizeGroup == 0) {
      float* scales = to.scale + column / kQuantizeGroup * to.stride_scale;
      scales[row] = group.scale;
      if (row == m - 1) clear_padding_scales(scales, m);
    }
  }
}

struct norm_input_t {
  const bfloat16_t* x;  // null: nothing to add
  bfloat16_t* residual;
  const int64_t* token_ids;  // null: residual is read
  const bfloat16_t* embedding;
  int64_t stride_x_m, stride_residual_m, stride_embedding;
  int64_t vocabulary;
  int32_t m, n;
};

template <typename W, int kSteps>
__global__ void __launch_bounds__(1024)
    add_rms_norm_quantize(const norm_input_t from, const norm_output_t<W> to) {
  ptx::griddepcontrol_wait();
  ptx::griddepcontrol_launch_dependents();
  const int64_t row = blockIdx.x;
  bfloat16_t* residual = from.residual + row * from.stride_residual_m;
  const bfloat16_t* source = residual;
  bool known = true;
  if (from.token_ids != nullptr) {
    const int64_t token = from.token_ids[row];
    known = token >= 0 && token < from.vocabulary;
    source = from.embedding + (known ? token : 0) * from.stride_embedding;
  }
  float v[kSteps][8] = {};
#pragma unroll
  for (int s = 0; s < kSteps; ++s) {
    const int column = (s * blockDim.x + threadIdx.x) * 8;
    if (column >= from.n) continue;
    load(v[s], source + column);
    if (from.x != nullptr) {
      float x[8];
      load(x, from.x + row * from.stride_x_m + column);
#pragma unroll
      for (int j = 0; j < 8; ++j) v[s][j] += x[j];
    }
    if (!known) {
#pragma unroll
      for (int j = 0; j < 8; ++j) v[s][j] = __uint_as_float(0x7fc00000u);
    }
    if (from.x != nullptr || from.token_ids != nullptr) store_rounded(residual + column, v[s]);
  }
  norm_quantize_row<kSteps>(to, v, row, from.m, from.n);
}

}  // namespace seekernel
