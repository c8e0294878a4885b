// token_logprobs: log-probabilities of one token per row and of the num_top likeliest, raw.
//
//   logprob(i) = logits[i] - max - ln(sum of 2^40 exp(logits - max), rounded down, / 2^40)
//
// Shapes: logits [r, v] in T = float or bfloat16 bits; ids, logprobs, ranks [r]; top_ids,
//   top_logprobs [r, num_top], num_top <= 64.
// Roles: a cluster per row as in sampling/sample.cuh. The likeliest are found as top-k finds them;
//   each CTA lists its own and pushes the list to rank 0, which ranks all by counting.
// Shared memory: row_shared_bytes and 4.5 KiB of lists behind them. A list's order depends on
//   timing, nothing that is written does.
// Bound: latency, as sample. Not measured yet.
#pragma once

#include <seekernel/sampling/select.cuh>

namespace seekernel {

constexpr int kMaxTop = 64;

struct token_logprobs_args_t {
  const void* logits;
  int64_t stride_logits_r;
  const int32_t* ids;
  float* logprobs;
  int32_t* ranks;
  int32_t* top_ids;
  float* top_logprobs;
  int32_t v, num_ctas, num_top, reserved;
};

struct top_lists_t {
  uint64_t keys[kMaxCtas][kMaxTop];  // at rank 0; CTA c fills row c
  uint64_t counts[kMaxCtas];
  uint64_t mine[kMaxTop];  // this CTA's own
  int32_t num_mine;
};

SEEKERNEL_DEVICE float logprob_of(float x, float row_max, double log_sum) {
  const double distance = __dadd_rn(static_cast<double>(x), -static_cast<double>(row_max));
  return __double2float_rn(__dadd_rn(distance, -log_sum));
}

template <class T, bool kAligned>
__global__ void __launch_bounds__(kRowThreads, 2) token_logprobs(const token_logprobs_args_t args) {
  extern __shared__ __align__(16) unsigned char shared[];
  row_t row = row_of(shared, args.v, args.num_ctas);
  top_lists_t& lists = *reinterpret_cast<top_lists_t*>(row.x + row.cta_tokens);
  row_arrive(row);
  if (threadIdx.x == 0) lists.num_mine = 0;
  const int r = blockIdx.x / args.num_ctas;
  ptx::griddepcontrol_wait();
  const T* logits = static_cast<const T*>(args.logits) + int64_t{r} * args.stride_logits_r;
  load_row<kAligned>(row, logits, [](float4 quad, int) { return quad; });
  row_wait(row);
  bool bad;
  const uint64_t best = find_best(row, bad);
  const float row_max = key_logit(best);
  const bool writes = row.rank == 0 && threadIdx.x == 0;
  int32_t* top_ids = args.top_ids + int64_t{r} * args.num_top;
  float* top_logprobs = args.top_logprobs + int64_t{r} * args.num_top;
  if (bad || isinf(row_max)) {
    if (writes) {
      args.logprobs[r] = quiet_nan();
      args.ranks[r] = 0;
    }
    if (row.rank == 0) {
      for (int j = threadIdx.x; j < args.num_top; j += blockDim.x) {
        top_ids[j] = -1;
        top_logprobs[j] = quiet_nan();
      }
    }
    return;
  }

  kept_t kept;
  kept.row_max = row_max;
  kept.scale = step_scale(1.0f);
  kept.last_step = kFarStep;
  const int id = args.ids[r];
  const bool named = id >= 0 && id < args.v;
  const float x_of_id = named ? load_one(logits + id) : 0.0f;
  const uint64_t key_of_id = named ? order_key(x_of_id, id) : ~uint64_t{0};
  uint64_t sums[2] = {0, 0};
  for_each_token(row, [&](float x, int i) {
    sums[0] += weight_of(steps_below(x, row_max, kept.scale));
    sums[1] += order_key(x, i) > key_of_id;
  });
  all_reduce<add_t>(row, sums);
  const double log_sum = log_of_weight(sums[0]);
  if (writes) {
    args.logprobs[r] = named ? logprob_of(x_of_id, row_max, log_sum) : minus_infinity();
    args.ranks[r] = named ? static_cast<int32_t>(sums[1]) + 1 : 0;
  }
  if (args.num_top == 0) return;

  kept.last_key = 0;
  kept.weight = sums[0];
  kept.count = row.num_ctas * row.cta_tokens;  // what lies behind v, too
  keep_prefix(row, kept, args.num_top, 0);
  for_each_token(row, [&](float x, int i) {
    if (!kept.holds(steps_below(x, row_max, kept.scale), x, i)) return;
    lists.mine[atomicAdd(&lists.num_mine, 1)] = order_key(x, i);
  });
  __syncthreads();  // the list is complete
  if (row.num_ctas == 1) {
    for (int j = threadIdx.x; j < lists.num_mine; j += blockDim.x) {
      lists.keys[0][j] = lists.mine[j];
    }
    if (threadIdx.x == 0) lists.counts[0] = lists.num_mine;
  } else {
    for (int j = threadIdx.x; j < lists.num_mine; j += blockDim.x) {
      ptx::store_cluster(ptx::mapa(ptx::shared_address(&lists.keys[row.rank][j]), 0),
                         lists.mine[j]);
    }
    if (threadIdx.x == 0) {
      ptx::store_cluster(ptx::mapa(ptx::shared_address(&lists.counts[row.rank]), 0),
                         static_cast<uint64_t>(lists.num_mine));
    }
  }
  row_sync(row);
  if (row.rank != 0) return;
  for (int slot = threadIdx.x; slot < row.num_ctas * kMaxTop; slot += blockDim.x) {
    const int from = slot / kMaxTop, j = slot % kMaxTop;
    if (j >= static_cast<int>(lists.counts[from])) continue;
    const uint64_t key = lists.keys[from][j];
    int place = 0;
    for (int c = 0; c < row.num_ctas; ++c) {
      for (int k = 0; k < static_cast<int>(lists.counts[c]); ++k) place += lists.keys[c][k] > key;
    }
    top_ids[place] = key_index(key);
    top_logprobs[place] = logprob_of(key_logit(key), row_max, log_sum);
  }
}

}  // namespace seekernel
