// One step of online softmax: a panel of query rows against a block of keys, all in float.
//
//     scores[k][row] = keys[k] . query[row];  p = 2^(scores - max);  sums[row] += p . values
//
// Query rows lie across vector lanes (the panel is packed [d][rows]) and each key value is
// broadcast. Keys and values are then read as they lie in memory, and maximum and denominator need
// no horizontal step: the transposed form of S is what both GEMMs like.

#if defined(SEEKERNEL_ISA_AVX512)
constexpr int kKeysPerTile = 8;  // x 2 vectors of rows: 10 loads per 16 FMAs; 12 measured no faster
constexpr int kRowsPerTile = 8;  // x 2 vectors of values
#else
constexpr int kKeysPerTile = 6;  // x 2 vectors, 2 of rows and a broadcast: 15 of 16 registers
constexpr int kRowsPerTile = 6;
#endif
constexpr int64_t kFloatsPerLine = 16;  // a cache line
constexpr int kVectorsPerPanel = 2;
constexpr int kRowsPerPanel = kVectorsPerPanel * kWidth;
constexpr int kValueStep = 2 * kWidth;  // columns of a tile of sums

SEEKERNEL_INLINE int64_t round_up(int64_t value, int64_t step) {
  return (value + step - 1) / step * step;
}

// 2^x for x <= 0: 0 below -126, NaN stays NaN, exactly 1 at 0. Relative error below 2e-7.
SEEKERNEL_INLINE vfloat exp2_nonpositive(vfloat x) {
  const vfloat low = splat(-126.0f);
  const vfloat clamped = x < low ? low : x;
  const vfloat shifted = clamped + 12582912.0f;  // 1.5 * 2^23: rounds to an integer
  const vfloat r = clamped - (shifted - 12582912.0f);
  vfloat p = splat(1.5403530e-4f);  // ln(2)^n / n!
  p = p * r + 1.3333558e-3f;
  p = p * r + 9.6181291e-3f;
  p = p * r + 5.5504109e-2f;
  p = p * r + 2.4022651e-1f;
  p = p * r + 6.9314718e-1f;
  p = p * r + 1.0f;
  const vint exponent = bit_copy<vint>(shifted) << 23;  // the integer is in the low mantissa bits
  const vfloat result = bit_copy<vfloat>(bit_copy<vint>(p) + exponent);
  const vfloat finite = x < low ? splat(0.0f) : result;
  return x != x ? x : finite;
}

// State of the rows of a panel. sums: [rows][d_v_padded].
struct PanelState {
  float* max;
  float* denominator;
  float* sums;
  int64_t d_v_padded;
};

static void reset_panel(const PanelState& state, int64_t rows) {
  for (int64_t i = 0; i < round_up(rows, kWidth); ++i) {
    state.max[i] = -__builtin_inff();
    state.denominator[i] = 0.0f;
  }
  for (int64_t i = 0; i < rows * state.d_v_padded; ++i) state.sums[i] = 0.0f;
}

// Keys that come next: rows of `bytes`, one to fetch into L2 for each key that is worked on.
struct NextKeys {
  const char* const* rows = nullptr;
  int64_t bytes = 0;  // 0: nothing to fetch
};

// scores[k][rows] for kKeysPerTile keys.
template <int kVectors>
SEEKERNEL_INLINE void score_tile(const float* query, int64_t d, const float* const* keys,
                                 const NextKeys& next, float* scores) {
  vfloat sum[kKeysPerTile][kVectors] = {};
  const float* key[kKeysPerTile];
  for (int k = 0; k < kKeysPerTile; ++k) key[k] = keys[k];
  for (int64_t line = 0; line < d; line += kFloatsPerLine) {
    const int64_t byte = line * 4, end = line + kFloatsPerLine < d ? line + kFloatsPerLine : d;
    if (byte < next.bytes) {
      for (int k = 0; k < kKeysPerTile; ++k) __builtin_prefetch(next.rows[k] + byte, 0, 2);
    }
    for (int64_t i = line; i < end; ++i) {
      vfloat q[kVectors];
      for (int v = 0; v < kVectors; ++v) q[v] = load(query + (i * kVectors + v) * kWidth);
      for (int k = 0; k < kKeysPerTile; ++k) {
        const vfloat broadcast = splat(key[k][i]);
        for (int v = 0; v < kVectors; ++v) sum[k][v] += broadcast * q[v];
      }
    }
  }
  for (int k = 0; k < kKeysPerTile; ++k) {
    for (int v = 0; v < kVectors; ++v) store(scores + (k * kVectors + v) * kWidth, sum[k][v]);
  }
}

