// mtp_verify_strict, mtp_verify_relaxed, mtp_verify_rejection: how many of a request's drafted
// tokens are accepted, and which token comes after them.
//
//   strict:     draft == target
//   relaxed:    draft == top[0], or top[t] while p[t'] >= p[0] - delta for all t' <= t
//   rejection:  random * q[draft] / 2^64 < p[draft]; else a draw from max(p - q, 0)
//
// Shapes: draft_ids [b, n], target_ids [b, n + 1], top_ids, top_logprobs [b, n + 1, num_top],
//   target_probs [b, n + 1, v], draft_probs [b, n, v]; out_ids [b, n + 1], num_out [b].
// Roles: strict, relaxed: one thread per request. rejection: a cluster per request, as in
//   sampling/row.cuh; every thread goes through the drafts, then all weigh the row that the
//   replacement is drawn from, straight from global memory.
// Bound: strict, relaxed: launch latency; rejection: two rows of probabilities by one cluster.
// Not measured yet.
#pragma once

#include <seekernel/sampling/select.cuh>

namespace seekernel {

// Ends a request's row: `emitted` tokens, then -1.
SEEKERNEL_DEVICE void end_row(int32_t* out, int32_t* num_out, int emitted, int n) {
  for (int j = emitted; j <= n; ++j) out[j] = -1;
  *num_out = emitted;
}

template <int kThreads>
__global__ void __launch_bounds__(kThreads)
    mtp_verify_strict(const int32_t* target_ids, const int32_t* draft_ids, int32_t* out_ids,
                      int32_t* num_out, int b, int n) {
  ptx::griddepcontrol_wait();
  const int i = blockIdx.x * kThreads + threadIdx.x;
  if (i >= b) return;
  const int32_t* target = target_ids + int64_t{i} * (n + 1);
  const int32_t* draft = draft_ids + int64_t{i} * n;
  int32_t* out = out_ids + int64_t{i} * (n + 1);
  int emitted = 0;
  bool going = true;
  while (going && emitted <= n && target[emitted] >= 0) {
    out[emitted] = target[emitted];
    going = emitted < n && draft[emitted] == target[emitted];
    ++emitted;
  }
  end_row(out, num_out + i, emitted, n);
}

struct mtp_relaxed_args_t {
  const int32_t* top_ids;
  const float* top_logprobs;
  const int32_t* draft_ids;
  const int32_t* slots;
  float* slot_delta;
  int32_t* out_ids;
  int32_t* num_out;
  int64_t begin_thinking_id, end_thinking_id;
  int32_t b, n, num_top, num_slots;
  float relaxed_delta;
  int32_t reserved;
};

// exp(logprob) with 40 fractional bits.
SEEKERNEL_DEVICE uint64_t weight_of_logprob(float logprob) {
  const int32_t step = steps_below(logprob < 0.0f ? logprob : 0.0f, 0.0f, step_scale(1.0f));
  return step <= kLastStep ? weight_of(step) : 0;
}

template <int kThreads>
__global__ void __launch_bounds__(kThreads) mtp_verify_relaxed(const mtp_relaxed_args_t args) {
  ptx::griddepcontrol_wait();
  const int i = blockIdx.x * kThreads + threadIdx.x;
  if (i >= args.b) return;
  const int n = args.n, slot = args.slots[i];
  const bool has_slot = slot >= 0 && slot < args.num_slots;
  const float delta = has_slot ? args.slot_delta[slot] : 0.0f;
  const double limit = delta > 0.0f ? __dmul_rn(static_cast<double>(delta), 0x1p40) : 0.0;
  float next_delta = delta;
  int32_t* out = args.out_ids + int64_t{i} * (n + 1);
  int emitted = 0;
  bool going = true;
  while (going && emitted <= n) {
    const int64_t position = (int64_t{i} * (n + 1) + emitted) * args.num_top;
    const int32_t* top = args.top_ids + position;
    const float* logprobs = args.top_logprobs + position;
    const int draft = emitted < n ? args.draft_ids[int64_t{i} * n + emitted] : -1;
    if (top[0] < 0) break;
    bool accepted = draft >= 0 && draft == top[0];
    const uint64_t best = weight_of_logprob(logprobs[0]);
    for (int t = 1; t < args.num_top && draft >= 0 && !accepted; ++t) {
      const uint64_t weight = weight_of_logprob(logprobs[t]);
      if (!(__dadd_rn(__ull2double_rn(best), -__ull2double_rn(weight)) <= limit)) break;
      accepted = draft == top[t];
    }
    const int token = accepted ? draft : top[0];
    out[emitted++] = token;
    if (token == args.begin_thinking_id) next_delta = args.relaxed_delta;
    if (token == args.end_thinking_id) next_delta = 0.0f;
    going = accepted;
  }
  end_row(out, args.num_out + i, emitted, n);
  if (has_slot) args.slot_delta[slot] = next_delta;
}

struct mtp_rejection_args_t {
  const float* target_probs;
  const float* draft_probs;  // null: each draft had probability 1
  const int32_t* draft_ids;
  const int64_t* seeds;
  const int64_t* offsets;
  int32_t* out_ids;
  int32_t* num_out;
  int32_t v, num_ctas, n, reserved;
};

// What token i weighs in a draw: p, or p less q, or p without the draft.
struct residual_t {
  const float* p;
  const float* q;  // null: none
  int removed;     // -1: none
  int v;

