// What the swapAB kernels share: arguments, shared memory, and the two producer warps that fill the
// ring.
//
// A stage holds one block of 128 of K: kBoxes boxes of 64 weight rows x 128 bytes, the tile's
// tokens as rows of 128 bytes, both swizzled by 128 B, and apart from them one fp32 scale per token
// and one per weight half. Its full barrier takes the bytes and an arrival from every thread that
// announces them, and one from every lane that brings scales, made when they have landed; its empty
// barrier takes one per consumer warp.
#pragma once

#include <seekernel/ptx/barrier.cuh>
#include <seekernel/ptx/cache_policy.cuh>
#include <seekernel/ptx/cp_async_mbarrier.cuh>
#include <seekernel/ptx/mbarrier.cuh>
#include <seekernel/ptx/tma.cuh>
#include <seekernel/ptx/types.cuh>
#include <seekernel/scheduler/tiles.cuh>

namespace seekernel {

// Run-time arguments, the same for all swapAB kernels; 0 or null where a kernel has no use for one.
struct swap_ab_args_t {
  const float* sfa;    // scale of row r of A's matrix g (masked: a group) in K block b:
  int64_t sfa_stride;  //   sfa[g * sfa_group_stride + b * sfa_stride + r]
  int64_t sfa_group_stride;
  const float* sfb;          // [groups, ceil(n / 128), k / 128]
  void* d;                   // output rows
  int64_t d_stride;          // elements between them
  float* d_scale;            // FP8 output: scale of row r in column block c:
  int64_t d_scale_stride;    //   d_scale[c * d_scale_stride + r]
  const int32_t* row_token;  // row r of the tiles is row row_token[r] of A and sfa; null: r
  const float* row_weight;   // row r of D is multiplied by row_weight[r]; null: by 1
  const void* packed;        // int4 weights, [groups, n / 64, k / 128, kInt4BlockBytes]
  int n;                     // rows of B per group
  int k;                     // multiple of 128
  int num_stages;            // of the ring, 2 to kSwapAbMaxStages
  int reserved;
  // Which rows make the tiles (scheduler/tiles.cuh). block_rows is the tokens per tile: 8, 16, 24,
  // 32, 48, 64, 96 or 128. band is at least 1; 8 puts the token blocks of one weight block side by
  // side.
  tile_source_t tiles;
};

inline constexpr int kSwapAbMaxStages = 32;
// 64 rows x 128 of K of int4 weights and behind them the rows' 64 fp32 scales.
inline constexpr int kInt4Bytes = 64 * 128 / 2, kInt4BlockBytes = kInt4Bytes + 64 * 4;

// The wgmma N that holds `rows` tokens.
SEEKERNEL_DEVICE int swap_ab_columns(int rows) {
  return rows <= 32   ? (rows + 7) / 8 * 8
         : rows <= 48 ? 48
         : rows <= 64 ? 64
         : rows <= 96 ? 96
                      : 128;
}

namespace swap_ab_detail {

// Where a CTA's share of K blocks begins and ends: all, or a slice by its rank in the cluster.
struct k_slice_t {
  SEEKERNEL_DEVICE explicit k_slice_t(int k) {
    const int rank = static_cast<int>(ptx::cluster_ctarank());
    const int splits = static_cast<int>(ptx::cluster_nctarank());
    begin = k / 128 * rank / splits;
    end = k / 128 * (rank + 1) / splits;
  }
  int begin, end;
};

// Byte offsets in dynamic shared memory, which starts at a multiple of 1024.
template <typename Config>
struct Plan {
  static constexpr uint32_t kBytesBox = Config::kInt4 ? kInt4Bytes : 64 * 128;
  static constexpr uint32_t kBytesWeights = Config::kBoxes * kBytesBox;
  static constexpr uint32_t kFull = 0;
  static constexpr uint32_t kEmpty = kFull + 8 * kSwapAbMaxStages;
  static constexpr uint32_t kRing = 1024;
  static_assert(kEmpty + 8 * kSwapAbMaxStages <= kRing, "the barriers lie before the ring");

  SEEKERNEL_DEVICE explicit Plan(const swap_ab_args_t& args) {
    const int tile_tokens = args.tiles.block_rows;
    bytes_stage = kBytesWeights + tile_tokens * 128;
    bytes_scales = Config::kInt4 ? Config::kBoxes * 256 : (tile_tokens + 4) * 4;
    weight_scale = tile_tokens * 4;
    scales = kRing + args.num_stages * bytes_stage;
    out = scales + args.num_stages * bytes_scales;
  }

