// Lane loops shared by the arithmetic handlers.
//
// A "codec" says how one PTX type lies in a register: Store is what the register file holds (16-bit
// registers use a 32-bit slot, zero extended), Value is what the arithmetic sees.
#pragma once

#include "machine.h"
#include "numeric.h"

namespace emulator {

template <class StoreT, class ValueT>
struct PlainCodec {
  using Store = StoreT;
  using Value = ValueT;
  static Value get(Store s) { return static_cast<Value>(s); }
  static Store put(Value v) { return static_cast<Store>(v); }
};

using U32 = PlainCodec<u32, u32>;
using S32 = PlainCodec<s32, s32>;
using U64 = PlainCodec<u64, u64>;
using S64 = PlainCodec<s64, s64>;
using F64 = PlainCodec<double, double>;
using U16 = PlainCodec<u32, u16>;

// Arithmetic on fp32 gives one NaN on the chip, whatever the operands' payloads.
struct F32 {
  using Store = float;
  using Value = float;
  static Value get(Store s) { return s; }
  static Store put(Value v) { return v == v ? v : bits<float>(kNanF32); }
};

struct S16 {
  using Store = u32;
  using Value = s16;
  static Value get(Store s) { return static_cast<s16>(s); }
  static Store put(Value v) { return static_cast<u16>(v); }
};
// Sums and products of half formats compute in fp32: 24 bits hold twice 11 plus 2, so rounding
// twice is rounding once.
struct F16 {
  using Store = u32;
  using Value = float;
  static Value get(Store s) { return f16_to_float(static_cast<u16>(s)); }
  static Store put(Value v) { return v == v ? float_to_f16(v) : kNanF16; }
};
struct Bf16 {
  using Store = u32;
  using Value = float;
  static Value get(Store s) { return bf16_to_float(static_cast<u16>(s)); }
  static Store put(Value v) { return float_to_bf16(v); }
};

// fma on halves: the double holds the product exactly, so only its sum needs one odd rounding.
struct F16Wide : F16 {
  using Value = double;
  static Value get(Store s) { return F16::get(s); }
  static Store put(Value v) { return v == v ? double_to_f16(v) : kNanF16; }
};
struct Bf16Wide : Bf16 {
  using Value = double;
  static Value get(Store s) { return Bf16::get(s); }
  static Store put(Value v) { return double_to_bf16(v); }
};

struct Pair {
  float lo, hi;
};
template <class Half>
struct PairCodec {
  using Store = u32;
  using Value = Pair;
  static Value get(Store s) { return {Half::get(s & 0xffffu), Half::get(s >> 16)}; }
  static Store put(Value v) { return Half::put(v.lo) | Half::put(v.hi) << 16; }
};
template <class Half>
struct WidePairCodec {
  struct Value {
    double lo, hi;
  };
  using Store = u32;
  static Value get(Store s) { return {Half::get(s & 0xffffu), Half::get(s >> 16)}; }
  static Store put(Value v) { return Half::put(v.lo) | Half::put(v.hi) << 16; }
};

using F16x2 = PairCodec<F16>;
using Bf16x2 = PairCodec<Bf16>;

// Applies a function on floats to each half of a pair.
template <class F>
struct OnPairs {
  static Pair run(Pair a) { return {F::run(a.lo), F::run(a.hi)}; }
  static Pair run(Pair a, Pair b) { return {F::run(a.lo, b.lo), F::run(a.hi, b.hi)}; }
  template <class P>
  static P run(P a, P b, P c) {
    return {F::run(a.lo, b.lo, c.lo), F::run(a.hi, b.hi, c.hi)};
  }
};

template <class D, class A, class F>
Step unary(Machine&, Warp& warp, const Insn& insn, u32 mask) {
  auto* d = warp.reg<typename D::Store>(insn.ops[0]);
  const auto* a = warp.reg<typename A::Store>(insn.ops[1]);
  if (mask == kFullMask) {
    for (int l = 0; l < kLanes; ++l) d[l] = D::put(F::run(A::get(a[l])));
  } else {
    for (int l = 0; l < kLanes; ++l) {
      if (has_lane(mask, l)) d[l] = D::put(F::run(A::get(a[l])));
    }
  }
  return Step::kNext;
}

template <class D, class A, class B, class F>
Step binary(Machine&, Warp& warp, const Insn& insn, u32 mask) {
  auto* d = warp.reg<typename D::Store>(insn.ops[0]);
  const auto* a = warp.reg<typename A::Store>(insn.ops[1]);
  const auto* b = warp.reg<typename B::Store>(insn.ops[2]);
  if (mask == kFullMask) {
    for (int l = 0; l < kLanes; ++l) d[l] = D::put(F::run(A::get(a[l]), B::get(b[l])));
  } else {
    for (int l = 0; l < kLanes; ++l) {
      if (has_lane(mask, l)) d[l] = D::put(F::run(A::get(a[l]), B::get(b[l])));
    }
  }
  return Step::kNext;
}

template <class D, class A, class B, class C, class F>
Step ternary(Machine&, Warp& warp, const Insn& insn, u32 mask) {
  auto* d = warp.reg<typename D::Store>(insn.ops[0]);
  const auto* a = warp.reg<typename A::Store>(insn.ops[1]);
  const auto* b = warp.reg<typename B::Store>(insn.ops[2]);
  const auto* c = warp.reg<typename C::Store>(insn.ops[3]);
  if (mask == kFullMask) {
    for (int l = 0; l < kLanes; ++l) {
      d[l] = D::put(F::run(A::get(a[l]), B::get(b[l]), C::get(c[l])));
    }
  } else {
    for (int l = 0; l < kLanes; ++l) {
      if (has_lane(mask, l)) d[l] = D::put(F::run(A::get(a[l]), B::get(b[l]), C::get(c[l])));
    }
  }
  return Step::kNext;
}

}  // namespace emulator
