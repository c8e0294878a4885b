// quantize_fp8_1x128, quantize_fp8_128x128, dequantize_fp8_128x128, quantize_int4_g128: one pass
// for the largest magnitude, one to convert. A group is 128 values, so the second pass reads from
// L1.

constexpr int64_t kGroup = 128;
constexpr float kE4M3Max = 448.0f;
constexpr float kE4M3MinNormal = 0.015625f;  // 2^-6

// Rounds to the nearest even e4m3, saturates beyond 448; NaN becomes 0x7f or 0xff.
SEEKERNEL_INLINE vbyte to_e4m3(vfloat v) {
  const vuint bits = bit_copy<vuint>(v);
  const vuint sign = (bits >> 24) & 0x80u;
  const vfloat magnitude = bit_copy<vfloat>(bits & 0x7fffffffu);
  const vfloat clamped = magnitude > kE4M3Max ? splat(kE4M3Max) : magnitude;
  const vuint wide = bit_copy<vuint>(clamped);
  const vuint normal = ((wide + 0x7ffffu + ((wide >> 20) & 1u)) >> 20) - ((127u - 7u) << 3);
  // The unit in the last place of 2^14 is 2^-9, e4m3's subnormal step: the sum does the rounding.
  const vuint subnormal = bit_copy<vuint>(clamped + 16384.0f) - 0x46800000u;
  const vuint is_subnormal = bit_copy<vuint>(clamped < kE4M3MinNormal);
  const vuint is_nan = bit_copy<vuint>(v != v);
  vuint code = (subnormal & is_subnormal) | (normal & ~is_subnormal);
  code = (code & ~is_nan) | (0x7fu & is_nan);
  return __builtin_convertvector(code | sign, vbyte);
}

SEEKERNEL_INLINE vfloat from_e4m3(vbyte bytes) {
  const vuint bits = __builtin_convertvector(bytes, vuint);
  const vuint code = bits & 0x7fu;
  const vuint normal = (code << 20) + ((127u - 7u) << 23);
  // Not by a float multiply of (code << 20): that is a subnormal, lost where denormals are flushed.
  const vuint subnormal = bit_copy<vuint>(__builtin_convertvector(code, vfloat) * 0.001953125f);
  const vuint is_subnormal = bit_copy<vuint>(code < 8u);
  const vuint is_nan = bit_copy<vuint>(code == 0x7fu);
  vuint wide = (subnormal & is_subnormal) | (normal & ~is_subnormal);
  wide = (wide & ~is_nan) | (0x7fc00000u & is_nan);
  return bit_copy<vfloat>(wide | ((bits & 0x80u) << 24));
}

// A tail of fewer than kWidth values goes through a padded copy: one conversion routine for all.
template <class T>
SEEKERNEL_INLINE vfloat load_tail(const T* p, int64_t count) {
  float lanes[kWidth] = {};
  for (int64_t i = 0; i < count; ++i) lanes[i] = to_float(p[i]);
  return load(lanes);
}

SEEKERNEL_INLINE vfloat load_e4m3(const float8_e4m3* p, int64_t count) {
  vbyte bytes{};
  if (count >= kWidth) {
    __builtin_memcpy(&bytes, p, sizeof(bytes));
  } else {
    for (int64_t i = 0; i < count; ++i) bytes[i] = p[i].bits;
  }
  return from_e4m3(bytes);
}

SEEKERNEL_INLINE void store_e4m3(float8_e4m3* p, vfloat v, int64_t count) {
  const vbyte bytes = to_e4m3(v);
  if (count >= kWidth) {
    __builtin_memcpy(p, &bytes, sizeof(bytes));
  } else {
    for (int64_t i = 0; i < count; ++i) p[i].bits = bytes[i];
  }
}

SEEKERNEL_INLINE vfloat vabs(vfloat v) {
  return bit_copy<vfloat>(bit_copy<vuint>(v) & 0x7fffffffu);
}

// vmax(value, best) keeps `best` where value is NaN: one NaN does not poison its whole group.
template <class T>
SEEKERNEL_INLINE vfloat max_magnitudes(const T* x, int64_t count, vfloat best) {
  int64_t i = 0;
  for (; i + kWidth <= count; i += kWidth) best = vmax(vabs(load(x + i)), best);
  if (i < count) best = vmax(vabs(load_tail(x + i, count - i)), best);
  return best;
}

SEEKERNEL_INLINE float max_lane(vfloat v) {
  float lanes[kWidth];
  store(lanes, v);
  float best = lanes[0];
  for (int i = 1; i < kWidth; ++i) best = lanes[i] > best ? lanes[i] : best;
  return best;
}

template <class T>
SEEKERNEL_INLINE void convert_group(const T* x, float8_e4m3* q, int64_t count, float scale) {
  int64_t i = 0;
  for (; i + kWidth <= count; i += kWidth) store_e4m3(q + i, load(x + i) / scale, kWidth);
  if (i < count) store_e4m3(q + i, load_tail(x + i, count - i) / scale, count - i);
}

template <class T>
static void quantize_fp8_1x128_rows(const QuantizeFp8Args& args, int64_t row_begin,
                                    int64_t row_end) {
  for (int64_t row = row_begin; row < row_end; ++row) {
    const T* x = static_cast<const T*>(args.x) + row * args.stride_x_m;
    float8_e4m3* q = args.q + row * args.stride_q_m;
    float* scale = args.scale + row;
    for (int64_t i = 0; i < args.k; i += kGroup, scale += args.stride_scale) {
      const int64_t count = args.k - i < kGroup ? args.k - i : kGroup;
      const float amax = max_lane(max_magnitudes(x + i, count, vfloat{}));
      *scale = (amax > 1e-4f ? amax : 1e-4f) / kE4M3Max;
      convert_group(x + i, q + i, count, *scale);
    }
  }
}

