// A consumer warpgroup of sm90_fp8_gemm_nt: products of a stage by wgmma, promoted into fp32.
#pragma once

#include <seekernel/gemm/sm90_fp8_gemm_nt_epilogue.cuh>
#include <seekernel/ptx/mbarrier.cuh>
#include <seekernel/ptx/mbarrier_remote.cuh>
#include <seekernel/ptx/named_barrier.cuh>
#include <seekernel/ptx/shared_memory.cuh>
#include <seekernel/ptx/wgmma.cuh>

namespace seekernel::sm90_fp8_gemm_nt_detail {

// The weight scales of a tile's row of sfb, 32 K blocks at a time in the lanes of a warp.
struct weight_scales_t {
  const float* row;
  float mine;

  SEEKERNEL_DEVICE void fetch(int block, int num_blocks) {
    const int at = block + static_cast<int>(threadIdx.x % 32);
    mine = at < num_blocks ? row[at] : 0.0f;
  }
  SEEKERNEL_DEVICE float of(int block) const { return __shfl_sync(0xffffffffu, mine, block % 32); }
};

template <typename Config>
struct Consumer {
  using P = Plan<Config>;
  using Ring = ring_t<Config::kStages>;
  static constexpr int kSums = Config::BLOCK_N / 2;
  static constexpr int kWaves = Config::kWaves;
  // Rows of D between the halves of a warpgroup's rows, and between the warpgroups.
  static constexpr int kWaveRows = Config::kSwiglu ? 0 : 64;
  static constexpr int kRows = Config::BLOCK_M / Config::kConsumersPerTile;

  // The warpgroup's first row in the tile.
  SEEKERNEL_DEVICE int tile_rows() const { return Config::kPingPong ? 0 : consumer * kRows; }

  SEEKERNEL_DEVICE const float* scale_row(const tile_t& tile, const part_t<Config>& part,
                                          int wave) const {
    const int column = part.column + (Config::kSwiglu ? wave * (n / 2) : 0);
    const int last = ceil_div(n, 128) - 1;
    return args.sfb + tile.group * args.sfb_stride_g +
           static_cast<int64_t>(min(column / 128, last)) * num_blocks;
  }

  SEEKERNEL_DEVICE void wait_full(const Ring& slot) const {
    ptx::mbarrier_wait_parity(smem + P::kFull + 8 * slot.stage, slot.parity);
  }

  // Waits for the first stage of a tile and reads which one it is; false if there is none.
  SEEKERNEL_DEVICE bool take(tile_t& tile, const Ring& slot) const {
    wait_full(slot);
    tile = read_tile<Config>(smem, slot.stage);
    return tile.rows != 0;
  }

  // The scales of this thread's two rows, once the stage is full; `first_row` is the tile's.
  SEEKERNEL_DEVICE void load_scales(float (&scales)[2], const Ring& slot, int first_row,
                                    int wave) const {
    const int row = tile_rows() + wave * kWaveRows + 16 * warp + lane / 4;
    const int early = Config::kGather ? 0 : first_row & 3;
    const uint32_t at = smem + P::kScaleA + slot.stage * P::kBytesScaleA +
                        row / 128 * P::kBytesScaleBox + 4 * (row % 128 + early);
    scales[0] = ptx::load_shared_f32(at);
    scales[1] = ptx::load_shared_f32(at + 32);
  }

  // Starts partial = A_block @ B_block^T as one wgmma group.
  SEEKERNEL_DEVICE void issue(float (&partial)[kSums], const Ring& slot, int wave) const {
    const uint64_t a =
        ptx::wgmma_descriptor_k_major_128b(smem + P::kA + slot.stage * P::kBytesA +
                                           (tile_rows() + wave * kWaveRows) * Config::BLOCK_K);
    const uint64_t b = ptx::wgmma_descriptor_k_major_128b(
        smem + P::kB + slot.stage * P::kBytesB + (Config::kSwiglu ? wave * P::kBytesTileB : 0));
    ptx::pin_registers(partial);
    ptx::wgmma_fence();
#pragma unroll
    for (int step = 0; step < Config::BLOCK_K / 32; ++step) {
      // The address field counts 16 bytes: 32 bytes along K are 2.
      ptx::wgmma_e4m3_t<Config::BLOCK_N>::issue(partial, a + 2 * step, b + 2 * step, step != 0);
    }
    ptx::wgmma_commit_group();
    ptx::pin_registers(partial);
  }

