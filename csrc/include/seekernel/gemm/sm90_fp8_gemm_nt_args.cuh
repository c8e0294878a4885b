// The plain parameter of sm90_fp8_gemm_nt. Plain C++ for host and device: both include this file.
#pragma once

#include <seekernel/scheduler/tile_source.cuh>

namespace seekernel {

// Addresses are device memory, strides count elements; what a configuration does not use is zero.
struct sm90_fp8_gemm_nt_args_t {
  tile_source_t tiles;
  const float* sfb;         // [groups, ceil(n / 128), k / 128]
  long long sfb_stride_g;   // of a group; the rows and columns of a group lie together
  void* d;                  // as map_d
  long long d_stride_m;     // of a row: multiple of 8 (bf16), 2 (fp32), 16 (e4m3)
  long long d_stride_g;     // of a matrix `batch`
  float* sfd;               // kOutput e4m3: [n / 256, sfd_stride], by the rows of D
  long long sfd_stride;     // at least D's rows
  const float* row_weight;  // bf16, fp32: multiplies row i of D by row_weight[i], or null
  const int* row_token;     // kGather: row i of A is row row_token[i] of `a`
  const unsigned char* a;   // kGather: [tokens, k] e4m3
  long long a_stride_m;     // kGather: multiple of 16
  const float* sfa;         // kGather: [k / 128, sfa_stride]
  long long sfa_stride;     // kGather: at least the number of tokens
  int n;                    // rows of B, of one group
  int k;
};
static_assert(sizeof(sm90_fp8_gemm_nt_args_t) == 152, "the same on host and device");

}  // namespace seekernel
