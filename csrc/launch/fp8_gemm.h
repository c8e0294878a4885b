// Launches of the FP8 GEMM family: check the sizes, describe the tensors, find the kernel.
#pragma once

#include "heuristics/gemm.h"
#include "launch/kernel.h"

namespace seekernel::launch {

// D[m, n] = A[m, k] @ B[n, k]^T, see include/seekernel/gemm/sm90_fp8_gemm_nt.cuh. Addresses are
// device memory; strides are in elements. sfa_stride is that of sfa's K blocks, at least m and a
// multiple of 4.
struct Fp8GemmNt {
  uint64_t a, sfa, b, sfb, d;
  int64_t m, n, k;
  int64_t a_stride, sfa_stride, b_stride, d_stride;
};

// The kernel of the wide configuration `config`, for n and k known at run time.
KernelKey sm90_fp8_gemm_nt_key(const heuristics::GemmConfig& config);

// Throws std::invalid_argument naming the size that does not fit, std::runtime_error from the
// driver, and what `find` throws.
void fp8_gemm_nt(const Fp8GemmNt& problem, const heuristics::GemmConfig& config, Finder find,
                 uintptr_t stream);

}  // namespace seekernel::launch
