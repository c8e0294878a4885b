// Tensor maps, encoded once. A map depends on nothing but its description, so it never goes stale.
#pragma once

#include <cstring>
#include <mutex>
#include <unordered_map>

#include "jit/driver.h"

namespace seekernel::jit {

// A 2-D row-major tensor and the box that TMA copies: inner dimension first.
struct TensorMap2d {
  uint64_t address = 0;
  uint64_t dims[2] = {};
  uint64_t stride_bytes = 0;
  uint32_t box[2] = {};
  ElementType element = ElementType::kUint8;
  Swizzle swizzle = Swizzle::kNone;
  L2Promotion l2_promotion = L2Promotion::kNone;
  uint32_t unused = 0;  // fills the last word, so that the bytes can be hashed

  bool operator==(const TensorMap2d& other) const {
    return std::memcmp(this, &other, sizeof *this) == 0;
  }
};
static_assert(sizeof(TensorMap2d) == 56, "no padding: it is hashed by its bytes");

class TensorMapCache {
 public:
  explicit TensorMapCache(size_t capacity) : capacity_(capacity) {}
  // Throws std::runtime_error with the driver's error.
  CUtensorMap get(const TensorMap2d& description);
  size_t size() const;
  void clear();

 private:
  struct Hash {
    size_t operator()(const TensorMap2d& description) const;
  };
  size_t capacity_;
  mutable std::mutex mutex_;
  std::unordered_map<TensorMap2d, CUtensorMap, Hash> maps_;
};

// The process's own.
TensorMapCache& tensor_maps();

}  // namespace seekernel::jit
