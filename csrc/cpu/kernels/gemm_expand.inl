// Weights from memory to floats in registers, and activations packed into the order that this
// gives.
//
// One vector register of weights ("a chunk") holds kLanes<W> = 4 / sizeof(W) floats per 32-bit
// lane. Expanding it by shifts and masks yields, as its j-th vector of floats, the elements j,
// kLanes + j, 2 kLanes + j...: pack_rows stores activations in that order, so no weight is ever
// shuffled.
//
// e4m3 becomes the float with the same sign, exponent and mantissa bits: 2^-120 times its value,
// exactly, subnormals included (they are float subnormals, so DAZ must be off: see
// ExactSubnormals). Activations are scaled by kFp8Half = 2^60 times the block's multiplier and sums
// by 2^60 at the end, which keeps products away from both ends of float's range. The NaN codes 0x7f
// and 0xff of weights read as +-480; those of activations become NaN.

template <class W>
constexpr int kLanes = 4 / static_cast<int>(sizeof(W));
template <>
constexpr int kLanes<int4x2> = 8;
template <class W>
constexpr int kChunk = kWidth * kLanes<W>;
constexpr float kFp8Half = 1152921504606846976.0f;  // 2^60
static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "chunks are split by shifts");

typedef int16_t vshort __attribute__((vector_size(SEEKERNEL_VECTOR_BYTES)));

SEEKERNEL_INLINE vuint load_raw(const void* p) {
  vuint raw;
  __builtin_memcpy(&raw, p, sizeof(raw));
  return raw;
}
// The first `bytes` of a chunk, zeros behind: never reads beyond a row.
SEEKERNEL_INLINE vuint load_raw_tail(const void* p, int64_t bytes) {
  vuint raw{};
  __builtin_memcpy(&raw, p, bytes);
  return raw;
}

SEEKERNEL_INLINE void expand(const float*, vuint raw, vfloat (&out)[1]) {
  out[0] = bit_copy<vfloat>(raw);
}
SEEKERNEL_INLINE void expand(const bfloat16*, vuint raw, vfloat (&out)[2]) {
  out[0] = bit_copy<vfloat>(raw << 16);
  out[1] = bit_copy<vfloat>(raw & 0xffff0000u);
}
SEEKERNEL_INLINE void expand(const float8_e4m3*, vuint raw, vfloat (&out)[4]) {
  // A byte in the upper half of 16 bits, shifted right by 4 with its sign kept, is a bfloat16.
  const vshort bytes = bit_copy<vshort>(raw);
  const vshort mask = vshort{} + static_cast<int16_t>(0x87f0);
  const vuint odd = bit_copy<vuint>((bytes >> 4) & mask);
  const vuint even = bit_copy<vuint>(((bytes << 8) >> 4) & mask);
  out[0] = bit_copy<vfloat>(even << 16);
  out[1] = bit_copy<vfloat>(odd << 16);
  out[2] = bit_copy<vfloat>(even & 0xffff0000u);
  out[3] = bit_copy<vfloat>(odd & 0xffff0000u);
}

// Turns "denormals are zero" and "flush to zero" off while e4m3 is expanded, whatever the caller
// set.
class ExactSubnormals {
#if defined(__x86_64__)
 public:
  ExactSubnormals() : saved_(__builtin_ia32_stmxcsr()) {
    if (saved_ & kFlush) __builtin_ia32_ldmxcsr(saved_ & ~kFlush);
  }
  ~ExactSubnormals() {
    if (saved_ & kFlush) __builtin_ia32_ldmxcsr(saved_);
  }

 private:
  static constexpr unsigned kFlush = 0x8040;
  unsigned saved_;
#endif
};

// The value of an e4m3 code; NaN codes give NaN.
SEEKERNEL_INLINE float to_float(float8_e4m3 value) {
  const uint32_t code = value.bits & 0x7fu, sign = static_cast<uint32_t>(value.bits & 0x80u) << 24;
  const float normal = bit_copy<float>((code << 20) + (120u << 23));
  const float magnitude = code == 0x7fu ? __builtin_nanf("")
                          : code < 8u   ? static_cast<float>(code) * 0.001953125f
                                        : normal;
  return bit_copy<float>(bit_copy<uint32_t>(magnitude) | sign);
}

