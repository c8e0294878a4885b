// RMS norms and SwiGLU over rows.
#pragma once

#include "cpu/kernels/dtype.h"

namespace seekernel::cpu {

struct RmsNormArgs {
  Dtype dtype;  // of x, residual and out
  Dtype weight_dtype;
  int64_t n;
  int64_t stride_x_m;  // elements
  int64_t stride_residual_m;
  int64_t stride_out_m;
  const void* x;
  void* residual;  // null: plain norm; else residual += x, and the sum is normalised
  const void* weight;
  float eps;
  void* out;
};

struct SiluMulArgs {
  Dtype dtype;
  int64_t n;  // columns of out; x has 2n, gate first
  int64_t stride_x_m;
  int64_t stride_out_m;
  const void* x;
  void* out;
};

struct NormKernels {
  void (*rms_norm)(const RmsNormArgs& args, int64_t row_begin, int64_t row_end);
  void (*silu_mul)(const SiluMulArgs& args, int64_t row_begin, int64_t row_end);
};

}  // namespace seekernel::cpu
