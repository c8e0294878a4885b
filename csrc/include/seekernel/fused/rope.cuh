// Interleaved rotary embedding: the pairs (x0, x1), (x2, x3), ... turn by an angle each.
//
//   x[2 i], x[2 i + 1] = x[2 i] cos_i - x[2 i + 1] sin_i,  x[2 i] sin_i + x[2 i + 1] cos_i
//
// Shapes: x [s, h, rope] in T = float or bfloat16_t, heads and tokens strided, written in place;
//   positions [s]; cos_sin [max_pos, rope], cosines first. rope % 8 == 0, rows start at multiples
//   of 16 bytes.
// Roles: a thread takes 8 values of one head of one token.
// Bound: HBM, one pass over x; launch latency at small s.
#pragma once

#include <seekernel/fused/vector.cuh>
#include <seekernel/ptx/barrier.cuh>

namespace seekernel {

// Rotates columns [column, column + 8) of a row of `rope`; cos_sin is the position's row.
SEEKERNEL_DEVICE void rotate(float (&v)[8], const float* cos_sin, int rope, int column) {
  const float4 cosines = *reinterpret_cast<const float4*>(cos_sin + column / 2);
  const float4 sines = *reinterpret_cast<const float4*>(cos_sin + rope / 2 + column / 2);
  const float c[4] = {cosines.x, cosines.y, cosines.z, cosines.w};
  const float s[4] = {sines.x, sines.y, sines.z, sines.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float a = v[2 * i], b = v[2 * i + 1];
    v[2 * i] = a * c[i] - b * s[i];
    v[2 * i + 1] = a * s[i] + b * c[i];
  }
}

template <typename T>
__global__ void __launch_bounds__(256)
    rope_interleaved(T* x, const int32_t* positions, const float* cos_sin, int64_t num_vectors,
                     int h, int rope, int64_t stride_x_s, int64_t stride_x_h,
                     int64_t stride_cos_sin) {
  ptx::griddepcontrol_wait();
  ptx::griddepcontrol_launch_dependents();
  const int64_t index = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
  if (index >= num_vectors) return;
  const int per_head = rope / 8;
  const int column = static_cast<int>(index % per_head) * 8;
  const int64_t row = index / per_head, token = row / h, head = row % h;
  T* at = x + token * stride_x_s + head * stride_x_h + column;
  float v[8];
  load(v, at);
  rotate(v, cos_sin + positions[token] * stride_cos_sin, rope, column);
  store(at, v);
}

}  // namespace seekernel
