// silu_mul_quantize: SwiGLU of a gate and an up half that lie side by side, to e4m3.
//
//   y = bfloat16(silu(x[:, :n]) * x[:, n:]);  s = max(amax(|128 columns of y|), 1e-4) / 448
//   q = e4m3(y / s)
//
// Shapes: x [m, 2 n] bf16, rows at multiples of 16 bytes, n % 8 == 0; q [m, n] e4m3, rows at
//   multiples of 8; scale [ceil(n / 128), stride >= round_up(m, 4)] fp32. The bits are those of
//   silu_mul, then quantize_fp8_1x128.
// Roles: 16 lanes, 8 columns each, take a group of 128; a CTA of 256 threads takes `rows` rows (a
//   power of two up to 16) and 16 / rows groups of each, so that scales are written side by side.
//   Grid (ceil(m / rows), ceil(groups * rows / 16)).
// Bound: HBM: 5 bytes a value of q.
#pragma once

#include <seekernel/fused/quantize_group.cuh>
#include <seekernel/fused/vector.cuh>
#include <seekernel/ptx/barrier.cuh>

namespace seekernel {

constexpr int kSiluThreads = 256;

template <int kThreads>
__global__ void __launch_bounds__(kThreads)
    silu_mul_quantize(const bfloat16_t* x, uint8_t* q, float* scale, int m, int n, int rows,
                      int64_t stride_x_m, int64_t stride_q_m, int64_t stride_scale) {
  ptx::griddepcontrol_wait();
  ptx::griddepcontrol_launch_dependents();
  const int slot = threadIdx.x / kQuantizeLanes;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * rows + slot % rows;
  const int group = blockIdx.y * (kThreads / kQuantizeLanes / rows) + slot / rows;
  const int column = group * kQuantizeGroup + threadIdx.x % kQuantizeLanes * 8;
  const bool inside = row < m && column < n;
  float gate[8] = {}, up[8];
  if (inside) {
    load(gate, x + row * stride_x_m + column);
    load(up, x + row * stride_x_m + n + column);
#pragma unroll
    for (int j = 0; j < 8; ++j) gate[j] = gate[j] / (1.0f + expf(-gate[j])) * up[j];
    round_to(gate, x);
  }
  const quantized_t result = quantize_group(gate);
  if (!inside) return;
  *reinterpret_cast<uint2*>(q + row * stride_q_m + column) = result.codes;
  if (column % kQuantizeGroup == 0) {
    float* scales = scale + group * stride_scale;
    scales[row] = result.scale;
    if (row == m - 1) clear_padding_scales(scales, m);
  }
}

}  // namespace seekernel
