// The integers that sampling is made of, the same as on the CPU (cpu/kernels/sampling_weight.inl):
// probabilities become 40-bit integers, whose sums have no order, so every device and every split
// of the work finds the same token. Every rounding is spelled out: nothing may contract to an FMA.
#pragma once

#include <seekernel/ptx/types.cuh>

namespace seekernel {

constexpr int kStepBits = 20;                   // steps per halving of a weight: 2^20
constexpr int32_t kLastStep = 40 << kStepBits;  // its weight is 1, that of the next is 0
constexpr int32_t kFarStep = 43 << kStepBits;
constexpr uint64_t kUnitWeight = uint64_t{1} << 40;
constexpr uint32_t kStreamDraw = 0, kStreamAccept = 1, kStreamResidual = 2;

SEEKERNEL_DEVICE float minus_infinity() { return __uint_as_float(0xff800000u); }
SEEKERNEL_DEVICE float quiet_nan() { return __uint_as_float(0x7fc00000u); }

// Composite keys in the order of choice: the larger logit, then the lower index. -0 ties with 0; a
// NaN is last.
SEEKERNEL_DEVICE uint64_t order_key(float x, int i) {
  const uint32_t bits = __float_as_uint(x == 0.0f ? 0.0f : x);
  uint32_t high = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  if (x != x) high = 0;
  return static_cast<uint64_t>(high) << 32 | (0xffffffffu - static_cast<uint32_t>(i));
}
SEEKERNEL_DEVICE int key_index(uint64_t key) {
  return static_cast<int>(0xffffffffu - static_cast<uint32_t>(key));
}
SEEKERNEL_DEVICE float key_logit(uint64_t key) {
  const uint32_t high = static_cast<uint32_t>(key >> 32);
  return __uint_as_float(high & 0x80000000u ? high & 0x7fffffffu : ~high);
}

// Steps per unit of logit: 2^20 * log2(e) / temperature, finite.
SEEKERNEL_DEVICE float step_scale(float temperature) {
  return fminf(__fdiv_rn(1512775.375f, temperature), 3.402823466e38f);
}

// How far below the row's maximum, in steps: 0 for the maximum, never less for a smaller logit.
SEEKERNEL_DEVICE int32_t steps_below(float x, float row_max, float scale) {
  const float t = __fmul_rn(__fsub_rn(row_max, x), scale);
  constexpr float kFar = static_cast<float>(kFarStep);
  return static_cast<int32_t>(t < kFar ? t : kFar);
}

// 2^40 * 2^(-step / 2^20), rounded down: strictly falling within a halving, relative error below
// 1.2e-7 where the weight has 24 bits.
SEEKERNEL_DEVICE uint64_t weight_of(int32_t step) {
  const float f = static_cast<float>(step & ((1 << kStepBits) - 1));
  const float y = __fadd_rn(__fmul_rn(f, 0x1p-20f), -0.5f);
  float p = __fmul_rn(y, 0x1.c6e292p-14f);
  p = __fadd_rn(p, -0x1.f0c512p-11f);
  p = __fadd_rn(__fmul_rn(p, y), 0x1.bdbb38p-8f);
  p = __fadd_rn(__fmul_rn(p, y), -0x1.418268p-5f);
  p = __fadd_rn(__fmul_rn(p, y), 0x1.5be294p-3f);
  p = __fadd_rn(__fmul_rn(p, y), -0x1.f5e466p-2f);
  p = __fadd_rn(__fmul_rn(p, y), 0x1.6a09e6p-1f);
  const uint32_t m = static_cast<uint32_t>(__fmul_rn(p, 0x1p24f));
  return static_cast<uint64_t>(m) << 16 >> (step >> kStepBits);
}

// The largest step whose weight is at least min_p of the maximum's.
SEEKERNEL_DEVICE int32_t min_p_step(float min_p) {
  if (!(min_p > 0.0f)) return kLastStep;
  const double exact = __dmul_rn(static_cast<double>(min_p < 1.0f ? min_p : 1.0f), 0x1p40);
  const uint64_t least = __double2ull_ru(exact);
  int32_t low = 0, high = kLastStep;  // low keeps, high + 1 does not
  while (low < high) {
    const int32_t middle = low + (high - low + 1) / 2;
    if (weight_of(middle) >= least) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low;
}

// How much of `total` the smallest set must weigh to reach top_p: from 1 to total.
SEEKERNEL_DEVICE uint64_t top_p_target(float top_p, uint64_t total) {
  if (!(top_p < 1.0f)) return total;
  const double exact = __dmul_rn(__ull2double_rn(total), static_cast<double>(top_p));
  if (!(exact > 1.0)) return 1;
  const uint64_t target = __double2ull_ru(exact);
  return target < total ? target : total;
}

// Natural logarithm of a sum of weights over 2^40, in float64: 2 (s + s^3 / 3 + ...),
// s = (m - 1) / (m + 1), m in [sqrt(1/2), sqrt(2)).
SEEKERNEL_DEVICE double log_of_weight(uint64_t total) {
  int exponent = 63 - __clzll(static_cast<long long>(total));
  const double power = __longlong_as_double(static_cast<long long>(1023 - exponent) << 52);
  double m = __dmul_rn(__ull2double_rn(total), power);
  if (m >= 1.4142135623730951) {
    m = __dmul_rn(m, 0.5);
    ++exponent;
  }
  const double s = __ddiv_rn(__dadd_rn(m, -1.0), __dadd_rn(m, 1.0));
  const double s2 = __dmul_rn(s, s);
  double series = 1.0 / 23.0;
#pragma unroll
  for (int k = 21; k >= 1; k -= 2) series = __dadd_rn(__dmul_rn(series, s2), 1.0 / k);
  const double tail = __dmul_rn(__dmul_rn(2.0, s), series);
  return __dadd_rn(__dmul_rn(static_cast<double>(exponent - 40), 0.6931471805599453), tail);
}

// A probability with 40 fractional bits, rounded down; a NaN sets `bad`.
SEEKERNEL_DEVICE uint64_t fixed_of(float p, bool& bad) {
  bad |= p != p;
  if (!(p > 0.0f)) return 0;
  return __double2ull_rz(__dmul_rn(static_cast<double>(p < 4.0f ? p : 4.0f), 0x1p40));
}

// Philox4x32-10: the first two words of the block, low word first.
SEEKERNEL_DEVICE uint64_t philox(int64_t seed, int64_t offset, uint32_t stream) {
  uint32_t c0 = static_cast<uint32_t>(offset);
  uint32_t c1 = static_cast<uint32_t>(static_cast<uint64_t>(offset) >> 32);
  uint32_t c2 = stream, c3 = 0;
  uint32_t k0 = static_cast<uint32_t>(seed);
  uint32_t k1 = static_cast<uint32_t>(static_cast<uint64_t>(seed) >> 32);
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53u} * c0, p1 = uint64_t{0xCD9E8D57u} * c2;
    c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
    c1 = static_cast<uint32_t>(p1);
    c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c3 = static_cast<uint32_t>(p0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return static_cast<uint64_t>(c1) << 32 | c0;
}

}  // namespace seekernel
