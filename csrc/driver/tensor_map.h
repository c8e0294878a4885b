// Tensor maps, encoded once. A map depends on nothing but its description, so it never goes stale.
#pragma once

#include <cstring>
#include <mutex>
#include <unordered_map>

#include "driver/driver.h"

namespace seekernel::cu {

// A tensor of up to five dimensions and the box that TMA copies: inner dimension first. What a rank
// does not use stays zero, so that the bytes can be hashed and compared.
struct TensorMap {
  static constexpr int kMaxRank = 5;
  uint64_t address = 0;
  uint64_t dims[kMaxRank] = {};
  uint64_t strides_bytes[kMaxRank - 1] = {};  // of dimensions 1.., multiples of 16
  uint32_t box[kMaxRank] = {};
  uint32_t rank = 0;
  ElementType element = ElementType::kUint8;
  Swizzle swizzle = Swizzle::kNone;
  L2Promotion l2_promotion = L2Promotion::kNone;
  uint32_t unused = 0;

  bool operator==(const TensorMap& other) const {
    return std::memcmp(this, &other, sizeof *this) == 0;
  }
};
static_assert(sizeof(TensorMap) == 120, "no padding: it is hashed by its bytes");

// A row-major matrix [rows, columns] whose rows lie `stride_bytes` apart.
TensorMap matrix_map(uint64_t address, ElementType element, int64_t columns, int64_t rows,
                     int64_t stride_bytes, int box_columns, int box_rows, Swizzle swizzle);

class TensorMapCache {
 public:
  explicit TensorMapCache(size_t capacity) : capacity_(capacity) {}
  // Throws std::runtime_error with the driver's error.
  CUtensorMap get(const TensorMap& description);
  size_t size() const;
  void clear();

 private:
  struct Hash {
    size_t operator()(const TensorMap& description) const;
  };
  size_t capacity_;
  mutable std::mutex mutex_;
  std::unordered_map<TensorMap, CUtensorMap, Hash> maps_;
};

// The process's own.
TensorMapCache& tensor_maps();

}  // namespace seekernel::cu
