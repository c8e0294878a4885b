// Vectors of floats for the ISA being compiled: included once per ISA translation unit, inside
// namespace seekernel::cpu::SEEKERNEL_ISA, after the target pragma. Only what several kernels
// share.
//
// Everything here is static inline in the ISA's own namespace: a function that the linker could
// merge with another ISA's copy would bring AVX2 code into the baseline.
#ifndef SEEKERNEL_ISA
#error "vec.h is included by isa_*.cpp only"
#endif

// Written with GCC's vector extension so that one source serves SSE2, AVX2, AVX-512 and AArch64.
constexpr int kWidth = SEEKERNEL_VECTOR_BYTES / 4;
typedef float vfloat __attribute__((vector_size(SEEKERNEL_VECTOR_BYTES)));
typedef int32_t vint __attribute__((vector_size(SEEKERNEL_VECTOR_BYTES)));
typedef uint32_t vuint __attribute__((vector_size(SEEKERNEL_VECTOR_BYTES)));
typedef uint16_t vhalf_bits __attribute__((vector_size(SEEKERNEL_VECTOR_BYTES / 2)));
typedef uint8_t vbyte __attribute__((vector_size(SEEKERNEL_VECTOR_BYTES / 4)));

#define SEEKERNEL_INLINE static inline __attribute__((always_inline))

template <class To, class From>
SEEKERNEL_INLINE To bit_copy(const From& from) {
  To to;
  static_assert(sizeof(To) == sizeof(From));
  __builtin_memcpy(&to, &from, sizeof(To));
  return to;
}

SEEKERNEL_INLINE vfloat splat(float value) { return vfloat{} + value; }

SEEKERNEL_INLINE vfloat load(const float* p) {
  vfloat v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}
SEEKERNEL_INLINE vfloat load(const bfloat16* p) {
  vhalf_bits bits;
  __builtin_memcpy(&bits, p, sizeof(bits));
  return bit_copy<vfloat>(__builtin_convertvector(bits, vuint) << 16);
}

SEEKERNEL_INLINE void store(float* p, vfloat v) { __builtin_memcpy(p, &v, sizeof(v)); }
SEEKERNEL_INLINE void store(bfloat16* p, vfloat v) {
  const vuint bits = bit_copy<vuint>(v);
  const vuint rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const vuint nan = (bits >> 16) | 0x40u;  // rounding up could carry a NaN into infinity or zero
  const vuint is_nan = bit_copy<vuint>(v != v);
  const vhalf_bits narrow =
      __builtin_convertvector((rounded & ~is_nan) | (nan & is_nan), vhalf_bits);
  __builtin_memcpy(p, &narrow, sizeof(narrow));
}

SEEKERNEL_INLINE float to_float(float value) { return value; }
SEEKERNEL_INLINE float to_float(bfloat16 value) {
  return bit_copy<float>(static_cast<uint32_t>(value.bits) << 16);
}

SEEKERNEL_INLINE void store_one(float* p, float value) { *p = value; }
SEEKERNEL_INLINE void store_one(bfloat16* p, float value) {
  const uint32_t bits = bit_copy<uint32_t>(value);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  p->bits = static_cast<uint16_t>(value != value ? (bits >> 16) | 0x40u : rounded);
}

template <int N>
struct Lanes {
  typedef float type __attribute__((vector_size(4 * N)));
};

// Sums in a fixed tree order, so that a sum does not depend on how rows are shared out: halves are
// added until one is left.
template <int N>
SEEKERNEL_INLINE float reduce_lanes(typename Lanes<N>::type v) {
  if constexpr (N == 2) {
    return v[0] + v[1];
  } else {
    struct Halves {
      typename Lanes<N / 2>::type low, high;
    };
    const Halves halves = bit_copy<Halves>(v);
    return reduce_lanes<N / 2>(halves.low + halves.high);
  }
}
SEEKERNEL_INLINE float reduce_add(vfloat v) { return reduce_lanes<kWidth>(v); }

SEEKERNEL_INLINE vfloat vmax(vfloat a, vfloat b) { return a > b ? a : b; }

// e^x: range reduction to 2^k * e^r with |r| <= ln2/2, then a degree-6 Taylor polynomial.
// Relative error below 2e-7 on [-87, 88]; saturates to 0 below and to +inf above; NaN stays NaN.
SEEKERNEL_INLINE vfloat vexp(vfloat x) {
  const vfloat low = splat(-87.33654f), high = splat(88.72283f);
  vfloat clamped = x < low ? low : x;
  clamped = clamped > high ? high : clamped;
  const vfloat shifted = clamped * 1.44269504f + 12582912.0f;  // 1.5 * 2^23 rounds to an integer
  const vfloat k = shifted - 12582912.0f;
  vfloat r = clamped - k * 0.693359375f;
  r = r - k * -2.12194440e-4f;
  vfloat p = splat(1.0f / 720.0f);
  p = p * r + 1.0f / 120.0f;
  p = p * r + 1.0f / 24.0f;
  p = p * r + 1.0f / 6.0f;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  // 2^k in two halves: k may be 128, whose own bits would already be infinity.
  const vint ik = __builtin_convertvector(k, vint);
  const vint half = ik >> 1;
  const vfloat scale_a = bit_copy<vfloat>((half + 127) << 23);
  const vfloat scale_b = bit_copy<vfloat>((ik - half + 127) << 23);
  vfloat result = p * scale_a * scale_b;
  result = x < low ? splat(0.0f) : result;
  result = x > high ? splat(__builtin_inff()) : result;
  return x != x ? x : result;
}

SEEKERNEL_INLINE float exp_one(float x) {
  const vfloat v = vexp(splat(x));
  return v[0];
}
