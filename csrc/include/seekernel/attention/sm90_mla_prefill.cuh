// MLA over expanded keys and values: ragged, causal with an offset, one rope key for all heads.
//
//   k = [kv[head][:128], k_pe];  v = kv[head][128:]
//   S = q @ k^T;  P = exp2(c * (S - m));  out = sum of P @ v / sum of P;  lse = ln(sum of e^score)
//   and, where a previous result over other keys is given, the two merged.
//
// Shapes: q [s_q, h, 192], kv [s_kv, h, 256], k_pe [s_kv, 64] bf16; out [s_q, h, 128] in Out = bf16
//   or float; lse [s_q, h] fp32. Sequences lie one after the other, at cu_seqlens.
// Roles: a CTA takes tiles of 128 queries of one head (mla_prefill_tiles.cuh). One warp of
//   warpgroup 2 drives TMA and runs ahead across tiles; warpgroups 0 and 1 own 64 queries each and
//   go over the keys in blocks of 128, the last block first: masks are needed only there.
// Order in a consumer: S of block n + 1 and P @ v of block n are in flight together, and the
//   softmax of n + 1 overlaps the latter. Two named barriers let the warpgroups take turns at
//   issuing products, so that one's softmax overlaps the other's.
// Shared memory: Q in 3 tiles of 128 rows x 64 columns; kStages of K (3 such tiles: two of kv, one
//   of k_pe) and of V (2); all swizzled by 128 B. V is read as [key][column].
// Protocol: q_full, k_full[s], v_full[s] take the bytes; q_empty, k_empty[s], v_empty[s] the eight
//   consumer warps. A block that reaches beyond its sequence holds rows of the next one, perhaps
//   NaN, and 0 * NaN is NaN: its V lands on v_landed, the producer warp clears those rows, and
//   arrives at v_full itself.
// Bound: tensor cores, 2560 cycles per block of 128 x 128 at 4096 FLOP a cycle and SM.
#pragma once

#include <seekernel/attention/mla_prefill_tiles.cuh>
#include <seekernel/fused/vector.cuh>
#include <seekernel/ptx/barrier.cuh>
#include <seekernel/ptx/exp2.cuh>
#include <seekernel/ptx/matrix.cuh>
#include <seekernel/ptx/mbarrier.cuh>
#include <seekernel/ptx/tma.cuh>
#include <seekernel/ptx/wgmma_16bit.cuh>

