// The producer of sm90_fp8_gemm_nt: fills the ring with A, B and the scales of A, tile after tile.
#pragma once

#include <seekernel/gemm/sm90_fp8_gemm_nt_args.cuh>
#include <seekernel/gemm/sm90_fp8_gemm_nt_config.cuh>
#include <seekernel/ptx/barrier.cuh>
#include <seekernel/ptx/cp_async.cuh>
#include <seekernel/ptx/cp_async_mbarrier.cuh>
#include <seekernel/ptx/mbarrier.cuh>
#include <seekernel/ptx/tma.cuh>
#include <seekernel/ptx/tma_3d.cuh>

namespace seekernel::sm90_fp8_gemm_nt_detail {

// One warp drives TMA; all of it walks the tiles, one lane issues.
template <typename Config>
struct Producer {
  using P = Plan<Config>;
  static constexpr bool kShareA = Config::kMulticast == gemm_multicast::a;
  static constexpr bool kShareB = Config::kMulticast == gemm_multicast::b;

  // Waits until the slot is free, in both CTAs where copies go to both, and says what will come.
  SEEKERNEL_DEVICE void open(const ring_t<Config::kStages>& slot, const tile_t& tile) const {
    ptx::mbarrier_wait_parity(smem + P::kEmpty + 8 * slot.stage, slot.parity ^ 1);
    write_tile<Config>(smem, slot.stage, tile);
    ptx::mbarrier_arrive_expect_tx(smem + P::kFull + 8 * slot.stage, P::kBytesStage);
  }

  SEEKERNEL_DEVICE void load_a(const ring_t<Config::kStages>& slot, const part_t<Config>& part,
                               int batch, int block) const {
    const uint32_t full = smem + P::kFull + 8 * slot.stage;
    const uint32_t to = smem + P::kA + slot.stage * P::kBytesA;
    const int k = block * Config::BLOCK_K;
    if constexpr (kShareA) {
      // Each CTA of the pair fetches half of the rows for both.
      const uint32_t half = rank * (Config::BLOCK_M / 2);
      ptx::tma_load_3d_multicast(to + half * Config::BLOCK_K, map_a, full, k,
                                 part.row + static_cast<int>(half), batch, 3);
    } else {
      ptx::tma_load_3d(to, map_a, full, k, part.row, batch);
    }
#pragma unroll
    for (int box = 0; box < P::kScaleBoxes; ++box) {
      ptx::tma_load_3d(smem + P::kScaleA + slot.stage * P::kBytesScaleA + box * P::kBytesScaleBox,
                       map_sfa, full, (part.row & ~3) + 128 * box, block, batch);
    }
  }

  SEEKERNEL_DEVICE void load_b(const ring_t<Config::kStages>& slot, const part_t<Config>& part,
                               int group, int block, int n) const {
    const uint32_t full = smem + P::kFull + 8 * slot.stage;
#pragma unroll
    for (int i = 0; i < Config::kTilesB; ++i) {
      const uint32_t to = smem + P::kB + slot.stage * P::kBytesB + i * P::kBytesTileB;
      const int k = block * Config::BLOCK_K, row = part.column + i * (n / 2);
      if constexpr (kShareB) {
        const uint32_t half = rank * (Config::BLOCK_N / 2);
        ptx::tma_load_3d_multicast(to + half * Config::BLOCK_K, map_b, full, k,
                                   row + static_cast<int>(half), group, 3);
      } else {
        ptx::tma_load_3d(to, map_b, full, k, row, group);
      }
    }
  }

  template <typename Walker>
  SEEKERNEL_DEVICE void run(Walker& walker, int n, int num_blocks, bool leader) const {
    ring_t<Config::kStages> slot;
    tile_t tile;
    bool more = walker.next(tile);
    int ahead = 0;
    if constexpr (kKnowsTiles) {
      // Weights are constants: those of the first stages need not wait for the kernel before.
      if (more) {
        const part_t<Config> part(tile, rank);
        ahead = min(num_blocks, Config::kStages);
        ring_t<Config::kStages> early;
        for (int block = 0; leader && block < ahead; ++block, early.advance()) {
          open(early, tile);
          load_b(early, part, tile.group, block, n);
        }
      }
      ptx::griddepcontrol_wait();
    }
    for (; more; more = walker.next(tile)) {
      const part_t<Config> part(tile, rank);
      for (int block = 0; leader && block < num_blocks; ++block, slot.advance()) {
        if (block >= ahead) {
          open(slot, tile);
          load_b(slot, part, tile.group, block, n);
        }
        load_a(slot, part, tile.batch, block);
      }
      ahead = 0;
      __syncwarp();
    }
    if (leader) {
      ptx::mbarrier_wait_parity(smem + P::kEmpty + 8 * slot.stage, slot.parity ^ 1);
      write_tile<Config>(smem, slot.stage, {0, 0, 0, 0, 0});
      ptx::mbarrier_arrive(smem + P::kFull + 8 * slot.stage);
    }
  }

