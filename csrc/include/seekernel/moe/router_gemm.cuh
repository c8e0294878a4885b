// router_gemm: logits = x W^T in bfloat16 on tensor cores, fp32 sums and output.
//
//   out[t, e] = sum_k x[t, k] * w[e, k]
//
// Shapes: x [m, k] bf16, w [e, k] bf16, out [m, e] fp32, rows strided; k % 8 == 0 and rows start at
//   multiples of 16 bytes; any m and e.
// Tile: kExperts rows of w (the mma's M) by kTokens rows of x (its N). Grid (kSplits, expert tiles,
//   token tiles), clusters of kSplits CTAs that split k; within a CTA kWarpsK warps split it again.
// Operands go from global memory to registers, 16 bytes a lane: lane t of a row's four holds
// columns
//   8 t .. 8 t + 7 of 32, for both operands alike, and so permutes k, which a sum may. w is brought
//   into L2 before the wait for the kernel ahead (it never changes).
// Sums: each warp's tile to shared memory; the CTA adds its warps in order and pushes its part of
//   the tile to the CTA of the cluster that owns it; that one adds the cluster's parts in order.
//   Two cluster barriers: everybody has started, everybody has pushed.
// Bound: at decode by L2: every CTA reads kTokens rows of x, every row of w is read once a token
//   tile. See README.md.
#pragma once

#include <seekernel/fused/vector.cuh>
#include <seekernel/ptx/barrier.cuh>
#include <seekernel/ptx/cluster_memory.cuh>
#include <seekernel/ptx/mma.cuh>

