// Rows of the paged latent cache: where they lie, and 8 values at a time in each format.
//
//   values  T [kv_lora + rope];  blocks  kv_lora e4m3 codes, fp32 multipliers of 128 each, rope
//   bf16; flat    e4m3 [kv_lora + rope] times one multiplier.  host/latent_cache.h has the whole
//   story.
// Every row starts at a multiple of 16 bytes; kv_lora and rope are multiples of 8, kv_lora of 512
// in blocks.
#pragma once

#include <seekernel/fused/vector.cuh>
#include <seekernel/ptx/convert_e4m3.cuh>
#include <seekernel/ptx/expand_e4m3.cuh>

namespace seekernel {

enum latent_format_t : int32_t {
  kLatentFloat = 0,
  kLatentBfloat16 = 1,
  kLatentBlocks = 2,
  kLatentFlat = 3
};

struct latent_cache_t {
  uint8_t* data;
  int64_t stride_page_bytes, stride_row_bytes;
  const float* kv_scale;  // of kLatentFlat
  int32_t format, page_size, kv_lora, rope;

  // In bytes: a page's number times its size is beyond 32 bits in any cache of more than 2 GiB.
  SEEKERNEL_DEVICE uint8_t* row(int64_t page, int64_t row_of_page) const {
    return data + page * stride_page_bytes + row_of_page * stride_row_bytes;
  }
};

// The smallest power of two that brings `amax` to at most 448.
SEEKERNEL_DEVICE float latent_block_scale(float amax) {
  const float quotient = fmaxf(amax, 1e-4f) / 448.0f;
  return __uint_as_float((__float_as_uint(quotient) + 0x7fffffu) & 0x7f800000u);
}

// Eight e4m3 codes of v / scale: quotients are IEEE ones, so that codes are those of the CPU.
SEEKERNEL_DEVICE void store_e4m3x8(uint8_t* p, const float (&v)[8], float scale) {
  uint32_t word[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    word[i] = ptx::pack_e4m3x2(v[4 * i] / scale, v[4 * i + 1] / scale) |
              static_cast<uint32_t>(ptx::pack_e4m3x2(v[4 * i + 2] / scale, v[4 * i + 3] / scale))
                  << 16;
  }
  *reinterpret_cast<uint2*>(p) = make_uint2(word[0], word[1]);
}

SEEKERNEL_DEVICE void load_e4m3x8(float (&v)[8], const uint8_t* p, float scale) {
  const uint2 raw = *reinterpret_cast<const uint2*>(p);
  const uint32_t word[2] = {raw.x, raw.y};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const uint32_t pair = ptx::unpack_e4m3x2(static_cast<uint16_t>(word[i / 2] >> i % 2 * 16));
    v[2 * i] = ptx::half_to_float(static_cast<uint16_t>(pair)) * scale;
    v[2 * i + 1] = ptx::half_to_float(static_cast<uint16_t>(pair >> 16)) * scale;
  }
}

// Values [column, column + 8) of a row, counted over latent and rope key alike.
SEEKERNEL_DEVICE void load_latent(float (&v)[8], const latent_cache_t& cache, const uint8_t* row,
                                  int column) {
  switch (cache.format) {
    case kLatentFloat:
      return load(v, reinterpret_cast<const float*>(row) + column);
    case kLatentBfloat16:
      return load(v, reinterpret_cast<const bfloat16_t*>(row) + column);
    case kLatentFlat:
      return load_e4m3x8(v, row + column, *cache.kv_scale);
    default:
      break;
  }
  const auto* scales = reinterpret_cast<const float*>(row + cache.kv_lora);
  if (column < cache.kv_lora) return load_e4m3x8(v, row + column, scales[column / 128]);
  load(v,
       reinterpret_cast<const bfloat16_t*>(scales + cache.kv_lora / 128) + column - cache.kv_lora);
}

// The inverse. `scale` is the block's multiplier in kLatentBlocks, of a latent value; whoever holds
// the first column of a block writes it.
SEEKERNEL_DEVICE void store_latent(const float (&v)[8], const latent_cache_t& cache, uint8_t* row,
                                   int column, float scale) {
  switch (cache.format) {
    case kLatentFloat:
      return store(reinterpret_cast<float*>(row) + column, v);
    case kLatentBfloat16:
      return store(reinterpret_cast<bfloat16_t*>(row) + column, v);
    case kLatentFlat:
      return store_e4m3x8(row + column, v, *cache.kv_scale);
    default:
      break;
  }
  auto* scales = reinterpret_cast<float*>(row + cache.kv_lora);
  if (column < cache.kv_lora) {
    store_e4m3x8(row + column, v, scale);
    if (column % 128 == 0) scales[column / 128] = scale;
    return;
  }
  store(reinterpret_cast<bfloat16_t*>(scales + cache.kv_lora / 128) + column - cache.kv_lora, v);
}

}  // namespace seekernel
