// One-tile flash attention: O = softmax(scale * Q @ K^T) @ V, base-2 LSE beside it.
//
// Shapes: q [64 * tiles, 64], k and v [s_kv, 64], o [64 * tiles, 64] fp32, lse [64 * tiles]; bf16
// in;
//   s_kv is a multiple of 64. One CTA per query tile.
// Roles: warp 4 drives TMA, warps 0-3 are the one consumer warpgroup.
// Shared memory: Q 8 KB, kStages x (K 8 KB, V 8 KB), all swizzled 128B; barriers.
// Protocol: K and V have a full barrier each (one arrival and the tile's bytes) and share an empty
//   barrier that the four consumer warps arrive at once both wgmmas have read the stage.
// S comes from an SS wgmma; P stays in registers as the A operand; V is read MN-major: a 64 (keys)
// x 64
//   (head) tile is eight 1024-byte groups of 8 keys, and a k-step of 16 keys starts two groups
//   further.
#include "ptx.cuh"

constexpr int kTile = 64, kStages = 2, kTileBytes = kTile * kTile * 2;

#ifdef BUG_V_NOT_TRANSPOSED
constexpr int kTransV = 0;
#else
constexpr int kTransV = 1;
#endif
#ifdef BUG_V_STRIDE
constexpr int kStrideV = 512;
#else
constexpr int kStrideV = 1024;
#endif

DEVICE void produce(const tensor_map_t* map_q, const tensor_map_t* map_k, const tensor_map_t* map_v,
                    uint32 smem_q, uint32 smem_kv, uint32 bar_q, uint32 full_k, uint32 full_v,
                    uint32 empty, int num_tiles) {
  mbarrier_arrive_expect_tx(bar_q, kTileBytes);
  tma_load_2d(smem_q, map_q, bar_q, 0, blockIdx.x * kTile);
  for (int t = 0; t < num_tiles; ++t) {
    const int s = t % kStages;
    const uint32 smem_k = smem_kv + s * 2 * kTileBytes;
    mbarrier_wait_parity(empty + 8 * s, (t / kStages & 1) ^ 1);
    mbarrier_arrive_expect_tx(full_k + 8 * s, kTileBytes);
    tma_load_2d(smem_k, map_k, full_k + 8 * s, 0, t * kTile);
    mbarrier_arrive_expect_tx(full_v + 8 * s, kTileBytes);
    tma_load_2d(smem_k + kTileBytes, map_v, full_v + 8 * s, 0, t * kTile);
  }
}

// Scale the running rows to the new maximum and turn scores into probabilities, in place.
DEVICE void softmax_step(float (&score)[32], float (&out)[32], float (&top)[2], float (&sum)[2],
                         float scale_log2) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float best = top[half];
#pragma unroll
    for (int j = 0; j < 8; ++j)
      best = fmaxf(best, fmaxf(score[4 * j + 2 * half], score[4 * j + 2 * half + 1]));
    best = fmaxf(best, __shfl_xor_sync(0xFFFFFFFFu, best, 1));
    best = fmaxf(best, __shfl_xor_sync(0xFFFFFFFFu, best, 2));
    const float shrink = exp2f((top[half] - best) * scale_log2);
    top[half] = best;
    sum[half] *= shrink;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
#pragma unroll
      for (int i = 4 * j + 2 * half; i < 4 * j + 2 * half + 2; ++i) {
        score[i] = exp2f((score[i] - best) * scale_log2);
        sum[half] += score[i];
        out[i] *= shrink;
      }
    }
  }
}

DEVICE void consume(float* o, float* lse, uint32 smem_q, uint32 smem_kv, uint32 bar_q,
                    uint32 full_k, uint32 full_v, uint32 empty, int num_tiles, float scale_log2) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  float out[32], top[2] = {-1e30f, -1e30f}, sum[2] = {0.f, 0.f};
#pragma unroll
  for (int i = 0; i < 32; ++i) out[i] = 0.f;
#ifndef BUG_NO_Q_WAIT
  mbarrier_wait_parity(bar_q, 0);
