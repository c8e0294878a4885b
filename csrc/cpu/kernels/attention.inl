// mla_decode and mla_prefill over the panels of attention_panel.inl.
//
// Blocks of keys start at multiples of a constant from a row's own first key, rows never mix, and
// every sum runs over ascending keys: the bits of a row depend on that row alone.

constexpr int64_t kDecodeKeys = 48;   // x 576 floats = 110 KB: with the sums it stays in L2
constexpr int64_t kPrefillKeys = 96;  // x (192 + 128) floats = 123 KB
constexpr int64_t kPrefillQueries = 128;
static_assert(kDecodeKeys % kKeysPerTile == 0 && kPrefillKeys % kKeysPerTile == 0);
static_assert(kPrefillQueries % kRowsPerPanel == 0);

static int64_t partial_size(int64_t d_v) { return kRowsPerPanel * (round_up(d_v, kValueStep) + 2); }

SEEKERNEL_INLINE PanelState partial_state(float* partial, int64_t d_v) {
  const int64_t d_v_padded = round_up(d_v, kValueStep);
  float* max = partial + kRowsPerPanel * d_v_padded;
  return {
      .max = max, .denominator = max + kRowsPerPanel, .sums = partial, .d_v_padded = d_v_padded};
}

SEEKERNEL_INLINE int64_t decode_row_size(const MlaDecodeArgs& args) {
  const int64_t d_v_padded = round_up(args.d_v, kValueStep);
  return d_v_padded > args.d_qk ? d_v_padded : args.d_qk;
}

SEEKERNEL_INLINE int64_t num_panels(int64_t heads) {
  return (heads + kRowsPerPanel - 1) / kRowsPerPanel;
}

static int64_t decode_scratch_size(const MlaDecodeArgs& args, int64_t heads) {
  return num_panels(heads) * kRowsPerPanel * args.d_qk +
         kDecodeKeys * (kRowsPerPanel + decode_row_size(args));
}

static void mla_decode_chunk(const MlaDecodeArgs& args, const MlaDecodeToken& token,
                             int64_t head_begin, int64_t head_end, int64_t key_begin,
                             int64_t key_end, float* scratch, float* partial) {
  const ExactSubnormals exact;
  const int64_t heads = head_end - head_begin, panels = num_panels(heads);
  const int64_t row_size = decode_row_size(args), panel_size = partial_size(args.d_v);
  const int64_t page_size = args.cache.page_size;
  // A row as it lies in the cache serves when it is float and the last value vector stays inside
  // it.
  const bool in_place = args.cache.dtype == Dtype::kFloat32 && row_size == args.d_qk;
  float* query = scratch;
  float* scores = query + panels * kRowsPerPanel * args.d_qk;
  float* widened = scores + kDecodeKeys * kRowsPerPanel;
  const auto rows_of = [&](int64_t panel) {
    const int64_t left = heads - panel * kRowsPerPanel;
    return left < kRowsPerPanel ? left : int64_t{kRowsPerPanel};
  };
  for (int64_t panel = 0; panel < panels; ++panel) {
    with_activation_type(args.q_dtype, [&](auto element) {
      using T = decltype(element);
      const T* q = static_cast<const T*>(args.q) + token.row * args.stride_q_s;
      pack_panel(q + (head_begin + panel * kRowsPerPanel) * args.stride_q_h, args.stride_q_h,
                 rows_of(panel), args.d_qk, args.scale, query + panel * kRowsPerPanel * args.d_qk);
    });
    reset_panel(partial_state(partial + panel * panel_size, args.d_v), rows_of(panel));
  }
  const int64_t row_bytes = latent_row_bytes(args.cache);
  const auto key_row = [&](int64_t key) {
    return cache_row(args.cache, token.pages[key / page_size], key % page_size);
  };
  const float* keys[kDecodeKeys];
  const char* next[kDecodeKeys];
  for (int64_t block = key_begin; block < key_end; block += kDecodeKeys) {
    const int64_t num_keys = key_end - block < kDecodeKeys ? key_end - block : kDecodeKeys;
    for (int64_t k = 0; k < num_keys; ++k) {
      const char* row = key_row(block + k);
      float* to = widened + k * row_size;
      keys[k] = in_place ? reinterpret_cast<const float*>(row) : to;
      if (in_place) continue;
      widen_latent_row(args.cache, row, to);
      for (int64_t i = args.d_qk; i < row_size; ++i) to[i] = 0.0f;
    }
    for (int64_t k = num_keys; k % kKeysPerTile != 0; ++k) keys[k] = keys[num_keys - 1];
    // The next block may be the next chunk's: then it is most often this thread's next work.
    const int64_t after = block + num_keys;
    NextKeys fetch;
    if (after < token.num_keys) {
      for (int64_t k = 0; k < kDecodeKeys; ++k) {
        next[k] = after + k < token.num_keys ? key_row(after + k) : next[0];
      }
      fetch = {next, row_bytes};
    }
    for (int64_t panel = 0; panel < panels; ++panel) {
      panel_step(query + panel * kRowsPerPanel * args.d_qk, args.d_qk, keys, keys, num_keys,
                 nullptr, rows_of(panel), panel == 0 ? fetch : NextKeys{}, scores,
                 partial_state(partial + panel * panel_size, args.d_v));
    }
  }
}

