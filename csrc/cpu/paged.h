// Checks that every op on the paged latent cache makes: the cache, its block table, ragged lengths.
#pragma once

#include <string>

#include "cpu/dtype.h"
#include "cpu/kernels/mla_prepare.h"
#include "host/check.h"
#include "host/latent_cache.h"

namespace seekernel::cpu {

inline PagedCache check_paged_cache(const Checker& check, const Tensor& kv_cache,
                                    const OptionalTensor& kv_scale, Dim& num_pages, Dim& page_size,
                                    int64_t kv_lora, int64_t rope) {
  const LatentCache cache =
      check_latent_cache(check, kv_cache, kv_scale, num_pages, page_size, kv_lora, rope);
  const bool blocks = cache.format == LatentFormat::kBlocks;
  return {.dtype = blocks ? Dtype::kFloat8E4M3 : dtype_of(kv_cache),
          .blocks = blocks,
          .kv_lora = kv_lora,
          .rope = rope,
          .page_size = page_size,
          .stride_page = cache.stride_page,
          .stride_row = cache.stride_row,
          .scale = cache.kv_scale == nullptr ? 1.0f : *cache.kv_scale,
          .data = cache.data};
}

// Offsets of b ragged rows: [b + 1] int32, from 0, ascending, up to `total`.
inline const int32_t* check_offsets(const Checker& check, const char* name, const Tensor& offsets,
                                    const Dim& b, int64_t total) {
  check(name, offsets).shape({b.value() + 1}).dtype({ScalarType::Int}).contiguous();
  const auto* values = static_cast<const int32_t*>(offsets.const_data_ptr());
  for (int64_t i = 0; i < b.value(); ++i) {
    if (values[i] > values[i + 1]) {
      check.fail(std::string(name) + ": expected ascending values, got " +
                 std::to_string(values[i]) + " then " + std::to_string(values[i + 1]) +
                 " at index " + std::to_string(i));
    }
  }
  if (values[0] != 0 || values[b.value()] != total) {
    check.fail(std::string(name) + ": expected values from 0 to " + std::to_string(total) +
               ", got from " + std::to_string(values[0]) + " to " +
               std::to_string(values[b.value()]));
  }
  return values;
}

// The pages that hold the first `length` tokens of a request; entries past them may hold anything.
inline void check_pages(const Checker& check, const Tensor& block_table, int64_t request,
                        int64_t length, int64_t page_size, int64_t num_pages) {
  const int64_t live = (length + page_size - 1) / page_size;
  if (live > block_table.size(1)) {
    check.fail("block_table: request " + std::to_string(request) + " of " + std::to_string(length) +
               " tokens: expected at least " + std::to_string(live) +
               " pages, got max_pages=" + std::to_string(block_table.size(1)));
  }
  const auto* pages =
      static_cast<const int32_t*>(block_table.const_data_ptr()) + request * block_table.stride(0);
  for (int64_t i = 0; i < live; ++i) {
    if (pages[i] < 0 || pages[i] >= num_pages) {
      check.fail("block_table[" + std::to_string(request) + ", " + std::to_string(i) +
                 "]: expected a page in [0, num_pages=" + std::to_string(num_pages) + "), got " +
                 std::to_string(pages[i]));
    }
  }
}

}  // namespace seekernel::cpu