namespace seekernel {

// What the kernel takes besides its tensor maps. Strides are in elements.
template <typename Out>
struct mla_prefill_args_t {
  mla_prefill_shape_t shape;
  Out* out;
  float* lse;                 // [s_q, h], natural logarithm
  const void* previous_out;   // [s_q, h, 128], null: nothing to merge with; may be `out`
  const float* previous_lse;  // [s_q, h]; may be `lse`
  int64_t stride_out_s, stride_out_h, stride_previous_s, stride_previous_h;
  float scale_log2;  // softmax_scale * log2(e), positive
  int32_t previous_is_float;
};

namespace sm90_mla_prefill_detail {

constexpr int kRows = kMlaPrefillRows, kKeys = 128, kStages = 2;
constexpr int kKeyTiles = 3, kValueTiles = 2, kWarps = 8;
constexpr uint32_t kTileBytes = 128 * 128;  // 128 rows of 64 columns
constexpr float kNegInfinity = -__builtin_huge_valf();
constexpr float kLn2 = 0.693147180559945f, kLog2E = 1.44269504088896f;

// Byte offsets in dynamic shared memory.
struct Plan {
  static constexpr uint32_t kQ = 0;
  static constexpr uint32_t kK = kQ + kKeyTiles * kTileBytes;
  static constexpr uint32_t kV = kK + kStages * kKeyTiles * kTileBytes;
  static constexpr uint32_t kQFull = kV + kStages * kValueTiles * kTileBytes;
  static constexpr uint32_t kQEmpty = kQFull + 8;
  static constexpr uint32_t kKFull = kQEmpty + 8;
  static constexpr uint32_t kKEmpty = kKFull + 8 * kStages;
  static constexpr uint32_t kVFull = kKEmpty + 8 * kStages;
  static constexpr uint32_t kVEmpty = kVFull + 8 * kStages;
  static constexpr uint32_t kVLanded = kVEmpty + 8 * kStages;
  static constexpr uint32_t kBytes = kVLanded + 8;
};
static_assert(Plan::kBytes <= 232448, "shared memory of an SM");

SEEKERNEL_DEVICE void clear_shared_16(uint32_t address) {
  asm volatile("st.shared.v4.b32 [%0], {%1, %1, %1, %1};" ::"r"(address), "r"(0) : "memory");
}

// Position in the ring of the CTA's n-th block, over all of its tiles.
SEEKERNEL_DEVICE uint32_t stage_of(uint32_t n) { return n % kStages; }
SEEKERNEL_DEVICE uint32_t parity_of(uint32_t n) { return n / kStages & 1; }

// One warp: loads the queries and keys of every tile, as soon as their places are free.
SEEKERNEL_DEVICE void produce(uint32_t smem, const tensor_map_t* map_q, const tensor_map_t* map_kv,
                              const tensor_map_t* map_k_pe, const mla_prefill_shape_t& shape) {
  using P = Plan;
  const int lane = threadIdx.x % 32;
  mla_prefill_work_t work(shape);
  mla_prefill_tile_t tile;
  uint32_t num_blocks = 0, num_tiles = 0, num_ragged = 0;  // so far
  while (work.next(tile)) {
    if (tile.num_keys == 0) continue;
    ptx::mbarrier_wait_parity(smem + P::kQEmpty, (num_tiles & 1) ^ 1);
    if (lane == 0) {
      ptx::mbarrier_arrive_expect_tx(smem + P::kQFull, kKeyTiles * kTileBytes);
      for (int i = 0; i < kKeyTiles; ++i) {
        ptx::tma_load_3d(smem + P::kQ + i * kTileBytes, map_q, smem + P::kQFull, 64 * i, tile.head,
                         tile.q_begin + tile.query);
      }
    }
    ++num_tiles;
    for (int block = ceil_div(tile.num_keys, kKeys) - 1; block >= 0; --block, ++num_blocks) {
      const uint32_t stage = stage_of(num_blocks), parity = parity_of(num_blocks) ^ 1;
      const int row = tile.kv_begin + block * kKeys;
      const uint32_t k = smem + P::kK + stage * kKeyTiles * kTileBytes;
      const uint32_t v = smem + P::kV + stage * kValueTiles * kTileBytes;
      const uint32_t k_full = smem + P::kKFull + 8 * stage, v_full = smem + P::kVFull + 8 * stage;
      ptx::mbarrier_wait_parity(smem + P::kKEmpty + 8 * stage, parity);
      if (lane == 0) {
        ptx::mbarrier_arrive_expect_tx(k_full, kKeyTiles * kTileBytes);
        ptx::tma_load_3d(k, map_kv, k_full, 0, tile.head, row);
        ptx::tma_load_3d(k + kTileBytes, map_kv, k_full, 64, tile.head, row);
        ptx::tma_load_2d(k + 2 * kTileBytes, map_k_pe, k_full, 0, row);
      }
      ptx::mbarrier_wait_parity(smem + P::kVEmpty + 8 * stage, parity);
      const int live = tile.s_kv - block * kKeys;
      const uint32_t barrier = live < kKeys ? smem + P::kVLanded : v_full;
      if (lane == 0) {
        ptx::mbarrier_arrive_expect_tx(barrier, kValueTiles * kTileBytes);
        ptx::tma_load_3d(v, map_kv, barrier, 128, tile.head, row);
        ptx::tma_load_3d(v + kTileBytes, map_kv, barrier, 192, tile.head, row);
      }
      if (live < kKeys) {
        ptx::mbarrier_wait_parity(barrier, num_ragged & 1);
        ++num_ragged;
        for (int i = lane; i < kValueTiles * (kKeys - live) * 8; i += 32) {
          const int part = i / ((kKeys - live) * 8), rest = i % ((kKeys - live) * 8);
          clear_shared_16(v + part * kTileBytes + live * 128 + rest * 16);
        }
        ptx::fence_proxy_async_shared();
        __syncwarp();
        if (lane == 0) ptx::mbarrier_arrive(v_full);
      }
    }
  }
}

// One of the two warpgroups that do the arithmetic.
template <typename Out>
struct Consumer {
  using P = Plan;