// Adds p . values to kRows rows of sums, over kValueStep columns. Row r sees keys [0, visible[r])
// when `visible` is given (ascending), else all of them: a key that a row does not see is not
// even multiplied by zero, so its NaN stays its own.
template <int kRows>
SEEKERNEL_INLINE void value_tile(const float* p, int64_t stride_p, const float* const* values,
                                 int64_t column, int64_t num_keys, const int32_t* visible,
                                 const float* rescale, float* sums, int64_t stride_sums) {
  vfloat sum[kRows][2];
  for (int r = 0; r < kRows; ++r) {
    sum[r][0] = load(sums + r * stride_sums) * rescale[r];
    sum[r][1] = load(sums + r * stride_sums + kWidth) * rescale[r];
  }
  const int64_t common = visible == nullptr ? num_keys : visible[0];
  for (int64_t k = 0; k < common; ++k) {
    const float* value = values[k] + column;
    const vfloat v0 = load(value), v1 = load(value + kWidth);
    for (int r = 0; r < kRows; ++r) {
      const vfloat weight = splat(p[k * stride_p + r]);
      sum[r][0] += weight * v0;
      sum[r][1] += weight * v1;
    }
  }
  if (visible != nullptr) {
    for (int64_t k = common; k < visible[kRows - 1]; ++k) {
      const float* value = values[k] + column;
      const vfloat v0 = load(value), v1 = load(value + kWidth);
      for (int r = 0; r < kRows; ++r) {
        if (k >= visible[r]) continue;
        const vfloat weight = splat(p[k * stride_p + r]);
        sum[r][0] += weight * v0;
        sum[r][1] += weight * v1;
      }
    }
  }
  for (int r = 0; r < kRows; ++r) {
    store(sums + r * stride_sums, sum[r][0]);
    store(sums + r * stride_sums + kWidth, sum[r][1]);
  }
}

template <int kRows>
SEEKERNEL_INLINE int64_t value_rows(const float* p, int64_t stride_p, const float* const* values,
                                    int64_t num_keys, const int32_t* visible, const float* rescale,
                                    const PanelState& state, int64_t row, int64_t rows) {
  for (; row + kRows <= rows; row += kRows) {
    for (int64_t column = 0; column < state.d_v_padded; column += kValueStep) {
      value_tile<kRows>(p + row, stride_p, values, column, num_keys,
                        visible == nullptr ? nullptr : visible + row, rescale + row,
                        state.sums + row * state.d_v_padded + column, state.d_v_padded);
    }
  }
  return row;
}

// `keys` and `values` hold round_up(num_keys, kKeysPerTile) pointers; those past num_keys are read
// as keys, but what they give is not used. visible: as in value_tile, at most num_keys.
template <int kVectors>
static void panel_step_vectors(const float* query, int64_t d, const float* const* keys,
                               const float* const* values, int64_t num_keys, const int32_t* visible,
                               int64_t rows, const NextKeys& next, float* scores,
                               const PanelState& state) {
  constexpr int64_t kRows = kVectors * kWidth;
  for (int64_t k = 0; k < num_keys; k += kKeysPerTile) {
    const NextKeys fetch = next.bytes == 0 ? next : NextKeys{next.rows + k, next.bytes};
    score_tile<kVectors>(query, d, keys + k, fetch, scores + k * kRows);
  }
  float rescale[kRows];
  for (int v = 0; v < kVectors; ++v) {
    float* column = scores + v * kWidth;
    if (visible != nullptr) {
      vint limit;
      __builtin_memcpy(&limit, visible + v * kWidth, sizeof(limit));
      for (int64_t k = visible[v * kWidth]; k < num_keys; ++k) {
        const vint seen = limit > static_cast<int32_t>(k);
        store(column + k * kRows, seen ? load(column + k * kRows) : splat(-__builtin_inff()));
      }
    }
    const vfloat old_max = load(state.max + v * kWidth);
    vfloat max = old_max;
    for (int64_t k = 0; k < num_keys; ++k) max = vmax(load(column + k * kRows), max);
    // A row that has seen no key yet: -inf - (-inf) would be NaN.
    const vfloat base = max == -__builtin_inff() ? splat(0.0f) : max;
    const vfloat factor = exp2_nonpositive(old_max - base);
    vfloat denominator = load(state.denominator + v * kWidth) * factor;
    for (int64_t k = 0; k < num_keys; ++k) {
      const vfloat p = exp2_nonpositive(load(column + k * kRows) - base);
      denominator += p;
      store(column + k * kRows, p);
    }
    store(state.max + v * kWidth, max);
    store(state.denominator + v * kWidth, denominator);
    store(rescale + v * kWidth, factor);
  }
  int64_t row = 0;
  row =
      value_rows<kRowsPerTile>(scores, kRows, values, num_keys, visible, rescale, state, row, rows);
  if constexpr (kRowsPerTile > 4) {
    row = value_rows<4>(scores, kRows, values, num_keys, visible, rescale, state, row, rows);
  }
  row = value_rows<2>(scores, kRows, values, num_keys, visible, rescale, state, row, rows);
  value_rows<1>(scores, kRows, values, num_keys, visible, rescale, state, row, rows);
}

