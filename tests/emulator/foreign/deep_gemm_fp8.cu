// DeepGEMM's SM90 block-scaled FP8 GEMM, instantiated from the headers of a PyPI wheel.
//
//   D[m, n] = sum over 128-wide k blocks of sfa[m, kb] * sfb[n / 128, kb] * (A[m, kb] @ B[n, kb]^T)
//
// A, B e4m3 K-major; sfa fp32 [k / 128, align(m, 4)] read by TMA; sfb fp32 [n / 128, k / 128]; D
// bf16. Persistent over -DNUM_SMS blocks. -DMULTICAST=2: clusters of two share tiles of A or B.
#include <cuda_bf16.h>
#include <cuda_fp8.h>

#include <deep_gemm/impls/sm90_fp8_gemm_1d2d.cuh>

#ifndef BLOCK_M
#define BLOCK_M 128
#endif
#ifndef BLOCK_N
#define BLOCK_N 128
#endif
#ifndef STAGES
#define STAGES 4
#endif
#ifndef NUM_SMS
#define NUM_SMS 2
#endif
#ifndef MULTICAST
#define MULTICAST 1
#endif

template __global__ void deep_gemm::sm90_fp8_gemm_1d2d_impl<
    cute::UMMA::Major::K, 0, 0, 0, 1, BLOCK_M, BLOCK_N, 128, 128, 128, 128, STAGES, 128,
    BLOCK_M <= 64 ? 128 : 256, MULTICAST, false, NUM_SMS, deep_gemm::GemmType::Normal,
    cutlass::bfloat16_t, deep_gemm::epilogue::transform::EpilogueIdentity>(
    float*, int*, uint32_t, uint32_t, uint32_t, const __grid_constant__ cute::TmaDescriptor,
    const __grid_constant__ cute::TmaDescriptor, const __grid_constant__ cute::TmaDescriptor,
    const __grid_constant__ cute::TmaDescriptor);
