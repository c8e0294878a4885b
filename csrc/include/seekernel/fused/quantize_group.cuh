// One 1x128 group of activations to e4m3, by 16 adjacent lanes of 8 columns each.
#pragma once

#include <seekernel/fused/vector.cuh>
#include <seekernel/ptx/convert_e4m3.cuh>

namespace seekernel {

constexpr int kQuantizeGroup = 128;
constexpr int kQuantizeLanes = 16;

struct quantized_t {
  uint2 codes;  // 8 values
  float scale;
};

// s = max(amax(|group|), 1e-4) / 448;  codes = e4m3(v / s), IEEE quotients. A NaN does not count in
// amax. Called by whole warps; lanes without columns give zeros.
SEEKERNEL_DEVICE quantized_t quantize_group(const float (&v)[8]) {
  float largest = 0.0f;
#pragma unroll
  for (int i = 0; i < 8; ++i) largest = fmaxf(largest, fabsf(v[i]));
#pragma unroll
  for (int step = kQuantizeLanes / 2; step > 0; step /= 2) {
    largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, step));
  }
  quantized_t result;
  result.scale = fmaxf(largest, 1e-4f) / 448.0f;
  uint32_t halves[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    halves[i] = ptx::pack_e4m3x2(v[2 * i] / result.scale, v[2 * i + 1] / result.scale);
  }
  result.codes = make_uint2(halves[0] | halves[1] << 16, halves[2] | halves[3] << 16);
  return result;
}

// The scales of rows num_rows .. round_up(num_rows, 4) are 0; called by whoever owns the last row.
SEEKERNEL_DEVICE void clear_padding_scales(float* scale_of_group, int num_rows) {
  for (int row = num_rows; row < ceil_div(num_rows, 4) * 4; ++row) scale_of_group[row] = 0.0f;
}

}  // namespace seekernel
