// sample, token_logprobs: a row never leaves its thread. How weights, order and draws are defined:
// sampling_weight.inl.

// Composite keys in the order of choice: the larger logit, then the lower index.
SEEKERNEL_INLINE uint64_t order_key(float x, int64_t i) {
  return candidate_key(x == 0.0f ? 0.0f : x, i);  // -0 ties with 0
}

constexpr int kStepBinBits = 14;  // 64 bins per halving
constexpr int64_t kStepBins = (kLastStep >> kStepBinBits) + 1;

// A row being chosen from. Left in it: tokens with step <= last_step and x > -inf.
struct Row {
  float* x;              // [padded], -inf beyond v
  uint64_t* list;        // [v]
  uint64_t* bin_weight;  // [kStepBins]
  uint32_t* bin_count;
  int64_t v;
  int64_t padded;  // a multiple of kWidth
  float row_max;
  float scale;
  int32_t last_step;
  uint64_t weight;  // of all that is left
  int64_t count;
};

SEEKERNEL_INLINE int64_t padded_vocabulary(int64_t v) { return (v + 63) / 64 * 64; }

static int64_t sampling_scratch_size(int64_t v) {
  return padded_vocabulary(v) * 3 + kStepBins * 3 + 64;
}

SEEKERNEL_INLINE Row row_in(float* scratch, int64_t v) {
  Row row;
  row.v = v;
  row.padded = padded_vocabulary(v);
  row.x = scratch;
  row.list = reinterpret_cast<uint64_t*>(scratch + row.padded);
  row.bin_weight = row.list + row.padded;
  row.bin_count = reinterpret_cast<uint32_t*>(row.bin_weight + kStepBins);
  return row;
}

template <class T>
SEEKERNEL_INLINE void load_row(Row& row, const T* logits) {
  int64_t i = 0;
  for (; i + kWidth <= row.v; i += kWidth) store(row.x + i, load(logits + i));
  for (; i < row.v; ++i) row.x[i] = to_float(logits[i]);
  for (; i < row.padded; ++i) row.x[i] = -__builtin_inff();
}

SEEKERNEL_INLINE bool any_lane(vint mask) {
  int32_t any = 0;
  for (int i = 0; i < kWidth; ++i) any |= mask[i];
  return any != 0;
}

// Finds the maximum. Status: 0; 1 for a NaN or +inf; 2 if there is nothing above -inf.
SEEKERNEL_INLINE int32_t find_maximum(Row& row) {
  vfloat largest = splat(-__builtin_inff());
  vint nan{};
  for (int64_t i = 0; i < row.padded; i += kWidth) {
    const vfloat v = load(row.x + i);
    nan |= v != v;
    largest = vmax(v, largest);
  }
  row.row_max = largest[0];
  for (int i = 1; i < kWidth; ++i) {
    row.row_max = largest[i] > row.row_max ? largest[i] : row.row_max;
  }
  if (any_lane(nan) || row.row_max == __builtin_inff()) return 1;
  return row.row_max == -__builtin_inff() ? 2 : 0;
}

SEEKERNEL_INLINE int64_t first_maximum(const Row& row) {
  for (int64_t i = 0;; i += kWidth) {
    if (!any_lane(load(row.x + i) == row.row_max)) continue;
    for (int64_t j = i;; ++j) {
      if (row.x[j] == row.row_max) return j;
    }
  }
}

// ---- what changes logits before anything is chosen ----

SEEKERNEL_INLINE float penalised(float x, int32_t count, float repetition, float presence,
                                 float frequency) {
  if (count == 0) return x;
  x = x > 0.0f ? x / repetition : x * repetition;
  if (count >> 1) x -= presence + unfused(frequency * static_cast<float>(count >> 1));
  return x;
}

SEEKERNEL_INLINE void apply_mask(Row& row, const int32_t* mask) {
  for (int64_t word = 0; word * 32 < row.v; ++word) {
    const uint32_t bits = static_cast<uint32_t>(mask[word]);
    if (bits == 0xffffffffu) continue;
    for (int64_t j = 0; j < 32; ++j) {
      if (!(bits >> j & 1)) row.x[word * 32 + j] = -__builtin_inff();  // padded to 64
    }
  }
}

