// The two warpgroups of arithmetic of sm90_mla_decode and sm90_mla_decode_fp8, and the layout of
// shared memory; sm90_mla_decode.cuh tells the whole.
#pragma once

#include <seekernel/attention/mla_decode_plan.cuh>
#include <seekernel/fused/vector.cuh>
#include <seekernel/ptx/barrier.cuh>
#include <seekernel/ptx/exp2.cuh>
#include <seekernel/ptx/matrix.cuh>
#include <seekernel/ptx/mbarrier.cuh>
#include <seekernel/ptx/shared_memory.cuh>
#include <seekernel/ptx/shared_vector.cuh>
#include <seekernel/ptx/tma.cuh>
#include <seekernel/ptx/wgmma_16bit.cuh>

namespace seekernel {

// What a decode kernel takes besides its tensor maps.
template <typename T>
struct mla_decode_args_t {
  const int32_t* block_table;
  int64_t stride_table;
  const mla_part_t* parts;
  const mla_item_t* items;
  T* out;              // [s * h_q, 512]
  float* lse;          // [s * h_q], natural logarithm
  float* partial_out;  // [partial_rows, 512]
  float* partial_lse;  // [partial_rows], logarithm to base 2
  float scale_log2;    // softmax_scale * log2(e), positive
  int32_t h_q, page_size, num_pages, causal;
};

namespace sm90_mla_decode_detail {

constexpr int kRows = 64, kTiles = 9, kValueTiles = 8;
constexpr uint32_t kTileBytes = 64 * 64 * 2;
constexpr float kNegInfinity = -__builtin_huge_valf();
// How far a score may exceed the maximum in use, as a power of two.
constexpr float kMaxExcess = 8.0f;

// Byte offsets in dynamic shared memory.
struct Plan {
  static constexpr uint32_t kQ = 0;
  static constexpr uint32_t kPOdd = kQ + 8 * kTileBytes;
  static constexpr uint32_t kKv = kQ + kTiles * kTileBytes;
  static constexpr uint32_t kPEven = kKv + 2 * kTiles * kTileBytes;
  static constexpr uint32_t kMax = kPEven + kTileBytes;       // [2][64] floats, by block parity
  static constexpr uint32_t kSum = kMax + 2 * kRows * 4;      // [2][64] floats, by warpgroup
  static constexpr uint32_t kFull = kSum + 2 * kRows * 4;     // [2][9]
  static constexpr uint32_t kEmpty = kFull + 2 * kTiles * 8;  // [2][3]
  static constexpr uint32_t kQFull = kEmpty + 2 * 3 * 8;
  static constexpr uint32_t kQEmpty = kQFull + 8;
  static constexpr uint32_t kPFull = kQEmpty + 8;  // [2]
  static constexpr uint32_t kBytes = kPFull + 2 * 8;
};
static_assert(Plan::kBytes <= 232448, "shared memory of an SM");

constexpr int kLeft = 0, kRight = 1, kRope = 2;  // the parts of a buffer

template <typename T>
SEEKERNEL_DEVICE uint32_t pack(float low, float high);
template <>
SEEKERNEL_DEVICE uint32_t pack<bfloat16_t>(float low, float high) {
  return ptx::pack_bf16x2(low, high);
}
template <>
SEEKERNEL_DEVICE uint32_t pack<float16_t>(float low, float high) {
  return ptx::pack_f16x2(low, high);
}

// The rows of an item that this CTA takes: none if it is the item's end.
SEEKERNEL_DEVICE int rows_of_cta(const mla_item_t& item) {
  return min(kRows, item.num_rows - kRows * static_cast<int>(blockIdx.x));
}

SEEKERNEL_DEVICE void init_barriers(uint32_t smem, uint32_t full_arrivals) {
  for (int i = 0; i < 2 * kTiles; ++i)
    ptx::mbarrier_init(smem + Plan::kFull + 8 * i, full_arrivals);
  for (int i = 0; i < 6; ++i) ptx::mbarrier_init(smem + Plan::kEmpty + 8 * i, 4);
  ptx::mbarrier_init(smem + Plan::kQFull, 1);
  ptx::mbarrier_init(smem + Plan::kQEmpty, 8);
  for (int i = 0; i < 2; ++i) ptx::mbarrier_init(smem + Plan::kPFull + 8 * i, 4);
  ptx::fence_mbarrier_init();
}

// One thread: Q of a unit, once the one before it has been used.
SEEKERNEL_DEVICE void load_q(uint32_t smem, const tensor_map_t* map_q, int row,
                             uint32_t num_units) {
  ptx::mbarrier_wait_parity(smem + Plan::kQEmpty, (num_units & 1) ^ 1);
  ptx::mbarrier_arrive_expect_tx(smem + Plan::kQFull, kTiles * kTileBytes);
#pragma unroll 1
  for (int tile = 0; tile < kTiles; ++tile) {
    ptx::tma_load_2d(smem + Plan::kQ + tile * kTileBytes, map_q, smem + Plan::kQFull, 64 * tile,
                     row);
  }
}

// One of the two warpgroups that do the arithmetic. kClean: the producer writes zeros for dead
// keys, and leaves Q to the first thread here.
template <typename T, bool kClean>
struct Consumer {
  using P = Plan;

