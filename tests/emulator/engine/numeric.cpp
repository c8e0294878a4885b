#include "numeric.h"

#include <limits>

namespace emulator {
namespace {

std::array<float, 256> make_table(int exponent_bits, int mantissa_bits, bool has_infinity) {
  std::array<float, 256> table{};
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const int top = (1 << exponent_bits) - 1;
  for (int code = 0; code < 256; ++code) {
    const int exponent = (code >> mantissa_bits) & top;
    const int mantissa = code & ((1 << mantissa_bits) - 1);
    const float fraction = static_cast<float>(mantissa) / static_cast<float>(1 << mantissa_bits);
    float value =
        exponent ? std::ldexp(1.0f + fraction, exponent - bias) : std::ldexp(fraction, 1 - bias);
    if (has_infinity && exponent == top) {
      value = mantissa ? std::numeric_limits<float>::quiet_NaN()
                       : std::numeric_limits<float>::infinity();
    }
    if (!has_infinity && (code & 0x7f) == 0x7f) value = std::numeric_limits<float>::quiet_NaN();
    table[code] = (code & 0x80) ? -value : value;
  }
  return table;
}

u8 to_fp8(float f, int mantissa_bits, int bias, u8 largest) {
  const u8 sign = static_cast<u8>((bits<u32>(f) >> 24) & 0x80u);
  const float magnitude = std::fabs(f);
  if (std::isnan(f)) return 0x7f;
  const float max_finite = mantissa_bits == 3 ? kE4m3ToFloat[largest] : kE5m2ToFloat[largest];
  if (magnitude >= max_finite) return sign | largest;
  const float smallest_normal = std::ldexp(1.0f, 1 - bias);
  if (magnitude < smallest_normal) {
    // The sum of exponent and mantissa fields carries into the first normal code by itself.
    return sign | static_cast<u8>(std::nearbyint(std::ldexp(magnitude, bias - 1 + mantissa_bits)));
  }
  const u32 u = bits<u32>(magnitude);
  const int shift = 23 - mantissa_bits;
  const u32 rounded = u + ((1u << (shift - 1)) - 1) + ((u >> shift) & 1u);
  const int exponent = static_cast<int>(rounded >> 23) - 127;
  const u32 mantissa = (rounded >> shift) & ((1u << mantissa_bits) - 1);
  const u32 code = (static_cast<u32>(exponent + bias) << mantissa_bits) | mantissa;
  return sign | static_cast<u8>(code > largest ? largest : code);
}

}  // namespace

const std::array<float, 256> kE4m3ToFloat = make_table(4, 3, false);
const std::array<float, 256> kE5m2ToFloat = make_table(5, 2, true);

u8 float_to_e4m3(float f) { return to_fp8(f, 3, 7, 0x7e); }
u8 float_to_e5m2(float f) { return to_fp8(f, 2, 15, 0x7b); }

u16 double_to_bf16(double d) {
  const float nearest = static_cast<float>(d);
  if (static_cast<double>(nearest) == d || std::isnan(d) || std::isinf(nearest)) {
    return float_to_bf16(nearest);
  }
  const float below = double_to_float(d, 'z');
  return float_to_bf16(bits<float>(bits<u32>(below) | 1u));
}

float double_to_float(double d, char mode) {
  const float nearest = static_cast<float>(d);
  if (mode == 'n' || std::isnan(d) || static_cast<double>(nearest) == d) return nearest;
  const bool too_high = static_cast<double>(nearest) > d;
  const bool want_low = mode == 'm' || (mode == 'z' && d > 0);
  if (want_low && too_high) return std::nextafterf(nearest, -INFINITY);
  if (!want_low && !too_high) return std::nextafterf(nearest, INFINITY);
  return nearest;
}

u16 float_to_bf16_zero(float f) {
  if (std::isnan(f)) return 0x7fff;
  return static_cast<u16>(bits<u32>(f) >> 16);
}

u16 float_to_f16_zero(float f) {
  u16 h = float_to_f16(f);
  if (!std::isnan(f) && std::fabs(f16_to_float(h)) > std::fabs(f)) --h;
  return h;
}

}  // namespace emulator
