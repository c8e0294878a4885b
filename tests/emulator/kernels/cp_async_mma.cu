// Small GEMM with cp.async, ldmatrix and mma.sync: D[16, n] = A[16, k] @ B[n, k]^T, bf16 in, fp32
// out.
//
// Shapes: n a multiple of 32 (a CTA owns 32 columns, a warp 8), k a multiple of 16.
// Shared memory: two stages of A (16 rows of 32 bytes) and B (32 rows of 32 bytes).
// Protocol: each thread copies a part of the next stage, commits one group per stage, waits for its
//   own copies of the current one, and the CTA barrier makes them everybody's.
#include "ptx.cuh"

constexpr int kRowBytes = 32, kBytesA = 16 * kRowBytes, kBytesB = 32 * kRowBytes;

extern "C" __global__ void __launch_bounds__(128)
    cp_async_mma(const uint8* a, const uint8* b, float* d, int k, int n) {
  __shared__ __align__(128) uint8 smem_a[2][kBytesA];
  __shared__ __align__(128) uint8 smem_b[2][kBytesB];
  const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
  const uint64 pitch = 2ull * k;
  const int num_blocks = k / 16;

  const auto load_stage = [&](int block) {
    const int s = block % 2;
    if (thread < 32) {
      const int row = thread / 2, half = thread % 2 * 16;
      cp_async_16(shared_address(&smem_a[s][row * kRowBytes + half]),
                  a + row * pitch + block * kRowBytes + half);
    } else if (thread < 96) {
      const int row = (thread - 32) / 2, half = thread % 2 * 16;
      cp_async_16(shared_address(&smem_b[s][row * kRowBytes + half]),
                  b + (blockIdx.x * 32 + row) * pitch + block * kRowBytes + half);
    }
    cp_async_commit_group();
  };

  float sum[4] = {0.f, 0.f, 0.f, 0.f};
  load_stage(0);
  for (int block = 0; block < num_blocks; ++block) {
    if (block + 1 < num_blocks)
      load_stage(block + 1);
    else
      cp_async_commit_group();
#ifdef BUG_WAIT_TOO_FEW
    cp_async_wait_group<2>();
#elif !defined(BUG_NO_WAIT)
    cp_async_wait_group<1>();
#endif
#ifndef BUG_NO_SYNC
    __syncthreads();
#endif
    const int s = block % 2;
    uint32 fragment_a[4], fragment_b[2];
    ldmatrix_x4(fragment_a, shared_address(&smem_a[s][lane % 16 * kRowBytes + lane / 16 * 16]));
#ifdef BUG_LDMATRIX_ROW
    const int row = lane % 8 + 32;
#else
    const int row = warp * 8 + lane % 8;
#endif
    ldmatrix_x2(fragment_b, shared_address(&smem_b[s][row * kRowBytes + lane / 8 % 2 * 16]));
    mma_m16n8k16_bf16(sum, fragment_a, fragment_b);
#ifndef BUG_NO_REUSE_SYNC
    __syncthreads();
#endif
  }
  const int row = lane / 4, col = blockIdx.x * 32 + warp * 8 + lane % 4 * 2;
  *reinterpret_cast<float2*>(d + static_cast<uint64>(row) * n + col) = make_float2(sum[0], sum[1]);
  *reinterpret_cast<float2*>(d + static_cast<uint64>(row + 8) * n + col) =
      make_float2(sum[2], sum[3]);
}
