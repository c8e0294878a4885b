// The register tile: MR rows of activations times NR rows of weights, over one block of k.
//
// Both operands lie along k, so a tile is MR * NR dot products that share their loads; every sum
// has one vector accumulator, which is reduced in a fixed tree after kBlockK elements and added to
// `acc`. That order is the same for every MR, NR and weight source: a row's result has the same
// bits whatever else is in the batch and however many threads there are.

constexpr int64_t kBlockK = 64 * kWidth;  // the reduction costs 1/30 of the block's FMAs or less

// How many rows of weights ahead of a tile the next ones are fetched: measured best of 2 to 32.
constexpr int64_t kPrefetchRows = 8;

// One chunk of k: raw weights of NR rows against the same chunk of MR rows of activations.
template <class W, int MR, int NR>
SEEKERNEL_INLINE void gemm_step(const vuint (&raw)[NR], const float* x, int64_t stride_x,
                                vfloat (&sum)[MR][NR]) {
  vfloat value[NR][kLanes<W>];
#pragma GCC unroll 8
  for (int r = 0; r < NR; ++r) expand(static_cast<const W*>(nullptr), raw[r], value[r]);
#pragma GCC unroll 4
  for (int j = 0; j < kLanes<W>; ++j) {
#pragma GCC unroll 4
    for (int m = 0; m < MR; ++m) {
      const vfloat v = load(x + m * stride_x + j * kWidth);
#pragma GCC unroll 8
      for (int r = 0; r < NR; ++r) sum[m][r] += v * value[r][j];
    }
  }
}

// kStream: the weights come from memory, not from the buffer of expand_rows.
template <class W, int MR, int NR, bool kStream>
static __attribute__((noinline)) void gemm_tile(const float* x, int64_t stride_x, const W* w,
                                                int64_t stride_w, int64_t k, float* acc) {
  vfloat sum[MR][NR] = {};
  vuint raw[NR];
  int64_t i = 0;
  for (; i + kChunk<W> <= k; i += kChunk<W>) {
#pragma GCC unroll 8
    for (int r = 0; r < NR; ++r) {
      raw[r] = load_raw(w + r * stride_w + i);
      if constexpr (kStream) __builtin_prefetch(w + (kPrefetchRows + r) * stride_w + i);
    }
    gemm_step<W>(raw, x + i, stride_x, sum);
  }
  if (i < k) {
    for (int r = 0; r < NR; ++r) raw[r] = load_raw_tail(w + r * stride_w + i, (k - i) * sizeof(W));
    gemm_step<W>(raw, x + i, stride_x, sum);
  }
#pragma GCC unroll 4
  for (int m = 0; m < MR; ++m) {
#pragma GCC unroll 8
    for (int r = 0; r < NR; ++r) acc[m * kGemmSlab + r] += reduce_add(sum[m][r]);
  }
}

// Rows of weights as plain floats in expanded order, for tiles that use them many times.
template <class W>
static void expand_rows(const W* w, int64_t stride_w, int64_t rows, int64_t k, float* out) {
  for (int64_t r = 0; r < rows; ++r) {
    const W* row = w + r * stride_w;
    float* target = out + r * kBlockK;
    for (int64_t i = 0; i < k; i += kChunk<W>) {
      const int64_t left = (k - i) * sizeof(W);
      const vuint raw =
          left >= SEEKERNEL_VECTOR_BYTES ? load_raw(row + i) : load_raw_tail(row + i, left);
      __builtin_prefetch(row + rows * stride_w + i);
      vfloat value[kLanes<W>];
      expand(w, raw, value);
      for (int j = 0; j < kLanes<W>; ++j) store(target + i + j * kWidth, value[j]);
    }
  }
}
