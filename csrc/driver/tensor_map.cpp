#include "driver/tensor_map.h"

namespace seekernel::cu {
namespace {

CUtensorMap encode(const TensorMap& description) {
  CUtensorMap map;
  constexpr uint32_t element_strides[TensorMap::kMaxRank] = {1, 1, 1, 1, 1};
  check(driver().TensorMapEncodeTiled(
            &map, static_cast<int>(description.element), description.rank,
            reinterpret_cast<void*>(description.address), description.dims,
            description.strides_bytes, description.box, element_strides, /*interleave=*/0,
            static_cast<int>(description.swizzle), static_cast<int>(description.l2_promotion),
            /*oob_fill: zeros*/ 0),
        "cuTensorMapEncodeTiled");
  return map;
}

}  // namespace

TensorMap matrix_map(uint64_t address, ElementType element, int64_t columns, int64_t rows,
                     int64_t stride_bytes, int box_columns, int box_rows, Swizzle swizzle) {
  TensorMap map;
  map.address = address;
  map.dims[0] = static_cast<uint64_t>(columns);
  map.dims[1] = static_cast<uint64_t>(rows);
  map.strides_bytes[0] = static_cast<uint64_t>(stride_bytes);
  map.box[0] = static_cast<uint32_t>(box_columns);
  map.box[1] = static_cast<uint32_t>(box_rows);
  map.rank = 2;
  map.element = element;
  map.swizzle = swizzle;
  return map;
}

size_t TensorMapCache::Hash::operator()(const TensorMap& description) const {
  uint64_t words[sizeof description / 8], hash = 0x9E3779B97F4A7C15;
  std::memcpy(words, &description, sizeof words);
  for (uint64_t word : words) {
    hash = (hash ^ word) * 0xD6E8FEB86659FD93;
    hash ^= hash >> 32;
  }
  return hash;
}

CUtensorMap TensorMapCache::get(const TensorMap& description) {
  const std::lock_guard lock(mutex_);
  const auto found = maps_.find(description);
  if (found != maps_.end()) return found->second;
  const CUtensorMap map = encode(description);
  // Weights are few and come back at once; what fills a cache is activations at ever new addresses.
  if (maps_.size() >= capacity_) maps_.clear();
  maps_.emplace(description, map);
  return map;
}

size_t TensorMapCache::size() const {
  const std::lock_guard lock(mutex_);
  return maps_.size();
}

void TensorMapCache::clear() {
  const std::lock_guard lock(mutex_);
  maps_.clear();
}

TensorMapCache& tensor_maps() {
  static TensorMapCache cache(16384);
  return cache;
}

}  // namespace seekernel::cu
