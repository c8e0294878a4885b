// The integers that sampling is made of. The CUDA kernels (seekernel/sampling/weight.cuh) compute
// the same ones: probabilities become 40-bit integers, whose sums have no order, so every device
// and every split of the work finds the same token.
//
// Products and sums stay apart (unfused): an FMA would round differently from the baseline's.

typedef uint64_t vlong __attribute__((vector_size(SEEKERNEL_VECTOR_BYTES)));  // kWidth / 2 lanes

constexpr int kStepBits = 20;                   // steps per halving of a weight: 2^20
constexpr int32_t kLastStep = 40 << kStepBits;  // its weight is 1, that of the next is 0
constexpr float kFarStep = 43 << kStepBits;
constexpr uint64_t kUnitWeight = uint64_t{1} << 40;

template <class T>
SEEKERNEL_INLINE T unfused(T product) {
  return __builtin_assoc_barrier(product);
}

// Steps per unit of logit: 2^20 * log2(e) / temperature, finite.
SEEKERNEL_INLINE float step_scale(float temperature) {
  constexpr float kStepsPerNat = 1512775.375f, kLargest = 3.402823466e38f;
  const float scale = kStepsPerNat / temperature;
  return scale > kLargest ? kLargest : scale;
}

// How far below the row's maximum, in steps: 0 for the maximum, never less for a smaller logit.
SEEKERNEL_INLINE vint steps_below(vfloat x, float row_max, float scale) {
  const vfloat t = (row_max - x) * scale;
  return __builtin_convertvector(t < kFarStep ? t : splat(kFarStep), vint);
}
SEEKERNEL_INLINE int32_t steps_below(float x, float row_max, float scale) {
  const float t = (row_max - x) * scale;
  return static_cast<int32_t>(t < kFarStep ? t : kFarStep);
}

// 2^24 * 2^(-f / 2^20) for f in [0, 2^20), an integer in (2^23, 2^24]: strictly falling in f,
// relative error below 1.2e-7.
template <class F, class I>
SEEKERNEL_INLINE I fraction_weight(I f) {
  F y;
  if constexpr (sizeof(I) == sizeof(int32_t)) {
    y = static_cast<float>(f);
  } else {
    y = __builtin_convertvector(f, F);
  }
  y = unfused(y * 0x1p-20f) - 0.5f;
  F p = y * 0x1.c6e292p-14f;
  p = unfused(p) - 0x1.f0c512p-11f;
  p = unfused(p * y) + 0x1.bdbb38p-8f;
  p = unfused(p * y) - 0x1.418268p-5f;
  p = unfused(p * y) + 0x1.5be294p-3f;
  p = unfused(p * y) - 0x1.f5e466p-2f;
  p = unfused(p * y) + 0x1.6a09e6p-1f;
  p = p * 0x1p24f;
  if constexpr (sizeof(I) == sizeof(int32_t)) {
    return static_cast<int32_t>(p);
  } else {
    return __builtin_convertvector(p, I);
  }
}

SEEKERNEL_INLINE uint64_t weight_one(int32_t step) {
  const int32_t m = fraction_weight<float>(step & ((1 << kStepBits) - 1));
  return static_cast<uint64_t>(m) << 16 >> (step >> kStepBits);
}

struct Weights {
  vlong low, high;  // of the lower and upper half of the lanes
};

// 2^40 * 2^(-step / 2^20), rounded down; 0 in the lanes that `kept` (all ones or zero) leaves out.
SEEKERNEL_INLINE Weights weights_of(vint step, vint kept) {
  const vint m = fraction_weight<vfloat>(step & ((1 << kStepBits) - 1)) & kept;
  const vint k = step >> kStepBits;
  typedef int32_t vhalf __attribute__((vector_size(SEEKERNEL_VECTOR_BYTES / 2)));
  struct Halves {
    vhalf low, high;
  };
  const Halves hm = bit_copy<Halves>(m), hk = bit_copy<Halves>(k);
  return {__builtin_convertvector(hm.low, vlong) << 16 >> __builtin_convertvector(hk.low, vlong),
          __builtin_convertvector(hm.high, vlong) << 16 >> __builtin_convertvector(hk.high, vlong)};
}

SEEKERNEL_INLINE uint64_t sum_of(vlong v) {
  uint64_t total = 0;
  for (int i = 0; i < kWidth / 2; ++i) total += v[i];
  return total;
}

SEEKERNEL_INLINE uint64_t multiply_high(uint64_t a, uint64_t b) {
  return static_cast<uint64_t>(static_cast<unsigned __int128>(a) * b >> 64);
}

// The largest step whose weight is at least min_p of the maximum's.
SEEKERNEL_INLINE int32_t min_p_step(float min_p) {
  if (!(min_p > 0.0f)) return kLastStep;
  const double exact = static_cast<double>(min_p < 1.0f ? min_p : 1.0f) * 0x1p40;
  uint64_t least = static_cast<uint64_t>(exact);
  if (static_cast<double>(least) < exact) ++least;
  int32_t low = 0, high = kLastStep;  // low keeps, high + 1 does not
  while (low < high) {
    const int32_t middle = low + (high - low + 1) / 2;
    if (weight_one(middle) >= least) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low;
}

// How much of `total` the smallest set must weigh to reach top_p: from 1 to total.
SEEKERNEL_INLINE uint64_t top_p_target(float top_p, uint64_t total) {
  if (!(top_p < 1.0f)) return total;
  const double exact = static_cast<double>(total) * static_cast<double>(top_p);
  if (!(exact > 1.0)) return 1;
  uint64_t target = static_cast<uint64_t>(exact);
  if (static_cast<double>(target) < exact) ++target;
  return target < total ? target : total;
}

// Natural logarithm of a sum of weights over 2^40, in float64: relative error below 1e-15 of the
// series 2 (s + s^3 / 3 + ...), s = (m - 1) / (m + 1), m in [sqrt(1/2), sqrt(2)).
SEEKERNEL_INLINE double log_of_weight(uint64_t total) {
  int exponent = 63 - __builtin_clzll(total);
  double m = static_cast<double>(total) * bit_copy<double>(uint64_t(1023 - exponent) << 52);
  if (m >= 1.4142135623730951) {
    m *= 0.5;
    ++exponent;
  }
  const double s = (m - 1.0) / (m + 1.0);
  const double s2 = s * s;
  double series = 1.0 / 23.0;
  for (int k = 21; k >= 1; k -= 2) series = unfused(series * s2) + 1.0 / k;
  const double tail = unfused(2.0 * s * series);
  return unfused(static_cast<double>(exponent - 40) * 0.6931471805599453) + tail;
}

// ---- Philox4x32-10: the first two words of the block, low word first ----

enum : uint32_t { kStreamDraw = 0, kStreamAccept = 1, kStreamResidual = 2 };

SEEKERNEL_INLINE uint64_t philox(int64_t seed, int64_t offset, uint32_t stream) {
  uint32_t c0 = static_cast<uint32_t>(offset), c1 = static_cast<uint32_t>(uint64_t(offset) >> 32);
  uint32_t c2 = stream, c3 = 0;
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(uint64_t(seed) >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53u} * c0, p1 = uint64_t{0xCD9E8D57u} * c2;
    c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
    c1 = static_cast<uint32_t>(p1);
    c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c3 = static_cast<uint32_t>(p0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return uint64_t{c1} << 32 | c0;
}
