// moe_gate, moe_finalize: a token never leaves its thread.

// Orders floats as integers: larger float, larger key; NaN below -inf. A choice is never -0, being
// a score, which is not, plus a bias.
SEEKERNEL_INLINE uint32_t ordered(float value) {
  const uint32_t bits = bit_copy<uint32_t>(value);
  if (value != value) return 0;
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// The key of one candidate: ties between values go to the lower index.
SEEKERNEL_INLINE uint64_t candidate_key(float value, int64_t index) {
  return static_cast<uint64_t>(ordered(value)) << 32 | (0xffffffffu - static_cast<uint32_t>(index));
}

SEEKERNEL_INLINE int64_t candidate_index(uint64_t key) {
  return static_cast<int64_t>(0xffffffffu - static_cast<uint32_t>(key));
}

// Keeps the `capacity` largest keys in descending order.
SEEKERNEL_INLINE void insert_key(uint64_t* keys, int64_t& size, int64_t capacity, uint64_t key) {
  int64_t slot = size;
  if (size < capacity) {
    ++size;
  } else {
    if (key < keys[capacity - 1]) return;
    slot = capacity - 1;
  }
  for (; slot > 0 && keys[slot - 1] < key; --slot) keys[slot] = keys[slot - 1];
  keys[slot] = key;
}

// `padded` values (a multiple of kWidth): those beyond the experts hold -inf.
SEEKERNEL_INLINE void sigmoid_scores(float* scores, int64_t padded) {
  for (int64_t i = 0; i < padded; i += kWidth) {
    store(scores + i, 1.0f / (1.0f + vexp(-load(scores + i))));
  }
}

// Clamping to finite logits gives +inf all the weight instead of inf - inf; a NaN logit keeps a NaN
// score and takes no part in the sum.
SEEKERNEL_INLINE void softmax_scores(float* scores, int64_t padded) {
  constexpr float kLargest = 3.402823466e38f;
  vfloat largest = splat(-kLargest);
  for (int64_t i = 0; i < padded; i += kWidth) {
    vfloat v = load(scores + i);
    v = v > splat(kLargest) ? splat(kLargest) : v;
    store(scores + i, v);
    largest = vmax(v, largest);
  }
  float lanes[kWidth];
  store(lanes, largest);
  float row_max = lanes[0];
  for (int i = 1; i < kWidth; ++i) row_max = lanes[i] > row_max ? lanes[i] : row_max;
  vfloat sum{};
  for (int64_t i = 0; i < padded; i += kWidth) {
    const vfloat e = vexp(load(scores + i) - row_max);
    store(scores + i, e);
    sum += e != e ? vfloat{} : e;
  }
  const vfloat total = splat(reduce_add(sum));
  for (int64_t i = 0; i < padded; i += kWidth) store(scores + i, load(scores + i) / total);
}

// The keys of the topk_group best groups. A group's score is the sum of its two best choices when
// there is a bias, else its best one.
SEEKERNEL_INLINE void select_groups(const MoeGateArgs& args, const float* choices, uint64_t* kept) {
  const int64_t group_size = args.num_experts / args.n_group;
  const bool pair = args.bias != nullptr && group_size > 1;
  int64_t num_kept = 0;
  for (int64_t group = 0; group < args.n_group; ++group) {
    const float* choice = choices + group * group_size;
    uint64_t best[2] = {};
    int64_t size = 0;
    for (int64_t i = 0; i < group_size; ++i) insert_key(best, size, 2, candidate_key(choice[i], i));
    float score = choice[candidate_index(best[0])];
    if (pair) score += choice[candidate_index(best[1])];
    insert_key(kept, num_kept, args.topk_group, candidate_key(score, group));
  }
}

// The GateFault bits of one token's logits.
SEEKERNEL_INLINE int32_t gate_faults(const float* logits, int64_t num_experts) {
  uint32_t largest = 0;
  for (int64_t i = 0; i < num_experts; ++i) {
    const uint32_t magnitude = bit_copy<uint32_t>(logits[i]) & 0x7fffffffu;
    largest = magnitude > largest ? magnitude : largest;
  }
  if (largest < 0x7f800000u) return 0;
  int32_t faults = 0;
  for (int64_t i = 0; i < num_experts; ++i) {
    const uint32_t magnitude = bit_copy<uint32_t>(logits[i]) & 0x7fffffffu;
    if (magnitude > 0x7f800000u) faults |= kNaNLogit;
    if (magnitude == 0x7f800000u) faults |= kInfiniteLogit;
  }
  return faults;
}

static void moe_gate(const MoeGateArgs& args, int64_t token_begin, int64_t token_end) {
  const int64_t padded = (args.num_experts + kWidth - 1) / kWidth * kWidth;
  const int64_t group_size = args.num_experts / args.n_group;
  float scores[kGateExperts], with_bias[kGateExperts];
  uint64_t kept[kGateExperts];
  for (int64_t token = token_begin; token < token_end; ++token) {
    const float* logits = args.logits + token * args.stride_logits_m;
    float* weights = args.weights + token * args.stride_weights_m;
    int32_t* ids = args.ids + token * args.stride_ids_m;

    if (args.error != nullptr) {
      const int32_t faults = gate_faults(logits, args.num_experts);
      if (faults != 0) __atomic_fetch_or(args.error, faults, __ATOMIC_RELAXED);
    }
    for (int64_t i = 0; i < args.num_experts; ++i) scores[i] = logits[i];
    for (int64_t i = args.num_experts; i < padded; ++i) scores[i] = -__builtin_inff();
    args.scoring == Scoring::kSigmoid ? sigmoid_scores(scores, padded)
                                      : softmax_scores(scores, padded);
    const float* choices = scores;
    if (args.bias != nullptr) {
      for (int64_t i = 0; i < args.num_experts; ++i) with_bias[i] = scores[i] + args.bias[i];
      choices = with_bias;
    }

    // Experts of lost groups are never looked at: the same as masking their choices with -inf, also
    // when every kept choice is -inf.
    uint64_t best[kGateTopK];
    int64_t num_best = 0;
    if (args.topk_group == args.n_group) {
      for (int64_t i = 0; i < args.num_experts; ++i) {
        insert_key(best, num_best, args.top_k, candidate_key(choices[i], i));
      }
    } else {
      select_groups(args, choices, kept);
      for (int64_t j = 0; j < args.topk_group; ++j) {
        const int64_t first = candidate_index(kept[j]) * group_size;
        for (int64_t i = first; i < first + group_size; ++i) {
          insert_key(best, num_best, args.top_k, candidate_key(choices[i], i));
        }
      }
    }

    float sum = 0.0f;
    for (int64_t j = 0; j < args.top_k; ++j) {
      ids[j] = static_cast<int32_t>(candidate_index(best[j]));
      weights[j] = scores[ids[j]];
      sum += weights[j];
    }
    const float divisor = args.norm_topk_prob ? sum + 1e-20f : 1.0f;
    for (int64_t j = 0; j < args.top_k; ++j) {
      weights[j] = weights[j] / divisor * args.routed_scaling_factor;
    }
    for (int64_t j = 0; j < args.num_shared; ++j) {
      ids[args.top_k + j] = static_cast<int32_t>(args.num_experts + j);
      weights[args.top_k + j] = 1.0f;
    }
  }
}

template <class T>
static void moe_finalize_tokens(const MoeFinalizeArgs& args, int64_t token_begin,
                                int64_t token_end) {
  const int64_t n_vector = args.n - args.n % kWidth;
  for (int64_t token = token_begin; token < token_end; ++token) {
    const int32_t* rows = args.token_row + token * args.top_k;
    const float* weights = args.weights + token * args.top_k;
    const T* y = static_cast<const T*>(args.y);
    const T* shared = static_cast<const T*>(args.shared);
    if (shared != nullptr) shared += token * args.stride_shared_m;
    T* out = static_cast<T*>(args.out) + token * args.stride_out_m;
    for (int64_t i = 0; i < n_vector; i += kWidth) {
      vfloat sum{};
      for (int64_t j = 0; j < args.top_k; ++j) {
        if (rows[j] >= 0) sum += weights[j] * load(y + rows[j] * args.stride_y_m + i);
      }
      store(out + i, shared != nullptr ? sum + load(shared + i) : sum);
    }
    for (int64_t i = n_vector; i < args.n; ++i) {
      float sum = 0.0f;
      for (int64_t j = 0; j < args.top_k; ++j) {
        if (rows[j] >= 0) sum += weights[j] * to_float(y[rows[j] * args.stride_y_m + i]);
      }
      store_one(out + i, shared != nullptr ? sum + to_float(shared[i]) : sum);
    }
  }
}

static void moe_finalize(const MoeFinalizeArgs& args, int64_t token_begin, int64_t token_end) {
  if (args.dtype == Dtype::kFloat32) {
    return moe_finalize_tokens<float>(args, token_begin, token_end);
  }
  moe_finalize_tokens<bfloat16>(args, token_begin, token_end);
}