  // Gives the stage back: to this CTA's producer, and to the other's where it copies to both.
  SEEKERNEL_DEVICE void release(const Ring& slot) const {
    // The arrival must come after every lane's read of the scales.
    __syncwarp();
    const uint32_t empty = smem + P::kEmpty + 8 * slot.stage;
    if constexpr (Config::kCluster == 1) {
      if (lane == 0) ptx::mbarrier_arrive(empty);
    } else {
      if (lane < Config::kCluster) ptx::mbarrier_arrive_remote(ptx::mapa(empty, lane));
    }
  }

  // total += sfa * sfb * partial.
  SEEKERNEL_DEVICE void promote(float (&total)[kSums], float (&partial)[kSums],
                                const float (&scales)[2], float scale_b) const {
    ptx::pin_registers(partial);
    const float low = scales[0] * scale_b, high = scales[1] * scale_b;
#pragma unroll
    for (int i = 0; i < kSums; ++i) total[i] += (i & 2 ? high : low) * partial[i];
  }

  SEEKERNEL_DEVICE void clear(float (&total)[kSums]) const {
#pragma unroll
    for (int i = 0; i < kSums; ++i) total[i] = 0.0f;
  }

  SEEKERNEL_DEVICE void store(float (&total)[kSums], const tile_t& tile, int wave) const {
    const part_t<Config> part(tile, rank);
    const int row = tile_rows() + wave * kWaveRows + 16 * warp;
    const int piece = Config::kPingPong ? 4 * consumer + warp : row / 16;
    epilogue.store(total, piece, part.row + row, part.rows - row, part.column, n, tile.batch);
  }

  // Two banks of partial sums for one product a stage: a stage is multiplied while the one before
  // is promoted, and the first stage of the next tile while the finished tile is stored.
  SEEKERNEL_DEVICE void run_two_banks() const {
    float even[kSums], odd[kSums], total[kSums];
    float even_scales[2], odd_scales[2];
    Ring issued, promoted;
    tile_t tile;
    weight_scales_t weights{};
    int first_row = 0;
    const auto open = [&](const tile_t& tile) {
      const part_t<Config> part(tile, rank);
      weights.row = scale_row(tile, part, 0);
      weights.fetch(0, num_blocks);
      first_row = part.row;
    };
    const auto start = [&](float (&partial)[kSums], float (&scales)[2]) {
      issue(partial, issued, 0);
      load_scales(scales, issued, first_row, 0);
      issued.advance();
    };
    const auto finish = [&](float (&partial)[kSums], const float (&scales)[2], int block) {
      release(promoted);
      promoted.advance();
      if (block % 32 == 0 && block != 0) weights.fetch(block, num_blocks);
      promote(total, partial, scales, weights.of(block));
    };
    if (!take(tile, issued)) return;
    open(tile);
    start(even, even_scales);
    while (true) {
      clear(total);
      int block = 0;
      for (; block + 2 < num_blocks; block += 2) {
        wait_full(issued);
        start(odd, odd_scales);
        ptx::wgmma_wait_group<1>();
        finish(even, even_scales, block);
        wait_full(issued);
        start(even, even_scales);
        ptx::wgmma_wait_group<1>();
        finish(odd, odd_scales, block + 1);
      }
      if (block + 1 < num_blocks) {
        wait_full(issued);
        start(odd, odd_scales);
        ptx::wgmma_wait_group<1>();
        finish(even, even_scales, block);
        ptx::wgmma_wait_group<0>();
        finish(odd, odd_scales, block + 1);
      } else {
        ptx::wgmma_wait_group<0>();
        finish(even, even_scales, block);
      }
      tile_t next;
      if (!take(next, issued)) break;
      open(next);
      start(even, even_scales);
      store(total, tile, 0);
      tile = next;
    }
    store(total, tile, 0);
  }

