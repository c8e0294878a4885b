// moe_gate: group-limited top-k choice of experts, one warp per token.
//
//   score = sigmoid(logit) or softmax(logits);  choice = score + bias
//   group score = the sum of its two largest choices (with bias, and two experts or more), else its
//   largest one
//   ids = the top_k largest choices within the topk_group best groups
//   weights = score[ids] (/ (sum + 1e-20) if norm_topk_prob) * routed_scaling_factor
//
// Shapes: logits [m, e] fp32, bias [e] fp32 or null, weights [m, top_k + num_shared] fp32, ids the
//   same in int32, all rows strided; e <= 32 * kPerLane, top_k <= 16. The last num_shared columns
//   become experts e, e + 1, ... with weight 1: shared experts as further groups of a grouped GEMM.
// Roles: expert 32 i + lane is register i of its lane. A key is the choice as an integer of the
//   same order in its high word and the complement of the index in its low word, so that the
//   largest key is the largest choice and, among equals, the lowest index; the two words are
//   reduced one after the other (redux.sync), and a key that was taken becomes 0, as are those of
//   lost groups.
// Shared memory: 32 * kPerLane words a warp, for groups that are no multiple of 32 experts.
// Faults: a NaN logit sets bit 0 of *error, an infinite one bit 1; ids stay legal all the same.
// Bound: latency. 1.1 KB read and 64 bytes written a token at V3's sizes.
#pragma once

#include <seekernel/ptx/barrier.cuh>
#include <seekernel/ptx/types.cuh>

namespace seekernel {

constexpr int kGateMaxTopK = 16;

struct gate_config_t {
  int32_t num_experts, n_group, topk_group, top_k, num_shared;
  int32_t softmax, norm_topk_prob;
  float routed_scaling_factor;
};

constexpr uint32_t kFullWarp = 0xffffffffu;
constexpr uint32_t kNaNKey = 1;  // below the key of -inf; 0 is no candidate at all

SEEKERNEL_DEVICE uint32_t ordered_key(float value) {
  const uint32_t bits = __float_as_uint(value);
  if (value != value) return kNaNKey;
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

SEEKERNEL_DEVICE float key_value(uint32_t key) {
  if (key <= kNaNKey) return __uint_as_float(0x7fc00000u);
  return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

// The index (32 i + lane) of the largest key, the lowest among equals; takes it out.
template <int kCount>
SEEKERNEL_DEVICE uint32_t take_best(uint32_t (&keys)[kCount], int lane) {
  uint32_t best = keys[0], at = 0;
#pragma unroll
  for (int i = 1; i < kCount; ++i) {
    at = keys[i] > best ? i : at;
    best = keys[i] > best ? keys[i] : best;
  }
  const uint32_t top = __reduce_max_sync(kFullWarp, best);
  const uint32_t low = best == top ? ~(32 * at + lane) : 0;
  const uint32_t index = ~__reduce_max_sync(kFullWarp, low);
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    if (index == static_cast<uint32_t>(32 * i + lane)) keys[i] = 0;
  }
  return index;
}

struct best_pair_t {
  uint32_t first = 0, second = 0;
  SEEKERNEL_DEVICE void add(uint32_t key) {
    second = key > first ? first : key > second ? key : second;
    first = key > first ? key : first;
  }
  // The key of the group's score.
  SEEKERNEL_DEVICE uint32_t score(bool pair) const {
    return ordered_key(pair ? key_value(first) + key_value(second) : key_value(first));
  }
};

// Group g's key goes to register g / 32 of lane g % 32. Groups of whole registers: a register holds
// 32 experts of one group.
template <int kPerLane>
SEEKERNEL_DEVICE void group_keys_by_register(const uint32_t (&keys)[kPerLane],
                                             uint32_t (&group_keys)[kPerLane], int group_registers,
                                             int n_group, bool pair, int lane) {
  best_pair_t mine;
  int group = 0, left = group_registers;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    if (group < n_group) {
      mine.add(keys[i]);
      if (--left == 0) {
        best_pair_t all;
        all.first = __reduce_max_sync(kFullWarp, mine.first);
        const uint32_t winner = __ffs(__ballot_sync(kFullWarp, mine.first == all.first)) - 1;
        all.second = __reduce_max_sync(
            kFullWarp, static_cast<uint32_t>(lane) == winner ? mine.second : mine.first);
        if (lane == group) group_keys[0] = all.score(pair);
        mine = {};
        left = group_registers;
        ++group;
      }
    }
  }
}

// Any other group size: lane g scans the experts of groups g, g + 32, ... in shared memory.
template <int kPerLane>
SEEKERNEL_DEVICE void group_keys_by_lane(const uint32_t (&keys)[kPerLane],
                                         uint32_t (&group_keys)[kPerLane], uint32_t* scratch,
                                         int group_size, int n_group, bool pair, int lane) {
  __syncwarp();
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) scratch[32 * i + lane] = keys[i];
  __syncwarp();
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int group = 32 * i + lane;
    if (group < n_group) {
      best_pair_t best;
      for (int e = 0; e < group_size; ++e) best.add(scratch[group * group_size + e]);
      group_keys[i] = best.score(pair);
    }
  }
}