static void quantize_fp8_1x128(const QuantizeFp8Args& args, int64_t row_begin, int64_t row_end) {
  if (args.dtype == Dtype::kFloat32) {
    return quantize_fp8_1x128_rows<float>(args, row_begin, row_end);
  }
  quantize_fp8_1x128_rows<bfloat16>(args, row_begin, row_end);
}

template <class T>
static void quantize_fp8_128x128_blocks(const QuantizeFp8Args& args, int64_t block_begin,
                                        int64_t block_end) {
  for (int64_t block = block_begin; block < block_end; ++block) {
    const int64_t row_begin = block * kGroup;
    const int64_t row_end = row_begin + kGroup < args.m ? row_begin + kGroup : args.m;
    float* scale = args.scale + block * args.stride_scale;
    for (int64_t i = 0; i < args.k; i += kGroup, ++scale) {
      const int64_t count = args.k - i < kGroup ? args.k - i : kGroup;
      const T* x = static_cast<const T*>(args.x) + i;
      vfloat best{};
      for (int64_t row = row_begin; row < row_end; ++row) {
        best = max_magnitudes(x + row * args.stride_x_m, count, best);
      }
      const float quotient = max_lane(best) / kE4M3Max;
      *scale = quotient > 0.0f ? quotient : 1.0f;
      for (int64_t row = row_begin; row < row_end; ++row) {
        convert_group(x + row * args.stride_x_m, args.q + row * args.stride_q_m + i, count, *scale);
      }
    }
  }
}

static void quantize_fp8_128x128(const QuantizeFp8Args& args, int64_t block_begin,
                                 int64_t block_end) {
  if (args.dtype == Dtype::kFloat32) {
    return quantize_fp8_128x128_blocks<float>(args, block_begin, block_end);
  }
  quantize_fp8_128x128_blocks<bfloat16>(args, block_begin, block_end);
}

template <class T>
static void dequantize_fp8_128x128_rows(const DequantizeFp8Args& args, int64_t row_begin,
                                        int64_t row_end) {
  for (int64_t row = row_begin; row < row_end; ++row) {
    const float8_e4m3* q = args.q + row * args.stride_q_n;
    const float* scale = args.scale + row / kGroup * args.stride_scale_n;
    T* out = static_cast<T*>(args.out) + row * args.stride_out_n;
    int64_t i = 0;
    for (; i + kWidth <= args.k; i += kWidth) {  // kWidth divides kGroup
      store(out + i, load_e4m3(q + i, kWidth) * scale[i / kGroup]);
    }
    if (i < args.k) {
      const vfloat values = load_e4m3(q + i, args.k - i) * scale[i / kGroup];
      for (int64_t lane = 0; i + lane < args.k; ++lane) store_one(out + i + lane, values[lane]);
    }
  }
}

static void dequantize_fp8_128x128(const DequantizeFp8Args& args, int64_t row_begin,
                                   int64_t row_end) {
  if (args.dtype == Dtype::kFloat32) {
    return dequantize_fp8_128x128_rows<float>(args, row_begin, row_end);
  }
  dequantize_fp8_128x128_rows<bfloat16>(args, row_begin, row_end);
}

template <class T>
static void quantize_int4_g128_rows(const QuantizeInt4Args& args, int64_t row_begin,
                                    int64_t row_end) {
  for (int64_t row = row_begin; row < row_end; ++row) {
    const T* w = static_cast<const T*>(args.w) + row * args.stride_w_n;
    uint8_t* q = args.q + row * args.stride_q_n;
    float* scale = args.scale + row * args.stride_scale_n;
    for (int64_t i = 0; i < args.k; i += kGroup, ++scale) {
      const int64_t count = args.k - i < kGroup ? args.k - i : kGroup;
      const float quotient = max_lane(max_magnitudes(w + i, count, vfloat{})) / 7.0f;
      *scale = quotient > 0.0f ? quotient : 1.0f;
      uint32_t codes[kGroup];
      for (int64_t j = 0; j < count; j += kWidth) {
        const int64_t left = count - j;
        const vfloat x = left >= kWidth ? load(w + i + j) : load_tail(w + i + j, left);
        vfloat v = x / *scale;
        v = v == v ? v : vfloat{};
        v = v > 7.0f ? splat(7.0f) : v < -7.0f ? splat(-7.0f) : v;
        // Adding 1.5 * 2^23 rounds to the nearest even integer and leaves it in the low bits.
        const vuint code = bit_copy<vuint>(v + 12582912.0f) & 15u;
        __builtin_memcpy(codes + j, &code, sizeof(code));
      }
      for (int64_t j = 0; j < count; j += 2) {
        q[(i + j) / 2] = static_cast<uint8_t>(codes[j] | codes[j + 1] << 4);
      }
    }
  }
}

static void quantize_int4_g128(const QuantizeInt4Args& args, int64_t row_begin, int64_t row_end) {
  if (args.dtype == Dtype::kFloat32) {
    return quantize_int4_g128_rows<float>(args, row_begin, row_end);
  }
  quantize_int4_g128_rows<bfloat16>(args, row_begin, row_end);
}