// The online-softmax state of one row.
struct RowState {
  float* max;
  float* denominator;
  float* sums;
};

// Adds a finished row: softmax over other keys, whose weights sum to e^lse. With lse = -inf there
// were none, and `out` is not looked at.
template <class T>
SEEKERNEL_INLINE void add_finished_row(const T* out, float lse, int64_t d_v,
                                       const RowState& state) {
  if (lse == -__builtin_inff()) return;
  const float exponent = lse * 1.44269504f;
  const float base = exponent > *state.max ? exponent : *state.max;
  const float keep = exp2_nonpositive(splat(*state.max - base))[0];
  const float add = exp2_nonpositive(splat(exponent - base))[0];
  *state.max = base;
  *state.denominator = *state.denominator * keep + add;
  const int64_t n_vector = d_v - d_v % kWidth;
  for (int64_t i = 0; i < n_vector; i += kWidth) {
    store(state.sums + i, load(state.sums + i) * keep + load(out + i) * add);
  }
  for (int64_t i = n_vector; i < d_v; ++i) {
    state.sums[i] = state.sums[i] * keep + to_float(out[i]) * add;
  }
}

static void merge_attention_states(const MergeStatesArgs& args, int64_t row_begin, int64_t row_end,
                                   float* scratch) {
  for (int64_t row = row_begin; row < row_end; ++row) {
    const int64_t s = row / args.h, head = row % args.h;
    float max = -__builtin_inff(), denominator = 0.0f;
    for (int64_t i = 0; i < args.d_v; ++i) scratch[i] = 0.0f;
    for (const AttentionState& state : args.states) {
      with_activation_type(state.dtype, [&](auto element) {
        using T = decltype(element);
        const T* out =
            static_cast<const T*>(state.out) + s * state.stride_s + head * state.stride_h;
        add_finished_row(out, state.lse[row], args.d_v, {&max, &denominator, scratch});
      });
    }
    with_activation_type(args.out_dtype, [&](auto element) {
      using Out = decltype(element);
      Out* out = static_cast<Out*>(args.out) + s * args.stride_out_s + head * args.stride_out_h;
      finish_row(scratch, max, denominator, args.d_v, out, args.lse + row);
    });
  }
}

