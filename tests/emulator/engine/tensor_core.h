// What mma.sync and wgmma share: element decoding and how products are summed.
#pragma once

#include "machine.h"
#include "numeric.h"

namespace emulator {

// Decodes one element of a tensor-core operand from the low bits of `raw`.
inline float decode_element(Type type, u32 raw) {
  switch (type) {
    case Type::k_e4m3: return kE4m3ToFloat[raw & 255u];
    case Type::k_e5m2: return kE5m2ToFloat[raw & 255u];
    case Type::k_bf16: return bf16_to_float(static_cast<u16>(raw));
    case Type::k_f16: return f16_to_float(static_cast<u16>(raw));
    case Type::k_tf32: return bits<float>(raw & 0xffffe000u);
    case Type::k_s8: return static_cast<float>(static_cast<s8>(raw));
    case Type::k_u8: return static_cast<float>(static_cast<u8>(raw));
    default: return 0.0f;
  }
}

// A model of Hopper's FP8 accumulation, not the hardware: the products of one instruction and the
// accumulator are aligned to the largest exponent among them, cut (not rounded) to kKeptBits bits
// below it, summed exactly, and the sum is cut to the same width again. Public reports put the
// width near 14 bits. It shows whether a kernel's promotion to fp32 matters.
inline constexpr int kKeptBits = 13;
float hopper_sum(const float* products, int count, float accumulator);

}  // namespace emulator