// One row of a, float, bfloat16 or e4m3, into the order of weights W.
template <class W, class A>
static void pack_row(const A* a, int64_t k, float* out) {
  const int64_t k_whole = k - k % kChunk<W>;
  for (int64_t i = 0; i < k_whole; i += kChunk<W>) {
    for (int j = 0; j < kLanes<W>; ++j) {
      for (int lane = 0; lane < kWidth; ++lane) {
        out[i + j * kWidth + lane] = to_float(a[i + lane * kLanes<W> + j]);
      }
    }
  }
  const int64_t k_padded = gemm_packed_stride(k);
  if (k_whole == k_padded) return;
  __builtin_memset(out + k_whole, 0, (k_padded - k_whole) * sizeof(float));
  for (int64_t i = k_whole; i < k; ++i) {
    const int64_t within = i - k_whole;
    out[k_whole + within % kLanes<W> * kWidth + within / kLanes<W>] = to_float(a[i]);
  }
}

// One row of e4m3 activations with a multiplier per 128 of k, into the order of e4m3 weights.
static void pack_fp8_row(const float8_e4m3* a, const float* scale, int64_t stride_scale, int64_t k,
                         float* out) {
  const int64_t k_padded = gemm_packed_stride(k);
  for (int64_t i = 0; i < k_padded; i += kChunk<float8_e4m3>) {
    const int64_t left = k - i;
    const vuint raw =
        left >= kChunk<float8_e4m3> ? load_raw(a + i) : load_raw_tail(a + i, left > 0 ? left : 0);
    vfloat values[4];
    expand(a, raw, values);
    const float s = left > 0 ? scale[i / 128 * stride_scale] : 0.0f;
    for (int j = 0; j < 4; ++j) {
      const vuint bits = bit_copy<vuint>(values[j]) & 0x7fffffffu;
      const vfloat value = values[j] * kFp8Half * kFp8Half * s;
      store(out + i + j * kWidth, bits == 0x07f00000u ? splat(__builtin_nanf("")) : value);
    }
  }
}

SEEKERNEL_INLINE int64_t row_offset(const GemmRows& rows, int64_t row) {
  return row / rows.rows_per_group * rows.stride_g + row % rows.rows_per_group * rows.stride_m;
}

template <class W>
static void pack_rows(const GemmArgs& args, int64_t row_begin, int64_t row_end) {
  for (int64_t row = row_begin; row < row_end; ++row) {
    const int64_t token = args.row_token != nullptr ? args.row_token[row] : row;
    const int64_t offset = row_offset(args.a_rows, token);
    float* out = args.packed + (row - args.packed_begin) * args.stride_packed;
    switch (args.a_dtype) {
      case Dtype::kFloat32:
        pack_row<W>(static_cast<const float*>(args.a) + offset, args.k, out);
        break;
      case Dtype::kBFloat16:
        pack_row<W>(static_cast<const bfloat16*>(args.a) + offset, args.k, out);
        break;
      case Dtype::kFloat8E4M3:
        if constexpr (kLanes<W> == 8) {
          pack_row<W>(static_cast<const float8_e4m3*>(args.a) + offset, args.k, out);
        } else {
          const int64_t per_group = args.a_rows.rows_per_group;
          pack_fp8_row(static_cast<const float8_e4m3*>(args.a) + offset,
                       args.a_scale + token / per_group * args.stride_a_scale_g + token % per_group,
                       args.stride_a_scale, args.k, out);
        }
        break;
      case Dtype::kInt4:
        break;
    }
  }
}

static void gemm_pack(const GemmArgs& args, int64_t row_begin, int64_t row_end) {
  const ExactSubnormals exact;
  switch (args.b_dtype) {
    case Dtype::kFloat32:
      return pack_rows<float>(args, row_begin, row_end);
    case Dtype::kBFloat16:
      return pack_rows<bfloat16>(args, row_begin, row_end);
    case Dtype::kFloat8E4M3:
      return pack_rows<float8_e4m3>(args, row_begin, row_end);
    case Dtype::kInt4:
      return pack_rows<int4x2>(args, row_begin, row_end);
  }
}