  SEEKERNEL_DEVICE void wait_full(uint32_t counter, int tile) const {
    ptx::mbarrier_wait_parity(smem + P::kFull + 8 * ((counter & 1) * kTiles + tile),
                              counter >> 1 & 1);
  }
  // After every lane of the warp has done what the arrival stands for.
  SEEKERNEL_DEVICE void arrive(uint32_t barrier) const {
    __syncwarp();
    if (lane == 0) ptx::mbarrier_arrive(barrier);
  }
  SEEKERNEL_DEVICE void release(uint32_t counter, int part) const {
    arrive(smem + P::kEmpty + 8 * (3 * (counter & 1) + part));
  }
  SEEKERNEL_DEVICE uint32_t p_tile(uint32_t counter) const {
    return smem + (counter & 1 ? P::kPOdd : P::kPEven);
  }
  SEEKERNEL_DEVICE uint32_t max_address(uint32_t counter) const {
    return smem + P::kMax + 4 * (kRows * (counter & 1) + row);
  }

  // Keys from `live` on of a block are zeroed: they may be NaN, and 0 * NaN is NaN.
  SEEKERNEL_DEVICE void clear_dead_keys(uint32_t counter, int live) const {
    const uint32_t buffer = smem + P::kKv + (counter & 1) * kTiles * kTileBytes;
    for (int tile = 0; tile < kTiles; ++tile) wait_full(counter, tile);
    for (int i = thread; i < kTiles * (64 - live) * 8; i += 128) {
      const int tile = i / ((64 - live) * 8), rest = i % ((64 - live) * 8);
      ptx::store_shared_b128(buffer + tile * kTileBytes + live * 128 + rest * 16,
                             make_uint4(0, 0, 0, 0));
    }
    ptx::fence_proxy_async_shared();
    ptx::bar_sync(2 + warpgroup, 128);
  }

  // Starts S = Q @ K^T of a block as one wgmma group.
  SEEKERNEL_DEVICE void issue_scores(float (&s)[32], uint32_t (&q_rope)[16],
                                     uint32_t counter) const {
    const uint32_t buffer = smem + P::kKv + (counter & 1) * kTiles * kTileBytes;
    ptx::pin_registers(s);
    ptx::pin_registers(q_rope);
    wait_full(counter, 8);
    ptx::wgmma_fence();
    const uint64_t k_rope = ptx::wgmma_descriptor_128b(buffer + 8 * kTileBytes, 16, 1024);
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      ptx::wgmma_16bit_t<T, 64>::template rs<0>(s, q_rope + 4 * step, k_rope + 2 * step, step != 0);
    }
#pragma unroll
    for (int tile = 0; tile < kValueTiles; ++tile) {
      wait_full(counter, tile);
      ptx::wgmma_fence();  // anew after every branch
      const uint64_t q = ptx::wgmma_descriptor_128b(smem + P::kQ + tile * kTileBytes, 16, 1024);
      const uint64_t k = ptx::wgmma_descriptor_128b(buffer + tile * kTileBytes, 16, 1024);
#pragma unroll
      for (int step = 0; step < 4; ++step) {
        ptx::wgmma_16bit_t<T, 64>::template ss<0, 0>(s, q + 2 * step, k + 2 * step, 1);
      }
    }
    ptx::wgmma_commit_group();
  }