namespace seekernel {

struct router_operands_t {
  const bfloat16_t* x;
  const bfloat16_t* w;
  float* out;
  int32_t m, num_experts, k;
  int64_t stride_x_m, stride_w_e, stride_out_m;
};

template <int kTilesE_, int kTilesT_, int kWarpsE_, int kWarpsT_, int kWarpsK_, int kSplits_,
          int kDepth_>
struct router_tile_t {
  static constexpr int kTilesE = kTilesE_, kTilesT = kTilesT_;  // of 16 and 8 rows, a warp
  static constexpr int kWarpsE = kWarpsE_, kWarpsT = kWarpsT_, kWarpsK = kWarpsK_;
  static constexpr int kSplits = kSplits_;  // CTAs of a cluster
  static constexpr int kDepth = kDepth_;    // steps of 32 columns in flight, a warp
  static constexpr int kThreads = 32 * kWarpsE * kWarpsT * kWarpsK;
  static constexpr int kExperts = 16 * kTilesE * kWarpsE, kTokens = 8 * kTilesT * kWarpsT;
  // Rows of 4 floats more than the experts: the banks of a warp's stores are then all different.
  static constexpr int kRow = kExperts + 4;
  static constexpr int kPartialFloats = kWarpsK * kTokens * kRow;
  static constexpr int kQuads = kTokens * kExperts / 4;
  static constexpr int kQuadsPerRank = (kQuads + kSplits - 1) / kSplits;
  static constexpr int kInboxFloats = kSplits * kQuadsPerRank * 4;
  static constexpr bool kReduces = kWarpsK * kSplits > 1;
  static constexpr int kSharedFloats = kReduces ? kPartialFloats + kInboxFloats : 0;
};

// For m <= 8, 32 and 64 (or 128 in two token tiles), and for prefill.
using router_tile_8_t = router_tile_t<1, 1, 1, 1, 8, 8, 4>;
using router_tile_32_t = router_tile_t<1, 4, 1, 1, 8, 8, 4>;
using router_tile_64_t = router_tile_t<2, 8, 1, 1, 8, 8, 2>;
using router_tile_wide_t = router_tile_t<2, 4, 4, 2, 1, 1, 2>;

SEEKERNEL_DEVICE uint4 load_16_bytes(const bfloat16_t* row, bool valid) {
  return valid ? *reinterpret_cast<const uint4*>(row) : make_uint4(0, 0, 0, 0);
}

// The warp's sums over its share of columns [32 step_begin, 32 step_end).
template <class Tile>
SEEKERNEL_DEVICE void router_multiply(const router_operands_t& args,
                                      float (&sums)[Tile::kTilesE][Tile::kTilesT][4], int expert,
                                      int token, int step_begin, int step_end) {
  const int lane = threadIdx.x % 32, row = lane / 4, column = lane % 4 * 8;
  const bfloat16_t* w = args.w + (expert + row) * args.stride_w_e + column;
  const bfloat16_t* x = args.x + (token + row) * args.stride_x_m + column;
  for (int base = step_begin; base < step_end; base += Tile::kWarpsK * Tile::kDepth) {
    uint4 a[Tile::kDepth][Tile::kTilesE][2], b[Tile::kDepth][Tile::kTilesT];
#pragma unroll
    for (int d = 0; d < Tile::kDepth; ++d) {
      const int step = base + d * Tile::kWarpsK;
      const bool inside = step < step_end && 32 * step + column < args.k;
#pragma unroll
      for (int i = 0; i < 2 * Tile::kTilesE; ++i) {
        a[d][i / 2][i % 2] = load_16_bytes(w + 8 * i * args.stride_w_e + 32 * step,
                                           inside && expert + row + 8 * i < args.num_experts);
      }
#pragma unroll
      for (int i = 0; i < Tile::kTilesT; ++i) {
        b[d][i] = load_16_bytes(x + 8 * i * args.stride_x_m + 32 * step,
                                inside && token + row + 8 * i < args.m);
      }
    }
#pragma unroll
    for (int d = 0; d < Tile::kDepth; ++d) {
#pragma unroll
      for (int e = 0; e < Tile::kTilesE; ++e) {
        const uint4 low = a[d][e][0], high = a[d][e][1];
#pragma unroll
        for (int t = 0; t < Tile::kTilesT; ++t) {
          ptx::mma_m16n8k16_bf16(sums[e][t], low.x, high.x, low.y, high.y, b[d][t].x, b[d][t].y);
          ptx::mma_m16n8k16_bf16(sums[e][t], low.z, high.z, low.w, high.w, b[d][t].z, b[d][t].w);
        }
      }
    }
  }
}

SEEKERNEL_DEVICE void store_logits(const router_operands_t& args, int token, int expert, float4 v) {
  if (token >= args.m) return;
  float* p = args.out + token * args.stride_out_m + expert;
  const float values[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (expert + i < args.num_experts) p[i] = values[i];
  }
}

// Brings the CTA's rows of w into L2.
template <class Tile>
SEEKERNEL_DEVICE void router_prefetch(const router_operands_t& args, int expert, int begin,
                                      int end) {
  constexpr int kLine = 64;  // values of 128 bytes
  const int lines = (min(32 * end, args.k) - 32 * begin + kLine - 1) / kLine;
  const int rows = min(Tile::kExperts, args.num_experts - expert);
  for (int i = threadIdx.x; i < rows * lines; i += Tile::kThreads) {
    ptx::prefetch_l2(args.w + (expert + i / lines) * args.stride_w_e + 32 * begin +
                     i % lines * kLine);
  }
}

// Writes the logits of tile (blockIdx.y, blockIdx.z). `shared`: Tile::kSharedFloats floats, free
// for other use after the next barrier. The caller's cluster stays alive until the function ends:
// no CTA touches another one's memory after the second barrier.
template <class Tile>
SEEKERNEL_DEVICE void router_gemm_tile(const router_operands_t& args, float* shared) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int warp_e = warp % Tile::kWarpsE, warp_t = warp / Tile::kWarpsE % Tile::kWarpsT;
  const int warp_k = warp / (Tile::kWarpsE * Tile::kWarpsT);
  const uint32_t rank = Tile::kSplits > 1 ? ptx::cluster_ctarank() : 0;
  const int num_steps = ceil_div(args.k, 32);
  const int begin = num_steps * rank / Tile::kSplits, end = num_steps * (rank + 1) / Tile::kSplits;
  const int tile_expert = blockIdx.y * Tile::kExperts, tile_token = blockIdx.z * Tile::kTokens;
  const int expert = warp_e * 16 * Tile::kTilesE, token = warp_t * 8 * Tile::kTilesT;