  // After every lane of the warp has done what the arrival stands for.
  SEEKERNEL_DEVICE void arrive(uint32_t barrier) const {
    __syncwarp();
    if (lane == 0) ptx::mbarrier_arrive(barrier);
  }
  SEEKERNEL_DEVICE void wait_k(uint32_t n) const {
    ptx::mbarrier_wait_parity(smem + P::kKFull + 8 * stage_of(n), parity_of(n));
  }
  SEEKERNEL_DEVICE void wait_v(uint32_t n) const {
    ptx::mbarrier_wait_parity(smem + P::kVFull + 8 * stage_of(n), parity_of(n));
  }
  SEEKERNEL_DEVICE void release_k(uint32_t n) const { arrive(smem + P::kKEmpty + 8 * stage_of(n)); }
  SEEKERNEL_DEVICE void release_v(uint32_t n) const { arrive(smem + P::kVEmpty + 8 * stage_of(n)); }
  // The warpgroups take turns: `other` is the barrier that its partner waits at.
  SEEKERNEL_DEVICE void take_turn() const { ptx::bar_sync(1 + warpgroup, 256); }
  SEEKERNEL_DEVICE void give_turn() const { ptx::bar_arrive(2 - warpgroup, 256); }

  // Starts S = Q @ K^T of block n as one wgmma group.
  SEEKERNEL_DEVICE void issue_scores(float (&s)[64], uint32_t n) const {
    ptx::pin_registers(s);
    ptx::wgmma_fence();
    const uint64_t q = ptx::wgmma_descriptor_k_major_128b(smem + P::kQ + warpgroup * 64 * 128);
    const uint64_t k =
        ptx::wgmma_descriptor_k_major_128b(smem + P::kK + stage_of(n) * kKeyTiles * kTileBytes);
#pragma unroll
    for (int step = 0; step < 4 * kKeyTiles; ++step) {
      // 16 columns are 32 bytes, in units of 16; 64 columns are a tile.
      const uint32_t at = step / 4 * (kTileBytes >> 4) + step % 4 * 2;
      ptx::wgmma_16bit_t<bfloat16_t, 128>::ss<0, 0>(s, q + at, k + at, step != 0);
    }
    ptx::wgmma_commit_group();
  }

  // Starts O += P @ V of block n as one wgmma group.
  SEEKERNEL_DEVICE void issue_values(float (&o)[64], uint32_t (&p)[32], uint32_t n) const {
    ptx::pin_registers(o);
    ptx::pin_registers(p);
    ptx::wgmma_fence();
    const uint64_t v = ptx::wgmma_descriptor_128b(
        smem + P::kV + stage_of(n) * kValueTiles * kTileBytes, kTileBytes, 1024);
#pragma unroll
    for (int step = 0; step < kKeys / 16; ++step) {
      ptx::wgmma_16bit_t<bfloat16_t, 128>::rs<1>(o, p + 4 * step, v + 128 * step, 1);
    }
    ptx::wgmma_commit_group();
  }

  // Scores of keys that a row does not see become -infinity.
  SEEKERNEL_DEVICE void mask(float (&s)[64], int first_key, const int (&bound)[2]) const {
#pragma unroll
    for (int i = 0; i < 64; ++i) {
      const int key = first_key + i / 4 * 8 + lane % 4 * 2 + i % 2;
      if (key >= bound[i / 2 % 2]) s[i] = kNegInfinity;
    }
  }

