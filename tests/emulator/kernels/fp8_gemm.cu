// FP8 GEMM, warp-specialised: D[m, n] = A[m, k] @ B[n, k]^T, A and B e4m3 K-major, D bf16.
//
// Shapes: m and n multiples of 128, k of 128; with -DCLUSTER=2 the grid's x (m tiles) is even.
// Roles: warpgroup 0 gives its registers away and one thread of it drives TMA; warpgroups 1 and 2
//   own 64 rows each of a 128x128 tile.
// Shared memory: kStages x (A 16 KB, B 16 KB) swizzled 128B, D 32 KB in 64-column halves, barriers.
// Protocol: full[s] expects one arrival and the bytes of A and B; empty[s] expects one arrival per
//   consumer warp of every CTA whose tile the stage feeds. In a cluster each CTA loads half of B
//   and multicasts it, so a stage may only be refilled when both CTAs' warps have released it.
// Numerics: the tensor-core partial is promoted to fp32 registers every 128 of k.
//
// Each BUG_* macro plants one mistake; cases.py says which report it must cause.
#include "ptx.cuh"

#ifndef CLUSTER
#define CLUSTER 1
#endif
#ifdef BUG_SBO_SMALL
constexpr int kSbo = 512;
#elif defined(BUG_SBO_LARGE)
constexpr int kSbo = 4096;
#else
constexpr int kSbo = 1024;
#endif
#ifdef BUG_DESCRIPTOR_SWIZZLE
constexpr swizzle_t kSwizzle = kSwizzle64;
#else
constexpr swizzle_t kSwizzle = kSwizzle128;
#endif
#ifdef BUG_SETMAXNREG
constexpr int kConsumerRegisters = 240;
#else
constexpr int kConsumerRegisters = 232;
#endif

constexpr int kBlock = 128, kStages = 4, kTileBytes = kBlock * kBlock;
constexpr int kConsumerWarps = 8;

DEVICE void init_barriers(uint32 full, uint32 empty) {
  for (int s = 0; s < kStages; ++s) {
    mbarrier_init(full + 8 * s, 1);
    mbarrier_init(empty + 8 * s, kConsumerWarps * CLUSTER);
  }
#ifndef BUG_NO_INIT_FENCE
  fence_mbarrier_init();
#endif
}

DEVICE void sync_all() {
#if CLUSTER > 1
  cluster_sync();
#else
  __syncthreads();
#endif
}

DEVICE void produce(const tensor_map_t* map_a, const tensor_map_t* map_b, uint32 smem_a,
                    uint32 smem_b, uint32 full, uint32 empty, int num_blocks) {
  for (int k = 0; k < num_blocks; ++k) {
    const int s = k % kStages;
    const uint32 parity = (k / kStages) & 1;
#ifdef BUG_EMPTY_PARITY
    mbarrier_wait_parity(empty + 8 * s, parity);
#elif !defined(BUG_NO_EMPTY_WAIT)
    mbarrier_wait_parity(empty + 8 * s, parity ^ 1);
#endif
#ifdef BUG_TX_BYTES
    mbarrier_arrive_expect_tx(full + 8 * s, 2 * kTileBytes + 16);
#else
    mbarrier_arrive_expect_tx(full + 8 * s, 2 * kTileBytes);
#endif
    tma_load_2d(smem_a + s * kTileBytes, map_a, full + 8 * s, k * kBlock, blockIdx.x * kBlock);
    const uint32 dst = smem_b + s * kTileBytes;
#if CLUSTER > 1
    constexpr int kRows = kBlock / CLUSTER;
    const int row = cluster_ctarank() * kRows;
#ifdef BUG_MULTICAST_MASK
    const uint16 mask = 1 << cluster_ctarank();
#else
    const uint16 mask = (1 << CLUSTER) - 1;
#endif
    tma_load_2d_multicast(dst + row * kBlock, map_b, full + 8 * s, k * kBlock,
                          blockIdx.y * kBlock + row, mask);
#else
    tma_load_2d(dst, map_b, full + 8 * s, k * kBlock, blockIdx.y * kBlock);
#endif
  }
}

// One arrival per consumer warp, at the barrier of every CTA that feeds this stage.
DEVICE void release_stage(uint32 empty_stage, int lane) {
#if CLUSTER > 1 && !defined(BUG_LOCAL_ARRIVE)
  if (lane < CLUSTER) mbarrier_arrive_remote(mapa(empty_stage, lane));
#elif CLUSTER > 1
  if (lane < CLUSTER) mbarrier_arrive(empty_stage);
#else
  if (lane == 0) mbarrier_arrive(empty_stage);
#endif
}

