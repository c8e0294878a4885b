// Conversions between fp32 and the narrow formats, each rounding to nearest even unless named.
#pragma once

#include <cmath>

#include "types.h"

namespace emulator {

extern const std::array<float, 256> kE4m3ToFloat;
extern const std::array<float, 256> kE5m2ToFloat;

inline constexpr u32 kNanF32 = 0x7fffffffu;
inline constexpr u16 kNanF16 = 0x7fff;

inline float bf16_to_float(u16 h) { return bits<float>(static_cast<u32>(h) << 16); }
inline float f16_to_float(u16 h) { return static_cast<float>(bits<_Float16>(h)); }
inline u16 float_to_f16(float f) { return bits<u16>(static_cast<_Float16>(f)); }
inline u16 double_to_f16(double d) { return bits<u16>(static_cast<_Float16>(d)); }

inline u16 float_to_bf16(float f) {
  const u32 u = bits<u32>(f);
  // PTX gives one canonical NaN, so payloads never leak into comparisons.
  if ((u & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
  return static_cast<u16>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

// Rounds once: through fp32 with the inexact part kept in the last bit ("round to odd").
u16 double_to_bf16(double d);

// PTX fp8 conversions exist with .satfinite only: overflow and infinity become the largest finite.
u8 float_to_e4m3(float f);
u8 float_to_e5m2(float f);

// Keeps 10 mantissa bits, ties away from zero (cvt.rna.tf32).
inline u32 float_to_tf32(float f) {
  const u32 u = bits<u32>(f);
  if ((u & 0x7f800000u) == 0x7f800000u) return u & 0xffffe000u;
  return (u + 0x1000u) & 0xffffe000u;
}

// Directed rounding of a double into fp32: 'n', 'z', 'm' (down), 'p' (up).
float double_to_float(double d, char mode);
u16 float_to_bf16_zero(float f);
u16 float_to_f16_zero(float f);

inline float flush(float f) {
  const u32 u = bits<u32>(f);
  return (u & 0x7f800000u) ? f : bits<float>(u & 0x80000000u);
}

}  // namespace emulator
