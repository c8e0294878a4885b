// FP8 (e4m3) quantisation with one scale per 1x128 group of activations or 128x128 block of
// weights.
#pragma once

#include "cpu/kernels/dtype.h"

namespace seekernel::cpu {

struct QuantizeFp8Args {
  Dtype dtype;  // of x
  int64_t m, k;
  int64_t stride_x_m;  // elements
  int64_t stride_q_m;
  int64_t stride_scale;  // of the first dim of scale: groups (1x128) or block rows (128x128)
  const void* x;
  float8_e4m3* q;
  float* scale;
};

struct DequantizeFp8Args {
  Dtype dtype;  // of out
  int64_t n, k;
  int64_t stride_q_n;
  int64_t stride_scale_n;
  int64_t stride_out_n;
  const float8_e4m3* q;
  const float* scale;
  void* out;
};

// Two values a byte, the even column in the low nibble, as two's complement.
struct QuantizeInt4Args {
  Dtype dtype;  // of w
  int64_t k;    // even
  int64_t stride_w_n;
  int64_t stride_q_n;  // bytes
  int64_t stride_scale_n;
  const void* w;
  uint8_t* q;
  float* scale;
};

struct QuantizeKernels {
  // Ranges are rows of x, rows of 128x128 blocks, rows of q.
  void (*fp8_1x128)(const QuantizeFp8Args& args, int64_t row_begin, int64_t row_end);
  void (*fp8_128x128)(const QuantizeFp8Args& args, int64_t block_begin, int64_t block_end);
  void (*dequantize_fp8_128x128)(const DequantizeFp8Args& args, int64_t row_begin, int64_t row_end);
  void (*int4_g128)(const QuantizeInt4Args& args, int64_t row_begin, int64_t row_end);
};

}  // namespace seekernel::cpu