  // Scores to weights; the running maximum and sum of the two rows move on. `factor` is what the
  // sums of values still have to be multiplied by.
  SEEKERNEL_DEVICE void softmax(float (&s)[64], float (&factor)[2]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float best = top[half];
#pragma unroll
      for (int j = 0; j < 16; ++j) {
        best = fmaxf(best, fmaxf(s[4 * j + 2 * half], s[4 * j + 2 * half + 1]));
      }
      best = fmaxf(best, __shfl_xor_sync(0xFFFFFFFFu, best, 1));
      best = fmaxf(best, __shfl_xor_sync(0xFFFFFFFFu, best, 2));
      // A row that has seen no key yet: -inf - (-inf) would be NaN.
      const float shift = best == kNegInfinity ? 0.0f : best * scale_log2;
      factor[half] = ptx::ex2(top[half] * scale_log2 - shift);
      top[half] = best;
      float added = 0.0f;
#pragma unroll
      for (int j = 0; j < 16; ++j) {
#pragma unroll
        for (int i = 4 * j + 2 * half; i < 4 * j + 2 * half + 2; ++i) {
          s[i] = ptx::ex2(s[i] * scale_log2 - shift);
          added += s[i];
        }
      }
      sum[half] = sum[half] * factor[half] + added;
    }
  }

  SEEKERNEL_DEVICE static void pack(const float (&s)[64], uint32_t (&p)[32]) {
#pragma unroll
    for (int i = 0; i < 32; ++i) p[i] = ptx::pack_bf16x2(s[2 * i], s[2 * i + 1]);
  }

  // All keys of a tile, the last block first; n is the ring's position of the first one taken.
  SEEKERNEL_DEVICE void attend(float (&o)[64], const mla_prefill_tile_t& tile,
                               const int (&bound)[2], int full_bound, uint32_t n) {
    float s[64], factor[2];
    uint32_t p[32];
    int block = ceil_div(tile.num_keys, kKeys) - 1;
    wait_k(n);
    take_turn();
    issue_scores(s, n);
    give_turn();
    ptx::wgmma_wait_group<0>();
    ptx::pin_registers(s);
    release_k(n);
    mask(s, block * kKeys, bound);
    softmax(s, factor);
    pack(s, p);
    for (; block > 0; ++n) {
      --block;
      wait_k(n + 1);
      wait_v(n);
      take_turn();
      issue_scores(s, n + 1);
      issue_values(o, p, n);
      give_turn();
      ptx::wgmma_wait_group<1>();
      ptx::pin_registers(s);
      release_k(n + 1);
      if ((block + 1) * kKeys > full_bound) mask(s, block * kKeys, bound);
      softmax(s, factor);
      ptx::wgmma_wait_group<0>();
      ptx::pin_registers(o);
      ptx::pin_registers(p);
      release_v(n);
#pragma unroll
      for (int i = 0; i < 64; ++i) o[i] *= factor[i / 2 % 2];
      pack(s, p);
    }
    arrive(smem + P::kQEmpty);
    wait_v(n);
    issue_values(o, p, n);
    ptx::wgmma_wait_group<0>();
    ptx::pin_registers(o);
    release_v(n);
  }

  SEEKERNEL_DEVICE void run(const mla_prefill_args_t<Out>& args) {
    // The first turn is warpgroup 0's.
    if (warpgroup == 1) give_turn();
    mla_prefill_work_t work(args.shape);
    mla_prefill_tile_t tile;
    uint32_t num_blocks = 0, num_tiles = 0;
    while (work.next(tile)) {
      float o[64];
#pragma unroll
      for (int i = 0; i < 64; ++i) o[i] = 0.0f;
      top[0] = top[1] = kNegInfinity;
      sum[0] = sum[1] = 0.0f;
      const int query = tile.query + 64 * warpgroup + 16 * warp + lane / 4;  // and query + 8
      if (tile.num_keys > 0) {
        int bound[2];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int seen = query + 8 * half + tile.offset;
          bound[half] = args.shape.causal ? min(seen, tile.s_kv) : tile.s_kv;
        }
        const int first = tile.query + 64 * warpgroup + tile.offset;  // what its first row sees
        const int full_bound = args.shape.causal ? min(first, tile.s_kv) : tile.s_kv;
        ptx::mbarrier_wait_parity(smem + P::kQFull, num_tiles & 1);
        attend(o, tile, bound, full_bound, num_blocks);
        ++num_tiles;
        num_blocks += ceil_div(tile.num_keys, kKeys);
      }
      finish(args, o, tile, query);
    }
    // Takes the turn that the partner gave last, so that both barriers end complete.
    if (warpgroup == 0) take_turn();
  }

