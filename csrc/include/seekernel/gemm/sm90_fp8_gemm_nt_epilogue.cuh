// How a warp of sm90_fp8_gemm_nt writes its 16 rows of a tile of D: rounded to bf16, as fp32, or as
// SwiGLU of gate and up quantised to e4m3 with a scale per row and 128 columns.
//
// bf16 and e4m3 go through shared memory and leave by TMA, which runs on while the warp multiplies
// the next tile. Where the rows end inside the 16 (another group's rows follow), they leave by
// ordinary 16-byte stores. Every warp has its own piece of shared memory: nobody waits for another.
#pragma once

#include <seekernel/gemm/sm90_fp8_gemm_nt_args.cuh>
#include <seekernel/gemm/sm90_fp8_gemm_nt_config.cuh>
#include <seekernel/ptx/barrier.cuh>
#include <seekernel/ptx/convert_e4m3.cuh>
#include <seekernel/ptx/matrix.cuh>
#include <seekernel/ptx/shared_vector.cuh>
#include <seekernel/ptx/tma.cuh>
#include <seekernel/ptx/tma_3d.cuh>

namespace seekernel::sm90_fp8_gemm_nt_detail {

SEEKERNEL_DEVICE float swiglu(float gate, float up) {
  return __fdividef(gate, 1.0f + __expf(-gate)) * up;
}

template <typename Config>
struct Epilogue {
  using P = Plan<Config>;
  static constexpr int kSums = Config::BLOCK_N / 2;
  static constexpr uint32_t kRowBytes = Config::kSlab * (Config::kSwiglu ? 1 : 2);
  static constexpr int kSlabs = P::kBytesRowD / kRowBytes;
  static constexpr int kElementBytes = Config::kSwiglu ? 1 : 2;
  // The tensor map itself ends where the rows of a dense or batched D end.
  static constexpr bool kMapClips =
      Config::kKind == tile_kind::dense || Config::kKind == tile_kind::batched;

  // Address of a byte of the warp's 16 rows. The swizzle XORs address bits 4.. with bits 7..:
  // 128-byte rows by row % 8, shorter rows by the number of the 128-byte line they share.
  SEEKERNEL_DEVICE static uint32_t staged(uint32_t out, uint32_t row, uint32_t byte) {
    const uint32_t offset = row * kRowBytes + byte % kRowBytes;
    const uint32_t mask = (offset >> 7 & 7) & (kRowBytes / 16 - 1);
    return out + byte / kRowBytes * 16 * kRowBytes + (offset ^ mask << 4);
  }

  // What the warp stored before must have been read out.
  SEEKERNEL_DEVICE void reuse_staging() const {
    if (lane == 0) ptx::bulk_wait_group_read<0>();
    __syncwarp();
  }

  // Sends the staged rows off: `rows` of them from `row` on, columns from `column` on of `num`.
  SEEKERNEL_DEVICE void send(uint32_t out, int row, int rows, int column, int num,
                             int batch) const {
    if (kMapClips || rows >= 16) {
      // The TMA unit reads what all lanes wrote: fence per lane, then meet.
      ptx::fence_proxy_async_shared();
      __syncwarp();
      if (lane == 0) {
#pragma unroll
        for (int slab = 0; slab < kSlabs; ++slab) {
          ptx::tma_store_3d(map_d, out + slab * 16 * kRowBytes, column + slab * Config::kSlab, row,
                            batch);
        }
        ptx::bulk_commit_group();
      }
      return;
    }
    __syncwarp();
    constexpr int kChunks = P::kBytesRowD / 16, kPerChunk = 16 / kElementBytes;
    for (int i = lane; i < rows * kChunks; i += 32) {
      const int r = i / kChunks, at = column + i % kChunks * kPerChunk;
      if (at >= num) continue;
      const uint4 value = ptx::load_shared_b128(staged(out, r, i % kChunks * 16));
      uint8_t* to = static_cast<uint8_t*>(args.d) +
                    (batch * args.d_stride_g + (row + r) * args.d_stride_m + at) * kElementBytes;
      *reinterpret_cast<uint4*>(to) = value;
    }
  }

