// out = a @ b.T for one weight matrix or a group of them: the arguments of every GEMM op of the
// CPU.
#pragma once

#include "cpu/kernels/dtype.h"

namespace seekernel::cpu {

// Rows of a and out are numbered through all groups: row r lies at
// (r / rows_per_group) * stride_g + (r % rows_per_group) * stride_m.
struct GemmRows {
  int64_t rows_per_group;
  int64_t stride_g;  // elements
  int64_t stride_m;
};

struct GemmArgs {
  Dtype a_dtype;    // float32, bfloat16, or e4m3 with a_scale
  Dtype b_dtype;    // float32, bfloat16, or e4m3 or int4 with b_scale
  Dtype out_dtype;  // float32 or bfloat16
  bool swiglu;      // b holds n gate rows, then n up rows: out = silu(gate) * up
  int64_t n;        // columns of out
  int64_t k;
  const void* a;
  GemmRows a_rows;
  const int32_t* row_token;  // null, or which row of a serves as row r
  const float* a_scale;      // [ceil(k / 128), stride_a_scale]: one multiplier per row and 128 of k
  int64_t stride_a_scale;
  int64_t stride_a_scale_g;  // of groups of a_rows
  float alpha;               // int4: of the whole product
  const void* b;
  int64_t stride_b_g;  // int4: bytes
  int64_t stride_b_n;
  const float* b_scale;  // e4m3: one multiplier per 128x128 block; the up rows start a grid of
                         // their own. int4: one per row and 128 of k
  int64_t stride_b_scale_g;
  int64_t stride_b_scale_n;
  void* out;
  GemmRows out_rows;
  const float* row_weight;  // null, or multiplies row r of out
  float* packed;  // rows packed_begin.. of a as floats, in the order the weights expand to
  int64_t packed_begin;
  int64_t stride_packed;  // gemm_packed_stride(k)
};

// One piece of work: some rows of one group times some of its weight rows.
struct GemmTask {
  int64_t group;
  int64_t row_begin, row_end;  // at most GemmKernels::max_rows
  int64_t col_begin, col_end;  // at most kGemmSlab, inside one 128-row block of scales
};

constexpr int64_t kGemmSlab = 128;

// 256 is a whole number of vectors of weights in every dtype and ISA.
constexpr int64_t gemm_packed_stride(int64_t k) { return (k + 255) / 256 * 256; }

struct GemmKernels {
  void (*pack)(const GemmArgs& args, int64_t row_begin, int64_t row_end);
  void (*run)(const GemmArgs& args, const GemmTask& task, float* scratch);
  int64_t scratch_floats;  // what run needs, 64-byte aligned
  int64_t max_rows;
};

}  // namespace seekernel::cpu