static void apply_penalties(Row& row, const SampleArgs& args, int64_t r) {
  const int64_t slot = args.slots[r];
  if (slot < 0 || slot >= args.num_slots) return;
  const float repetition = args.repetition[r], presence = args.presence[r];
  const float frequency = args.frequency[r];
  const int32_t* counts = args.token_counts + slot * row.v;
  const int32_t* extra = args.extra_ids == nullptr ? nullptr : args.extra_ids + r * args.num_extra;
  float before[64];
  for (int64_t j = 0; j < args.num_extra; ++j) {
    if (extra[j] >= 0 && extra[j] < row.v) before[j] = row.x[extra[j]];
  }
  int64_t i = 0;
  for (; i + kWidth <= row.v; i += kWidth) {
    vint some;
    __builtin_memcpy(&some, counts + i, sizeof(some));
    if (!any_lane(some)) continue;
    for (int64_t j = i; j < i + kWidth; ++j) {
      row.x[j] = penalised(row.x[j], counts[j], repetition, presence, frequency);
    }
  }
  for (; i < row.v; ++i) {
    row.x[i] = penalised(row.x[i], counts[i], repetition, presence, frequency);
  }
  for (int64_t j = 0; j < args.num_extra; ++j) {
    if (extra[j] < 0 || extra[j] >= row.v) continue;
    int32_t count = counts[extra[j]];
    for (int64_t k = 0; k < args.num_extra; ++k) count += extra[k] == extra[j] ? 2 : 0;
    row.x[extra[j]] = penalised(before[j], count, repetition, presence, frequency);
  }
}

SEEKERNEL_INLINE void transform_row(Row& row, const SampleArgs& args, int64_t r) {
  if (args.mask != nullptr) apply_mask(row, args.mask + r * ((row.v + 31) / 32));
  for (int64_t j = 0; j < args.num_bias; ++j) {
    const int64_t id = args.bias_ids[r * args.num_bias + j];
    if (id >= 0 && id < row.v) row.x[id] += args.bias[r * args.num_bias + j];
  }
  if (args.slots != nullptr) apply_penalties(row, args, r);
}

// ---- filters ----

SEEKERNEL_INLINE void weigh_row(Row& row) {
  vlong low{}, high{};
  vint count{};
  for (int64_t i = 0; i < row.padded; i += kWidth) {
    const vint step = steps_below(load(row.x + i), row.row_max, row.scale);
    const vint kept = step <= row.last_step;
    if (!any_lane(kept)) continue;
    const Weights w = weights_of(step, kept);
    low += w.low;
    high += w.high;
    count -= kept;
  }
  row.weight = sum_of(low) + sum_of(high);
  row.count = 0;
  for (int i = 0; i < kWidth; ++i) row.count += count[i];
}

// Largest key to the front, in place, in n log n steps whatever the keys.
static void sort_descending(uint64_t* keys, int64_t n) {
  const auto sink = [&](int64_t root, int64_t end) {
    for (;;) {
      int64_t child = 2 * root + 1;
      if (child >= end) return;
      if (child + 1 < end && keys[child + 1] < keys[child]) ++child;
      if (keys[root] <= keys[child]) return;
      const uint64_t swap = keys[root];
      keys[root] = keys[child];
      keys[child] = swap;
      root = child;
    }
  };
  for (int64_t root = n / 2 - 1; root >= 0; --root) sink(root, n);
  for (int64_t end = n - 1; end > 0; --end) {
    const uint64_t smallest = keys[0];
    keys[0] = keys[end];
    keys[end] = smallest;
    sink(0, end);
  }
}

