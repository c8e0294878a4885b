// What mma.sync and wgmma share: element decoding and how products are summed.
#pragma once

#include "machine.h"
#include "numeric.h"

namespace emulator {

// Decodes one element of a tensor-core operand from the low bits of `raw`.
inline float decode_element(Type type, u32 raw) {
  switch (type) {
    case Type::k_e4m3:
      return kE4m3ToFloat[raw & 255u];
    case Type::k_e5m2:
      return kE5m2ToFloat[raw & 255u];
    case Type::k_bf16:
      return bf16_to_float(static_cast<u16>(raw));
    case Type::k_f16:
      return f16_to_float(static_cast<u16>(raw));
    // The hardware ignores the low 13 bits.
    case Type::k_tf32:
      return bits<float>(raw & 0xffffe000u);
    case Type::k_s8:
      return static_cast<float>(static_cast<s8>(raw));
    case Type::k_u8:
      return static_cast<float>(static_cast<u8>(raw));
    default:
      return 0.0f;
  }
}

// How Hopper's tensor cores add, found from golden vectors of an H100 and exact on all of them.
// With e the largest of floor(log2|a_k|) + floor(log2|b_k|) and floor(log2|acc|), zeros left out,
// every product and the accumulator is cut towards zero to a multiple of 2^(e - align_bits), all
// are added exactly, and an fp32 result is cut to result_bits of mantissa; f16 is rounded to
// nearest.
struct SumRule {
  int align_bits;
  int result_bits;
};
// wgmma on fp8 keeps 13 bits; everything else, fp8 in mma.sync included, keeps 25 and 23.
inline SumRule sum_rule(bool short_accumulator) {
  return short_accumulator ? SumRule{13, 13} : SumRule{25, 23};
}
// a and b hold `count` elements, `stride` apart; the result still has to be rounded for f16.
double hopper_sum(const float* a, int stride_a, const float* b, int stride_b, int count, float sign,
                  float accumulator, SumRule rule, bool to_f16);

}  // namespace emulator
