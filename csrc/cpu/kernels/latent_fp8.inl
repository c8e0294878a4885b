// Rows of an FP8 latent cache to floats and back; the formats are those of host/latent_cache.h.

constexpr int64_t kLatentBlock = 128;

SEEKERNEL_INLINE int64_t cache_element_bytes(const PagedCache& cache) {
  return cache.dtype == Dtype::kFloat32 ? 4 : cache.dtype == Dtype::kBFloat16 ? 2 : 1;
}

template <class From, class To>
SEEKERNEL_INLINE void convert_row(const From* from, int64_t n, To* to) {
  const int64_t n_vector = n - n % kWidth;
  for (int64_t i = 0; i < n_vector; i += kWidth) store(to + i, load(from + i));
  for (int64_t i = n_vector; i < n; ++i) store_one(to + i, to_float(from[i]));
}

// The smallest power of two that brings `amax` to at most 448: dequantised values are then exact
// in bfloat16, and in float16 within its range.
SEEKERNEL_INLINE float latent_block_scale(float amax) {
  const float quotient = (amax > 1e-4f ? amax : 1e-4f) / kE4M3Max;
  return bit_copy<float>((bit_copy<uint32_t>(quotient) + 0x7fffffu) & 0x7f800000u);
}

// e4m3 * scale. The code's bits, shifted into a float's exponent and mantissa, are 2^-120 times its
// value; subnormal codes are subnormal floats there, so the caller holds ExactSubnormals.
SEEKERNEL_INLINE vfloat expand_e4m3(vbyte bytes, float scale) {
  const vint wide = bit_copy<vint>(__builtin_convertvector(bytes, vuint) << 24);
  const vint bits = (wide >> 4) & static_cast<int32_t>(0x87f00000u);
  const vfloat value = bit_copy<vfloat>(bits) * kFp8Half * (scale * kFp8Half);
  const vint is_nan = (bits & 0x7fffffff) == 0x07f00000;
  return bit_copy<vfloat>(bit_copy<vint>(value) | (is_nan & 0x7fc00000));
}

// to[0, n) = codes * scale.
SEEKERNEL_INLINE void expand_row(const uint8_t* codes, int64_t n, float scale, float* to) {
  const int64_t n_vector = n - n % kWidth;
  vbyte bytes;
  for (int64_t i = 0; i < n_vector; i += kWidth) {
    __builtin_memcpy(&bytes, codes + i, sizeof(bytes));
    store(to + i, expand_e4m3(bytes, scale));
  }
  if (n_vector == n) return;
  bytes = vbyte{};
  __builtin_memcpy(&bytes, codes + n_vector, n - n_vector);
  float lanes[kWidth];
  store(lanes, expand_e4m3(bytes, scale));
  for (int64_t i = n_vector; i < n; ++i) to[i] = lanes[i - n_vector];
}

SEEKERNEL_INLINE int64_t latent_row_bytes(const PagedCache& cache) {
  const int64_t values = cache.kv_lora + cache.rope;
  if (cache.blocks) return cache.kv_lora + cache.kv_lora / kLatentBlock * 4 + 2 * cache.rope;
  return values * cache_element_bytes(cache);
}

// One row of any format as kv_lora + rope floats. The caller holds ExactSubnormals.
SEEKERNEL_INLINE void widen_latent_row(const PagedCache& cache, const void* row, float* to) {
  const int64_t kv_lora = cache.kv_lora, rope = cache.rope;
  if (cache.dtype == Dtype::kFloat32) {
    return convert_row(static_cast<const float*>(row), kv_lora + rope, to);
  }
  if (cache.dtype == Dtype::kBFloat16) {
    return convert_row(static_cast<const bfloat16*>(row), kv_lora + rope, to);
  }
  const auto* codes = static_cast<const uint8_t*>(row);
  if (!cache.blocks) return expand_row(codes, kv_lora + rope, cache.scale, to);
  const uint8_t* scales = codes + kv_lora;
  for (int64_t i = 0; i < kv_lora; i += kLatentBlock, scales += sizeof(float)) {
    float scale;
    __builtin_memcpy(&scale, scales, sizeof(scale));
    expand_row(codes + i, kLatentBlock, scale, to + i);
  }
  convert_row(reinterpret_cast<const bfloat16*>(scales), rope, to + kv_lora);
}

// The inverse, for the two FP8 formats.
static void quantize_latent_row(const PagedCache& cache, const float* from, void* row) {
  auto* codes = static_cast<float8_e4m3*>(row);
  if (!cache.blocks) return convert_group(from, codes, cache.kv_lora + cache.rope, cache.scale);
  auto* scales = reinterpret_cast<uint8_t*>(row) + cache.kv_lora;
  for (int64_t i = 0; i < cache.kv_lora; i += kLatentBlock, scales += sizeof(float)) {
    const float scale =
        latent_block_scale(max_lane(max_magnitudes(from + i, kLatentBlock, vfloat{})));
    convert_group(from + i, codes + i, kLatentBlock, scale);
    __builtin_memcpy(scales, &scale, sizeof(scale));
  }
  convert_row(from + cache.kv_lora, cache.rope, reinterpret_cast<bfloat16*>(scales));
}