  static constexpr bool kKnowsTiles =
      Config::kKind == tile_kind::dense || Config::kKind == tile_kind::batched;

  uint32_t smem, rank;
  const tensor_map_t *map_a, *map_b, *map_sfa;
};

// A whole warpgroup fetches rows of A by index, 16 bytes at a time, and lays them out as TMA would;
// one of its threads drives TMA for B.
template <typename Config>
struct GatherProducer {
  using P = Plan<Config>;
  static constexpr int kRowsPerThread = Config::BLOCK_M / 16;
  // Stages of copies that a thread leaves open. A consumer gives a stage back when the next one is
  // full, so with kLag of kStages - 1 everybody would wait for everybody.
  static constexpr int kLag = Config::kStages > 3 ? 2 : 1;
  static_assert(kLag <= Config::kStages - 2, "at least three stages");

  // Stage `slot` has landed for this thread: wgmma may read it.
  SEEKERNEL_DEVICE void publish(const ring_t<Config::kStages>& slot) const {
    ptx::fence_proxy_async_shared();
    ptx::mbarrier_arrive(smem + P::kFull + 8 * slot.stage);
  }

  template <typename Walker>
  SEEKERNEL_DEVICE void run(Walker& walker, const sm90_fp8_gemm_nt_args_t& args, int n,
                            int num_blocks) const {
    const int thread = threadIdx.x % 128, chunk = thread % 8;
    const Producer<Config> tma{smem, rank, nullptr, map_b, nullptr};
    ring_t<Config::kStages> slot, landed;
    int num_open = 0;
    for (tile_t tile; walker.next(tile);) {
      const part_t<Config> part(tile, rank);
      // Rows beyond the tile repeat its last one: they are multiplied and not stored.
      const auto token = [&](int row) {
        return args.row_token[min(part.row + row, tile.row + tile.rows - 1)];
      };
      int tokens[kRowsPerThread];
#pragma unroll
      for (int i = 0; i < kRowsPerThread; ++i) tokens[i] = token(thread / 8 + 16 * i);
      const int scale_tokens[2] = {token(thread), token(thread + 128)};
      for (int block = 0; block < num_blocks; ++block, slot.advance()) {
        if (thread == 0) {
          tma.open(slot, tile);
          tma.load_b(slot, part, tile.group, block, n);
        } else {
          ptx::mbarrier_wait_parity(smem + P::kEmpty + 8 * slot.stage, slot.parity ^ 1);
        }
        const uint8_t* from = args.a + block * Config::BLOCK_K + chunk * 16;
        const uint32_t to = smem + P::kA + slot.stage * P::kBytesA;
#pragma unroll
        for (int i = 0; i < kRowsPerThread; ++i) {
          const uint32_t row = thread / 8 + 16 * i;
          ptx::cp_async_16(to + row * Config::BLOCK_K + ((chunk ^ row % 8) << 4),
                           from + tokens[i] * args.a_stride_m);
        }
        const float* scales = args.sfa + block * args.sfa_stride;
        const uint32_t to_scale = smem + P::kScaleA + slot.stage * P::kBytesScaleA;
#pragma unroll
        for (int i = 0; i < P::kScaleBoxes; ++i) {
          if (thread < Config::BLOCK_M) {
            ptx::cp_async_4(to_scale + i * P::kBytesScaleBox + 4 * thread, scales + scale_tokens[i],
                            true);
          }
        }
        ptx::cp_async_commit_group();
        if (num_open == kLag) {
          ptx::cp_async_wait_group<kLag>();
          publish(landed);
          landed.advance();
        } else {
          ++num_open;
        }
      }
    }
    ptx::cp_async_wait_group<0>();
    for (; num_open > 0; --num_open, landed.advance()) publish(landed);
    ptx::mbarrier_wait_parity(smem + P::kEmpty + 8 * slot.stage, slot.parity ^ 1);
    if (thread == 0) {
      write_tile<Config>(smem, slot.stage, {0, 0, 0, 0, 0});
      ptx::mbarrier_arrive(smem + P::kFull + 8 * slot.stage);
    }
    ptx::mbarrier_arrive(smem + P::kFull + 8 * slot.stage);
  }

  uint32_t smem, rank;
  const tensor_map_t* map_b;
};

}  // namespace seekernel::sm90_fp8_gemm_nt_detail
