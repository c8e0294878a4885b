// Work space that a thread keeps between calls: a fresh large allocation would fault in every page
// again.
#pragma once

#include <cstdint>
#include <memory>
#include <new>

namespace seekernel::cpu {

// `size` floats on a cache line of their own, uninitialised, valid until this thread asks again.
inline float* thread_scratch(int64_t size) {
  struct Free {
    void operator()(float* p) const { ::operator delete(p, std::align_val_t{64}); }
  };
  thread_local std::unique_ptr<float, Free> buffer;
  thread_local int64_t capacity = 0;
  if (size > capacity) {
    buffer.reset();
    capacity = 0;
    const size_t bytes = static_cast<size_t>(size) * sizeof(float);
    buffer.reset(static_cast<float*>(::operator new(bytes, std::align_val_t{64})));
    capacity = size;
  }
  return buffer.get();
}

}  // namespace seekernel::cpu