// Keeps the shortest prefix, in the order of choice, of at least `count` tokens that weighs at
// least `weight`; both are at most what is left.
static void keep_prefix(Row& row, int64_t count, uint64_t weight) {
  for (int64_t b = 0; b < kStepBins; ++b) row.bin_weight[b] = 0;
  for (int64_t b = 0; b < kStepBins; ++b) row.bin_count[b] = 0;
  for (int64_t i = 0; i < row.padded; i += kWidth) {
    const vint step = steps_below(load(row.x + i), row.row_max, row.scale);
    const vint kept = step <= row.last_step;
    if (!any_lane(kept)) continue;
    const Weights w = weights_of(step, kept);
    for (int j = 0; j < kWidth; ++j) {
      if (!kept[j]) continue;
      const int32_t b = step[j] >> kStepBinBits;
      row.bin_weight[b] += j < kWidth / 2 ? w.low[j] : w.high[j - kWidth / 2];
      ++row.bin_count[b];
    }
  }
  int32_t last = 0;
  uint64_t weight_before = 0;
  int64_t count_before = 0;
  while (count_before + row.bin_count[last] < count ||
         weight_before + row.bin_weight[last] < weight) {
    weight_before += row.bin_weight[last];
    count_before += row.bin_count[last];
    ++last;
  }
  // The prefix ends within this bin: put its tokens in order, and drop those behind the end.
  const int32_t first_step = last << kStepBinBits;
  int32_t end_step = first_step + ((1 << kStepBinBits) - 1);
  end_step = end_step < row.last_step ? end_step : row.last_step;
  int64_t listed = 0;
  for (int64_t i = 0; i < row.padded; i += kWidth) {
    const vint step = steps_below(load(row.x + i), row.row_max, row.scale);
    const vint inside = (step >= first_step) & (step <= end_step);
    if (!any_lane(inside)) continue;
    for (int j = 0; j < kWidth; ++j) {
      if (inside[j]) row.list[listed++] = order_key(row.x[i + j], i + j);
    }
  }
  sort_descending(row.list, listed);
  int64_t kept = 0;
  while (kept < listed && (count_before < count || weight_before < weight)) {
    const float x = row.x[candidate_index(row.list[kept++])];
    weight_before += weight_one(steps_below(x, row.row_max, row.scale));
    ++count_before;
  }
  for (int64_t j = kept; j < listed; ++j) {
    row.x[candidate_index(row.list[j])] = -__builtin_inff();
  }
  row.last_step = end_step;
  row.weight = weight_before;
  row.count = count_before;
}

// The first token, by index, at which the running weight exceeds `target`, which is below
// row.weight.
SEEKERNEL_INLINE int64_t token_at(const Row& row, uint64_t target) {
  constexpr int64_t kBlock = 64;
  for (int64_t begin = 0; begin < row.padded; begin += kBlock) {
    vlong sum{};
    for (int64_t i = begin; i < begin + kBlock; i += kWidth) {
      const vint step = steps_below(load(row.x + i), row.row_max, row.scale);
      const vint kept = step <= row.last_step;
      if (!any_lane(kept)) continue;
      const Weights w = weights_of(step, kept);
      sum += w.low + w.high;
    }
    const uint64_t block = sum_of(sum);
    if (target >= block) {
      target -= block;
      continue;
    }
    for (int64_t i = begin;; ++i) {
      const int32_t step = steps_below(row.x[i], row.row_max, row.scale);
      const uint64_t w = step <= row.last_step ? weight_one(step) : 0;
      if (target < w) return i;
      target -= w;
    }
  }
  return -1;
}

SEEKERNEL_INLINE void write_probs(const Row& row, float* probs) {
  const double total = static_cast<double>(row.weight);
  for (int64_t i = 0; i < row.v; ++i) {
    const int32_t step = steps_below(row.x[i], row.row_max, row.scale);
    probs[i] = 0.0f;
    if (step <= row.last_step) {
      probs[i] = static_cast<float>(static_cast<double>(weight_one(step)) / total);
    }
  }
}

static int32_t choose(Row& row, const SampleArgs& args, int64_t r) {
  float* probs = args.probs == nullptr ? nullptr : args.probs + r * row.v;
  const float temperature = args.temperature[r];
  if (!(temperature > 0.0f)) {
    const int64_t best = first_maximum(row);
    if (probs != nullptr) {
      for (int64_t i = 0; i < row.v; ++i) probs[i] = i == best ? 1.0f : 0.0f;
    }
    return static_cast<int32_t>(best);
  }
  row.scale = step_scale(temperature);
  row.last_step = min_p_step(args.min_p[r]);
  weigh_row(row);
  const int64_t top_k = args.top_k[r];
  if (top_k > 0 && top_k < row.count) keep_prefix(row, top_k, 0);
  const uint64_t mass = top_p_target(args.top_p[r], row.weight);
  if (mass < row.weight) keep_prefix(row, 0, mass);
  if (probs != nullptr) write_probs(row, probs);
  const uint64_t random = philox(args.seeds[r], args.offsets[r], kStreamDraw);
  return static_cast<int32_t>(token_at(row, multiply_high(random, row.weight)));
}

