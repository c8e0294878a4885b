// mtp_verify_relaxed, mtp_verify_rejection: a request never leaves its thread.

// exp(logprob) with 40 fractional bits.
SEEKERNEL_INLINE uint64_t weight_of_logprob(float logprob) {
  const int32_t step = steps_below(logprob < 0.0f ? logprob : 0.0f, 0.0f, step_scale(1.0f));
  return step <= kLastStep ? weight_one(step) : 0;
}

static void mtp_verify_relaxed(const MtpRelaxedArgs& args, int64_t begin, int64_t end) {
  for (int64_t b = begin; b < end; ++b) {
    const int64_t slot = args.slots[b];
    const bool has_slot = slot >= 0 && slot < args.num_slots;
    const float delta = has_slot ? args.slot_delta[slot] : 0.0f;
    const double limit = delta > 0.0f ? static_cast<double>(delta) * 0x1p40 : 0.0;
    int32_t* out = args.out_ids + b * (args.n + 1);
    int64_t emitted = 0;
    bool going = true;
    for (int64_t j = 0; j <= args.n && going; ++j) {
      const int64_t position = b * (args.n + 1) + j;
      const int32_t* top = args.top_ids + position * args.num_top;
      const float* logprobs = args.top_logprobs + position * args.num_top;
      const int32_t draft = j < args.n ? args.draft_ids[b * args.n + j] : -1;
      if (top[0] < 0) break;
      bool accepted = draft >= 0 && draft == top[0];
      const uint64_t best = weight_of_logprob(logprobs[0]);
      for (int64_t t = 1; t < args.num_top && draft >= 0 && !accepted; ++t) {
        const uint64_t weight = weight_of_logprob(logprobs[t]);
        if (!(static_cast<double>(best) - static_cast<double>(weight) <= limit)) break;
        accepted = draft == top[t];
      }
      out[emitted++] = accepted ? draft : top[0];
      going = accepted;
    }
    args.num_out[b] = static_cast<int32_t>(emitted);
    for (int64_t j = emitted; j <= args.n; ++j) out[j] = -1;
    if (!has_slot) continue;
    for (int64_t j = 0; j < emitted; ++j) {
      if (out[j] == args.begin_thinking_id) args.slot_delta[slot] = args.relaxed_delta;
      if (out[j] == args.end_thinking_id) args.slot_delta[slot] = 0.0f;
    }
  }
}

// A probability with 40 fractional bits, rounded down; a NaN sets `bad`.
SEEKERNEL_INLINE uint64_t fixed_of(float p, bool& bad) {
  bad |= p != p;
  if (!(p > 0.0f)) return 0;
  return static_cast<uint64_t>(static_cast<double>(p < 4.0f ? p : 4.0f) * 0x1p40);
}

// What a draw at one position weighs token i by: p, or p less q, or p without the draft.
struct Residual {
  const float* p;
  const float* q;   // null: none
  int32_t removed;  // -1: none

  uint64_t weight(int64_t i, bool& bad) const {
    const uint64_t fixed = fixed_of(p[i], bad);
    if (q != nullptr) {
      const uint64_t less = fixed_of(q[i], bad);
      return fixed > less ? fixed - less : 0;
    }
    return i == removed ? 0 : fixed;
  }
};

// A token by weight, or -1 if there is none or a NaN.
static int32_t draw_from(const Residual& residual, int64_t v, uint64_t random) {
  bool bad = false;
  uint64_t total = 0;
  for (int64_t i = 0; i < v; ++i) total += residual.weight(i, bad);
  if (bad || total == 0) return -1;
  uint64_t target = multiply_high(random, total);
  for (int64_t i = 0;; ++i) {
    const uint64_t weight = residual.weight(i, bad);
    if (target < weight) return static_cast<int32_t>(i);
    target -= weight;
  }
}

static void mtp_verify_rejection(const MtpRejectionArgs& args, int64_t begin, int64_t end) {
  for (int64_t b = begin; b < end; ++b) {
    int32_t* out = args.out_ids + b * (args.n + 1);
    int64_t j = 0;
    bool rejected = false, bad = false;
    for (; j < args.n; ++j) {
      const int32_t draft = args.draft_ids[b * args.n + j];
      if (draft < 0 || draft >= args.v) break;
      const uint64_t p = fixed_of(args.target_probs[(b * (args.n + 1) + j) * args.v + draft], bad);
      uint64_t q = kUnitWeight;
      if (args.draft_probs != nullptr) {
        q = fixed_of(args.draft_probs[(b * args.n + j) * args.v + draft], bad);
      }
      const uint64_t random = philox(args.seeds[b], args.offsets[b] + j, kStreamAccept);
      rejected = bad || multiply_high(random, q) >= p;
      if (rejected) break;
      out[j] = draft;
    }
    int32_t next = -1;
    if (!bad) {
      const float* p = args.target_probs + (b * (args.n + 1) + j) * args.v;
      const bool with_q = rejected && args.draft_probs != nullptr;
      const Residual residual{.p = p,
                              .q = with_q ? args.draft_probs + (b * args.n + j) * args.v : nullptr,
                              .removed = rejected && !with_q ? args.draft_ids[b * args.n + j] : -1};
      const uint32_t stream = rejected ? kStreamResidual : kStreamDraw;
      const uint64_t random = philox(args.seeds[b], args.offsets[b] + j, stream);
      next = draw_from(residual, args.v, random);
      // p and q may be equal but for rounding: then nothing is left to draw from.
      if (next < 0 && rejected) {
        next = draw_from(Residual{.p = p, .q = nullptr, .removed = -1}, args.v, random);
      }
    }
    args.num_out[b] = static_cast<int32_t>(j + (next >= 0));
    for (int64_t k = j; k <= args.n; ++k) out[k] = k == j ? next : -1;
  }
}
