// The paged latent cache as every op sees it: which of its formats a tensor holds, strides, scale.
//
// A row is one token: kv_lora latent values, then rope key values.
//   values   float32 or bfloat16 [num_pages, page_size, kv_lora + rope]
//   blocks   uint8 [num_pages, page_size, kv_lora + kv_lora / 32 + 2 rope]: kv_lora e4m3 codes, one
//            fp32 multiplier per 128 of them, rope bfloat16; 656 bytes for 512 + 64
//   flat     float8_e4m3fn [num_pages, page_size, kv_lora + rope], all times one multiplier
//   kv_scale
// Reads no tensor data: kv_scale stays a device pointer.
#pragma once

#include "host/check.h"

namespace seekernel {

enum class LatentFormat : int32_t { kValues, kBlocks, kFlat };

struct LatentCache {
  LatentFormat format;
  ScalarType dtype;
  int64_t stride_page;  // elements of dtype
  int64_t stride_row;
  void* data;
  const float* kv_scale;  // of kFlat, else null
};

constexpr int64_t kLatentBlock = 128;  // latent values that share a multiplier in kBlocks

inline int64_t blocks_row_bytes(int64_t kv_lora, int64_t rope) {
  return kv_lora + kv_lora / kLatentBlock * 4 + 2 * rope;
}

inline LatentCache check_latent_cache(const Checker& check, const Tensor& kv_cache,
                                      const OptionalTensor& kv_scale, Dim& num_pages,
                                      Dim& page_size, int64_t kv_lora, int64_t rope) {
  check("kv_cache", kv_cache)
      .dtype(
          {ScalarType::Float, ScalarType::BFloat16, ScalarType::Byte, ScalarType::Float8_e4m3fn});
  const LatentFormat format = kv_cache.scalar_type() == ScalarType::Byte ? LatentFormat::kBlocks
                              : kv_cache.scalar_type() == ScalarType::Float8_e4m3fn
                                  ? LatentFormat::kFlat
                                  : LatentFormat::kValues;
  int64_t row = kv_lora + rope;
  if (format == LatentFormat::kBlocks) {
    check.require(kv_lora % kLatentBlock == 0,
                  "kv_cache: expected kv_lora to be a multiple of 128 in the uint8 format, got " +
                      std::to_string(kv_lora));
    row = blocks_row_bytes(kv_lora, rope);
  }
  check("kv_cache", kv_cache).shape({num_pages, page_size, row}).last_dim_contiguous();
  check.require(page_size.value() > 0, "kv_cache: expected page_size > 0, got 0");
  check.require(kv_scale.has_value() == (format == LatentFormat::kFlat),
                std::string("kv_scale: expected ") +
                    (kv_scale.has_value() ? "none for a kv_cache of dtype "
                                          : "one for a kv_cache of dtype ") +
                    dtype_name(kv_cache.scalar_type()) +
                    (kv_scale.has_value() ? ", got one" : ", got none"));
  if (kv_scale.has_value()) {
    check("kv_scale", *kv_scale)
        .shape({1})
        .dtype({ScalarType::Float})
        .same_device("kv_cache", kv_cache);
  }
  return {.format = format,
          .dtype = kv_cache.scalar_type(),
          .stride_page = kv_cache.stride(0),
          .stride_row = kv_cache.stride(1),
          .data = kv_cache.mutable_data_ptr(),
          .kv_scale = kv_scale.has_value() ? static_cast<const float*>(kv_scale->const_data_ptr())
                                           : nullptr};
}

}  // namespace seekernel
