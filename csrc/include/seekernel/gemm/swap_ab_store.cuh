// How the swapAB kernels with plain output write a tile of D, in bf16 or fp32.
#pragma once

#include <seekernel/fused/vector.cuh>
#include <seekernel/gemm/swap_ab_consumer.cuh>
#include <seekernel/ptx/matrix.cuh>

namespace seekernel {

namespace swap_ab_detail {

// Rounds sums to Output and stores them, each warpgroup its 64 columns of D.
template <typename Config>
struct StoreRows {
  using Output = typename Config::Output;
  static constexpr uint32_t kRowBytes = 64 * sizeof(Output), kPitch = kRowBytes + 16;

  template <int kN>
  SEEKERNEL_DEVICE void finish(const Consumer<Config>& self, const float (&total)[1][kN / 2],
                               const tile_t& tile) const {
    reuse(self);
#pragma unroll
    for (int j = 0; j < kN / 8; ++j) stage(self, tile, j, total[0] + 4 * j);
    store(self, tile, 0, 1);
  }

  SEEKERNEL_DEVICE void finish_split(const Consumer<Config>& self, const tile_t& tile, int first,
                                     int step) const {
    reuse(self);
    for (int j = first; 8 * j < tile.rows; j += step) {
      float sum[1][4];
      self.gather(sum, j);
      stage(self, tile, j, sum[0]);
    }
    store(self, tile, first, step);
  }

  // The copies of the tile before must have read what is overwritten now.
  SEEKERNEL_DEVICE static void reuse(const Consumer<Config>& self) {
    ptx::bulk_wait_group_read<0>();
    ptx::bar_sync(1 + self.warpgroup, 128);
  }

  SEEKERNEL_DEVICE uint32_t out(const Consumer<Config>& self) const {
    return self.smem + self.plan.out + self.warpgroup * args.tiles.block_rows * kPitch;
  }

  SEEKERNEL_DEVICE int first_row(const tile_t& tile) const {
    return tile.batch * args.tiles.m + tile.row;
  }

  // Rows of the token groups first, first + step, ...
  SEEKERNEL_DEVICE void store(const Consumer<Config>& self, const tile_t& tile, int first,
                              int step) const {
    // The bulk engine reads what all 128 threads wrote: fence per thread, then meet.
    ptx::fence_proxy_async_shared();
    ptx::bar_sync(1 + self.warpgroup, 128);
    const int column = tile.n_block * Config::kBlockN + 64 * self.warpgroup;
    const int token = self.thread, num_columns = min(64, args.n - column);
    if (token < tile.rows && token / 8 % step == first && num_columns > 0) {
      Output* row = static_cast<Output*>(args.d) +
                    static_cast<int64_t>(first_row(tile) + token) * args.d_stride + column;
      ptx::bulk_store(row, out(self) + token * kPitch, num_columns * sizeof(Output));
      ptx::bulk_commit_group();
    }
  }

  // Eight tokens of this warp's 16 weight rows, weighted, transposed: out[token][weight row].
  SEEKERNEL_DEVICE void stage(const Consumer<Config>& self, const tile_t& tile, int j,
                              const float* sum) const {
    float d[4] = {sum[0], sum[1], sum[2], sum[3]};
    if constexpr (Config::kInt4) {
#pragma unroll
      for (int i = 0; i < 4; ++i) d[i] *= *args.sfa;
    }
    if (args.row_weight != nullptr) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int token = 8 * j + 2 * (self.lane % 4) + i;
        const float weight = token < tile.rows ? args.row_weight[first_row(tile) + token] : 0.0f;
        d[i] *= weight;
        d[i + 2] *= weight;
      }
    }
    const uint32_t to = out(self) + 8 * j * kPitch;
    if constexpr (sizeof(Output) == 2) {
      const uint32_t row = to + self.lane % 8 * kPitch + self.warp * 32 + self.lane / 8 % 2 * 16;
      ptx::stmatrix_x2_trans(row, ptx::pack_bf16x2(d[0], d[1]), ptx::pack_bf16x2(d[2], d[3]));
    } else {
      const uint32_t row = to + self.lane % 4 * 2 * kPitch + self.warp * 64 + self.lane / 4 * 4;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        ptx::store_shared_f32(row + i % 2 * kPitch + i / 2 * 32, d[i]);
      }
    }
  }

  const swap_ab_args_t& args;
};

}  // namespace swap_ab_detail

}  // namespace seekernel