  uint32_t bytes_stage, bytes_scales, weight_scale;
  uint32_t scales;  // of stage 0: tile_tokens of tokens, kHalves of weights; int4: 64 per box
  uint32_t out;     // the epilogue's own
};

// A position in the ring and the parity of its phase.
struct slot_t {
  SEEKERNEL_DEVICE void advance(int num_stages) {
    if (++stage == num_stages) {
      stage = 0;
      parity ^= 1;
    }
  }
  int stage = 0;
  uint32_t parity = 0;
};

template <typename Config>
SEEKERNEL_DEVICE void init_barriers(uint32_t smem, int num_stages) {
  // Each thread that announces bytes arrives, and again, later, each that brings scales by itself.
  constexpr int kFullArrivals = Config::kInt4 ? 2 : 2 * Config::kHalves + 1 + 32;
  for (int stage = 0; stage < num_stages; ++stage) {
    ptx::mbarrier_init(smem + Plan<Config>::kFull + 8 * stage, kFullArrivals);
    ptx::mbarrier_init(smem + Plan<Config>::kEmpty + 8 * stage, 4 * Config::kConsumers);
  }
  ptx::fence_mbarrier_init();
}

// The tiles of this CTA, or of its cluster: they take tiles in turn, but a cluster of more than one
// computes a single tile.
template <typename Config, int kKind>
SEEKERNEL_DEVICE tile_walker_t<kKind, 0> walk(const swap_ab_args_t& args) {
  constexpr int kNoSecond = 1 << 30;
  const int splits = static_cast<int>(ptx::cluster_nctarank());
  return {args.tiles, ceil_div(args.n / Config::kHalves, Config::kBlockN),
          static_cast<int>(blockIdx.x) / splits,
          splits > 1 ? kNoSecond : static_cast<int>(gridDim.x)};
}

// What both producers know. Each is one warp that walks the tiles on its own: weights and tokens
// then never wait for one another, nor weights for the kernel before this one.
template <typename Config, int kKind>
struct Producer {
  using P = Plan<Config>;

  // Waits until the stage is free; returns its full barrier.
  SEEKERNEL_DEVICE uint32_t acquire(slot_t slot) const {
    ptx::mbarrier_wait_parity(smem + P::kEmpty + 8 * slot.stage, slot.parity ^ 1);
    return smem + P::kFull + 8 * slot.stage;
  }

  // Lane i brings half i of the weights: boxes of 64 rows for each consumer, and their scale.
  SEEKERNEL_DEVICE void bring_weights(const tensor_map_t* map_b) const {
    // Only the kinds that read their tiles from device memory depend on the kernel before.
    constexpr bool kConstant = kKind == tile_kind::dense || kKind == tile_kind::batched;
    if constexpr (!kConstant) ptx::griddepcontrol_wait();
    const uint64_t policy = ptx::policy_evict_first();
    const int half_rows = args.n / Config::kHalves, num_blocks = args.k / 128;
    auto tiles = walk<Config, kKind>(args);
    slot_t slot;
    for (tile_t tile; tiles.next(tile);) {
      if (lane < Config::kHalves) {
        const int column = lane * half_rows + tile.n_block * Config::kBlockN;
        const int row = tile.group * args.n + column;
        const float* sfb =
            args.sfb +
            num_blocks * (static_cast<int64_t>(tile.group) * ceil_div(args.n, 128) + column / 128);
        for (int block = slice.begin; block < slice.end; ++block) {
          const uint32_t full = acquire(slot);
          const uint32_t to = smem + P::kRing + slot.stage * plan.bytes_stage +
                              lane * Config::kConsumers * P::kBytesBox;
          ptx::mbarrier_arrive_expect_tx(full, Config::kConsumers * P::kBytesBox);
#pragma unroll
          for (int i = 0; i < Config::kConsumers; ++i) {
            ptx::tma_load_2d_hinted(to + i * P::kBytesBox, map_b, full, block * 128, row + 64 * i,
                                    policy);
          }
          ptx::cp_async_4(
              smem + plan.scales + slot.stage * plan.bytes_scales + plan.weight_scale + 4 * lane,
              sfb + block, true);
          ptx::cp_async_mbarrier_arrive_noinc(full);
          slot.advance(args.num_stages);
        }
      }
      __syncwarp();
    }
  }

