// RMS norm, residual add + RMS norm, SwiGLU over rows, with plain loads and stores.
//
//   rms_norm:      out = x / sqrt(mean(x^2) + eps) * weight
//   add_rms_norm:  residual += x;  out = rms_norm(residual), of the sum as residual stores it
//   silu_mul:      out = silu(gate) * up,  silu(g) = g / (1 + exp(-g)),  x = [gate | up]
//
// Shapes: x, residual, out [m, n] in T = float or bfloat16_t, rows strided; weight [n] in W = float
// or
//   bfloat16_t; silu_mul's x [m, 2 n]. kVector 8 needs n % 8 == 0 and rows that start at multiples
//   of 16 bytes; kVector 1 takes anything. Arithmetic is float32, rounded once.
// Roles: norms: one CTA per row (grid m), whole warps, each thread kVector columns a step; the
// second
//   pass reads the row again, from L1: the same thread wrote or read it. silu_mul: grid (m, column
//   tiles of blockDim.x * kVector), one vector per thread.
// Shared memory: norms: 32 floats, one per warp, and one barrier between their writes and reads.
// Bound: HBM at large m, 2 or 4 passes over [m, n]; launch latency at small m. Not measured yet.
#pragma once

#include <seekernel/fused/vector.cuh>

namespace seekernel {

template <typename T, typename W, int kVector, bool kWithResidual>
SEEKERNEL_DEVICE void rms_norm_row(const T* x, T* residual, const W* weight, T* out, int n,
                                   float eps) {
  __shared__ float scratch[32];
  const int begin = threadIdx.x * kVector, step = blockDim.x * kVector;
  float squares = 0.0f;
  for (int i = begin; i < n; i += step) {
    float v[kVector];
    load(v, x + i);
    if constexpr (kWithResidual) {
      float r[kVector];
      load(r, residual + i);
#pragma unroll
      for (int j = 0; j < kVector; ++j) v[j] += r[j];
      store(residual + i, v);
      round_to(v, residual);
    }
#pragma unroll
    for (int j = 0; j < kVector; ++j) squares += v[j] * v[j];
  }
  const float mean = block_sum(squares, scratch) / static_cast<float>(n);
  const float inverse = 1.0f / sqrtf(mean + eps);
  const T* source = kWithResidual ? residual : x;
  for (int i = begin; i < n; i += step) {
    float v[kVector], w[kVector];
    load(v, source + i);
    load(w, weight + i);
#pragma unroll
    for (int j = 0; j < kVector; ++j) v[j] = v[j] * inverse * w[j];
    store(out + i, v);
  }
}

template <typename T, typename W, int kVector>
__global__ void __launch_bounds__(1024)
    rms_norm(const T* x, const W* weight, T* out, int n, int64_t stride_x_m, int64_t stride_out_m,
             float eps) {
  const int64_t row = blockIdx.x;
  rms_norm_row<T, W, kVector, false>(x + row * stride_x_m, nullptr, weight,
                                     out + row * stride_out_m, n, eps);
}

template <typename T, typename W, int kVector>
__global__ void __launch_bounds__(1024)
    add_rms_norm(const T* x, T* residual, const W* weight, T* out, int n, int64_t stride_x_m,
                 int64_t stride_residual_m, int64_t stride_out_m, float eps) {
  const int64_t row = blockIdx.x;
  rms_norm_row<T, W, kVector, true>(x + row * stride_x_m, residual + row * stride_residual_m,
                                    weight, out + row * stride_out_m, n, eps);
}

template <typename T, int kVector>
__global__ void __launch_bounds__(1024)
    silu_mul(const T* x, T* out, int n, int64_t stride_x_m, int64_t stride_out_m) {
  const int64_t row = blockIdx.x;
  const int i = (blockIdx.y * blockDim.x + threadIdx.x) * kVector;
  if (i >= n) return;
  float gate[kVector], up[kVector];
  load(gate, x + row * stride_x_m + i);
  load(up, x + row * stride_x_m + n + i);
#pragma unroll
  for (int j = 0; j < kVector; ++j) gate[j] = gate[j] / (1.0f + expf(-gate[j])) * up[j];
  store(out + row * stride_out_m + i, gate);
}

}  // namespace seekernel