  // Plain output. `row` is the warp's first row in D; `rows` may exceed 16, or be 0 or less.
  SEEKERNEL_DEVICE void store(float (&total)[kSums], int piece, int row, int rows, int column,
                              int n, int batch) const {
    if (rows <= 0) return;
    if (args.row_weight != nullptr) {
      const int r = lane / 4;
      const float low = r < rows ? args.row_weight[row + r] : 0.0f;
      const float high = r + 8 < rows ? args.row_weight[row + r + 8] : 0.0f;
#pragma unroll
      for (int i = 0; i < kSums; ++i) total[i] *= i & 2 ? high : low;
    }
    if constexpr (Config::kOutput == gemm_output::fp32) {
      float* d = static_cast<float*>(args.d) + batch * args.d_stride_g;
#pragma unroll
      for (int i = 0; i < kSums; i += 2) {
        const int r = lane / 4 + (i & 2 ? 8 : 0), at = column + i / 4 * 8 + lane % 4 * 2;
        if (r < rows && at < n) {
          *reinterpret_cast<float2*>(d + (row + r) * args.d_stride_m + at) =
              make_float2(total[i], total[i + 1]);
        }
      }
    } else {
      const uint32_t out = smem + P::kD + piece * 16 * P::kBytesRowD;
      reuse_staging();
#pragma unroll
      for (int j = 0; j < Config::BLOCK_N / 16; ++j) {
        const float* v = total + 8 * j;
        ptx::stmatrix_x4(staged(out, lane % 16, (16 * j + lane / 16 * 8) * 2),
                         ptx::pack_bf16x2(v[0], v[1]), ptx::pack_bf16x2(v[2], v[3]),
                         ptx::pack_bf16x2(v[4], v[5]), ptx::pack_bf16x2(v[6], v[7]));
      }
      send(out, row, rows, column, n, batch);
    }
  }

  // e4m3(silu(gate) * up / s), s = max(max |.| of the row's 128 columns, 1e-4) / 448. A NaN does
  // not count in the maximum and stays NaN. `num` is the number of D's columns.
  SEEKERNEL_DEVICE void store_swiglu(float (&gate)[kSums], const float (&up)[kSums], int piece,
                                     int row, int rows, int column, int num, int batch) const {
    if (rows <= 0 || column >= num) return;
    float most[2] = {1e-4f, 1e-4f};
#pragma unroll
    for (int i = 0; i < kSums; ++i) {
      gate[i] = swiglu(gate[i], up[i]);
      most[i / 2 % 2] = fmaxf(most[i / 2 % 2], fabsf(gate[i]));
    }
    const uint32_t out = smem + P::kD + piece * 16 * P::kBytesRowD;
    reuse_staging();
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      // The four lanes of a quad share the row.
      float amax = fmaxf(most[half], __shfl_xor_sync(0xffffffffu, most[half], 1));
      amax = fmaxf(amax, __shfl_xor_sync(0xffffffffu, amax, 2));
      const float scale = amax / 448.0f;
      const int r = lane / 4 + 8 * half;
      if (lane % 4 == 0 && r < rows) {
        args.sfd[column / 128 * args.sfd_stride + row + r] = scale;
      }
#pragma unroll
      for (int j = 0; j < Config::BLOCK_N / 8; ++j) {
        const float* v = gate + 4 * j + 2 * half;
        ptx::store_shared_u16(staged(out, r, 8 * j + lane % 4 * 2),
                              ptx::pack_e4m3x2(v[0] / scale, v[1] / scale));
      }
    }
    send(out, row, rows, column, num, batch);
  }

  const sm90_fp8_gemm_nt_args_t& args;
  const tensor_map_t* map_d;
  uint32_t smem;
  int lane;
};

}  // namespace seekernel::sm90_fp8_gemm_nt_detail