  // Divides by the row sums, merges with the previous result, and writes.
  SEEKERNEL_DEVICE void finish(const mla_prefill_args_t<Out>& args, float (&o)[64],
                               const mla_prefill_tile_t& tile, int query) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float total = sum[half];
      total += __shfl_xor_sync(0xFFFFFFFFu, total, 1);
      total += __shfl_xor_sync(0xFFFFFFFFu, total, 2);
      const int64_t row = tile.q_begin + query + 8 * half;
      const bool is_row = query + 8 * half < tile.s_q;
      const int64_t at = row * args.shape.h + tile.head;
      // A row's logarithm to base 2, and what multiplies its sums and the previous result.
      float log2_sum = total == 0.0f ? kNegInfinity : top[half] * scale_log2 + ptx::lg2(total);
      float keep = total == 0.0f ? 0.0f : 1.0f / total, add = 0.0f;
      if (args.previous_out != nullptr && is_row) {
        const float previous = args.previous_lse[at] * kLog2E;
        if (previous != kNegInfinity) {
          const float best = fmaxf(log2_sum, previous);
          const float mine = ptx::ex2(log2_sum - best), other = ptx::ex2(previous - best);
          const float merged = mine + other;
          keep *= mine / merged;
          add = other / merged;
          log2_sum = best + ptx::lg2(merged);
        }
      }
#pragma unroll
      for (int j = 0; j < 16; ++j) {
        o[4 * j + 2 * half] *= keep;
        o[4 * j + 2 * half + 1] *= keep;
      }
      if (add != 0.0f) {
        const int64_t offset =
            row * args.stride_previous_s + tile.head * args.stride_previous_h + lane % 4 * 2;
#pragma unroll
        for (int j = 0; j < 16; ++j) {
          const float2 v = load_previous(args, offset + 8 * j);
          o[4 * j + 2 * half] += add * v.x;
          o[4 * j + 2 * half + 1] += add * v.y;
        }
      }
      Out* out = args.out + row * args.stride_out_s + tile.head * args.stride_out_h;
      store_row(out, o, half, is_row);
      if (is_row && lane % 4 == 0) args.lse[at] = log2_sum * kLn2;
    }
  }

  SEEKERNEL_DEVICE static float2 load_previous(const mla_prefill_args_t<Out>& args, int64_t at) {
    if (args.previous_is_float) {
      return *reinterpret_cast<const float2*>(static_cast<const float*>(args.previous_out) + at);
    }
    const uint32_t pair =
        *reinterpret_cast<const uint32_t*>(static_cast<const bfloat16_t*>(args.previous_out) + at);
    return make_float2(to_float(pair & 0xFFFFu), __uint_as_float(pair & 0xFFFF0000u));
  }

  // Rows of float: a quad's four lanes write 32 bytes each time.
  SEEKERNEL_DEVICE void store_row(float* out, const float (&o)[64], int half, bool is_row) const {
    if (!is_row) return;
#pragma unroll
    for (int j = 0; j < 16; ++j) {
      *reinterpret_cast<float2*>(out + 8 * j + lane % 4 * 2) =
          make_float2(o[4 * j + 2 * half], o[4 * j + 2 * half + 1]);
    }
  }

  // Rows of bf16: the lanes of a quad exchange what they hold, so that each writes 16 bytes.
  SEEKERNEL_DEVICE void store_row(bfloat16_t* out, const float (&o)[64], int half,
                                  bool is_row) const {
    const int place = lane % 4;
#pragma unroll
    for (int group = 0; group < 4; ++group) {
      uint32_t word[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float* d = o + 16 * group + 4 * i + 2 * half;
        word[i] = ptx::pack_bf16x2(d[0], d[1]);
      }
      // Transposes the quad's 4 x 4 words: lane `place` gets word `place` of every lane.
      exchange<1>(word[0], word[1], place);
      exchange<1>(word[2], word[3], place);
      exchange<2>(word[0], word[2], place);
      exchange<2>(word[1], word[3], place);
      if (is_row) {
        *reinterpret_cast<uint4*>(out + 32 * group + 8 * place) =
            make_uint4(word[0], word[1], word[2], word[3]);
      }
    }
  }

  // The lane whose bit is clear keeps `a` and takes its partner's `a` for `b`, the other one
  // keeps `b` and takes its partner's `b` for `a`.
  template <int kBit>
  SEEKERNEL_DEVICE static void exchange(uint32_t& a, uint32_t& b, int place) {
    const bool upper = (place & kBit) != 0;
    const uint32_t received = __shfl_xor_sync(0xFFFFFFFFu, upper ? a : b, kBit);
    if (upper) {
      a = received;
    } else {
      b = received;
    }
  }

  uint32_t smem;
  int warpgroup, warp, lane;
  float scale_log2;
  float top[2] = {kNegInfinity, kNegInfinity}, sum[2] = {0.0f, 0.0f};  // of rows query, query + 8
};

}  // namespace sm90_mla_prefill_detail