  // Lane 0 brings int4 weights: for each consumer the rows' nibbles and their scales.
  SEEKERNEL_DEVICE void bring_int4_weights() const {
    if constexpr (kKind != tile_kind::dense) ptx::griddepcontrol_wait();
    const uint64_t policy = ptx::policy_evict_first();
    const int num_blocks = args.k / 128, last = args.n / 64 - 1;
    auto tiles = walk<Config, kKind>(args);
    slot_t slot;
    for (tile_t tile; tiles.next(tile);) {
      if (lane == 0) {
        const uint8_t* from[Config::kConsumers];
#pragma unroll
        for (int i = 0; i < Config::kConsumers; ++i) {
          // Of a column block that is half outside, the inner half comes twice.
          const int row = min(tile.n_block * Config::kConsumers + i, last);
          from[i] =
              static_cast<const uint8_t*>(args.packed) +
              ((static_cast<int64_t>(tile.group) * (last + 1) + row) * num_blocks + slice.begin) *
                  kInt4BlockBytes;
        }
        for (int block = slice.begin; block < slice.end; ++block) {
          const uint32_t full = acquire(slot);
          ptx::mbarrier_arrive_expect_tx(full, Config::kConsumers * kInt4BlockBytes);
          const uint32_t to = smem + P::kRing + slot.stage * plan.bytes_stage;
          const uint32_t scales = smem + plan.scales + slot.stage * plan.bytes_scales;
#pragma unroll
          for (int i = 0; i < Config::kConsumers; ++i) {
            ptx::bulk_load_hinted(to + i * P::kBytesBox, from[i], kInt4Bytes, full, policy);
            ptx::bulk_load_hinted(scales + i * 256, from[i] + kInt4Bytes, 256, full, policy);
            from[i] += kInt4BlockBytes;
          }
          slot.advance(args.num_stages);
        }
      }
      __syncwarp();
    }
  }

  // Lane i brings tokens 8 * i to 8 * i + 7, or, where rows are gathered, token i of every 32.
  SEEKERNEL_DEVICE void bring_tokens(const tensor_map_t* map_a) const {
    ptx::griddepcontrol_wait();
    const uint64_t policy = ptx::policy_evict_last();
    auto tiles = walk<Config, kKind>(args);
    slot_t slot;
    for (tile_t tile; tiles.next(tile);) {
      const int columns = swap_ab_columns(tile.rows);
      // The matrices of A stand under each other in one tensor map.
      const int first_row = tile.batch * args.tiles.m + tile.row;
      const float* sfa = args.sfa + tile.batch * args.sfa_group_stride;
      // Of this lane's tokens in A and sfa; row -1 is outside the tensor and reads as zeros.
      int rows[kTokensPerLane];
#pragma unroll
      for (int i = 0; i < kTokensPerLane; ++i) {
        const int token = lane + 32 * i;
        rows[i] = !Config::kGather    ? tile.row + token
                  : token < tile.rows ? args.row_token[first_row + token]
                                      : -1;
      }
      sfa += slice.begin * args.sfa_stride;
      for (int block = slice.begin; block < slice.end; ++block, sfa += args.sfa_stride) {
        const uint32_t full = acquire(slot);
        const uint32_t to = smem + P::kRing + slot.stage * plan.bytes_stage + P::kBytesWeights;
        if (lane == 0) ptx::mbarrier_arrive_expect_tx(full, columns * 128);
        __syncwarp();
        if constexpr (!Config::kGather) {
          if (8 * lane < columns) {
            ptx::tma_load_2d_hinted(to + lane * 1024, map_a, full, block * 128,
                                    first_row + 8 * lane, policy);
          }
        }
        const uint32_t scales = smem + plan.scales + slot.stage * plan.bytes_scales + 4 * lane;
        if constexpr (Config::kInt4) {
          slot.advance(args.num_stages);
          continue;
        }
#pragma unroll
        for (int i = 0; i < kTokensPerLane; ++i) {
          const int token = lane + 32 * i;
          if (token >= columns) break;
          if constexpr (Config::kGather) {
            ptx::tma_load_2d_hinted(to + token * 128, map_a, full, block * 128, rows[i], policy);
          }
          const bool valid = token < tile.rows;
          ptx::cp_async_4(scales + 128 * i, valid ? sfa + rows[i] : args.sfa, valid);
        }
        ptx::cp_async_mbarrier_arrive_noinc(full);
        slot.advance(args.num_stages);
      }
    }
  }

  static constexpr int kTokensPerLane = ceil_div(Config::kMaxTokens, 32);
  const swap_ab_args_t& args;
  Plan<Config> plan;
  k_slice_t slice;
  uint32_t smem;
  int lane;
};

}  // namespace swap_ab_detail
}  // namespace seekernel
