// A row of logits shared out over a cluster, and sums over the cluster that every thread gets.
//
// Token i belongs to CTA i / cta_tokens, warp i % cta_tokens / warp_tokens; a warp goes over its
// tokens 128 at a step, four neighbours per lane, so that warps, lanes and their four tokens are
// all in the order of the index. The logits lie in shared memory, -inf behind the last.
//
// Sums: a warp folds its values by butterflies that halve their number, each CTA sums its warps and
// pushes the result into every CTA's inbox (distributed shared memory); one cluster barrier. There
// are two inboxes in turn: a CTA pushes round k + 2 only after the barrier of round k + 1, at which
// its peers arrive after they have read round k. Integers only: no order, hence no rounding.
#pragma once

#include <seekernel/ptx/barrier.cuh>
#include <seekernel/ptx/cluster_memory_64.cuh>
#include <seekernel/ptx/types.cuh>
#include <seekernel/sampling/weight.cuh>

namespace seekernel {

constexpr int kMaxWarps = 16, kMaxCtas = 8, kMaxSums = 8;
constexpr int kTokensPerStep = 128;
constexpr int kRowThreads = 384;  // 80 registers each and two CTAs to an SM

struct row_scratch_t {
  uint64_t partial[kMaxWarps][kMaxSums];
  uint64_t inbox[2][kMaxCtas][kMaxSums];
};

struct row_t {
  float* x;  // this CTA's logits
  row_scratch_t* scratch;
  int v;
  int warp_tokens;  // a multiple of kTokensPerStep
  int cta_tokens;
  int rank, num_ctas;
  int round;  // of sums, modulo 2

  SEEKERNEL_DEVICE int lane() const { return threadIdx.x % 32; }
  SEEKERNEL_DEVICE int warp() const { return threadIdx.x / 32; }
  SEEKERNEL_DEVICE int num_warps() const { return blockDim.x / 32; }
  SEEKERNEL_DEVICE int first_token() const { return rank * cta_tokens; }
};

// Tokens of one warp when `num_ctas` CTAs of `num_warps` share v.
__host__ __device__ constexpr int tokens_per_warp(int v, int num_ctas, int num_warps) {
  const int share = (v + num_ctas * num_warps - 1) / (num_ctas * num_warps);
  return (share + kTokensPerStep - 1) / kTokensPerStep * kTokensPerStep;
}
__host__ __device__ constexpr int row_shared_bytes(int v, int num_ctas, int num_warps) {
  return tokens_per_warp(v, num_ctas, num_warps) * num_warps * 4 +
         static_cast<int>(sizeof(row_scratch_t));
}

// `shared`: row_shared_bytes, the scratch first. One cluster per row.
SEEKERNEL_DEVICE row_t row_of(void* shared, int v, int num_ctas) {
  row_t row;
  row.scratch = static_cast<row_scratch_t*>(shared);
  row.x = reinterpret_cast<float*>(row.scratch + 1);
  row.v = v;
  row.num_ctas = num_ctas;
  row.rank = num_ctas > 1 ? static_cast<int>(ptx::cluster_ctarank()) : 0;
  row.warp_tokens = tokens_per_warp(v, num_ctas, row.num_warps());
  row.cta_tokens = row.warp_tokens * row.num_warps();
  row.round = 0;
  return row;
}

// Nobody may push into a CTA that has not started: all wait here for the first barrier's arrivals.
SEEKERNEL_DEVICE void row_arrive(const row_t& row) {
  if (row.num_ctas > 1) ptx::barrier_cluster_arrive();
}
SEEKERNEL_DEVICE void row_wait(const row_t& row) {
  if (row.num_ctas > 1) ptx::barrier_cluster_wait();
}
SEEKERNEL_DEVICE void row_sync(const row_t& row) {
  if (row.num_ctas > 1) {
    ptx::barrier_cluster_arrive();
    ptx::barrier_cluster_wait();
  } else {
    __syncthreads();
  }
}

struct add_t {
  SEEKERNEL_DEVICE static uint64_t of(uint64_t a, uint64_t b) { return a + b; }
};
struct max_t {
  SEEKERNEL_DEVICE static uint64_t of(uint64_t a, uint64_t b) { return a > b ? a : b; }
};

// Over a warp: kCount (a power of two) values of each lane come down to one, that of index
// lane * kCount / 32.
template <class Op, int kCount>
SEEKERNEL_DEVICE uint64_t fold_warp(uint64_t (&values)[kCount]) {
  const int lane = threadIdx.x % 32;
  int step = 16;
#pragma unroll
  for (int half = kCount / 2; half > 0; half /= 2, step /= 2) {
    const bool upper = lane & step;
#pragma unroll
    for (int i = 0; i < half; ++i) {
      const uint64_t sent = upper ? values[i] : values[i + half];
      const uint64_t kept = upper ? values[i + half] : values[i];
      values[i] = Op::of(kept, __shfl_xor_sync(0xffffffffu, sent, step));
    }
  }
  uint64_t value = values[0];
#pragma unroll
  for (int rest = 16 / kCount; rest > 0; rest /= 2) {
    value = Op::of(value, __shfl_xor_sync(0xffffffffu, value, rest));
  }
  return value;
}

// Over the cluster: every thread's values become their sum (or maximum) over all threads.
template <class Op, int kCount>
SEEKERNEL_DEVICE void all_reduce(row_t& row, uint64_t (&values)[kCount]) {
  static_assert(kCount <= kMaxSums, "an inbox holds kMaxSums values");
  row_scratch_t& scratch = *row.scratch;
  const uint64_t folded = fold_warp<Op>(values);
  constexpr int kLanes = 32 / kCount;
  if (row.lane() % kLanes == 0) scratch.partial[row.warp()][row.lane() / kLanes] = folded;
  __syncthreads();  // the warps' values are there
  // One thread per value and CTA to push to.
  const int index = threadIdx.x % kCount, first = threadIdx.x / kCount;
  if (first < row.num_ctas) {
    uint64_t sum = scratch.partial[0][index];
    for (int w = 1; w < row.num_warps(); ++w) sum = Op::of(sum, scratch.partial[w][index]);
    for (int to = first; to < row.num_ctas; to += blockDim.x / kCount) {
      uint64_t* slot = &scratch.inbox[row.round][row.rank][index];
      if (row.num_ctas == 1) {
        *slot = sum;
      } else {
        ptx::store_cluster(ptx::mapa(ptx::shared_address(slot), to), sum);
      }
    }
  }
  row_sync(row);  // every inbox is full; partial may be written again
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    values[i] = scratch.inbox[row.round][0][i];
    for (int c = 1; c < row.num_ctas; ++c) {
      values[i] = Op::of(values[i], scratch.inbox[row.round][c][i]);
    }
  }
  row.round ^= 1;
}

