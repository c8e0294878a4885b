// The register tile: MR rows of activations times NR rows of weights, over one block of k.
//
// Both operands lie along k, so a tile is MR * NR dot products that share their loads; every sum
// has one vector accumulator, which is reduced in a fixed tree after kBlockK elements and added to
// `acc`. That order is the same for every MR, NR and weight source: a row's result has the same
// bits whatever else is in the batch and however many threads there are.

constexpr int64_t kBlockK = 64 * kWidth;  // the reduction costs 1/30 of the block's FMAs or less

template <class W, int MR, int NR>
static __attribute__((noinline)) void gemm_tile(const float* x, int64_t stride_x, const W* w,
                                                int64_t stride_w, int64_t k, float* acc,
                                                int64_t stride_acc) {
  vfloat sum[MR][NR] = {};
  const auto step = [&](const vuint(&raw)[NR], const float* x_chunk)
                        __attribute__((always_inline)) {
                          vfloat value[NR][kLanes<W>];
#pragma GCC unroll 16
                          for (int r = 0; r < NR; ++r) expand(w, raw[r], value[r]);
#pragma GCC unroll 4
                          for (int j = 0; j < kLanes<W>; ++j) {
#pragma GCC unroll 8
                            for (int m = 0; m < MR; ++m) {
                              const vfloat v = load(x_chunk + m * stride_x + j * kWidth);
#pragma GCC unroll 16
                              for (int r = 0; r < NR; ++r) sum[m][r] += v * value[r][j];
                            }
                          }
                        };
  int64_t i = 0;
  for (; i + kChunk<W> <= k; i += kChunk<W>) {
    vuint raw[NR];
#pragma GCC unroll 16
    for (int r = 0; r < NR; ++r) raw[r] = load_raw(w + r * stride_w + i);
    step(raw, x + i);
  }
  if (i < k) {
    vuint raw[NR];
    for (int r = 0; r < NR; ++r) {
      raw[r] = load_raw_tail(w + r * stride_w + i, (k - i) * static_cast<int64_t>(sizeof(W)));
    }
    step(raw, x + i);
  }
#pragma GCC unroll 8
  for (int m = 0; m < MR; ++m) {
#pragma GCC unroll 16
    for (int r = 0; r < NR; ++r) acc[m * stride_acc + r] += reduce_add(sum[m][r]);
  }
}

// Rows of weights as plain floats in expanded order, for tiles that use them many times.
template <class W>
static void expand_rows(const W* w, int64_t stride_w, int64_t rows, int64_t k, float* out) {
  for (int64_t r = 0; r < rows; ++r) {
    const W* row = w + r * stride_w;
    float* target = out + r * kBlockK;
    for (int64_t i = 0; i < k; i += kChunk<W>) {
      const int64_t left = (k - i) * static_cast<int64_t>(sizeof(W));
      const vuint raw =
          left >= SEEKERNEL_VECTOR_BYTES ? load_raw(row + i) : load_raw_tail(row + i, left);
      vfloat value[kLanes<W>];
      expand(w, raw, value);
      for (int j = 0; j < kLanes<W>; ++j) store(target + i + j * kWidth, value[j]);
    }
  }
}
