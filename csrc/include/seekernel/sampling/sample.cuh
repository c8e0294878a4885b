// sample: one token per row, by temperature, top-k, top-p and min-p, after masks, biases and
// penalties.
//
//   x = mask ? logits : -inf;  x += bias;  x = x > 0 ? x / repetition : x * repetition (seen);
//   x -= presence + frequency * count;  weight = 2^40 exp((x - max) / temperature), rounded down;
//   ids = the first token at which the running weight of what the filters keep exceeds
//   random * total / 2^64
//
// Shapes: logits [r, v] in T = float or bfloat16 bits; see sample_args_t for the rest.
// Roles: a cluster of num_ctas CTAs per row (grid r * num_ctas), up to 16 warps each:
// sampling/row.cuh
//   shares the row out and sums over the cluster, sampling/select.cuh finds what filters keep.
// Shared memory: row_shared_bytes: the row's logits (66 KiB a CTA at v 129280 and 8 CTAs), 2 KiB of
//   sums. Logits are read once; every later pass is in shared memory.
// Bound: latency: a load, then 2 to 10 passes of about 1 us with one cluster barrier each; at many
//   rows the bytes of the logits. Not measured yet.
#pragma once

#include <seekernel/sampling/select.cuh>

namespace seekernel {

struct sample_args_t {
  const void* logits;
  int64_t stride_logits_r;
  const float* temperature;  // [r], as the next five
  const int32_t* top_k;
  const float* top_p;
  const float* min_p;
  const int64_t* seeds;
  const int64_t* offsets;
  const float* repetition;  // [r], as the next two; all null without penalties
  const float* presence;
  const float* frequency;
  const int32_t* token_counts;  // [num_slots, v]: 2 * count + (1 if in the prompt)
  const int32_t* slots;         // [r]
  const int32_t* extra_ids;     // [r, num_extra], null if none
  const int32_t* bias_ids;      // [r, num_bias], null if none
  const float* bias;
  const int32_t* mask;  // [r, ceil(v / 32)], null: all allowed
  int32_t* ids;
  int32_t* status;
  float* probs;  // [r, v], null: not wanted
  int32_t v, num_ctas, num_slots, num_extra, num_bias, reserved;
};

SEEKERNEL_DEVICE float penalised(float x, int count, float repetition, float presence,
                                 float frequency) {
  if (count == 0) return x;
  x = x > 0.0f ? __fdiv_rn(x, repetition) : __fmul_rn(x, repetition);
  const int times = count >> 1;
  if (times != 0) {
    const float cost = __fadd_rn(presence, __fmul_rn(frequency, static_cast<float>(times)));
    x = __fsub_rn(x, cost);
  }
  return x;
}

// The row's part of the arguments.
struct changes_t {
  const int32_t* mask;
  const int32_t* counts;  // null: no penalties
  const int32_t* extra_ids;
  const int32_t* bias_ids;
  const float* bias;
  float repetition, presence, frequency;
  int num_extra, num_bias;

  SEEKERNEL_DEVICE changes_t(const sample_args_t& args, int r) {
    mask = args.mask == nullptr ? nullptr : args.mask + int64_t{r} * ((args.v + 31) / 32);
    const int slot = args.slots == nullptr ? -1 : args.slots[r];
    const bool penalties = slot >= 0 && slot < args.num_slots;
    counts = penalties ? args.token_counts + int64_t{slot} * args.v : nullptr;
    repetition = penalties ? args.repetition[r] : 1.0f;
    presence = penalties ? args.presence[r] : 0.0f;
    frequency = penalties ? args.frequency[r] : 0.0f;
    num_extra = penalties ? args.num_extra : 0;
    extra_ids = args.extra_ids + int64_t{r} * args.num_extra;
    num_bias = args.num_bias;
    bias_ids = args.bias_ids + int64_t{r} * num_bias;
    bias = args.bias + int64_t{r} * num_bias;
  }

  SEEKERNEL_DEVICE float masked(float x, int i) const {
    if (mask == nullptr) return x;
    return static_cast<uint32_t>(mask[i / 32]) >> (i % 32) & 1u ? x : minus_infinity();
  }

  // i: a multiple of 4.
  SEEKERNEL_DEVICE float4 masked(float4 quad, int i) const {
    if (mask == nullptr) return quad;
    const uint32_t word = static_cast<uint32_t>(mask[i / 32]) >> (i % 32);
    const float none = minus_infinity();
    return make_float4(word & 1u ? quad.x : none, word & 2u ? quad.y : none,
                       word & 4u ? quad.z : none, word & 8u ? quad.w : none);
  }

  SEEKERNEL_DEVICE int listed(int j) const {
    return j < num_bias ? bias_ids[j] : extra_ids[j - num_bias];
  }