// Takes every expert of a group that is not among the topk_group best out of keys.
template <int kPerLane>
SEEKERNEL_DEVICE void drop_lost_groups(const gate_config_t& config, bool with_bias,
                                       uint32_t (&keys)[kPerLane], uint32_t* scratch, int lane) {
  const int group_size = config.num_experts / config.n_group;
  const bool pair = with_bias && group_size > 1;
  uint32_t group_keys[kPerLane] = {};
  if (group_size % 32 == 0) {
    group_keys_by_register(keys, group_keys, group_size / 32, config.n_group, pair, lane);
  } else {
    group_keys_by_lane(keys, group_keys, scratch, group_size, config.n_group, pair, lane);
  }
  uint32_t kept = 0;  // bit i: group 32 i + lane
  if (config.n_group <= 32) {
    uint32_t one[1] = {group_keys[0]};
    for (int i = 0; i < config.topk_group; ++i) {
      if (take_best(one, lane) == static_cast<uint32_t>(lane)) kept = 1;
    }
  } else {
    for (int i = 0; i < config.topk_group; ++i) {
      const uint32_t group = take_best(group_keys, lane);
      if (group % 32 == static_cast<uint32_t>(lane)) kept |= 1u << (group / 32);
    }
  }
  // The half keeps the product away from integers: exact for fewer than 2^20 experts.
  const float inverse = 1.0f / static_cast<float>(group_size);
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int group = static_cast<int>((static_cast<float>(32 * i + lane) + 0.5f) * inverse);
    const uint32_t word = __shfl_sync(kFullWarp, kept, group % 32);
    if ((word >> (group / 32) & 1) == 0) keys[i] = 0;
  }
}

SEEKERNEL_DEVICE float warp_sum(float value) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(kFullWarp, value, step);
  return value;
}

// One token by one converged warp. Returns the id and weight of column `lane`; faults is OR-ed.
template <int kPerLane>
SEEKERNEL_DEVICE void gate_token(const gate_config_t& config, const float* logits,
                                 const float* bias, uint32_t* scratch, int32_t& id, float& weight,
                                 uint32_t& faults) {
  constexpr float kLargest = 3.402823466e38f;
  const int lane = threadIdx.x % 32;
  float logit[kPerLane];
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const bool valid = 32 * i + lane < config.num_experts;
    logit[i] = valid ? __ldcg(logits + 32 * i + lane) : 0.0f;
    const uint32_t magnitude = __float_as_uint(logit[i]) & 0x7fffffffu;
    faults |= magnitude > 0x7f800000u ? 1u : magnitude == 0x7f800000u ? 2u : 0u;
  }

  // softmax: finite logits only in the largest, so that +inf takes all the weight; NaN left out.
  float largest = -kLargest, total = 1.0f;
  if (config.softmax) {
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      if (32 * i + lane < config.num_experts) {
        largest = fmaxf(largest, fminf(logit[i] == logit[i] ? logit[i] : -kLargest, kLargest));
      }
    }
    largest = key_value(__reduce_max_sync(kFullWarp, ordered_key(largest)));
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      if (32 * i + lane < config.num_experts && logit[i] == logit[i]) {
        sum += expf(fminf(logit[i], kLargest) - largest);
      }
    }
    total = warp_sum(sum);
  }
  const auto score_of = [&](float value) {
    if (!config.softmax) return 1.0f / (1.0f + expf(-value));
    return value == value ? expf(fminf(value, kLargest) - largest) / total : value;
  };

  uint32_t keys[kPerLane];
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int e = 32 * i + lane;
    keys[i] = 0;
    if (e < config.num_experts) {
      keys[i] = ordered_key(score_of(logit[i]) + (bias != nullptr ? bias[e] : 0.0f));
    }
  }
  if (config.topk_group < config.n_group) {
    drop_lost_groups(config, bias != nullptr, keys, scratch, lane);
  }

  id = config.num_experts + lane - config.top_k;  // a shared expert's, unless chosen here
  for (int j = 0; j < config.top_k; ++j) {
    const uint32_t index = take_best(keys, lane);
    if (lane == j) id = static_cast<int32_t>(index);
  }
  const float score = lane < config.top_k ? score_of(__ldcg(logits + id)) : 0.0f;
  const float divisor = config.norm_topk_prob ? warp_sum(score) + 1e-20f : 1.0f;
  weight = lane < config.top_k ? score / divisor * config.routed_scaling_factor : 1.0f;
}

SEEKERNEL_DEVICE void report_faults(uint32_t faults, int32_t* error) {
  if (error == nullptr) return;
  faults = __reduce_or_sync(kFullWarp, faults);
  if (threadIdx.x % 32 == 0 && faults != 0) atomicOr(error, static_cast<int32_t>(faults));
}

constexpr int kGateWarps = 4;

template <int kPerLane>
__global__ void __launch_bounds__(32 * kGateWarps)
    moe_gate(const float* logits, const float* bias, float* weights, int32_t* ids, int32_t* error,
             int m, int64_t stride_logits_m, int64_t stride_weights_m, int64_t stride_ids_m,
             const gate_config_t config) {
  __shared__ uint32_t scratch[kGateWarps][32 * kPerLane];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t token = static_cast<int64_t>(blockIdx.x) * kGateWarps + warp;
  ptx::griddepcontrol_wait();
  ptx::griddepcontrol_launch_dependents();
  if (token >= m) return;
  int32_t id;
  float weight;
  uint32_t faults = 0;
  gate_token<kPerLane>(config, logits + token * stride_logits_m, bias, scratch[warp], id, weight,
                       faults);
  if (lane < config.top_k + config.num_shared) {
    weights[token * stride_weights_m + lane] = weight;
    ids[token * stride_ids_m + lane] = id;
  }
  report_faults(faults, error);
}

}  // namespace seekernel