  if constexpr (Tile::kSplits > 1) ptx::barrier_cluster_arrive();
  router_prefetch<Tile>(args, tile_expert, begin, end);
  ptx::griddepcontrol_wait();
  float sums[Tile::kTilesE][Tile::kTilesT][4] = {};
  router_multiply<Tile>(args, sums, tile_expert + expert, tile_token + token, begin + warp_k, end);
  ptx::griddepcontrol_launch_dependents();

  if constexpr (!Tile::kReduces) {
#pragma unroll
    for (int e = 0; e < Tile::kTilesE; ++e) {
#pragma unroll
      for (int t = 0; t < Tile::kTilesT; ++t) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int to = tile_token + token + 8 * t + lane % 4 * 2 + i % 2;
          const int of = tile_expert + expert + 16 * e + lane / 4 + i / 2 * 8;
          if (to < args.m && of < args.num_experts) {
            args.out[to * args.stride_out_m + of] = sums[e][t][i];
          }
        }
      }
    }
  } else {
    float* inbox = shared + Tile::kPartialFloats;
    float* mine = shared + warp_k * Tile::kTokens * Tile::kRow;
#pragma unroll
    for (int e = 0; e < Tile::kTilesE; ++e) {
#pragma unroll
      for (int t = 0; t < Tile::kTilesT; ++t) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          mine[(token + 8 * t + lane % 4 * 2 + i % 2) * Tile::kRow + expert + 16 * e + lane / 4 +
               i / 2 * 8] = sums[e][t][i];
        }
      }
    }
    __syncthreads();              // every warp's sums are there
    ptx::barrier_cluster_wait();  // every CTA of the cluster has started
    constexpr int kQuadsPerRow = Tile::kExperts / 4;
    for (int quad = threadIdx.x; quad < Tile::kQuads; quad += Tile::kThreads) {
      const float* p = shared + quad / kQuadsPerRow * Tile::kRow + quad % kQuadsPerRow * 4;
      float4 sum = *reinterpret_cast<const float4*>(p);
#pragma unroll
      for (int i = 1; i < Tile::kWarpsK; ++i) {
        const float4 v = *reinterpret_cast<const float4*>(p + i * Tile::kTokens * Tile::kRow);
        sum = make_float4(sum.x + v.x, sum.y + v.y, sum.z + v.z, sum.w + v.w);
      }
      const uint32_t slot = rank * Tile::kQuadsPerRank + quad % Tile::kQuadsPerRank;
      ptx::store_cluster(
          ptx::mapa(ptx::shared_address(inbox + 4 * slot), quad / Tile::kQuadsPerRank), sum);
    }
    ptx::barrier_cluster_arrive();
    ptx::barrier_cluster_wait();  // every part has arrived
    for (int i = threadIdx.x; i < Tile::kQuadsPerRank; i += Tile::kThreads) {
      const int quad = rank * Tile::kQuadsPerRank + i;
      if (quad >= Tile::kQuads) break;
      float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
      for (int part = 0; part < Tile::kSplits; ++part) {
        const float4 v =
            *reinterpret_cast<const float4*>(inbox + 4 * (part * Tile::kQuadsPerRank + i));
        sum = make_float4(sum.x + v.x, sum.y + v.y, sum.z + v.z, sum.w + v.w);
      }
      store_logits(args, tile_token + quad / kQuadsPerRow, tile_expert + quad % kQuadsPerRow * 4,
                   sum);
    }
  }
}

template <class Tile>
__global__ void __launch_bounds__(Tile::kThreads) router_gemm(const router_operands_t args) {
  extern __shared__ __align__(16) float router_shared[];
  router_gemm_tile<Tile>(args, router_shared);
}

}  // namespace seekernel