SEEKERNEL_INLINE void merge_partial(const MlaDecodeArgs& args, int64_t rows, const float* partial,
                                    float* total) {
  const PanelState to = partial_state(total, args.d_v);
  const PanelState from = partial_state(const_cast<float*>(partial), args.d_v);
  for (int64_t row = 0; row < rows; ++row) {
    const float max = from.max[row] > to.max[row] ? from.max[row] : to.max[row];
    const float base = max == -__builtin_inff() ? 0.0f : max;
    const float keep = exp2_nonpositive(splat(to.max[row] - base))[0];
    const float add = exp2_nonpositive(splat(from.max[row] - base))[0];
    to.max[row] = max;
    to.denominator[row] = to.denominator[row] * keep + from.denominator[row] * add;
    float* sums = to.sums + row * to.d_v_padded;
    const float* more = from.sums + row * from.d_v_padded;
    for (int64_t i = 0; i < to.d_v_padded; i += kWidth) {
      store(sums + i, load(sums + i) * keep + load(more + i) * add);
    }
  }
}

static void mla_decode_merge(const MlaDecodeArgs& args, int64_t heads, const float* partial,
                             float* total) {
  for (int64_t first = 0; first < heads; first += kRowsPerPanel) {
    const int64_t offset = first / kRowsPerPanel * partial_size(args.d_v);
    const int64_t rows = heads - first < kRowsPerPanel ? heads - first : kRowsPerPanel;
    merge_partial(args, rows, partial + offset, total + offset);
  }
}

static void mla_decode_finish(const MlaDecodeArgs& args, const MlaDecodeToken& token,
                              int64_t head_begin, int64_t head_end, const float* total) {
  for (int64_t head = head_begin; head < head_end; ++head) {
    const int64_t panel = (head - head_begin) / kRowsPerPanel;
    const int64_t row = (head - head_begin) % kRowsPerPanel;
    const PanelState state =
        partial_state(const_cast<float*>(total) + panel * partial_size(args.d_v), args.d_v);
    with_activation_type(args.out_dtype, [&](auto element) {
      using Out = decltype(element);
      Out* out =
          static_cast<Out*>(args.out) + token.row * args.stride_out_s + head * args.stride_out_h;
      finish_row(state.sums + row * state.d_v_padded, state.max[row], state.denominator[row],
                 args.d_v, out, args.lse + token.row * args.h_q + head);
    });
  }
}

static int64_t prefill_scratch_size(const MlaPrefillArgs& args) {
  const int64_t d_qk = args.d_nope + args.d_rope, d_v_padded = round_up(args.d_v, kValueStep);
  return kPrefillQueries * (d_qk + d_v_padded + 2) + kPrefillKeys * (d_qk + d_v_padded) +
         kPrefillKeys * kRowsPerPanel;
}