  SEEKERNEL_DEVICE uint64_t values(uint32_t counter) const {
    const uint32_t tile = (counter & 1) * kTiles + 4 * warpgroup;
    return ptx::wgmma_descriptor_128b(smem + P::kKv + tile * kTileBytes, kTileBytes, 1024);
  }

  // Starts O += P @ V with the other warpgroup's P, which lies in shared memory.
  SEEKERNEL_DEVICE void issue_other(float (&o)[128], uint32_t counter) const {
    ptx::pin_registers(o);
    ptx::wgmma_fence();
    const uint64_t p = ptx::wgmma_descriptor_128b(p_tile(counter), 16, 1024), v = values(counter);
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      // 16 keys are 32 bytes of a row of P and 2048 bytes of V.
      ptx::wgmma_16bit_t<T, 256>::template ss<0, 1>(o, p + 2 * step, v + 128 * step, 1);
    }
    ptx::wgmma_commit_group();
  }

  // Starts O += P @ V with P in registers.
  SEEKERNEL_DEVICE void issue_own(float (&o)[128], uint32_t (&p)[16], uint32_t counter) const {
    ptx::pin_registers(o);
    ptx::pin_registers(p);
    ptx::wgmma_fence();
    const uint64_t v = values(counter);
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      ptx::wgmma_16bit_t<T, 256>::template rs<1>(o, p + 4 * step, v + 128 * step, 1);
    }
    ptx::wgmma_commit_group();
  }

  // Moves the sums from maximum `top` to `next`; most often they are equal in the whole warp.
  SEEKERNEL_DEVICE void rescale(float (&o)[128], float (&top)[2], const float (&next)[2]) {
    const bool moved = next[0] != top[0] || next[1] != top[1];
    if (__any_sync(0xFFFFFFFFu, moved)) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float factor =
            next[half] != top[half] ? ptx::ex2((top[half] - next[half]) * scale_log2) : 1.0f;
        sum[half] *= factor;
#pragma unroll
        for (int j = 0; j < 32; ++j) {
          o[4 * j + 2 * half] *= factor;
          o[4 * j + 2 * half + 1] *= factor;
        }
      }
    }
    top[0] = next[0];
    top[1] = next[1];
  }

  // A block of this warpgroup's own; kPrevious: the unit has a block before it, the other one's.
  template <bool kPrevious>
  SEEKERNEL_DEVICE void step(float (&o)[128], float (&top)[2], uint32_t (&q_rope)[16],
                             const mla_unit_t& unit, const int (&bound)[2], int full_bound,
                             int block, uint32_t counter) {
    const int first_key = block * kMlaBlockKeys;
    if constexpr (!kClean) {
      const int live = unit.item.seq_len - first_key;
      if (live < kMlaBlockKeys) clear_dead_keys(counter, live);
    }
    float s[32];
    issue_scores(s, q_rope, counter);
    if constexpr (kPrevious) {
      receive(o, top, counter - 1);
      issue_other(o, counter - 1);
      ptx::wgmma_wait_group<1>();
    } else {
      ptx::wgmma_wait_group<0>();
    }
    ptx::pin_registers(s);
    release(counter, kRope);

    if (first_key + kMlaBlockKeys > full_bound) {
#pragma unroll
      for (int i = 0; i < 32; ++i) {
        const int key = first_key + i / 4 * 8 + lane % 4 * 2 + i % 2;
        if (key >= bound[i / 2 % 2]) s[i] = kNegInfinity;
      }
    }
    float next[2], shift[2], added[2] = {0.0f, 0.0f};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float best = kNegInfinity;
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        best = fmaxf(best, fmaxf(s[4 * j + 2 * half], s[4 * j + 2 * half + 1]));
      }
      best = fmaxf(best, __shfl_xor_sync(0xFFFFFFFFu, best, 1));
      best = fmaxf(best, __shfl_xor_sync(0xFFFFFFFFu, best, 2));
      next[half] = (best - top[half]) * scale_log2 > kMaxExcess ? best : top[half];
      shift[half] = next[half] == kNegInfinity ? 0.0f : next[half] * scale_log2;
    }
    if (lane % 4 == 0) {
      ptx::store_shared_f32(max_address(counter), next[0]);
      ptx::store_shared_f32(max_address(counter) + 32, next[1]);
    }
    uint32_t p[16];
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      const int half = i % 2;
      const float low = ptx::ex2(s[2 * i] * scale_log2 - shift[half]);
      const float high = ptx::ex2(s[2 * i + 1] * scale_log2 - shift[half]);
      added[half] += low + high;
      p[i] = pack<T>(low, high);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      ptx::stmatrix_x4(p_tile(counter) + fragment_offset(i), p[4 * i], p[4 * i + 1], p[4 * i + 2],
                       p[4 * i + 3]);
    }
    ptx::fence_proxy_async_shared();
    arrive(smem + P::kPFull + 8 * (counter & 1));

    if constexpr (kPrevious) {
      ptx::wgmma_wait_group<0>();
      ptx::pin_registers(o);
      release(counter - 1, warpgroup);
    }
    rescale(o, top, next);
    sum[0] += added[0];
    sum[1] += added[1];
    issue_own(o, p, counter);
    ptx::wgmma_wait_group<0>();
    ptx::pin_registers(o);
    release(counter, warpgroup);
  }

  // Waits for the other warpgroup's P of a block, and goes over to the maximum it used.
  SEEKERNEL_DEVICE void receive(float (&o)[128], float (&top)[2], uint32_t counter) {
    ptx::mbarrier_wait_parity(smem + P::kPFull + 8 * (counter & 1), counter >> 1 & 1);
    const float next[2] = {ptx::load_shared_f32(max_address(counter)),
                           ptx::load_shared_f32(max_address(counter) + 32)};
    rescale(o, top, next);
  }

  // One thread's share of a unit: its rows are `row` and row + 8 of the CTA's 64.
  SEEKERNEL_DEVICE void attend(float (&o)[128], float (&top)[2], const mla_unit_t& unit,
                               const int (&bound)[2], int full_bound, uint32_t first_counter) {
    uint32_t q_rope[16];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      uint32_t fragment[4];
      ptx::ldmatrix_x4(fragment, smem + P::kQ + 8 * kTileBytes + fragment_offset(i));
#pragma unroll
      for (int j = 0; j < 4; ++j) q_rope[4 * i + j] = fragment[j];
    }
    // P of odd blocks overwrites what has just been read.
    ptx::bar_sync(1, 256);

    uint32_t counter = first_counter;
    int block = unit.begin;
    if ((counter & 1) == static_cast<uint32_t>(warpgroup)) {
      step<false>(o, top, q_rope, unit, bound, full_bound, block, counter);
      ++block;
      ++counter;
    }
    for (; block + 1 < unit.end; block += 2, counter += 2) {
      step<true>(o, top, q_rope, unit, bound, full_bound, block + 1, counter + 1);
    }
    if (block < unit.end) {  // the last block is the other warpgroup's
      receive(o, top, counter);
      issue_other(o, counter);
      ptx::wgmma_wait_group<0>();
      ptx::pin_registers(o);
      release(counter, warpgroup);
    }
  }

  SEEKERNEL_DEVICE void run(const mla_decode_args_t<T>& args, const tensor_map_t* map_q) {
    mla_work_t work(args.parts, args.items, blockIdx.y);
    mla_unit_t unit;
    uint32_t num_blocks = 0, num_units = 0;
    while (work.next(unit)) {
      const int num_rows = rows_of_cta(unit.item);
      if (num_rows <= 0) continue;
      const int first_row = unit.item.row + kRows * blockIdx.x;
      int bound[2];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int token = (first_row + row + 8 * half) / args.h_q;
        bound[half] =
            args.causal ? min(token + unit.item.first_bound, unit.item.seq_len) : unit.item.seq_len;
      }
      const int full_bound =
          args.causal ? first_row / args.h_q + unit.item.first_bound : unit.item.seq_len;
      float o[128], top[2] = {kNegInfinity, kNegInfinity};
      sum[0] = sum[1] = 0.0f;
#pragma unroll
      for (int i = 0; i < 128; ++i) o[i] = 0.0f;
      if (unit.begin < unit.end) {
        if (kClean && threadIdx.x == 0) load_q(smem, map_q, first_row, num_units);
        ptx::mbarrier_wait_parity(smem + P::kQFull, num_units & 1);
        attend(o, top, unit, bound, full_bound, num_blocks);
        arrive(smem + P::kQEmpty);
        ++num_units;
        num_blocks += unit.end - unit.begin;
      }
      finish(args, o, top, unit, first_row, num_rows);
    }
  }

  // Divides by the row sums, and writes the result or a partial one.
  SEEKERNEL_DEVICE void finish(const mla_decode_args_t<T>& args, const float (&o)[128],
                               const float (&top)[2], const mla_unit_t& unit, int first_row,
                               int num_rows) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      sum[half] += __shfl_xor_sync(0xFFFFFFFFu, sum[half], 1);
      sum[half] += __shfl_xor_sync(0xFFFFFFFFu, sum[half], 2);
    }
    const uint32_t sums = smem + P::kSum + 4 * row;
    if (lane % 4 == 0) {
      ptx::store_shared_f32(sums + 4 * kRows * warpgroup, sum[0]);
      ptx::store_shared_f32(sums + 4 * kRows * warpgroup + 32, sum[1]);
    }
    ptx::bar_sync(1, 256);
    float inverse[2], log2_sum[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float total = ptx::load_shared_f32(sums + 32 * half) +
                          ptx::load_shared_f32(sums + 4 * kRows + 32 * half);
      inverse[half] = total == 0.0f ? 0.0f : value_scale / total;
      log2_sum[half] = total == 0.0f ? kNegInfinity : top[half] * scale_log2 + ptx::lg2(total);
    }
    // The row sums may be overwritten.
    ptx::bar_sync(1, 256);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int local = row + 8 * half;
      if (local >= num_rows) continue;
      const int column = 256 * warpgroup + lane % 4 * 2;
      if (unit.partial < 0) {
        const int64_t at = first_row + local;
        if (warpgroup == 0 && lane % 4 == 0) args.lse[at] = log2_sum[half] * kLn2;
        auto* out = reinterpret_cast<uint32_t*>(args.out + at * 512 + column);
#pragma unroll
        for (int j = 0; j < 32; ++j) {
          out[4 * j] =
              pack<T>(o[4 * j + 2 * half] * inverse[half], o[4 * j + 2 * half + 1] * inverse[half]);
        }
      } else {
        const int64_t at = unit.partial + kRows * static_cast<int>(blockIdx.x) + local;
        if (warpgroup == 0 && lane % 4 == 0) args.partial_lse[at] = log2_sum[half];
        auto* out = reinterpret_cast<float2*>(args.partial_out + at * 512 + column);
#pragma unroll
        for (int j = 0; j < 32; ++j) {
          out[4 * j] = make_float2(o[4 * j + 2 * half] * inverse[half],
                                   o[4 * j + 2 * half + 1] * inverse[half]);
        }
      }
    }
  }

  // Where a lane's part of a fragment of 16 rows x 16 columns lies in a tile, for
  // ldmatrix/stmatrix.
  SEEKERNEL_DEVICE uint32_t fragment_offset(int step) const {
    const uint32_t offset = (16 * warp + lane % 16) * 128 + 32 * step + lane / 16 * 16;
    return offset ^ (offset >> 7 & 7) << 4;
  }

  static constexpr float kLn2 = 0.693147180559945f;
  uint32_t smem;
  int warpgroup, warp, lane, thread, row;
  float scale_log2;   // of scores
  float value_scale;  // of the result
  float sum[2] = {0.0f, 0.0f};
};

}  // namespace sm90_mla_decode_detail
}  // namespace seekernel