#endif
  for (int t = 0; t < num_tiles; ++t) {
    const int s = t % kStages;
    const uint32 parity = t / kStages & 1, smem_k = smem_kv + s * 2 * kTileBytes;
    float score[32];
    mbarrier_wait_parity(full_k + 8 * s, parity);
    pin_registers(score);
    wgmma_fence();
#pragma unroll
    for (int kk = 0; kk < 4; ++kk)
      wgmma_m64n64k16_bf16(score, wgmma_descriptor(smem_q + kk * 32, 16, 1024, kSwizzle128),
                           wgmma_descriptor(smem_k + kk * 32, 16, 1024, kSwizzle128), kk != 0);
    wgmma_commit_group();
    wgmma_wait_group<0>();
    pin_registers(score);

    softmax_step(score, out, top, sum, scale_log2);
    uint32 p[16];
#pragma unroll
    for (int i = 0; i < 16; ++i) p[i] = bf16x2(score[2 * i], score[2 * i + 1]);

#ifndef BUG_NO_V_WAIT
    mbarrier_wait_parity(full_v + 8 * s, parity);
#endif
    pin_registers(out);
#pragma unroll
    for (int i = 0; i < 16; ++i) asm volatile("" : "+r"(p[i])::"memory");
#ifndef BUG_NO_RS_FENCE
    wgmma_fence();
#endif
#pragma unroll
    for (int kk = 0; kk < 4; ++kk)
      wgmma_m64n64k16_bf16_rs<kTransV>(
          out, p + 4 * kk,
          wgmma_descriptor(smem_k + kTileBytes + kk * 2 * 1024, 8192, kStrideV, kSwizzle128), true);
    wgmma_commit_group();
#ifdef BUG_EARLY_RELEASE
    if (lane == 0) mbarrier_arrive(empty + 8 * s);
#endif
#ifdef BUG_P_OVERWRITTEN
    // The A registers belong to the wgmma until it has been waited for.
#pragma unroll
    for (int i = 0; i < 16; ++i) asm volatile("xor.b32 %0, %0, 1;" : "+r"(p[i])::"memory");
#endif
    wgmma_wait_group<0>();
    pin_registers(out);
#ifdef BUG_P_OVERWRITTEN
#pragma unroll
    for (int i = 0; i < 16; ++i) asm volatile("" ::"r"(p[i]) : "memory");
#endif
#ifndef BUG_EARLY_RELEASE
    if (lane == 0) mbarrier_arrive(empty + 8 * s);
#endif
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    sum[half] += __shfl_xor_sync(0xFFFFFFFFu, sum[half], 1);
    sum[half] += __shfl_xor_sync(0xFFFFFFFFu, sum[half], 2);
    const int row = blockIdx.x * kTile + warp * 16 + lane / 4 + 8 * half;
#pragma unroll
    for (int j = 0; j < 8; ++j)
      *reinterpret_cast<float2*>(o + row * kTile + 8 * j + lane % 4 * 2) =
          make_float2(out[4 * j + 2 * half] / sum[half], out[4 * j + 2 * half + 1] / sum[half]);
    if (lane % 4 == 0) lse[row] = top[half] * scale_log2 + log2f(sum[half]);
  }
}

extern "C" __global__ void __launch_bounds__(160, 1)
    attention(const __grid_constant__ tensor_map_t map_q,
              const __grid_constant__ tensor_map_t map_k,
              const __grid_constant__ tensor_map_t map_v, float* o, float* lse, int s_kv,
              float scale_log2) {
  extern __shared__ __align__(1024) uint8 smem[];
  const uint32 smem_q = shared_address(smem), smem_kv = smem_q + kTileBytes;
  const uint32 bar_q = smem_kv + kStages * 2 * kTileBytes, full_k = bar_q + 8;
  const uint32 full_v = full_k + 8 * kStages, empty = full_v + 8 * kStages;
  if (threadIdx.x == 0) {
    mbarrier_init(bar_q, 1);
    for (int s = 0; s < kStages; ++s) {
      mbarrier_init(full_k + 8 * s, 1);
      mbarrier_init(full_v + 8 * s, 1);
      mbarrier_init(empty + 8 * s, 4);
    }
    fence_mbarrier_init();
  }
  __syncthreads();
  if (threadIdx.x / 32 == 4) {
    if (elect_one())
      produce(&map_q, &map_k, &map_v, smem_q, smem_kv, bar_q, full_k, full_v, empty, s_kv / kTile);
  } else {
    consume(o, lse, smem_q, smem_kv, bar_q, full_k, full_v, empty, s_kv / kTile, scale_log2);
  }
}