// Grid: any number of CTAs. Tensor maps: q [s_q, h, 192] and kv [s_kv, h, 256] as boxes of 128 rows
// x 1 head x 64 columns, k_pe [s_kv, 64] as boxes of 128 rows; all swizzled by 128 B.
template <typename Out>
__global__ void __launch_bounds__(384, 1)
    sm90_mla_prefill(const __grid_constant__ tensor_map_t map_q,
                     const __grid_constant__ tensor_map_t map_kv,
                     const __grid_constant__ tensor_map_t map_k_pe,
                     const __grid_constant__ mla_prefill_args_t<Out> args) {
  namespace detail = sm90_mla_prefill_detail;
  using P = detail::Plan;
  extern __shared__ __align__(1024) uint8_t dynamic_smem[];
  const uint32_t smem = ptx::shared_address(dynamic_smem);
  // The same in the whole warp, as the compiler must know.
  const int warpgroup = __shfl_sync(0xFFFFFFFFu, threadIdx.x / 128, 0);

  if (threadIdx.x == 0) {
    ptx::mbarrier_init(smem + P::kQFull, 1);
    ptx::mbarrier_init(smem + P::kQEmpty, detail::kWarps);
    for (int i = 0; i < detail::kStages; ++i) {
      ptx::mbarrier_init(smem + P::kKFull + 8 * i, 1);
      ptx::mbarrier_init(smem + P::kVFull + 8 * i, 1);
      ptx::mbarrier_init(smem + P::kKEmpty + 8 * i, detail::kWarps);
      ptx::mbarrier_init(smem + P::kVEmpty + 8 * i, detail::kWarps);
    }
    ptx::mbarrier_init(smem + P::kVLanded, 1);
    ptx::fence_mbarrier_init();
    ptx::prefetch_tensormap(&map_q);
    ptx::prefetch_tensormap(&map_kv);
    ptx::prefetch_tensormap(&map_k_pe);
  }
  __syncthreads();
  ptx::griddepcontrol_wait();
  ptx::griddepcontrol_launch_dependents();

  if (warpgroup == 2) {
    ptx::setmaxnreg_dec<40>();
    if (threadIdx.x < 288) detail::produce(smem, &map_q, &map_kv, &map_k_pe, args.shape);
  } else {
    ptx::setmaxnreg_inc<232>();
    detail::Consumer<Out> self{smem, warpgroup, static_cast<int>(threadIdx.x) % 128 / 32,
                               static_cast<int>(threadIdx.x) % 32, args.scale_log2};
    self.run(args);
  }
}

}  // namespace seekernel
