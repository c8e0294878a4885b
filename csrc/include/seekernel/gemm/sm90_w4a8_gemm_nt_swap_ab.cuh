// D = alpha * A @ B^T with int4 weights and FP8 activations, for few tokens per group.
//
//   D[i, j] = alpha * sum over blocks b of 128 of K: s[j, b] * (A_b[i] . Q_b[j])
//
// Shapes: A [rows, k] e4m3; alpha one fp32 (args.sfa); B [groups, n, k] of values -7 to 7 with one
//   fp32 scale per row and 128 of K, repacked once at load (below); D [rows, n] bf16 or fp32, times
//   row_weight where given. k is a multiple of 128, n of 64.
// Packed weights: [groups, n / 64, k / 128] blocks of kInt4BlockBytes = 4352. A block is 4096 bytes
// of
//   nibbles [2][128 threads][4 words], then its 64 rows' scales times 2^9. Word w of half h is step
//   2 * h + w / 2 of 32 along K and holds two operand registers of wgmma, r = w % 2 * 2 and r + 1,
//   of thread 32 * warp + lane. Byte i of register r is row 16 * warp + lane / 4 + 8 * (r % 2) and
//   column 4 * (lane % 4) + i + 16 * (r / 2) of the step. In the word the even register's byte i
//   has its magnitude at bit 8 * i and its sign at bit 8 * i + 7; the odd one's stand 4 bits
//   higher, going round. Sign and magnitude are an e4m3 of magnitude * 2^-9, which the scales make
//   good.
// Roles, memory, tokens, split K, dependent launch: as sm90_fp8_gemm_nt_swap_ab. The weights of a
//   stage are plain bulk copies of whole blocks, and multiply from registers: 3 integer
//   instructions per 8 weights.
// Bound: by reading B: 4.25 bits per weight.
#pragma once

#include <seekernel/gemm/swap_ab_run.cuh>
#include <seekernel/gemm/swap_ab_store.cuh>

namespace seekernel {

template <typename Output_, int kBlockN_, int kMaxTokens_>
struct sm90_w4a8_gemm_nt_swap_ab_config {
  using Output = Output_;
  static constexpr int kBlockN = kBlockN_, kMaxTokens = kMaxTokens_;
  static constexpr int kConsumers = kBlockN / 64, kHalves = 1, kBoxes = kConsumers;
  static constexpr bool kGather = false, kInt4 = true;
  static constexpr int kThreads = 128 * (1 + kConsumers);
  // Of 64 K registers: 128 * 72 + 256 * 216.
  static constexpr int kProducerRegisters = kConsumers == 1 ? 128 : 72;
  static constexpr int kConsumerRegisters = kConsumers == 1 ? 248 : 216;
  static_assert(kBlockN == 64 || kBlockN == 128, "one or two consumer warpgroups");
  static_assert(kMaxTokens >= 8 && kMaxTokens <= 128, "the sizes of wgmma N");
};

// Grid, cluster, tensor map of A: as sm90_fp8_gemm_nt_swap_ab; there is none of B. args.packed is
//   the weights, args.sfa alpha; the strides of sfa and sfb are not used.
// Dynamic shared memory: 1024 + num_stages * (kBlockN * 68 + tile_tokens * 128) + kBlockN / 64 *
//   tile_tokens * (64 * sizeof(Output) + 16); with S > 1 the ring also holds kBlockN * tile_tokens
//   floats.
template <typename Config, int kKind>
__global__ void __launch_bounds__(Config::kThreads, 1)
    sm90_w4a8_gemm_nt_swap_ab(const __grid_constant__ tensor_map_t map_a,
                              const __grid_constant__ swap_ab_args_t args) {
  const swap_ab_detail::StoreRows<Config> epilogue{args};
  swap_ab_detail::run<Config, kKind>(&map_a, nullptr, args, epilogue);
}

}  // namespace seekernel