// f(x, index) for this thread's tokens, in rising order, those behind v (-inf) too.
template <class F>
SEEKERNEL_DEVICE void for_each_token(const row_t& row, const F& f) {
  const int begin = row.warp() * row.warp_tokens;
#pragma unroll 1
  for (int t = begin + row.lane() * 4; t < begin + row.warp_tokens; t += kTokensPerStep) {
    const float4 quad = *reinterpret_cast<const float4*>(row.x + t);
    const int i = row.first_token() + t;
    f(quad.x, i);
    f(quad.y, i + 1);
    f(quad.z, i + 2);
    f(quad.w, i + 3);
  }
}

// ---- loading ----

template <bool kAligned>
SEEKERNEL_DEVICE float4 load_four(const float* p, int left) {
  if constexpr (kAligned) {
    return *reinterpret_cast<const float4*>(p);
  } else {
    const float none = minus_infinity();
    return make_float4(p[0], left > 1 ? p[1] : none, left > 2 ? p[2] : none,
                       left > 3 ? p[3] : none);
  }
}

// bfloat16 bits.
template <bool kAligned>
SEEKERNEL_DEVICE float4 load_four(const uint16_t* p, int left) {
  if constexpr (kAligned) {
    const uint2 raw = *reinterpret_cast<const uint2*>(p);
    return make_float4(__uint_as_float(raw.x << 16), __uint_as_float(raw.x & 0xffff0000u),
                       __uint_as_float(raw.y << 16), __uint_as_float(raw.y & 0xffff0000u));
  } else {
    const auto wide = [&](int j) {
      return j < left ? __uint_as_float(static_cast<uint32_t>(p[j]) << 16) : minus_infinity();
    };
    return make_float4(wide(0), wide(1), wide(2), wide(3));
  }
}

SEEKERNEL_DEVICE float load_one(const float* p) { return *p; }
SEEKERNEL_DEVICE float load_one(const uint16_t* p) {
  return __uint_as_float(static_cast<uint32_t>(*p) << 16);
}

// Fills row.x with change(x, i) of the tokens, -inf behind the last. kAligned: v and the row's
// address are multiples of four elements. Each warp reads nothing but its own tokens until the next
// barrier.
template <bool kAligned, class T, class F>
SEEKERNEL_DEVICE void load_row(const row_t& row, const T* logits, const F& change) {
  const int begin = row.warp() * row.warp_tokens;
#pragma unroll 4
  for (int t = begin + row.lane() * 4; t < begin + row.warp_tokens; t += kTokensPerStep) {
    const int i = row.first_token() + t;
    float4 quad =
        make_float4(minus_infinity(), minus_infinity(), minus_infinity(), minus_infinity());
    if (i < row.v) {
      quad = load_four<kAligned>(logits + i, row.v - i);
      quad = change(quad, i);
    }
    *reinterpret_cast<float4*>(row.x + t) = quad;
  }
}

// The best token's key; its logit is the maximum. A NaN gives `bad`.
SEEKERNEL_DEVICE uint64_t find_best(row_t& row, bool& bad) {
  uint64_t values[2] = {0, 0};
  for_each_token(row, [&](float x, int i) {
    values[0] = max_t::of(values[0], order_key(x, i));
    values[1] |= x != x;
  });
  all_reduce<max_t>(row, values);
  bad = values[1] != 0;
  return values[0];
}

}  // namespace seekernel