  // Tiles go to the two warpgroups in turn. While one stores its tile, the other has the tensor
  // cores. Barrier 1 + c says that it is c's turn: the other one has seen all of its stages full,
  // without which the parity that c waits for could be that of the phase before.
  SEEKERNEL_DEVICE void run_ping_pong() const {
    float even[kSums], odd[kSums], total[kSums];
    float even_scales[2], odd_scales[2];
    Ring issued, promoted;
    issued.skip(consumer * num_blocks);
    promoted = issued;
    weight_scales_t weights{};
    int first_row = 0;
    const auto start = [&](float (&partial)[kSums], float (&scales)[2]) {
      issue(partial, issued, 0);
      load_scales(scales, issued, first_row, 0);
      issued.advance();
    };
    const auto finish = [&](float (&partial)[kSums], const float (&scales)[2], int block) {
      release(promoted);
      promoted.advance();
      if (block % 32 == 0 && block != 0) weights.fetch(block, num_blocks);
      promote(total, partial, scales, weights.of(block));
    };
    if (consumer == 1) pass_turn();
    while (true) {
      await_turn();
      tile_t tile;
      // Each warpgroup has a word that only the other one writes.
      if (ptx::load_shared_f32(smem + P::kDone + 4 * consumer) != 0.0f) break;
      if (!take(tile, issued)) {
        if (threadIdx.x % 128 == 0) {
          ptx::store_shared_f32(smem + P::kDone + 4 * (1 - consumer), 1.0f);
        }
        pass_turn();
        break;
      }
      const part_t<Config> part(tile, rank);
      weights.row = scale_row(tile, part, 0);
      weights.fetch(0, num_blocks);
      first_row = part.row;
      clear(total);
      start(even, even_scales);
      int block = 0;
      for (; block + 2 < num_blocks; block += 2) {
        wait_full(issued);
        start(odd, odd_scales);
        ptx::wgmma_wait_group<1>();
        finish(even, even_scales, block);
        wait_full(issued);
        start(even, even_scales);
        ptx::wgmma_wait_group<1>();
        finish(odd, odd_scales, block + 1);
      }
      if (block + 1 < num_blocks) {
        wait_full(issued);
        start(odd, odd_scales);
        pass_turn();
        ptx::wgmma_wait_group<1>();
        finish(even, even_scales, block);
        ptx::wgmma_wait_group<0>();
        finish(odd, odd_scales, block + 1);
      } else {
        pass_turn();
        ptx::wgmma_wait_group<0>();
        finish(even, even_scales, block);
      }
      store(total, tile, 0);
      issued.skip(num_blocks);
      promoted = issued;
    }
  }

  SEEKERNEL_DEVICE void await_turn() const {
    if (consumer == 0) {
      ptx::named_barrier_sync<1, 256>();
    } else {
      ptx::named_barrier_sync<2, 256>();
    }
  }

  SEEKERNEL_DEVICE void pass_turn() const {
    if (consumer == 0) {
      ptx::named_barrier_arrive<2, 256>();
    } else {
      ptx::named_barrier_arrive<1, 256>();
    }
  }

  // Two products a stage and one bank: while one warpgroup promotes, the other one multiplies.
  SEEKERNEL_DEVICE void run_two_waves() const {
    Ring slot;
    float partial[kSums], first[kSums], second[kSums];
    for (tile_t tile; take(tile, slot);) {
      const part_t<Config> part(tile, rank);
      weight_scales_t weights[2] = {{scale_row(tile, part, 0), 0.0f},
                                    {scale_row(tile, part, 1), 0.0f}};
      clear(first);
      clear(second);
      for (int block = 0; block < num_blocks; ++block) {
        if (block % 32 == 0) {
          weights[0].fetch(block, num_blocks);
          if constexpr (Config::kSwiglu) weights[1].fetch(block, num_blocks);
        }
        float scales[2], second_scales[2];
        wait_full(slot);
        issue(partial, slot, 0);
        load_scales(scales, slot, part.row, 0);
        load_scales(second_scales, slot, part.row, 1);
        const float scale_b = weights[0].of(block);
        const float second_scale_b = Config::kSwiglu ? weights[1].of(block) : scale_b;
        ptx::wgmma_wait_group<0>();
        promote(first, partial, scales, scale_b);
        issue(partial, slot, 1);
        ptx::wgmma_wait_group<0>();
        release(slot);
        slot.advance();
        promote(second, partial, second_scales, second_scale_b);
      }
      if constexpr (Config::kSwiglu) {
        const int row = tile_rows() + 16 * warp;
        epilogue.store_swiglu(first, second, row / 16, part.row + row, part.rows - row, part.column,
                              n / 2, tile.batch);
      } else {
        store(first, tile, 0);
        store(second, tile, 1);
      }
    }
  }

  const sm90_fp8_gemm_nt_args_t& args;
  Epilogue<Config> epilogue;
  uint32_t smem, rank;
  int n, num_blocks;
  int consumer, warp, lane;
};

}  // namespace seekernel::sm90_fp8_gemm_nt_detail
