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

struct EmbedArgs {
  Dtype dtype;  // of out
  Dtype table_dtype;
  int64_t n;
  int64_t stride_table;
  int64_t stride_out_m;
  const void* table;
  const int64_t* ids;  // legal rows of table
  void* out;
};

struct AddArgs {
  Dtype dtype;
  int64_t n;
  int64_t stride_x_m;
  int64_t stride_out_m;
  const void* x;
  void* out;  // += x
};

struct NormKernels {
  void (*rms_norm)(const RmsNormArgs& args, int64_t row_begin, int64_t row_end);
  void (*silu_mul)(const SiluMulArgs& args, int64_t row_begin, int64_t row_end);
  void (*embed)(const EmbedArgs& args, int64_t row_begin, int64_t row_end);
  void (*add)(const AddArgs& args, int64_t row_begin, int64_t row_end);
};

}  // namespace seekernel::cpu