  // With everything, for a token that bias or extra ids name.
  SEEKERNEL_DEVICE float of_listed(float x, int i) const {
    x = masked(x, i);
    for (int j = 0; j < num_bias; ++j) {
      if (bias_ids[j] == i) x = __fadd_rn(x, bias[j]);
    }
    if (counts == nullptr) return x;
    int count = counts[i];
    for (int j = 0; j < num_extra; ++j) count += extra_ids[j] == i ? 2 : 0;
    return penalised(x, count, repetition, presence, frequency);
  }
};

// Penalties without extra ids; every thread its own tokens.
template <bool kAligned>
SEEKERNEL_DEVICE void penalise_row(const row_t& row, const changes_t& changes) {
  const int begin = row.warp() * row.warp_tokens;
#pragma unroll 1
  for (int t = begin + row.lane() * 4; t < begin + row.warp_tokens; t += kTokensPerStep) {
    const int i = row.first_token() + t, left = row.v - i;
    if (left <= 0) break;
    const int32_t* p = changes.counts + i;
    int4 count;
    if constexpr (kAligned) {
      count = *reinterpret_cast<const int4*>(p);
    } else {
      count = make_int4(p[0], left > 1 ? p[1] : 0, left > 2 ? p[2] : 0, left > 3 ? p[3] : 0);
    }
    if ((count.x | count.y | count.z | count.w) == 0) continue;
#pragma unroll 1
    for (int j = 0; j < 4; ++j) {
      const int seen = j == 0 ? count.x : j == 1 ? count.y : j == 2 ? count.z : count.w;
      row.x[t + j] =
          penalised(row.x[t + j], seen, changes.repetition, changes.presence, changes.frequency);
    }
  }
}

// Once more, the listed tokens of this CTA, each by the thread of its first entry.
template <class T>
SEEKERNEL_DEVICE void change_listed(const row_t& row, const changes_t& changes, const T* logits) {
  const int num_listed = changes.num_bias + changes.num_extra;
  for (int entry = threadIdx.x; entry < num_listed; entry += blockDim.x) {
    const int i = changes.listed(entry), local = i - row.first_token();
    if (i < 0 || i >= row.v || local < 0 || local >= row.cta_tokens) continue;
    bool first = true;
    for (int j = 0; j < entry; ++j) first &= changes.listed(j) != i;
    if (first) row.x[local] = changes.of_listed(load_one(logits + i), i);
  }
}

// After a barrier behind the loads: neighbouring lanes write neighbouring tokens.
template <class F>
SEEKERNEL_DEVICE void write_probs(const row_t& row, float* probs, const F& probability) {
#pragma unroll 1
  for (int t = threadIdx.x; t < row.cta_tokens; t += blockDim.x) {
    const int i = row.first_token() + t;
    if (i >= row.v) break;
    probs[i] = probability(row.x[t], i);
  }
}

template <class T, bool kAligned>
__global__ void __launch_bounds__(kRowThreads, 2) sample(const sample_args_t args) {
  extern __shared__ __align__(16) unsigned char shared[];
  row_t row = row_of(shared, args.v, args.num_ctas);
  row_arrive(row);
  const int r = blockIdx.x / args.num_ctas;
  ptx::griddepcontrol_wait();
  const T* logits = static_cast<const T*>(args.logits) + int64_t{r} * args.stride_logits_r;
  float* probs = args.probs == nullptr ? nullptr : args.probs + int64_t{r} * args.v;
  const changes_t changes(args, r);
  load_row<kAligned>(row, logits, [&](float4 quad, int i) { return changes.masked(quad, i); });
  if (changes.counts != nullptr) penalise_row<kAligned>(row, changes);
  if (changes.num_bias + changes.num_extra > 0) {
    __syncthreads();  // the plain values are there
    change_listed(row, changes, logits);
    __syncthreads();  // and the listed ones, before their owners read them
  }
  row_wait(row);
  bool bad;
  const uint64_t best = find_best(row, bad);
  const float row_max = key_logit(best);
  const bool writes = row.rank == 0 && threadIdx.x == 0;
  if (bad || isinf(row_max)) {
    if (writes) {
      args.status[r] = bad || row_max > 0.0f ? 1 : 2;
      args.ids[r] = -1;
    }
    if (probs != nullptr) write_probs(row, probs, [](float, int) { return quiet_nan(); });
    return;
  }
  if (writes) args.status[r] = 0;
  const float temperature = args.temperature[r];
  if (!(temperature > 0.0f)) {
    const int token = key_index(best);
    if (writes) args.ids[r] = token;
    if (probs != nullptr) {
      write_probs(row, probs, [&](float, int i) { return i == token ? 1.0f : 0.0f; });
    }
    return;
  }

  kept_t kept;
  kept.row_max = row_max;
  kept.scale = step_scale(temperature);
  kept.last_step = min_p_step(args.min_p[r]);
  weigh_row(row, kept);
  const int top_k = args.top_k[r];
#pragma unroll 1
  for (int filter = 0; filter < 2; ++filter) {
    const bool by_count = filter == 0;
    if (by_count && (top_k <= 0 || static_cast<uint32_t>(top_k) >= kept.count)) continue;
    const uint64_t mass = by_count ? 0 : top_p_target(args.top_p[r], kept.weight);
    if (!by_count && mass >= kept.weight) continue;
    keep_prefix(row, kept, by_count ? top_k : 0, mass);
  }
  uint64_t mine = 0;
  for_each_token(row, [&](float x, int i) { mine += kept.weight_at(x, i); });
  if (probs != nullptr) {
    const double total = __ull2double_rn(kept.weight);
    write_probs(row, probs, [&](float x, int i) {
      return __double2float_rn(__ddiv_rn(__ull2double_rn(kept.weight_at(x, i)), total));
    });
  }
  const uint64_t random = philox(args.seeds[r], args.offsets[r], kStreamDraw);
  const auto weight = [&](int t) { return kept.weight_at(row.x[t], row.first_token() + t); };
  int found;
  if (find_token(row, mine, __umul64hi(random, kept.weight), weight, found)) {
    args.ids[r] = row.first_token() + found;
  }
}

}  // namespace seekernel
