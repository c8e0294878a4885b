// Fixed-width names and the opaque types that every device header shares; includes nothing, so that
// NVRTC needs no header but ours.
#pragma once

#define SEEKERNEL_DEVICE __device__ __forceinline__

namespace seekernel {

using int8_t = signed char;
using int32_t = int;
using int64_t = long long;
using uint8_t = unsigned char;
using uint16_t = unsigned short;
using uint32_t = unsigned int;
using uint64_t = unsigned long long;

// A CUtensorMap as a kernel parameter: pass it as `const __grid_constant__ tensor_map_t`.
struct alignas(64) tensor_map_t {
  uint64_t opaque[16];
};

template <typename T>
SEEKERNEL_DEVICE constexpr T ceil_div(T a, T b) {
  return (a + b - 1) / b;
}

namespace ptx {

// The 32-bit address of shared memory that all wrappers here take.
SEEKERNEL_DEVICE uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

}  // namespace ptx
}  // namespace seekernel
