// What the swapAB kernels share: arguments, shared memory, and the producer warp that fills the
// ring.
//
// A stage holds one block of 128 of K: kBoxes boxes of 64 weight rows x 128 bytes, the tile's tokens
// as rows of 128 bytes, both swizzled by 128 B, and apart from them one fp32 scale per token and
// one per weight half. Its full barrier takes one arrival with the bytes of the boxes and one per
// producer lane, made when that lane's scales have landed; its empty barrier one per consumer warp.
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
  const float* sfa;          // scale of row r of A's matrix g (masked: a group) in K block b:
  int64_t sfa_stride;        //   sfa[g * sfa_group_stride + b * sfa_stride + r]
  int64_t sfa_group_stride;
  const float* sfb;          // [groups, ceil(n / 128), k / 128]
  void* d;                   // output rows
  int64_t d_stride;          // elements between them
  float* d_scale;            // FP8 output: scale of row r in column block c:
  int64_t d_scale_stride;    //   d_scale[c * d_scale_stride + r]
  const int32_t* row_token;  // row r of the tiles is row row_token[r] of A and sfa; null: r
  const float* row_weight;   // row r of D is multiplied by row_weight[r]; null: by 1
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
  SEEKERNEL_DEVICE k_slice_t(int k, int rank, int splits)
      : begin(k / 128 * rank / splits), end(k / 128 * (rank + 1) / splits) {}
  int begin, end;
};

// Byte offsets in dynamic shared memory, which starts at a multiple of 1024.
template <typename Config>
struct Plan {
  static constexpr uint32_t kBytesBox = 64 * 128;
  static constexpr uint32_t kBytesWeights = Config::kBoxes * kBytesBox;
  static constexpr uint32_t kFull = 0;
  static constexpr uint32_t kEmpty = kFull + 8 * kSwapAbMaxStages;
  static constexpr uint32_t kRing = 1024;
  static_assert(kEmpty + 8 * kSwapAbMaxStages <= kRing, "the barriers lie before the ring");

  SEEKERNEL_DEVICE Plan(int tile_tokens, int num_stages)
      : bytes_stage(kBytesWeights + tile_tokens * 128),
        bytes_scales((tile_tokens + 4) * 4),
        weight_scale(tile_tokens * 4),
        scales(kRing + num_stages * bytes_stage),
        out(scales + num_stages * bytes_scales) {}

  uint32_t bytes_stage, bytes_scales, weight_scale;
  uint32_t scales;  // of stage 0: tile_tokens of tokens, then kHalves of weights
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
  for (int stage = 0; stage < num_stages; ++stage) {
    ptx::mbarrier_init(smem + Plan<Config>::kFull + 8 * stage, 1 + 32);
    ptx::mbarrier_init(smem + Plan<Config>::kEmpty + 8 * stage, 4 * Config::kConsumers);
  }
  ptx::fence_mbarrier_init();
}

// The K blocks that this CTA's tiles need, one after the other.
template <int kKind>
struct Cursor {
  SEEKERNEL_DEVICE Cursor(const tile_source_t& source, int num_n_blocks, int first, int step,
                          k_slice_t slice)
      : tiles(source, num_n_blocks, first, step), slice(slice) {
    open();
  }
  SEEKERNEL_DEVICE void open() {
    live = tiles.next(tile);
    block = slice.begin;
  }
  SEEKERNEL_DEVICE void next() {
    if (++block == slice.end) open();
  }
  tile_walker_t<kKind, 0> tiles;
  k_slice_t slice;
  tile_t tile;
  int block;
  bool live;
};

// One warp. Lane 0 asks for the weights, as many lanes as needed for the tokens, all for scales.
template <typename Config, int kKind>
struct Producer {
  static constexpr bool kKnown = kKind == tile_kind::dense || kKind == tile_kind::batched;

