// Floating-point arithmetic in f32, f64, f16, bf16 and the packed pairs.
//
// Rounding is to nearest even; .ftz flushes as written; other roundings of add, mul and fma go
// through a double, which is exact enough for fp32 sums and products. Approximate functions use
// the host's correctly rounded or nearly so results: tests compare them with a tolerance.

#include <cfenv>

#include "alu.h"

namespace emulator {
namespace {

struct Add {
  template <class T>
  static T run(T a, T b) {
    return a + b;
  }
};
struct Sub {
  template <class T>
  static T run(T a, T b) {
    return a - b;
  }
};
struct Mul {
  template <class T>
  static T run(T a, T b) {
    return a * b;
  }
};
struct Div {
  template <class T>
  static T run(T a, T b) {
    return a / b;
  }
};
struct Fma {
  template <class T>
  static T run(T a, T b, T c) {
    return std::fma(a, b, c);
  }
};
// For halves: the product is exact in a double; if the sum is not, its last bit is made odd, so
// that the rounding to a half that follows cannot take it for a tie.
struct FmaOdd {
  static double run(double a, double b, double c) {
    const double product = a * b;
    const double sum = product + c;
    const double part = sum - product;
    const double error = (product - (sum - part)) + (c - part);
    if (error == 0 || !std::isfinite(sum) || (bits<u64>(sum) & 1u) != 0) return sum;
    const bool away = (error > 0) == (sum > 0);
    return bits<double>(away ? bits<u64>(sum) + 1 : bits<u64>(sum) - 1);
  }
};
struct FmaRelu {
  static double run(double a, double b, double c) {
    const double v = FmaOdd::run(a, b, c);
    return v > 0 || std::isnan(v) ? v : 0.0;
  }
};
struct Neg {
  template <class T>
  static T run(T a) {
    return -a;
  }
};
struct Abs {
  template <class T>
  static T run(T a) {
    return std::fabs(a);
  }
};
// A NaN operand loses against a number, and -0 counts as less than +0.
struct Min {
  template <class T>
  static T run(T a, T b) {
    if (std::isnan(a)) return b;
    if (std::isnan(b)) return a;
    if (a == b) return std::signbit(a) ? a : b;
    return a < b ? a : b;
  }
};
struct Max {
  template <class T>
  static T run(T a, T b) {
    if (std::isnan(a)) return b;
    if (std::isnan(b)) return a;
    if (a == b) return std::signbit(a) ? b : a;
    return a > b ? a : b;
  }
};
template <class F>
struct KeepNan {
  template <class T>
  static T run(T a, T b) {
    if (std::isnan(a) || std::isnan(b)) return std::numeric_limits<T>::quiet_NaN();
    return F::run(a, b);
  }
};
struct Max3 {
  static float run(float a, float b, float c) { return Max::run(Max::run(a, b), c); }
};
struct Min3 {
  static float run(float a, float b, float c) { return Min::run(Min::run(a, b), c); }
};
// .sat clamps to [0, 1] and turns NaN into +0.
template <class F>
struct Saturate {
  template <class... T>
  static auto run(T... v) {
    const auto r = F::run(v...);
    using R = std::remove_cv_t<decltype(r)>;
    return !(r > 0) ? R{0} : r > 1 ? R{1} : r;  // -0 becomes +0
  }
};
template <class F>
struct Flushed {
  template <class... T>
  static float run(T... v) {
    return flush(F::run(flush(v)...));
  }
};

struct Rcp {
  template <class T>
  static T run(T a) {
    return T{1} / a;
  }
};
struct Sqrt {
  template <class T>
  static T run(T a) {
    return std::sqrt(a);
  }
};
struct Rsqrt {
  template <class T>
  static T run(T a) {
    return T{1} / std::sqrt(a);
  }
};
struct Ex2 {
  static float run(float a) { return std::exp2(a); }
};
struct Lg2 {
  static float run(float a) { return std::log2(a); }
};
struct Sin {
  static float run(float a) { return std::sin(a); }
};
struct Cos {
  static float run(float a) { return std::cos(a); }
};
struct Tanh {
  static float run(float a) { return std::tanh(a); }
};
// The sign of a, the magnitude of b, NaN payloads kept.
struct CopySign {
  template <class T>
  static T run(T a, T b) {
    constexpr T kSign = T{1} << (8 * sizeof(T) - 1);
    return (a & kSign) | (b & ~kSign);
  }
};

// Negation and magnitude of halves change the sign bit only, NaN payloads included.
template <u32 kAnd, u32 kXor>
struct SignBits {
  static u32 run(u32 a) { return (a & kAnd) ^ kXor; }
};

// args[0]: .ftz, args[1]: .sat, args[2]: rounding 'n', 'z', 'm', 'p', args[3]: .NaN
bool ftz(const Insn& i) { return i.args.size() > 0 && i.args[0] != 0; }
bool sat(const Insn& i) { return i.args.size() > 1 && i.args[1] != 0; }
char rounding(const Insn& i) { return i.args.size() > 2 ? static_cast<char>(i.args[2]) : 'n'; }
bool keeps_nan(const Insn& i) { return i.args.size() > 3 && i.args[3] != 0; }

template <class F>
Handler f32_binary(const Insn& i) {
  if (ftz(i)) {
    return sat(i) ? binary<F32, F32, F32, Flushed<Saturate<F>>> : binary<F32, F32, F32, Flushed<F>>;
  }
  return sat(i) ? binary<F32, F32, F32, Saturate<F>> : binary<F32, F32, F32, F>;
}

// .rz, .rm, .rp: the host computes in the same mode; volatile keeps the operation inside it.
template <class F, int kOperands>
Step directed(Machine&, Warp& warp, const Insn& insn, u32 mask) {
  const char mode = rounding(insn);
  std::fesetround(mode == 'z' ? FE_TOWARDZERO : mode == 'm' ? FE_DOWNWARD : FE_UPWARD);
  for (int l = 0; l < kLanes; ++l) {
    if (!has_lane(mask, l)) continue;
    volatile float a = warp.reg<float>(insn.ops[1])[l], b = warp.reg<float>(insn.ops[2])[l];
    volatile float result;
    if constexpr (kOperands == 3) {
      volatile float c = warp.reg<float>(insn.ops[3])[l];
      result = F::template run<float>(a, b, c);
    } else {
      result = F::template run<float>(a, b);
    }
    const float r = ftz(insn) ? flush(result) : static_cast<float>(result);
    warp.reg<float>(insn.ops[0])[l] = F32::put(r);
  }
  std::fesetround(FE_TONEAREST);
  return Step::kNext;
}

template <class F>
Handler resolve_binary(const Insn& i) {
  if (rounding(i) != 'n') return i.type == Type::k_f32 ? directed<F, 2> : nullptr;
  switch (i.type) {
    case Type::k_f32:
      return f32_binary<F>(i);
    case Type::k_f64:
      return binary<F64, F64, F64, F>;
    case Type::k_f16:
      return binary<F16, F16, F16, F>;
    case Type::k_bf16:
      return binary<Bf16, Bf16, Bf16, F>;
    case Type::k_f16x2:
      return binary<F16x2, F16x2, F16x2, OnPairs<F>>;
    case Type::k_bf16x2:
      return binary<Bf16x2, Bf16x2, Bf16x2, OnPairs<F>>;
    default:
      return nullptr;
  }
}

template <class F, class F3>
Handler resolve_min_max(const Insn& i) {
  if (i.ops.size() == 4) return i.type == Type::k_f32 ? ternary<F32, F32, F32, F32, F3> : nullptr;
  return keeps_nan(i) ? resolve_binary<KeepNan<F>>(i) : resolve_binary<F>(i);
}

template <class F>
Handler fma_by_type(const Insn& i) {
  switch (i.type) {
    case Type::k_f16:
      return ternary<F16Wide, F16Wide, F16Wide, F16Wide, F>;
    case Type::k_bf16:
      return ternary<Bf16Wide, Bf16Wide, Bf16Wide, Bf16Wide, F>;
    case Type::k_f16x2: {
      using Codec = WidePairCodec<F16Wide>;
      return ternary<Codec, Codec, Codec, Codec, OnPairs<F>>;
    }
    case Type::k_bf16x2: {
      using Codec = WidePairCodec<Bf16Wide>;
      return ternary<Codec, Codec, Codec, Codec, OnPairs<F>>;
    }
    default:
      return nullptr;
  }
}

Handler resolve_fma(const Insn& i) {
  if (i.args.size() > 4 && i.args[4] != 0) return fma_by_type<FmaRelu>(i);
  if (rounding(i) != 'n') return i.type == Type::k_f32 ? directed<Fma, 3> : nullptr;
  if (i.type == Type::k_f64) return ternary<F64, F64, F64, F64, Fma>;
  if (i.type != Type::k_f32) return fma_by_type<FmaOdd>(i);
  if (ftz(i)) {
    return sat(i) ? ternary<F32, F32, F32, F32, Flushed<Saturate<Fma>>>
                  : ternary<F32, F32, F32, F32, Flushed<Fma>>;
  }
  return sat(i) ? ternary<F32, F32, F32, F32, Saturate<Fma>> : ternary<F32, F32, F32, F32, Fma>;
}

template <bool kClear>
Handler resolve_f32_sign(const Insn& i) {
  using F = std::conditional_t<kClear, Abs, Neg>;
  return ftz(i) ? unary<F32, F32, Flushed<F>> : unary<F32, F32, F>;
}

template <bool kClear>
Handler resolve_sign(const Insn& i) {
  switch (type_bytes(i.type)) {
    case 2:
      return unary<U32, U32, SignBits<kClear ? 0x7fff : 0xffff, kClear ? 0 : 0x8000>>;
    case 4:
      if (i.type == Type::k_f32) return resolve_f32_sign<kClear>(i);
      return unary<U32, U32, SignBits<kClear ? 0x7fff7fff : kFullMask, kClear ? 0 : 0x80008000>>;
    case 8:
      return kClear ? unary<F64, F64, Abs> : unary<F64, F64, Neg>;
    default:
      return nullptr;
  }
}

template <class F>
Handler resolve_unary(const Insn& i) {
  switch (i.type) {
    case Type::k_f32:
      return ftz(i) ? unary<F32, F32, Flushed<F>> : unary<F32, F32, F>;
    case Type::k_f16:
      return unary<F16, F16, F>;
    case Type::k_bf16:
      return unary<Bf16, Bf16, F>;
    case Type::k_f16x2:
      return unary<F16x2, F16x2, OnPairs<F>>;
    case Type::k_bf16x2:
      return unary<Bf16x2, Bf16x2, OnPairs<F>>;
    default:
      return nullptr;
  }
}

template <class F>
Handler resolve_root(const Insn& i) {
  return i.type == Type::k_f64 ? unary<F64, F64, F> : resolve_unary<F>(i);
}

// testp: args[0] is the index in finite, infinite, number, notanumber, normal (zeros too),
// subnormal.
Step testp(Machine&, Warp& warp, const Insn& insn, u32 mask) {
  u32 result = 0;
  for (int l = 0; l < kLanes; ++l) {
    if (!has_lane(mask, l)) continue;
    const double v = insn.type == Type::k_f64 ? warp.reg<double>(insn.ops[1])[l]
                                              : warp.reg<float>(insn.ops[1])[l];
    const int kind = insn.type == Type::k_f64 ? std::fpclassify(v)
                                              : std::fpclassify(warp.reg<float>(insn.ops[1])[l]);
    const std::array<bool, 6> answers = {std::isfinite(v),
                                         std::isinf(v),
                                         !std::isnan(v),
                                         std::isnan(v),
                                         kind == FP_NORMAL || kind == FP_ZERO,
                                         kind == FP_SUBNORMAL};
    result |= static_cast<u32>(answers[static_cast<std::size_t>(insn.args[0])]) << l;
  }
  warp.set_pred(insn.ops[0], mask, result);
  return Step::kNext;
}

}  // namespace

void register_float(Registry& r) {
  r.add("fadd", resolve_binary<Add>);
  r.add("fsub", resolve_binary<Sub>);
  r.add("fmul", resolve_binary<Mul>);
  r.add("fdiv", resolve_binary<Div>);
  r.add("fma", resolve_fma);
  r.add("fmin", resolve_min_max<Min, Min3>);
  r.add("fmax", resolve_min_max<Max, Max3>);
  r.add("fneg", resolve_sign<false>);
  r.add("fabs", resolve_sign<true>);
  r.add("rcp", resolve_root<Rcp>);
  r.add("sqrt", resolve_root<Sqrt>);
  r.add("rsqrt", resolve_root<Rsqrt>);
  r.add("ex2", resolve_unary<Ex2>);
  r.add("lg2", resolve_unary<Lg2>);
  r.add("sin", resolve_unary<Sin>);
  r.add("cos", resolve_unary<Cos>);
  r.add("tanh", resolve_unary<Tanh>);
  r.add("copysign", [](const Insn& i) -> Handler {
    return i.type == Type::k_f64 ? binary<U64, U64, U64, CopySign>
                                 : binary<U32, U32, U32, CopySign>;
  });
  r.add("testp", [](const Insn&) -> Handler { return testp; });
}

}  // namespace emulator