static void mla_prefill_block(const MlaPrefillArgs& args, const MlaPrefillSequence& sequence,
                              int64_t head, int64_t begin, int64_t end, float* scratch) {
  const int64_t d_qk = args.d_nope + args.d_rope, d_v_padded = round_up(args.d_v, kValueStep);
  const int64_t rows = end - begin;
  float* query = scratch;
  float* sums = query + kPrefillQueries * d_qk;
  float* max = sums + kPrefillQueries * d_v_padded;
  float* denominator = max + kPrefillQueries;
  float* key_tile = denominator + kPrefillQueries;
  float* value_tile = key_tile + kPrefillKeys * d_qk;
  float* scores = value_tile + kPrefillKeys * d_v_padded;
  // Query i of the sequence sees keys [0, first_unseen + i), within [0, s_kv].
  const int64_t first_unseen = sequence.s_kv - sequence.s_q + 1;
  const auto num_visible = [&](int64_t i) {
    if (!args.causal) return sequence.s_kv;
    return first_unseen + i > 0 ? first_unseen + i : int64_t{0};
  };
  with_activation_type(args.q_dtype, [&](auto element) {
    using T = decltype(element);
    const T* q = static_cast<const T*>(args.q) + (sequence.q_begin + begin) * args.stride_q_s +
                 head * args.stride_q_h;
    for (int64_t row = 0; row < rows; row += kRowsPerPanel) {
      const int64_t count = rows - row < kRowsPerPanel ? rows - row : kRowsPerPanel;
      pack_panel(q + row * args.stride_q_s, args.stride_q_s, count, d_qk, args.scale,
                 query + row * d_qk);
    }
  });
  reset_panel({.max = max, .denominator = denominator, .sums = sums, .d_v_padded = d_v_padded},
              rows);
  const int64_t key_end = num_visible(end - 1);
  const float* keys[kPrefillKeys];
  const float* values[kPrefillKeys];
  for (int64_t k = 0; k < kPrefillKeys; ++k) values[k] = value_tile + k * d_v_padded;
  for (int64_t block = 0; block < key_end; block += kPrefillKeys) {
    const int64_t num_keys = key_end - block < kPrefillKeys ? key_end - block : kPrefillKeys;
    for (int64_t k = 0; k < num_keys; ++k) {
      const int64_t row = sequence.kv_begin + block + k;
      float* to = key_tile + k * d_qk;
      with_activation_type(args.kv_dtype, [&](auto element) {
        using T = decltype(element);
        const T* kv =
            static_cast<const T*>(args.kv) + row * args.stride_kv_s + head * args.stride_kv_h;
        convert_row(kv, args.d_nope, to);
        widen_row(kv + args.d_nope, args.d_v, d_v_padded, value_tile + k * d_v_padded);
      });
      with_activation_type(args.k_pe_dtype, [&](auto element) {
        using T = decltype(element);
        convert_row(static_cast<const T*>(args.k_pe) + row * args.stride_k_pe_s, args.d_rope,
                    to + args.d_nope);
      });
    }
    for (int64_t row = 0; row < rows; row += kRowsPerPanel) {
      const int64_t count = rows - row < kRowsPerPanel ? rows - row : kRowsPerPanel;
      const int64_t panel_end = num_visible(begin + row + count - 1) - block;
      if (panel_end <= 0) continue;
      const int64_t panel_keys = panel_end < num_keys ? panel_end : num_keys;
      for (int64_t k = 0; k < kPrefillKeys; ++k) {
        keys[k] = key_tile + (k < panel_keys ? k : panel_keys - 1) * d_qk;
      }
      int32_t visible[kRowsPerPanel];
      for (int64_t i = 0; i < kRowsPerPanel; ++i) {
        const int64_t seen = num_visible(begin + row + (i < count ? i : count - 1)) - block;
        visible[i] = static_cast<int32_t>(seen < 0 ? 0 : seen < panel_keys ? seen : panel_keys);
      }
      const bool masked = visible[0] < panel_keys;
      panel_step(query + row * d_qk, d_qk, keys, values, panel_keys, masked ? visible : nullptr,
                 count, NextKeys{}, scores,
                 {.max = max + row,
                  .denominator = denominator + row,
                  .sums = sums + row * d_v_padded,
                  .d_v_padded = d_v_padded});
    }
  }
  if (args.previous_out != nullptr) {
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t token = sequence.q_begin + begin + row;
      const RowState state{max + row, denominator + row, sums + row * d_v_padded};
      with_activation_type(args.previous_dtype, [&](auto element) {
        using T = decltype(element);
        const T* previous = static_cast<const T*>(args.previous_out) +
                            token * args.stride_previous_s + head * args.stride_previous_h;
        add_finished_row(previous, args.previous_lse[token * args.h + head], args.d_v, state);
      });
    }
  }
  with_activation_type(args.out_dtype, [&](auto element) {
    using Out = decltype(element);
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t token = sequence.q_begin + begin + row;
      Out* out = static_cast<Out*>(args.out) + token * args.stride_out_s + head * args.stride_out_h;
      finish_row(sums + row * d_v_padded, max[row], denominator[row], args.d_v, out,
                 args.lse + token * args.h + head);
    }
  });
}
