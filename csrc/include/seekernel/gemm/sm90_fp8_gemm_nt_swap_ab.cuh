// D = A @ B^T in FP8 with block scales for few tokens: weights on the M side of wgmma, tokens on N.
//
//   D[i, j] = sum over blocks b of 128 of K: sfa[b, i] * sfb[j / 128, b] * (A_b[i] . B_b[j])
//
// Shapes: A [m, k] and B [n, k] e4m3, K-major; sfa [k/128, >= m] fp32, any stride; sfb
//   [ceil(n/128), k/128] fp32; D [m, n] bf16 or fp32. k is a multiple of 128, n of 8 (fp32: 4), m
//   anything from 1.
// Roles: two warps of warpgroup 0 fill the ring (swap_ab_ring.cuh), one with weights, one with
//   tokens; each of the kBlockN / 64 warpgroups behind it owns 64 rows of B. A CTA takes tiles of
//   kBlockN x tile_tokens in turn, and its ring runs on across them: the next tile's weights fly
//   while this one is stored.
// Tokens: a tile of r tokens is multiplied with the smallest wgmma N of 8, 16, 24, 32, 48, 64, 96,
//   128 that holds them and costs N rows of 128 bytes per K block: one compiled kernel for every m.
// Split K: in a cluster of S each rank takes a slice of K of one tile; partial sums are added
//   through distributed shared memory, 8 tokens by one rank, always in the order of the ranks.
// Shared memory: barriers, the ring, D as [token][64] per warpgroup with rows padded by 16 bytes so
//   that the transposing stores meet no bank twice. A row leaves as one bulk copy of exactly its
//   valid bytes: no tensor map of D, no padding, nothing written outside.
// Dependent launch: weights and their scales are constants; the first stages of them are under way
//   before the kernel before this one has finished.
// Bound: by reading B. All shared memory is bytes in flight: 190 KB at 16 tokens.
#pragma once

#include <seekernel/gemm/swap_ab_run.cuh>
#include <seekernel/gemm/swap_ab_store.cuh>

namespace seekernel {

// kMaxTokens bounds args.tile_tokens: what is left out needs no registers.
template <typename Output_, int kBlockN_, int kMaxTokens_>
struct sm90_fp8_gemm_nt_swap_ab_config {
  using Output = Output_;
  static constexpr int kBlockN = kBlockN_, kMaxTokens = kMaxTokens_;
  static constexpr int kConsumers = kBlockN / 64, kHalves = 1, kBoxes = kConsumers;
  static constexpr bool kGather = false, kInt4 = false;
  static constexpr int kThreads = 128 * (1 + kConsumers);
  // Of 64 K registers: 128 * 72 + 256 * 216. The walk over groups takes some of the producers'.
  static constexpr int kProducerRegisters = kConsumers == 1 ? 128 : 72;
  static constexpr int kConsumerRegisters = kConsumers == 1 ? 248 : 216;
  static_assert(kBlockN == 64 || kBlockN == 128, "a tile lies in one row of sfb");
  static_assert(kMaxTokens >= 8 && kMaxTokens <= 128, "the sizes of wgmma N");
};

// Grid: S * min(tiles, CTAs that are resident) with tiles = ceil(n / kBlockN) * ceil(m /
//   tile_tokens) if the cluster (S, 1, 1) is of one, S * tiles if it is larger; S <= min(8, k /
//   128).
// Tensor maps: A box of 128 bytes x 8 rows, B [groups * n, k] box of 128 bytes x 64 rows, both
//   swizzle 128B.
// Dynamic shared memory: 1024 + num_stages * (kBlockN * 128 + tile_tokens * 132 + 16) + kBlockN /
// 64
//   * tile_tokens * (64 * sizeof(Output) + 16); with S > 1 the ring also holds kBlockN *
//   tile_tokens floats.
template <typename Config, int kKind>
__global__ void __launch_bounds__(Config::kThreads, 1)
    sm90_fp8_gemm_nt_swap_ab(const __grid_constant__ tensor_map_t map_a,
                             const __grid_constant__ tensor_map_t map_b,
                             const __grid_constant__ swap_ab_args_t args) {
  const swap_ab_detail::StoreRows<Config> epilogue{args};
  swap_ab_detail::run<Config, kKind>(&map_a, &map_b, args, epilogue);
}

}  // namespace seekernel
