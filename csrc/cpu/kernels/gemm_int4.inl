// int4 weights with one scale per row and 128 of k, against packed activations.
//
// A chunk (one vector register) of codes holds 8 values per 32-bit lane, and never more than one
// group of 128: its dot product is summed from zero and enters the row's sum times the group's
// scale, one more multiplication per 8. The order of operations is the same for every number of
// rows.

constexpr int64_t kInt4Group = 128;
static_assert(kInt4Group % kChunk<int4x2> == 0, "a chunk lies in one group");

// Value j of every lane, j = 0 .. 7.
SEEKERNEL_INLINE void expand(const int4x2*, vuint raw, vfloat (&out)[8]) {
#if defined(__AVX512F__)
  // The permutation looks at the low four bits of a lane only.
  const vfloat table = {0, 1, 2, 3, 4, 5, 6, 7, -8, -7, -6, -5, -4, -3, -2, -1};
#pragma GCC unroll 8
  for (int j = 0; j < 8; ++j) out[j] = __builtin_shuffle(table, bit_copy<vint>(raw >> 4 * j));
#else
#pragma GCC unroll 8
  for (int j = 0; j < 8; ++j) {
    out[j] = __builtin_convertvector(bit_copy<vint>(raw << (28 - 4 * j)) >> 28, vfloat);
  }
#endif
}

// MR rows of packed activations times one row of weights over all of k.
template <int MR>
static __attribute__((noinline)) void int4_tile(const float* x, int64_t stride_x, const uint8_t* w,
                                                const float* scale, int64_t k, int64_t ahead,
                                                float* acc) {
  constexpr int64_t kStep = kChunk<int4x2>;
  vfloat sum[MR] = {};
  for (int64_t i = 0; i < k; i += kStep) {
    const int64_t left = (k - i + 1) / 2;
    const vuint raw =
        left >= SEEKERNEL_VECTOR_BYTES ? load_raw(w + i / 2) : load_raw_tail(w + i / 2, left);
    __builtin_prefetch(w + ahead + i / 2);
    vfloat value[8];
    expand(static_cast<const int4x2*>(nullptr), raw, value);
    const float s = scale[i / kInt4Group];
#pragma GCC unroll 4
    for (int m = 0; m < MR; ++m) {
      const float* x_row = x + m * stride_x + i;
      vfloat even = load(x_row) * value[0], odd = load(x_row + kWidth) * value[1];
#pragma GCC unroll 3
      for (int j = 2; j < 8; j += 2) {
        even += load(x_row + j * kWidth) * value[j];
        odd += load(x_row + (j + 1) * kWidth) * value[j + 1];
      }
      sum[m] += (even + odd) * s;
    }
  }
#pragma GCC unroll 4
  for (int m = 0; m < MR; ++m) acc[m * kGemmSlab] = reduce_add(sum[m]);
}

// acc[m, c] = sum over k of packed[m, :] * w[c, :].
static void multiply_int4(const GemmArgs& args, const GemmTask& task, float* acc) {
  constexpr int64_t kRowsAhead = 4;
  const int64_t rows = task.row_end - task.row_begin, cols = task.col_end - task.col_begin;
  const uint8_t* w = static_cast<const uint8_t*>(args.b) + task.group * args.stride_b_g +
                     task.col_begin * args.stride_b_n;
  const float* scale =
      args.b_scale + task.group * args.stride_b_scale_g + task.col_begin * args.stride_b_scale_n;
  const float* packed = args.packed + (task.row_begin - args.packed_begin) * args.stride_packed;
  for (int64_t col = 0; col < cols; ++col, w += args.stride_b_n, scale += args.stride_b_scale_n) {
    const int64_t ahead = kRowsAhead * args.stride_b_n;
    for (int64_t row = 0; row < rows;) {
      const float* x = packed + row * args.stride_packed;
      float* out = acc + row * kGemmSlab + col;
      const int64_t left = rows - row;
      switch (left < 4 ? left : 4) {
        case 1:
          int4_tile<1>(x, args.stride_packed, w, scale, args.k, ahead, out);
          break;
        case 2:
          int4_tile<2>(x, args.stride_packed, w, scale, args.k, ahead, out);
          break;
        case 3:
          int4_tile<3>(x, args.stride_packed, w, scale, args.k, ahead, out);
          break;
        default:
          int4_tile<4>(x, args.stride_packed, w, scale, args.k, ahead, out);
      }
      row += left < 4 ? left : 4;
    }
  }
}