// query: packed for `rows` rows by pack_panel, so one vector wide when that is enough.
static void panel_step(const float* query, int64_t d, const float* const* keys,
                       const float* const* values, int64_t num_keys, const int32_t* visible,
                       int64_t rows, const NextKeys& next, float* scores, const PanelState& state) {
  if (rows <= kWidth) {
    return panel_step_vectors<1>(query, d, keys, values, num_keys, visible, rows, next, scores,
                                 state);
  }
  panel_step_vectors<2>(query, d, keys, values, num_keys, visible, rows, next, scores, state);
}

// Lane i of the result is lane index[i] of a followed by b.
SEEKERNEL_INLINE vfloat shuffle(vfloat a, vfloat b, vint index) {
#if defined(__clang__)
  vfloat result;
  for (int i = 0; i < kWidth; ++i) {
    result[i] = index[i] < kWidth ? a[index[i]] : b[index[i] - kWidth];
  }
  return result;
#else
  return __builtin_shuffle(a, b, index);
#endif
}

// Transposes kWidth vectors: log2(kWidth) rounds that interleave vector i with vector i + kWidth
// / 2.
SEEKERNEL_INLINE void transpose(vfloat (&x)[kWidth]) {
  vint low, high;
  for (int i = 0; i < kWidth; ++i) {
    low[i] = i / 2 + (i % 2) * kWidth;
    high[i] = low[i] + kWidth / 2;
  }
  for (int step = 1; step < kWidth; step *= 2) {
    vfloat y[kWidth];
    for (int i = 0; i < kWidth / 2; ++i) {
      y[2 * i] = shuffle(x[i], x[i + kWidth / 2], low);
      y[2 * i + 1] = shuffle(x[i], x[i + kWidth / 2], high);
    }
    for (int i = 0; i < kWidth; ++i) x[i] = y[i];
  }
}

// packed[i][row] = x[row][i] * scale, rows past `rows` are 0; [d][kWidth or 2 kWidth].
template <class T>
static void pack_panel(const T* x, int64_t stride_row, int64_t rows, int64_t d, float scale,
                       float* packed) {
  const int64_t lanes = round_up(rows, kWidth), d_vector = d - d % kWidth;
  for (int64_t first = 0; first < lanes; first += kWidth) {
    const int64_t count = rows - first < kWidth ? rows - first : kWidth;
    const T* from = x + first * stride_row;
    float* to = packed + first;
    for (int64_t i = 0; i < d_vector; i += kWidth) {
      vfloat tile[kWidth];
      for (int row = 0; row < kWidth; ++row) {
        tile[row] = row < count ? load(from + row * stride_row + i) * scale : splat(0.0f);
      }
      transpose(tile);
      for (int k = 0; k < kWidth; ++k) store(to + (i + k) * lanes, tile[k]);
    }
    for (int64_t i = d_vector; i < d; ++i) {
      for (int64_t row = 0; row < kWidth; ++row) {
        to[i * lanes + row] = row < count ? to_float(from[row * stride_row + i]) * scale : 0.0f;
      }
    }
  }
}

// to[0, n) = from, to[n, n_padded) = 0.
template <class T>
SEEKERNEL_INLINE void widen_row(const T* from, int64_t n, int64_t n_padded, float* to) {
  convert_row(from, n, to);
  for (int64_t i = n; i < n_padded; ++i) to[i] = 0.0f;
}

// out = sums / denominator, lse = ln(sum of e^score); a row that saw no key gives 0 and -inf.
template <class Out>
SEEKERNEL_INLINE void finish_row(const float* sums, float max, float denominator, int64_t d_v,
                                 Out* out, float* lse) {
  const bool empty = denominator == 0.0f;
  const float inverse = empty ? 0.0f : 1.0f / denominator;
  const int64_t n_vector = d_v - d_v % kWidth;
  for (int64_t i = 0; i < n_vector; i += kWidth) store(out + i, load(sums + i) * inverse);
  for (int64_t i = n_vector; i < d_v; ++i) store_one(out + i, sums[i] * inverse);
  *lse = empty ? -__builtin_inff() : (max + __builtin_log2f(denominator)) * 0.69314718f;
}
