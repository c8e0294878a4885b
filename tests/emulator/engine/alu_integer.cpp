// Integer arithmetic: add, sub, mul, mad, div, rem, min, max, abs, neg, carries, dot products.

#include <limits>

#include "alu.h"

namespace emulator {
namespace {

template <class T>
using Unsigned = std::make_unsigned_t<T>;

// Wrapping arithmetic is done unsigned: signed overflow is undefined in C++ and defined in PTX.
#define WRAPPING(Name, op)                                               \
  struct Name {                                                          \
    template <class T>                                                   \
    static T run(T a, T b) {                                             \
      return static_cast<T>(static_cast<u64>(a) op static_cast<u64>(b)); \
    }                                                                    \
  };
WRAPPING(Add, +)
WRAPPING(Sub, -)
WRAPPING(MulLo, *)
#undef WRAPPING

struct MulHi {
  static u16 run(u16 a, u16 b) { return static_cast<u16>(u32{a} * b >> 16); }
  static s16 run(s16 a, s16 b) { return static_cast<s16>(s32{a} * b >> 16); }
  static u32 run(u32 a, u32 b) { return static_cast<u32>(u64{a} * b >> 32); }
  static s32 run(s32 a, s32 b) { return static_cast<s32>(s64{a} * b >> 32); }
  static u64 run(u64 a, u64 b) {
    return static_cast<u64>(static_cast<unsigned __int128>(a) * b >> 64);
  }
  static s64 run(s64 a, s64 b) { return static_cast<s64>(static_cast<__int128>(a) * b >> 64); }
};
struct MulWide {
  static u32 run(u16 a, u16 b) { return u32{a} * b; }
  static s32 run(s16 a, s16 b) { return s32{a} * b; }
  static u64 run(u32 a, u32 b) { return u64{a} * b; }
  static s64 run(s32 a, s32 b) { return s64{a} * b; }
};
template <class Mul>
struct Mad {
  template <class A, class C>
  static C run(A a, A b, C c) {
    return static_cast<C>(static_cast<u64>(Mul::run(a, b)) + static_cast<u64>(c));
  }
};
// PTX leaves division by zero unspecified; all ones is what Hopper returns.
struct Div {
  template <class T>
  static T run(T a, T b) {
    if (b == 0) return static_cast<T>(-1);
    if (std::is_signed_v<T> && b == static_cast<T>(-1)) return Sub::run(T{0}, a);
    return static_cast<T>(a / b);
  }
};
struct Rem {
  template <class T>
  static T run(T a, T b) {
    if (b == 0) return a;
    if (std::is_signed_v<T> && b == static_cast<T>(-1)) return 0;
    return static_cast<T>(a % b);
  }
};
struct Min {
  template <class T>
  static T run(T a, T b) {
    return a < b ? a : b;
  }
};
struct Max {
  template <class T>
  static T run(T a, T b) {
    return a > b ? a : b;
  }
};
struct Neg {
  template <class T>
  static T run(T a) {
    return Sub::run(T{0}, a);
  }
};
struct Abs {
  template <class T>
  static T run(T a) {
    return a < 0 ? Neg::run(a) : a;
  }
};
struct AddSat {
  static s32 run(s32 a, s32 b) {
    const s64 sum = s64{a} + b;
    return static_cast<s32>(std::min<s64>(std::max<s64>(sum, INT32_MIN), INT32_MAX));
  }
};
struct Relu {
  template <class F>
  struct Of {
    static s32 run(s32 a, s32 b) { return std::max(F::run(a, b), 0); }
  };
};

template <class F>
Handler binary_by_type(Type type) {
  switch (type) {
    case Type::k_u16:
    case Type::k_b16:
      return binary<U16, U16, U16, F>;
    case Type::k_s16:
      return binary<S16, S16, S16, F>;
    case Type::k_u32:
    case Type::k_b32:
      return binary<U32, U32, U32, F>;
    case Type::k_s32:
      return binary<S32, S32, S32, F>;
    case Type::k_u64:
    case Type::k_b64:
      return binary<U64, U64, U64, F>;
    case Type::k_s64:
      return binary<S64, S64, S64, F>;
    default:
      return nullptr;
  }
}

template <class F>
Handler ternary_by_type(Type type) {
  switch (type) {
    case Type::k_u16:
      return ternary<U16, U16, U16, U16, F>;
    case Type::k_s16:
      return ternary<S16, S16, S16, S16, F>;
    case Type::k_u32:
      return ternary<U32, U32, U32, U32, F>;
    case Type::k_s32:
      return ternary<S32, S32, S32, S32, F>;
    case Type::k_u64:
      return ternary<U64, U64, U64, U64, F>;
    case Type::k_s64:
      return ternary<S64, S64, S64, S64, F>;
    default:
      return nullptr;
  }
}

template <class F>
Handler signed_unary(Type type) {
  switch (type) {
    case Type::k_s16:
      return unary<S16, S16, F>;
    case Type::k_s32:
      return unary<S32, S32, F>;
    case Type::k_s64:
      return unary<S64, S64, F>;
    default:
      return nullptr;
  }
}

template <class F>
Handler resolve_binary(const Insn& insn) {
  return binary_by_type<F>(insn.type);
}

Handler resolve_mul_wide(const Insn& insn) {
  switch (insn.type) {
    case Type::k_u16:
      return binary<U32, U16, U16, MulWide>;
    case Type::k_s16:
      return binary<S32, S16, S16, MulWide>;
    case Type::k_u32:
      return binary<U64, U32, U32, MulWide>;
    case Type::k_s32:
      return binary<S64, S32, S32, MulWide>;
    default:
      return nullptr;
  }
}

Handler resolve_mad_wide(const Insn& insn) {
  switch (insn.type) {
    case Type::k_u16:
      return ternary<U32, U16, U16, U32, Mad<MulWide>>;
    case Type::k_s16:
      return ternary<S32, S16, S16, S32, Mad<MulWide>>;
    case Type::k_u32:
      return ternary<U64, U32, U32, U64, Mad<MulWide>>;
    case Type::k_s32:
      return ternary<S64, S32, S32, S64, Mad<MulWide>>;
    default:
      return nullptr;
  }
}

// add.cc, addc, sub.cc, subc. args[0]: reads the carry, args[1]: writes it, args[2]: subtracts.
template <class T>
Step carry_chain(Machine&, Warp& warp, const Insn& insn, u32 mask) {
  const bool reads = insn.args[0] != 0, writes = insn.args[1] != 0, subtracts = insn.args[2] != 0;
  auto* d = warp.reg<T>(insn.ops[0]);
  const auto* a = warp.reg<T>(insn.ops[1]);
  const auto* b = warp.reg<T>(insn.ops[2]);
  u32 carry = warp.carry;
  for (int l = 0; l < kLanes; ++l) {
    if (!has_lane(mask, l)) continue;
    const unsigned __int128 in = reads && has_lane(warp.carry, l);
    const unsigned __int128 wide = subtracts ? static_cast<unsigned __int128>(a[l]) - b[l] - in
                                             : static_cast<unsigned __int128>(a[l]) + b[l] + in;
    d[l] = static_cast<T>(wide);
    const bool out = (wide >> (8 * sizeof(T)) & 1) != 0;
    carry = out ? carry | 1u << l : carry & ~(1u << l);
  }
  if (writes) warp.carry = carry;
  return Step::kNext;
}

// mad.lo.cc and friends: args as above, args[3]: high half of the product.
template <class T>
Step mad_carry(Machine&, Warp& warp, const Insn& insn, u32 mask) {
  auto* d = warp.reg<T>(insn.ops[0]);
  const auto* a = warp.reg<T>(insn.ops[1]);
  const auto* b = warp.reg<T>(insn.ops[2]);
  const auto* c = warp.reg<T>(insn.ops[3]);
  u32 carry = warp.carry;
  for (int l = 0; l < kLanes; ++l) {
    if (!has_lane(mask, l)) continue;
    const T product = insn.args[3] != 0 ? MulHi::run(a[l], b[l]) : MulLo::run(a[l], b[l]);
    const unsigned __int128 wide = static_cast<unsigned __int128>(product) + c[l] +
                                   (insn.args[0] != 0 && has_lane(warp.carry, l) ? 1 : 0);
    d[l] = static_cast<T>(wide);
    const bool out = (wide >> (8 * sizeof(T)) & 1) != 0;
    carry = out ? carry | 1u << l : carry & ~(1u << l);
  }
  if (insn.args[1] != 0) warp.carry = carry;
  return Step::kNext;
}

// dp4a: type is a's signedness, type2 is b's.
Step dp4a(Machine&, Warp& warp, const Insn& insn, u32 mask) {
  const bool signed_a = is_signed(insn.type), signed_b = is_signed(insn.type2);
  for (int l = 0; l < kLanes; ++l) {
    if (!has_lane(mask, l)) continue;
    const u32 a = warp.reg<u32>(insn.ops[1])[l], b = warp.reg<u32>(insn.ops[2])[l];
    u32 sum = warp.reg<u32>(insn.ops[3])[l];
    for (int i = 0; i < 4; ++i) {
      const s32 x = signed_a ? static_cast<s8>(a >> 8 * i) : static_cast<u8>(a >> 8 * i);
      const s32 y = signed_b ? static_cast<s8>(b >> 8 * i) : static_cast<u8>(b >> 8 * i);
      sum += static_cast<u32>(x * y);
    }
    warp.reg<u32>(insn.ops[0])[l] = sum;
  }
  return Step::kNext;
}

template <bool kMin>
Handler resolve_min_max(const Insn& insn) {
  using F = std::conditional_t<kMin, Min, Max>;
  if (!insn.args.empty() && insn.args[0] != 0) {
    return insn.type == Type::k_s32 ? binary<S32, S32, S32, Relu::Of<F>> : nullptr;
  }
  return binary_by_type<F>(insn.type);
}

}  // namespace

void register_integer(Registry& r) {
  r.add("iadd", resolve_binary<Add>);
  r.add("isub", resolve_binary<Sub>);
  r.add("iadd_sat", [](const Insn&) -> Handler { return binary<S32, S32, S32, AddSat>; });
  r.add("mul_lo", resolve_binary<MulLo>);
  r.add("mul_hi", resolve_binary<MulHi>);
  r.add("mul_wide", resolve_mul_wide);
  r.add("mad_lo", [](const Insn& i) { return ternary_by_type<Mad<MulLo>>(i.type); });
  r.add("mad_hi", [](const Insn& i) { return ternary_by_type<Mad<MulHi>>(i.type); });
  r.add("mad_wide", resolve_mad_wide);
  r.add("idiv", resolve_binary<Div>);
  r.add("irem", resolve_binary<Rem>);
  r.add("imin", resolve_min_max<true>);
  r.add("imax", resolve_min_max<false>);
  r.add("iabs", [](const Insn& i) { return signed_unary<Abs>(i.type); });
  r.add("ineg", [](const Insn& i) { return signed_unary<Neg>(i.type); });
  r.add("carry", [](const Insn& i) -> Handler {
    return type_bytes(i.type) == 8 ? carry_chain<u64> : carry_chain<u32>;
  });
  r.add("mad_carry", [](const Insn& i) -> Handler {
    return type_bytes(i.type) == 8 ? mad_carry<u64> : mad_carry<u32>;
  });
  r.add("dp4a", [](const Insn&) -> Handler { return dp4a; });
}

}  // namespace emulator