DEVICE void consume(float (&total)[64], uint32 smem_a, uint32 smem_b, uint32 full, uint32 empty,
                    int num_blocks, int lane) {
#pragma unroll
  for (int i = 0; i < 64; ++i) total[i] = 0.f;
  float partial[64];
  for (int k = 0; k < num_blocks; ++k) {
    const int s = k % kStages;
#ifdef BUG_STALE_PHASE
    mbarrier_wait_parity(full + 8 * s, 0);
#elif !defined(BUG_NO_FULL_WAIT)
    mbarrier_wait_parity(full + 8 * s, (k / kStages) & 1);
#endif
    pin_registers(partial);
#ifndef BUG_NO_WGMMA_FENCE
    wgmma_fence();
#endif
#pragma unroll
    for (int kk = 0; kk < kBlock / 32; ++kk) {
      const uint64 a = wgmma_descriptor(smem_a + s * kTileBytes + kk * 32, 16, kSbo, kSwizzle);
      const uint64 b = wgmma_descriptor(smem_b + s * kTileBytes + kk * 32, 16, kSbo, kSwizzle);
      wgmma_m64n128k32_e4m3(partial, a, b, kk != 0);
    }
    wgmma_commit_group();
#ifdef BUG_EARLY_RELEASE
    release_stage(empty + 8 * s, lane);
#endif
#ifdef BUG_ACCUMULATOR_EARLY
    wgmma_wait_group<1>();
#else
    wgmma_wait_group<0>();
#endif
    pin_registers(partial);
#ifndef BUG_EARLY_RELEASE
    release_stage(empty + 8 * s, lane);
#endif
#pragma unroll
    for (int i = 0; i < 64; ++i) total[i] += partial[i];
  }
#ifdef BUG_ACCUMULATOR_EARLY
  wgmma_wait_group<0>();
#endif
}

// Write one warp's 16 rows as bf16 into the swizzled halves that the TMA store reads.
DEVICE void stage_output(const float (&total)[64], uint32 smem_d, int warp, int lane) {
  const int row = warp * 16 + lane % 16;
#pragma unroll
  for (int j = 0; j < kBlock / 16; ++j) {
    uint32 r[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) r[i] = bf16x2(total[8 * j + 2 * i], total[8 * j + 2 * i + 1]);
    const int col = j * 16 + lane / 16 * 8, chunk = col % 64 / 8;
    stmatrix_x4(smem_d + col / 64 * (64 * 128) + row * 128 + ((chunk ^ (row & 7)) << 4), r);
  }
}

extern "C" __global__ void __launch_bounds__(384, 1)
#if CLUSTER > 1
    __cluster_dims__(CLUSTER, 1, 1)
#endif
        fp8_gemm(const __grid_constant__ tensor_map_t map_a,
                 const __grid_constant__ tensor_map_t map_b,
                 const __grid_constant__ tensor_map_t map_d, int k) {
  extern __shared__ __align__(1024) uint8 smem[];
  const uint32 smem_a = shared_address(smem), smem_b = smem_a + kStages * kTileBytes;
  const uint32 smem_d = smem_b + kStages * kTileBytes, full = smem_d + 2 * kTileBytes;
  const uint32 empty = full + 8 * kStages;
  const int group = threadIdx.x / 128, lane = threadIdx.x % 32;

  if (threadIdx.x == 0) init_barriers(full, empty);
#ifndef BUG_NO_INIT_SYNC
  sync_all();
#endif

  if (group == 0) {
    setmaxnreg_dec<40>();
    if (threadIdx.x == 0) produce(&map_a, &map_b, smem_a, smem_b, full, empty, k / kBlock);
  } else {
    setmaxnreg_inc<kConsumerRegisters>();
    const int consumer = group - 1;
    float total[64];
    consume(total, smem_a + consumer * 64 * kBlock, smem_b, full, empty, k / kBlock, lane);

    const uint32 out = smem_d + consumer * (64 * kBlock * 2);
    stage_output(total, out, threadIdx.x / 32 % 4, lane);
#ifndef BUG_NO_STORE_FENCE
    fence_proxy_async_shared();
#endif
#ifndef BUG_NO_STORE_BARRIER
    if (consumer == 0) named_barrier_sync<1, 128>();
    if (consumer == 1) named_barrier_sync<2, 128>();
#endif
    if (threadIdx.x % 128 == 0) {
      for (int half = 0; half < 2; ++half)
        tma_store_2d(&map_d, out + half * (64 * 128), blockIdx.y * kBlock + half * 64,
                     blockIdx.x * kBlock + consumer * 64);
      bulk_commit_group();
      bulk_wait_group<0>();
    }
  }
#if CLUSTER > 1 && !defined(BUG_NO_EXIT_SYNC)
  // A CTA must not leave while its peer may still multicast into it or arrive at its barriers.
  cluster_sync();
#endif
}