static void sample_rows(const SampleArgs& args, float* scratch, int64_t begin, int64_t end) {
  Row row = row_in(scratch, args.v);
  for (int64_t r = begin; r < end; ++r) {
    if (args.dtype == Dtype::kBFloat16) {
      load_row(row, static_cast<const bfloat16*>(args.logits) + r * args.stride_logits_r);
    } else {
      load_row(row, static_cast<const float*>(args.logits) + r * args.stride_logits_r);
    }
    transform_row(row, args, r);
    args.status[r] = find_maximum(row);
    args.ids[r] = args.status[r] == 0 ? choose(row, args, r) : -1;
    if (args.status[r] != 0 && args.probs != nullptr) {
      for (int64_t i = 0; i < args.v; ++i) args.probs[r * args.v + i] = __builtin_nanf("");
    }
  }
}

// ---- log-probabilities ----

static void logprobs_of_row(const TokenLogprobsArgs& args, Row& row, int64_t r) {
  int32_t* top_ids = args.top_ids + r * args.num_top;
  float* top_logprobs = args.top_logprobs + r * args.num_top;
  const int64_t id = args.ids[r];
  const bool named = id >= 0 && id < args.v;
  args.ranks[r] = 0;
  if (find_maximum(row) != 0) {
    args.logprobs[r] = __builtin_nanf("");
    for (int64_t j = 0; j < args.num_top; ++j) top_ids[j] = -1;
    for (int64_t j = 0; j < args.num_top; ++j) top_logprobs[j] = __builtin_nanf("");
    return;
  }
  row.scale = step_scale(1.0f);
  row.last_step = kLastStep;
  weigh_row(row);
  const double log_sum = log_of_weight(row.weight);
  const auto logprob = [&](int64_t i) {
    const double distance = static_cast<double>(row.x[i]) - static_cast<double>(row.row_max);
    return static_cast<float>(distance - log_sum);
  };

  args.logprobs[r] = named ? logprob(id) : -__builtin_inff();
  if (named) {
    const float x = row.x[id];
    vint before{};
    int64_t i = 0;
    for (; i + kWidth <= id; i += kWidth) before -= load(row.x + i) >= x;
    for (; i < id; ++i) before[0] += row.x[i] >= x;
    for (; i < row.padded && i % kWidth != 0; ++i) before[0] += row.x[i] > x;
    for (; i < row.padded; i += kWidth) before -= load(row.x + i) > x;
    args.ranks[r] = 1;
    for (int j = 0; j < kWidth; ++j) args.ranks[r] += before[j];
  }

  if (args.num_top == 0) return;
  int64_t size = 0;
  float least = -__builtin_inff();  // a later token must exceed it, once the list is full
  for (int64_t i = 0; i < row.padded; i += kWidth) {
    if (size == args.num_top && !any_lane(load(row.x + i) > least)) continue;
    for (int64_t j = i; j < i + kWidth && j < row.v; ++j) {
      insert_key(row.list, size, args.num_top, order_key(row.x[j], j));
    }
    if (size == args.num_top) least = row.x[candidate_index(row.list[size - 1])];
  }
  for (int64_t j = 0; j < args.num_top; ++j) {
    top_ids[j] = static_cast<int32_t>(candidate_index(row.list[j]));
    top_logprobs[j] = logprob(top_ids[j]);
  }
}

static void token_logprobs_rows(const TokenLogprobsArgs& args, float* scratch, int64_t begin,
                                int64_t end) {
  Row row = row_in(scratch, args.v);
  for (int64_t r = begin; r < end; ++r) {
    if (args.dtype == Dtype::kBFloat16) {
      load_row(row, static_cast<const bfloat16*>(args.logits) + r * args.stride_logits_r);
    } else {
      load_row(row, static_cast<const float*>(args.logits) + r * args.stride_logits_r);
    }
    logprobs_of_row(args, row, r);
  }
}
