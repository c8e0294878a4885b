// Launches of the FP8 GEMM family: choose a configuration, find the kernel, describe the tensors.
#pragma once

#include <vector>

#include "heuristics/gemm.h"
#include "jit/registry.h"

namespace seekernel::jit {

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
// driver.
void fp8_gemm_nt(const Fp8GemmNt& problem, const heuristics::GemmConfig& config,
                 const heuristics::Gpu& gpu, uintptr_t stream);

}  // namespace seekernel::jit
