// SwiGLU of a product with few tokens, requantised: FC1 of the experts leaves the chip once, in
// FP8.
//
//   [gate | up] = A @ B^T as in sm90_fp8_gemm_nt_swap_ab, per group of rows
//   h = silu(gate) * up;  per 128 columns of a row: s = max(amax |h|, 1e-4) / 448, D = e4m3(h / s)
//
// Shapes: A [rows of tokens, k] e4m3, sfa [k/128, >= rows] fp32; B [groups, n, k] e4m3, its rows
//   [0, n/2) the gate and [n/2, n) up; sfb [groups, n/128, k/128]; D [rows, n/2] e4m3, rows from a
//   multiple of 16 bytes on; scales of D [n/256, >= rows] fp32, any stride. n is a multiple of 256.
//   With kGather, row r of the groups is row row_token[r] of A: no permuted copy of A is needed.
// Roles and memory: as in sm90_fp8_gemm_nt_swap_ab, but each of the two consumer warpgroups owns 64
//   gate rows of B and the 64 up rows that belong to them, so that SwiGLU stays in a thread, and a
//   CTA owns 128 columns of D, so that their maximum stays in a CTA. A stage holds 32 KB of
//   weights.
// Split K: both halves are summed over the cluster before SwiGLU, 8 tokens by one rank.
// A NaN does not count in the maximum and stays NaN.
// Bound: by reading B.
#pragma once

#include <seekernel/gemm/swap_ab_run.cuh>
#include <seekernel/ptx/convert_e4m3.cuh>

namespace seekernel {

template <int kMaxTokens_, bool kGather_>
struct sm90_fp8_gemm_swiglu_nt_swap_ab_config {
  static constexpr int kBlockN = 128, kMaxTokens = kMaxTokens_;
  static constexpr int kConsumers = 2, kHalves = 2, kBoxes = kConsumers * kHalves;
  static constexpr bool kGather = kGather_, kInt4 = false;
  static constexpr int kThreads = 128 * (1 + kConsumers);
  // Of 64 K registers: 128 * 72 + 256 * 216.
  static constexpr int kProducerRegisters = 72, kConsumerRegisters = 216;
  static_assert(kMaxTokens >= 8 && kMaxTokens <= 64, "two totals and two banks must fit");
};

namespace swap_ab_detail {

template <typename Config>
struct StoreSwiglu {
  // Rows are padded by 16 bytes. Behind them lie the maxima: [token][8 warps].
  static constexpr uint32_t kPitch = 128 + 16;

  template <int kN>
  SEEKERNEL_DEVICE void finish(const Consumer<Config>& self, float (&total)[2][kN / 2],
                               const tile_t& tile) const {
    reuse();
#pragma unroll
    for (int j = 0; j < kN / 8; ++j) activate(self, j, total[0] + 4 * j, total[1] + 4 * j);
    meet();
#pragma unroll
    for (int j = 0; j < kN / 8; ++j) quantise(self, tile, j, total[0] + 4 * j);
    store(self, tile, 0, 1);
  }

  SEEKERNEL_DEVICE void finish_split(const Consumer<Config>& self, const tile_t& tile, int first,
                                     int step) const {
    reuse();
    for (int j = first; 8 * j < tile.rows; j += step) {
      float sum[2][4];
      self.gather(sum, j);
      activate(self, j, sum[0], sum[1]);
      meet();
      quantise(self, tile, j, sum[0]);
    }
    store(self, tile, first, step);
  }

  SEEKERNEL_DEVICE static void meet() {
    ptx::bar_sync(kBarrierAllConsumers, 128 * Config::kConsumers);
  }

  // The copies of the tile before must have read what is overwritten now.
  SEEKERNEL_DEVICE static void reuse() {
    ptx::bulk_wait_group_read<0>();
    meet();
  }

  SEEKERNEL_DEVICE uint32_t maxima(const Consumer<Config>& self, int token) const {
    return self.smem + self.plan.out + args.tiles.block_rows * kPitch + token * 32;
  }