  SEEKERNEL_DEVICE uint64_t weight(int i, bool& bad) const {
    if (i >= v) return 0;
    const uint64_t fixed = fixed_of(p[i], bad);
    if (q != nullptr) {
      const uint64_t less = fixed_of(q[i], bad);
      return fixed > less ? fixed - less : 0;
    }
    return i == removed ? 0 : fixed;
  }
};

template <int kThreads>
__global__ void __launch_bounds__(kThreads, 1)
    mtp_verify_rejection(const mtp_rejection_args_t args) {
  extern __shared__ __align__(16) unsigned char shared[];
  row_t row = row_of(shared, args.v, args.num_ctas);
  row_arrive(row);
  const int64_t b = blockIdx.x / args.num_ctas;
  const int n = args.n;
  ptx::griddepcontrol_wait();
  int32_t* out = args.out_ids + b * (n + 1);
  const bool writes = row.rank == 0 && threadIdx.x == 0;
  int j = 0, draft = -1;
  bool rejected = false, bad = false;
  for (; j < n; ++j) {
    draft = args.draft_ids[b * n + j];
    if (draft < 0 || draft >= args.v) break;
    const uint64_t p = fixed_of(args.target_probs[(b * (n + 1) + j) * args.v + draft], bad);
    uint64_t q = kUnitWeight;
    if (args.draft_probs != nullptr) {
      q = fixed_of(args.draft_probs[(b * n + j) * args.v + draft], bad);
    }
    const uint64_t random = philox(args.seeds[b], args.offsets[b] + j, kStreamAccept);
    rejected = bad || __umul64hi(random, q) >= p;
    if (rejected) break;
    if (writes) out[j] = draft;
  }
  row_wait(row);
  if (bad) {
    if (writes) end_row(out, args.num_out + b, j, n);
    return;
  }
  const bool with_q = rejected && args.draft_probs != nullptr;
  const residual_t plain{args.target_probs + (b * (n + 1) + j) * args.v, nullptr, -1, args.v};
  const residual_t residual{plain.p, with_q ? args.draft_probs + (b * n + j) * args.v : nullptr,
                            rejected && !with_q ? draft : -1, args.v};
  uint64_t sums[4] = {};  // residual, plain, NaNs
  const int begin = row.warp() * row.warp_tokens;
  for (int t = begin + row.lane() * 4; t < begin + row.warp_tokens; t += kTokensPerStep) {
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const int i = row.first_token() + t + k;
      sums[0] += residual.weight(i, bad);
      sums[1] += plain.weight(i, bad);
    }
  }
  sums[2] = bad;
  const uint64_t mine = sums[0], mine_plain = sums[1];
  all_reduce<add_t>(row, sums);
  // p and q may be equal but for rounding: then nothing is left, and the draw is from p.
  const bool from_p = sums[0] == 0;
  const uint64_t total = from_p ? sums[1] : sums[0];
  const bool none = sums[2] != 0 || total == 0;
  if (writes) {
    // The thread that finds the token writes out[j].
    if (!none) {
      for (int k = j + 1; k <= n; ++k) out[k] = -1;
      args.num_out[b] = j + 1;
    } else {
      end_row(out, args.num_out + b, j, n);
    }
  }
  if (none) return;
  const uint32_t stream = rejected ? kStreamResidual : kStreamDraw;
  const uint64_t random = philox(args.seeds[b], args.offsets[b] + j, stream);
  const residual_t source{plain.p, from_p ? nullptr : residual.q, from_p ? -1 : residual.removed,
                          args.v};
  bool ignored = false;
  const auto weight = [&](int t) { return source.weight(row.first_token() + t, ignored); };
  int found;
  if (find_token(row, from_p ? mine_plain : mine, __umul64hi(random, total), weight, found)) {
    out[j] = row.first_token() + found;
  }
}

}  // namespace seekernel
