// Bitwise logic, shifts, fields and byte permutes.

#include "alu.h"

namespace emulator {
namespace {

#define LOGIC(Name, expression)          \
  struct Name {                          \
    template <class T>                   \
    static T run(T a, T b) {             \
      return static_cast<T>(expression); \
    }                                    \
  };
LOGIC(And, a& b)
LOGIC(Or, a | b)
LOGIC(Xor, a ^ b)
#undef LOGIC

struct Not {
  template <class T>
  static T run(T a) {
    return static_cast<T>(~a);
  }
};
struct Cnot {
  template <class T>
  static T run(T a) {
    return a == 0;
  }
};
// Shift amounts are 32-bit and clamp at the width.
struct Shl {
  template <class T>
  static T run(T a, u32 n) {
    return n >= 8 * sizeof(T) ? T{0} : static_cast<T>(a << n);
  }
};
struct Shr {
  template <class T>
  static T run(T a, u32 n) {
    const u32 width = 8 * sizeof(T);
    if (n >= width) return std::is_signed_v<T> ? static_cast<T>(a >> (width - 1)) : T{0};
    return static_cast<T>(a >> n);
  }
};

template <class F>
Handler resolve_logic(const Insn& i) {
  switch (type_bytes(i.type)) {
    case 2:
      return binary<U16, U16, U16, F>;
    case 4:
      return binary<U32, U32, U32, F>;
    case 8:
      return binary<U64, U64, U64, F>;
    default:
      return nullptr;
  }
}

template <class F>
Handler resolve_logic_unary(const Insn& i) {
  switch (type_bytes(i.type)) {
    case 2:
      return unary<U16, U16, F>;
    case 4:
      return unary<U32, U32, F>;
    case 8:
      return unary<U64, U64, F>;
    default:
      return nullptr;
  }
}

template <class F>
Handler resolve_shift(const Insn& i) {
  switch (i.type) {
    case Type::k_b16:
    case Type::k_u16:
      return binary<U16, U16, U32, F>;
    case Type::k_s16:
      return binary<S16, S16, U32, F>;
    case Type::k_b32:
    case Type::k_u32:
      return binary<U32, U32, U32, F>;
    case Type::k_s32:
      return binary<S32, S32, U32, F>;
    case Type::k_b64:
    case Type::k_u64:
      return binary<U64, U64, U32, F>;
    case Type::k_s64:
      return binary<S64, S64, U32, F>;
    default:
      return nullptr;
  }
}

// args[0]: 1 clamps the amount to 32, 0 wraps it.
template <bool kLeft>
Step funnel(Machine&, Warp& warp, const Insn& insn, u32 mask) {
  for (int l = 0; l < kLanes; ++l) {
    if (!has_lane(mask, l)) continue;
    const u64 both =
        static_cast<u64>(warp.reg<u32>(insn.ops[2])[l]) << 32 | warp.reg<u32>(insn.ops[1])[l];
    u32 n = warp.reg<u32>(insn.ops[3])[l];
    n = insn.args[0] != 0 ? std::min(n, 32u) : n & 31u;
    warp.reg<u32>(insn.ops[0])[l] =
        static_cast<u32>(kLeft ? (n == 0 ? both >> 32 : both >> (32 - n)) : both >> n);
  }
  return Step::kNext;
}

template <class T>
Step bfi(Machine&, Warp& warp, const Insn& insn, u32 mask) {
  constexpr u32 kWidth = 8 * sizeof(T);
  for (int l = 0; l < kLanes; ++l) {
    if (!has_lane(mask, l)) continue;
    const T field = warp.reg<T>(insn.ops[1])[l], into = warp.reg<T>(insn.ops[2])[l];
    const u32 position = warp.reg<u32>(insn.ops[3])[l] & 255u;
    const u32 length = warp.reg<u32>(insn.ops[4])[l] & 255u;
    const T ones = length >= kWidth ? static_cast<T>(~T{0}) : static_cast<T>((T{1} << length) - 1);
    const T where = position >= kWidth ? T{0} : static_cast<T>(ones << position);
    const T moved = position >= kWidth ? T{0} : static_cast<T>(field << position);
    warp.reg<T>(insn.ops[0])[l] = (into & ~where) | (moved & where);
  }
  return Step::kNext;
}

template <class T>
Step bfe(Machine&, Warp& warp, const Insn& insn, u32 mask) {
  constexpr u32 kWidth = 8 * sizeof(T);
  for (int l = 0; l < kLanes; ++l) {
    if (!has_lane(mask, l)) continue;
    const T a = warp.reg<T>(insn.ops[1])[l];
    const u32 position = warp.reg<u32>(insn.ops[2])[l] & 255u;
    const u32 length = warp.reg<u32>(insn.ops[3])[l] & 255u;
    const u32 top = std::min(position + length - 1, kWidth - 1);
    const bool sign = is_signed(insn.type) && length != 0 && ((a >> top) & 1) != 0;
    T field = position >= kWidth ? T{0} : static_cast<T>(a >> position);
    const u32 kept = position >= kWidth ? 0 : std::min(length, kWidth - position);
    const T ones = kept >= kWidth ? static_cast<T>(~T{0}) : static_cast<T>((T{1} << kept) - 1);
    field &= ones;
    if (sign && kept < kWidth) field |= static_cast<T>(~ones);
    warp.reg<T>(insn.ops[0])[l] = length == 0 ? T{0} : field;
  }
  return Step::kNext;
}

// args[0]: 0 default, then f4e, b4e, rc8, ecl, ecr, rc16.
Step prmt(Machine&, Warp& warp, const Insn& insn, u32 mask) {
  for (int l = 0; l < kLanes; ++l) {
    if (!has_lane(mask, l)) continue;
    const u64 bytes =
        static_cast<u64>(warp.reg<u32>(insn.ops[2])[l]) << 32 | warp.reg<u32>(insn.ops[1])[l];
    const u32 selector = warp.reg<u32>(insn.ops[3])[l];
    const u32 s = selector & 3u;
    u32 result = 0;
    for (u32 i = 0; i < 4; ++i) {
      u32 pick = 0;
      bool sign = false;
      switch (insn.args[0]) {
        case 0:
          pick = selector >> 4 * i & 7u;
          sign = (selector >> 4 * i & 8u) != 0;
          break;
        case 1:
          pick = s + i;
          break;
        case 2:
          pick = (s - i) & 7u;
          break;
        case 3:
          pick = s;
          break;
        case 4:
          pick = std::max(s, i);
          break;
        case 5:
          pick = std::min(s, i);
          break;
        default:
          pick = (s & 1u) * 2 + (i & 1u);
          break;
      }
      u32 byte = static_cast<u32>(bytes >> 8 * pick) & 255u;
      if (sign) byte = byte & 0x80u ? 255u : 0u;
      result |= byte << 8 * i;
    }
    warp.reg<u32>(insn.ops[0])[l] = result;
  }
  return Step::kNext;
}

// args[0]: the truth table, bit (a << 2 | b << 1 | c).
Step lop3(Machine&, Warp& warp, const Insn& insn, u32 mask) {
  const u32 table = static_cast<u32>(insn.args[0]);
  u32* d = warp.reg<u32>(insn.ops[0]);
  const u32* a = warp.reg<u32>(insn.ops[1]);
  const u32* b = warp.reg<u32>(insn.ops[2]);
  const u32* c = warp.reg<u32>(insn.ops[3]);
  for (int l = 0; l < kLanes; ++l) {
    u32 r = 0;
    for (u32 k = 0; k < 8; ++k) {
      if ((table >> k & 1u) == 0) continue;
      r |= (k & 4 ? a[l] : ~a[l]) & (k & 2 ? b[l] : ~b[l]) & (k & 1 ? c[l] : ~c[l]);
    }
    if (has_lane(mask, l)) d[l] = r;
  }
  return Step::kNext;
}

struct Popc {
  static u32 run(u32 a) { return static_cast<u32>(__builtin_popcount(a)); }
  static u32 run(u64 a) { return static_cast<u32>(__builtin_popcountll(a)); }
};
struct Clz {
  static u32 run(u32 a) { return a == 0 ? 32u : static_cast<u32>(__builtin_clz(a)); }
  static u32 run(u64 a) { return a == 0 ? 64u : static_cast<u32>(__builtin_clzll(a)); }
};
struct Brev {
  template <class T>
  static T run(T a) {
    T r = 0;
    for (u32 i = 0; i < 8 * sizeof(T); ++i) r |= (a >> i & T{1}) << (8 * sizeof(T) - 1 - i);
    return r;
  }
};
// The highest bit that differs from the sign; kShift gives its distance from the top instead.
template <bool kShift>
struct Bfind {
  template <class T>
  static u32 run(T a) {
    const u64 v =
        a < 0 ? static_cast<u64>(~a) & (~0ull >> (64 - 8 * sizeof(T))) : static_cast<u64>(a);
    if (v == 0) return kFullMask;
    const u32 top = 63u - static_cast<u32>(__builtin_clzll(v));
    return kShift ? 8 * sizeof(T) - 1 - top : top;
  }
};

template <bool kShift>
Handler bfind_by_type(Type type) {
  switch (type) {
    case Type::k_u32:
      return unary<U32, U32, Bfind<kShift>>;
    case Type::k_s32:
      return unary<U32, S32, Bfind<kShift>>;
    case Type::k_u64:
      return unary<U32, U64, Bfind<kShift>>;
    case Type::k_s64:
      return unary<U32, S64, Bfind<kShift>>;
    default:
      return nullptr;
  }
}

template <class F>
Handler resolve_count(const Insn& i) {
  return type_bytes(i.type) == 8 ? unary<U32, U64, F> : unary<U32, U32, F>;
}

}  // namespace

void register_bits(Registry& r) {
  r.add("and", resolve_logic<And>);
  r.add("or", resolve_logic<Or>);
  r.add("xor", resolve_logic<Xor>);
  r.add("not", resolve_logic_unary<Not>);
  r.add("cnot", resolve_logic_unary<Cnot>);
  r.add("shl", resolve_shift<Shl>);
  r.add("shr", resolve_shift<Shr>);
  r.add("shf_l", [](const Insn&) -> Handler { return funnel<true>; });
  r.add("shf_r", [](const Insn&) -> Handler { return funnel<false>; });
  r.add("bfi",
        [](const Insn& i) -> Handler { return type_bytes(i.type) == 8 ? bfi<u64> : bfi<u32>; });
  r.add("bfe",
        [](const Insn& i) -> Handler { return type_bytes(i.type) == 8 ? bfe<u64> : bfe<u32>; });
  r.add("prmt", [](const Insn&) -> Handler { return prmt; });
  r.add("lop3", [](const Insn&) -> Handler { return lop3; });
  r.add("popc", resolve_count<Popc>);
  r.add("clz", resolve_count<Clz>);
  r.add("brev", [](const Insn& i) -> Handler {
    return type_bytes(i.type) == 8 ? unary<U64, U64, Brev> : unary<U32, U32, Brev>;
  });
  r.add("bfind", [](const Insn& i) {
    return i.args[0] != 0 ? bfind_by_type<true>(i.type) : bfind_by_type<false>(i.type);
  });
}

}  // namespace emulator