  // gate = silu(gate) * up; leaves this warp's maxima of 16 columns of the eight tokens.
  SEEKERNEL_DEVICE void activate(const Consumer<Config>& self, int j, float* gate,
                                 const float* up) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      gate[i] = __fdividef(gate[i], 1.0f + __expf(-gate[i])) * up[i];
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float most = fmaxf(fabsf(gate[i]), fabsf(gate[i + 2]));
      // Lanes of the same quad position hold the other rows of the token.
      for (int step = 4; step < 32; step *= 2) {
        most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, step));
      }
      const int token = 8 * j + 2 * (self.lane % 4) + i;
      if (self.lane < 4) {
        ptx::store_shared_f32(maxima(self, token) + 4 * (4 * self.warpgroup + self.warp), most);
      }
    }
  }

  SEEKERNEL_DEVICE void quantise(const Consumer<Config>& self, const tile_t& tile, int j,
                                 const float* h) const {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int token = 8 * j + 2 * (self.lane % 4) + i;
      float most = 1e-4f;
#pragma unroll
      for (int warp = 0; warp < 8; warp += 2) {
        const float2 pair = ptx::load_shared_f32x2(maxima(self, token) + 4 * warp);
        most = fmaxf(most, fmaxf(pair.x, pair.y));
      }
      const float scale = most / 448.0f;
      if (self.thread < 4 && self.warpgroup == 0 && token < tile.rows) {
        args.d_scale[tile.n_block * args.d_scale_stride + first_row(tile) + token] = scale;
      }
      const uint32_t pair = ptx::pack_e4m3x2(h[i] / scale, h[i + 2] / scale);
      const uint32_t to = self.smem + self.plan.out + token * kPitch + 64 * self.warpgroup +
                          16 * self.warp + self.lane / 4;
      ptx::store_shared_u8(to, pair & 0xff);
      ptx::store_shared_u8(to + 8, pair >> 8);
    }
  }

  SEEKERNEL_DEVICE void store(const Consumer<Config>& self, const tile_t& tile, int first,
                              int step) const {
    // The bulk engine reads what all threads wrote: fence per thread, then meet.
    ptx::fence_proxy_async_shared();
    meet();
    const int token = self.thread;
    if (self.warpgroup == 0 && token < tile.rows && token / 8 % step == first) {
      uint8_t* row = static_cast<uint8_t*>(args.d) +
                     static_cast<int64_t>(first_row(tile) + token) * args.d_stride +
                     tile.n_block * 128;
      ptx::bulk_store(row, self.smem + self.plan.out + token * kPitch, 128);
      ptx::bulk_commit_group();
    }
  }

  SEEKERNEL_DEVICE int first_row(const tile_t& tile) const {
    return tile.batch * args.tiles.m + tile.row;
  }

  const swap_ab_args_t& args;
};

}  // namespace swap_ab_detail

// Grid, cluster, tensor map of B: as sm90_fp8_gemm_nt_swap_ab with n / 256 column blocks. Tensor
// map
//   of A: box of 128 bytes x 8 rows, or x 1 row with kGather, swizzle 128B.
// Dynamic shared memory: 1024 + num_stages * (32768 + tile_tokens * 132 + 16) + tile_tokens * 176;
//   with S > 1 the ring also holds 256 * tile_tokens floats.
template <typename Config, int kKind>
__global__ void __launch_bounds__(Config::kThreads, 1)
    sm90_fp8_gemm_swiglu_nt_swap_ab(const __grid_constant__ tensor_map_t map_a,
                                    const __grid_constant__ tensor_map_t map_b,
                                    const __grid_constant__ swap_ab_args_t args) {
  const swap_ab_detail::StoreSwiglu<Config> epilogue{args};
  swap_ab_detail::run<Config, kKind>(&map_a, &map_b, args, epilogue);
}

}  // namespace seekernel
