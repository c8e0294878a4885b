// Element types that CPU kernels read and write; arithmetic is always float.
#pragma once

#include <cstdint>

namespace seekernel::cpu {

// kInt4 is of weights only.
enum class Dtype : int32_t { kFloat32, kBFloat16, kFloat8E4M3, kInt4 };

struct bfloat16 {
  uint16_t bits;
};

// e4m3fn: 1 sign, 4 exponent (bias 7), 3 mantissa bits; 0x7f and 0xff are NaN, there is no
// infinity.
struct float8_e4m3 {
  uint8_t bits;
};

// Two values of two's complement, the even column in the low nibble.
struct int4x2 {
  uint8_t bits;
};

}  // namespace seekernel::cpu