  SEEKERNEL_DEVICE void issue_weights(const Cursor<kKind>& at, slot_t slot) const {
    const uint32_t full = smem + P::kFull + 8 * slot.stage;
    if (lane == 0) {
      const int columns = swap_ab_columns(at.tile.rows);
      ptx::mbarrier_arrive_expect_tx(full, P::kBytesWeights + columns * 128);
      const int half_rows = args.n / Config::kHalves;
      const uint32_t to = smem + P::kRing + slot.stage * plan.bytes_stage;
#pragma unroll
      for (int box = 0; box < Config::kBoxes; ++box) {
        const int half = box / Config::kConsumers, consumer = box % Config::kConsumers;
        const int row =
            at.tile.group * args.n + half * half_rows + column_of(at.tile) + 64 * consumer;
        ptx::tma_load_2d_hinted(to + box * P::kBytesBox, map_b, full, at.block * 128, row, first);
      }
    }
    if (lane < Config::kHalves) {
      const int num_blocks = args.k / 128;
      const int column = lane * (args.n / Config::kHalves) + column_of(at.tile);
      const int64_t row =
          static_cast<int64_t>(at.tile.group) * ceil_div(args.n, 128) + column / 128;
      const uint32_t to = smem + plan.scales + slot.stage * plan.bytes_scales;
      ptx::cp_async_4(to + plan.weight_scale + 4 * lane, args.sfb + row * num_blocks + at.block,
                      true);
    }
    __syncwarp();
  }

  SEEKERNEL_DEVICE void issue_tokens(const Cursor<kKind>& at, slot_t slot) const {
    const uint32_t full = smem + P::kFull + 8 * slot.stage;
    const uint32_t to = smem + P::kRing + slot.stage * plan.bytes_stage + P::kBytesWeights;
    const uint32_t scales = smem + plan.scales + slot.stage * plan.bytes_scales;
    const int columns = swap_ab_columns(at.tile.rows);
    // The matrices of A stand under each other in one tensor map.
    const int first_row = at.tile.batch * args.tiles.m + at.tile.row;
    if (!Config::kGather && 8 * lane < columns) {
      ptx::tma_load_2d_hinted(to + lane * 1024, map_a, full, at.block * 128,
                              first_row + 8 * lane, last);
    }
    const float* sfa =
        args.sfa + at.tile.batch * args.sfa_group_stride + at.block * args.sfa_stride;
    for (int i = lane; i < columns; i += 32) {
      const bool valid = i < at.tile.rows;
      int row = at.tile.row + i;
      if constexpr (Config::kGather) {
        // Row -1 lies outside the tensor: it reads as zeros.
        row = valid ? args.row_token[first_row + i] : -1;
        ptx::tma_load_2d_hinted(to + i * 128, map_a, full, at.block * 128, row, last);
      }
      ptx::cp_async_4(scales + 4 * i, sfa + (valid ? row : 0), valid);
    }
    ptx::cp_async_mbarrier_arrive_noinc(full);
  }

  // Fills the ring for all tiles. What the weights need is known before the wait for the kernel
  // before this one only if the tiles are.
  SEEKERNEL_DEVICE void run(int first_tile, int step, int num_n_blocks, k_slice_t slice) const {
    int ahead = 0;
    if constexpr (!kKnown) ptx::griddepcontrol_wait();
    Cursor<kKind> cursor(args.tiles, num_n_blocks, first_tile, step, slice);
    if constexpr (kKnown) {
      slot_t slot;
      for (Cursor<kKind> early = cursor; ahead < args.num_stages && early.live; ++ahead) {
        issue_weights(early, slot);
        early.next();
        slot.advance(args.num_stages);
      }
      ptx::griddepcontrol_wait();
    }
    for (slot_t slot; cursor.live; cursor.next(), slot.advance(args.num_stages)) {
      if (ahead > 0) {
        --ahead;
      } else {
        ptx::mbarrier_wait_parity(smem + P::kEmpty + 8 * slot.stage, slot.parity ^ 1);
        issue_weights(cursor, slot);
      }
      issue_tokens(cursor, slot);
    }
  }

  SEEKERNEL_DEVICE static int column_of(const tile_t& tile) {
    return tile.n_block * Config::kBlockN;
  }

  using P = Plan<Config>;
  const swap_ab_args_t& args;
  Plan<Config> plan;
  const tensor_map_t* map_a;
  const tensor_map_t* map_b;
  uint32_t smem;
  int lane;
  uint64_t first, last;  // L2 policies: weights are read once, tokens by every CTA
};

}  // namespace swap_ab_detail
}  // namespace seekernel
