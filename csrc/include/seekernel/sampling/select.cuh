// What filters leave of a row: a prefix in the order of choice, found by narrowing a bracket around
// its last token. Counts and weights of the tokens up to six pivots are exact integers, so the
// prefix is exactly the CPU's, however the row is shared out.
//
// First in steps below the maximum (26 bits); if several tokens of one step remain, they weigh the
// same, and the search goes on for their number in the 64-bit keys (logit, index). A bracket with
// one token in it ends the search: usually after two to five rounds.
#pragma once

#include <seekernel/sampling/row.cuh>

namespace seekernel {

// Tokens with step < last_step, and those at last_step whose key is at least last_key.
struct kept_t {
  float row_max, scale;
  int32_t last_step;
  uint64_t last_key;
  uint64_t weight;  // of all kept
  uint32_t count;

  SEEKERNEL_DEVICE bool holds(int32_t step, float x, int i) const {
    return step < last_step || (step == last_step && order_key(x, i) >= last_key);
  }
  SEEKERNEL_DEVICE uint64_t weight_at(float x, int i) const {
    const int32_t step = steps_below(x, row_max, scale);
    return holds(step, x, i) ? weight_of(step) : 0;
  }
};

constexpr int kPivots = 6;
constexpr int kCountBits = 21;  // v and what lies behind it are below 2^21: three counts to a word

// Six counts in two words.
SEEKERNEL_DEVICE void count_at(uint64_t (&words)[2], int j) {
  words[j / 3] += uint64_t{1} << (kCountBits * (j % 3));
}
SEEKERNEL_DEVICE uint32_t count_of(uint64_t word, int j) {
  return static_cast<uint32_t>(word >> (kCountBits * (j % 3))) & ((1u << kCountBits) - 1);
}

// Of the tokens at one step (at least two), the key of the `need`-th, fewer than all.
SEEKERNEL_DEVICE uint64_t nth_key_at(row_t& row, const kept_t& kept, int32_t step, uint32_t need) {
  uint64_t ends[2] = {0, 0};  // the largest key, and the largest complement
  for_each_token(row, [&](float x, int i) {
    if (steps_below(x, kept.row_max, kept.scale) != step) return;
    const uint64_t key = order_key(x, i);
    ends[0] = max_t::of(ends[0], key);
    ends[1] = max_t::of(ends[1], ~key);
  });
  all_reduce<max_t>(row, ends);
  uint64_t low = ~ends[1], high = ends[0] + 1;  // at least `need` from low on, fewer from high on
  uint32_t from_low = 0xffffffffu;
  while (high - low > 1 && from_low != need) {
    const uint64_t base = low, span = high - low;
    const auto pivot = [&](int j) {
      return base + (span >> 3) * (j + 1) + ((span & 7) * (j + 1) >> 3);
    };
    uint64_t words[2] = {};
    for_each_token(row, [&](float x, int i) {
      if (steps_below(x, kept.row_max, kept.scale) != step) return;
      const uint64_t key = order_key(x, i);
#pragma unroll
      for (int j = 0; j < kPivots; ++j) {
        if (key >= pivot(j)) count_at(words, j);
      }
    });
    all_reduce<add_t>(row, words);
#pragma unroll
    for (int j = 0; j < kPivots; ++j) {
      const uint32_t count = count_of(words[j / 3], j);
      if (count >= need) {
        low = pivot(j);
        from_low = count;
      } else if (pivot(j) < high) {
        high = pivot(j);
      }
    }
  }
  return low;
}

// Keeps the shortest prefix of at least `count` tokens that weighs at least `weight`; both are at
// most what is kept.
SEEKERNEL_DEVICE void keep_prefix(row_t& row, kept_t& kept, uint32_t count, uint64_t weight) {
  int32_t low = -1, high = kept.last_step;  // too short up to low, long enough up to high
  uint32_t count_low = 0, count_high = kept.count;
  uint64_t weight_low = 0, weight_high = kept.weight;
  while (high - low > 1 && count_high - count_low > 1) {
    // Most tokens that matter are near the maximum: halvings first, then even parts.
    const bool geometric = low < 0 && high >= 1 << 10;
    const int32_t base = low, span = high - low;
    int32_t pivots[kPivots];
#pragma unroll
    for (int j = 0; j < kPivots; ++j) {
      const int parts = j + 1;
      pivots[j] =
          geometric ? high >> (kPivots + 1 - j) : base + span / 7 * parts + span % 7 * parts / 7;
    }
    uint64_t sums[8] = {};  // six weights, two words of counts
    for_each_token(row, [&](float x, int) {
      const int32_t step = steps_below(x, kept.row_max, kept.scale);
      if (step <= base || step > pivots[kPivots - 1]) return;
      const uint64_t w = weight_of(step);
#pragma unroll
      for (int j = 0; j < kPivots; ++j) {
        if (step > pivots[j]) continue;
        sums[j] += w;
        sums[kPivots + j / 3] += uint64_t{1} << (kCountBits * (j % 3));
      }
    });
    all_reduce<add_t>(row, sums);
    const uint32_t count_before = count_low;
    const uint64_t weight_before = weight_low;
#pragma unroll
    for (int j = kPivots - 1; j >= 0; --j) {
      const uint64_t w = weight_before + sums[j];
      const uint32_t c = count_before + count_of(sums[kPivots + j / 3], j);
      if (c >= count && w >= weight) {
        high = pivots[j];
        count_high = c;
        weight_high = w;
      } else if (pivots[j] > low) {
        low = pivots[j];
        count_low = c;
        weight_low = w;
      }
    }
  }
  uint64_t last_key = high == kept.last_step ? kept.last_key : 0;
  const uint32_t group = count_high - count_low;
  if (group > 1) {  // all at step `high`
    const uint64_t each = weight_of(high);
    uint32_t need = count > count_low ? count - count_low : 0;
    if (weight > weight_low) {  // at most `group` of them weigh that much
      const auto by_weight = static_cast<uint32_t>((weight - weight_low + each - 1) / each);
      need = need > by_weight ? need : by_weight;
    }
    if (need < group) {
      last_key = nth_key_at(row, kept, high, need);
      count_high = count_low + need;
      weight_high = weight_low + uint64_t{need} * each;
    }
  }
  kept.last_step = high;
  kept.last_key = last_key;
  kept.count = count_high;
  kept.weight = weight_high;
}

// Weighs all tokens up to kept.last_step.
SEEKERNEL_DEVICE void weigh_row(row_t& row, kept_t& kept) {
  uint64_t sums[2] = {0, 0};
  for_each_token(row, [&](float x, int) {
    const int32_t step = steps_below(x, kept.row_max, kept.scale);
    if (step > kept.last_step) return;
    sums[0] += weight_of(step);
    sums[1] += 1;
  });
  all_reduce<add_t>(row, sums);
  kept.last_key = 0;
  kept.weight = sums[0];
  kept.count = static_cast<uint32_t>(sums[1]);
}

// Draws by weight: the first token, by index, at which the running weight exceeds `target`, below
// the total. `mine`: this thread's weight; weight(t) that of the CTA's token t. The one thread that
// finds it gets true and the token's index within the CTA.
template <class F>
SEEKERNEL_DEVICE bool find_token(row_t& row, uint64_t mine, uint64_t target, const F& weight,
                                 int& found) {
  row_scratch_t& scratch = *row.scratch;
  uint64_t one[1] = {mine};
  const uint64_t warp_weight = fold_warp<add_t>(one);
  if (row.lane() == 0) scratch.partial[row.warp()][0] = warp_weight;
  __syncthreads();  // the warps' weights are there
  if (threadIdx.x < row.num_ctas) {
    uint64_t sum = 0;
    for (int w = 0; w < row.num_warps(); ++w) sum += scratch.partial[w][0];
    uint64_t* slot = &scratch.inbox[row.round][row.rank][0];
    if (row.num_ctas == 1) {
      *slot = sum;
    } else {
      ptx::store_cluster(ptx::mapa(ptx::shared_address(slot), threadIdx.x), sum);
    }
  }
  row_sync(row);
  uint64_t before = 0;
  for (int c = 0; c < row.rank; ++c) before += scratch.inbox[row.round][c][0];
  row.round ^= 1;
  for (int w = 0; w < row.warp(); ++w) before += scratch.partial[w][0];
  if (target < before || target - before >= warp_weight) return false;
  target -= before;
  // This warp holds it: step by step, then over the lanes, then over the lane's four.
  const int begin = row.warp() * row.warp_tokens;
  for (int t = begin + row.lane() * 4;; t += kTokensPerStep) {
    uint64_t w[4], lane_weight = 0;
#pragma unroll
    for (int j = 0; j < 4; ++j) lane_weight += w[j] = weight(t + j);
    uint64_t upto = lane_weight;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const uint64_t other = __shfl_up_sync(0xffffffffu, upto, step);
      if (row.lane() >= step) upto += other;
    }
    const uint64_t total = __shfl_sync(0xffffffffu, upto, 31);
    if (target >= total) {
      target -= total;
      continue;
    }
    uint64_t rest = target - (upto - lane_weight);  // wraps where the lane lies behind
    if (target >= upto || target < upto - lane_weight) return false;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (rest < w[j]) {
        found = t + j;
        return true;
      }
      rest -= w[j];
    }
  }
}

}  // namespace seekernel
