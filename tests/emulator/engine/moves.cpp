// mov, vector packing, selection, predicates, comparisons, and address conversions.

#include "alu.h"

namespace emulator {
namespace {

struct Same {
  template <class T>
  static T run(T a) {
    return a;
  }
};

Step mov_pred(Machine&, Warp& warp, const Insn& insn, u32 mask) {
  warp.set_pred(insn.ops[0], mask, warp.pred(insn.ops[1]));
  return Step::kNext;
}

Handler resolve_mov(const Insn& i) {
  if (i.type == Type::k_pred) return mov_pred;
  switch (i.ops[0].kind) {
    case OperandKind::kReg64:
      return unary<U64, U64, Same>;
    case OperandKind::kReg32:
      return unary<U32, U32, Same>;
    default:
      return nullptr;
  }
}

u32 part_bits(const Insn& insn, std::size_t parts) {
  return 8 * type_bytes(insn.type) / static_cast<u32>(parts);
}

// {a, b, ..} into one register; a is the least significant.
Step pack(Machine&, Warp& warp, const Insn& insn, u32 mask) {
  const std::size_t parts = insn.ops.size() - 1;
  const u32 width = part_bits(insn, parts);
  const u64 ones = ~0ull >> (64 - width);
  for (int l = 0; l < kLanes; ++l) {
    if (!has_lane(mask, l)) continue;
    u64 v = 0;
    for (std::size_t k = 0; k < parts; ++k) {
      v |= (warp.value(insn.ops[1 + k], l) & ones) << (width * k);
    }
    warp.set(insn.ops[0], l, v);
  }
  return Step::kNext;
}

Step unpack(Machine&, Warp& warp, const Insn& insn, u32 mask) {
  const std::size_t parts = insn.ops.size() - 1;
  const u32 width = part_bits(insn, parts);
  const u64 ones = ~0ull >> (64 - width);
  for (int l = 0; l < kLanes; ++l) {
    if (!has_lane(mask, l)) continue;
    const u64 v = warp.value(insn.ops[parts], l);
    for (std::size_t k = 0; k < parts; ++k) warp.set(insn.ops[k], l, v >> (width * k) & ones);
  }
  return Step::kNext;
}

template <class T>
Step selp(Machine&, Warp& warp, const Insn& insn, u32 mask) {
  const u32 p = warp.pred(insn.ops[3]);
  T* d = warp.reg<T>(insn.ops[0]);
  const T* a = warp.reg<T>(insn.ops[1]);
  const T* b = warp.reg<T>(insn.ops[2]);
  for (int l = 0; l < kLanes; ++l) {
    if (has_lane(mask, l)) d[l] = has_lane(p, l) ? a[l] : b[l];
  }
  return Step::kNext;
}

struct PredAnd {
  static u32 run(u32 a, u32 b) { return a & b; }
};
struct PredOr {
  static u32 run(u32 a, u32 b) { return a | b; }
};
struct PredXor {
  static u32 run(u32 a, u32 b) { return a ^ b; }
};
template <class F>
Step pred_logic(Machine&, Warp& warp, const Insn& insn, u32 mask) {
  warp.set_pred(insn.ops[0], mask, F::run(warp.pred(insn.ops[1]), warp.pred(insn.ops[2])));
  return Step::kNext;
}
Step pred_not(Machine&, Warp& warp, const Insn& insn, u32 mask) {
  warp.set_pred(insn.ops[0], mask, ~warp.pred(insn.ops[1]));
  return Step::kNext;
}

// The order is the encoding of args[0], shared with the front end.
enum Compare : u8 { kEq, kNe, kLt, kLe, kGt, kGe, kEqu, kNeu, kLtu, kLeu, kGtu, kGeu, kNum, kNan };

template <class T>
bool compare(Compare how, T a, T b) {
  const bool ordered = a == a && b == b;
  switch (how) {
    case kEq:
      return a == b;
    case kNe:
      return ordered && a != b;
    case kLt:
      return a < b;
    case kLe:
      return a <= b;
    case kGt:
      return a > b;
    case kGe:
      return a >= b;
    case kEqu:
      return !ordered || a == b;
    case kNeu:
      return !ordered || a != b;
    case kLtu:
      return !ordered || a < b;
    case kLeu:
      return !ordered || a <= b;
    case kGtu:
      return !ordered || a > b;
    case kGeu:
      return !ordered || a >= b;
    case kNum:
      return ordered;
    case kNan:
      return !ordered;
  }
  return false;
}

template <class Codec>
u32 compare_lanes(Warp& warp, const Operand& x, const Operand& y, Compare how) {
  const auto* a = warp.reg<typename Codec::Store>(x);
  const auto* b = warp.reg<typename Codec::Store>(y);
  u32 r = 0;
  for (int l = 0; l < kLanes; ++l) {
    r |= static_cast<u32>(compare(how, Codec::get(a[l]), Codec::get(b[l]))) << l;
  }
  return r;
}

// setp and set: args[0] comparison, args[1] combining op (0 none, 1 and, 2 or, 3 xor).
// ops: p, q, a, b[, c] for setp.
template <class Codec>
Step setp(Machine&, Warp& warp, const Insn& insn, u32 mask) {
  const auto how = static_cast<Compare>(insn.args[0]);
  const u32 result = compare_lanes<Codec>(warp, insn.ops[2], insn.ops[3], how);
  u32 p = result, q = ~result;
  if (insn.args[1] != 0) {
    const u32 c = warp.pred(insn.ops[4]);
    if (insn.args[1] == 1) p &= c, q &= c;
    if (insn.args[1] == 2) p |= c, q |= c;
    if (insn.args[1] == 3) p ^= c, q ^= c;
  }
  warp.set_pred(insn.ops[0], mask, p);
  warp.set_pred(insn.ops[1], mask, q);
  return Step::kNext;
}

// Comparison of packed halves: p for the low one, q for the high one.
template <class Half>
Step setp_pair(Machine&, Warp& warp, const Insn& insn, u32 mask) {
  const auto how = static_cast<Compare>(insn.args[0]);
  u32 p = 0, q = 0;
  for (int l = 0; l < kLanes; ++l) {
    const Pair a = PairCodec<Half>::get(warp.reg<u32>(insn.ops[2])[l]);
    const Pair b = PairCodec<Half>::get(warp.reg<u32>(insn.ops[3])[l]);
    p |= static_cast<u32>(compare(how, a.lo, b.lo)) << l;
    q |= static_cast<u32>(compare(how, a.hi, b.hi)) << l;
  }
  warp.set_pred(insn.ops[0], mask, p);
  warp.set_pred(insn.ops[1], mask, q);
  return Step::kNext;
}

Handler resolve_setp(const Insn& i) {
  switch (i.type) {
    case Type::k_b16:
    case Type::k_u16:
      return setp<U16>;
    case Type::k_s16:
      return setp<S16>;
    case Type::k_b32:
    case Type::k_u32:
      return setp<U32>;
    case Type::k_s32:
      return setp<S32>;
    case Type::k_b64:
    case Type::k_u64:
      return setp<U64>;
    case Type::k_s64:
      return setp<S64>;
    case Type::k_f16:
      return setp<F16>;
    case Type::k_bf16:
      return setp<Bf16>;
    case Type::k_f32:
      return setp<F32>;
    case Type::k_f64:
      return setp<F64>;
    case Type::k_f16x2:
      return i.args[1] == 0 ? setp_pair<F16> : nullptr;
    case Type::k_bf16x2:
      return i.args[1] == 0 ? setp_pair<Bf16> : nullptr;
    default:
      return nullptr;
  }
}

// set.CmpOp.dtype.stype: all ones or 1.0 where true. type is dtype; type2 the compared type.
template <class Codec>
Step set_scalar(Machine&, Warp& warp, const Insn& insn, u32 mask) {
  const auto how = static_cast<Compare>(insn.args[0]);
  const u32 r = compare_lanes<Codec>(warp, insn.ops[1], insn.ops[2], how);
  const u32 yes = insn.type == Type::k_f32 ? 0x3f800000u : kFullMask;
  for (int l = 0; l < kLanes; ++l) {
    if (has_lane(mask, l)) warp.reg<u32>(insn.ops[0])[l] = has_lane(r, l) ? yes : 0u;
  }
  return Step::kNext;
}

template <class Half>
Step set_pair(Machine&, Warp& warp, const Insn& insn, u32 mask) {
  const auto how = static_cast<Compare>(insn.args[0]);
  const bool as_mask = insn.type == Type::k_u32 || insn.type == Type::k_s32;
  const u32 yes = as_mask ? 0xffffu : Half::put(1.0f);
  for (int l = 0; l < kLanes; ++l) {
    if (!has_lane(mask, l)) continue;
    const Pair a = PairCodec<Half>::get(warp.reg<u32>(insn.ops[1])[l]);
    const Pair b = PairCodec<Half>::get(warp.reg<u32>(insn.ops[2])[l]);
    warp.reg<u32>(insn.ops[0])[l] =
        (compare(how, a.lo, b.lo) ? yes : 0u) | (compare(how, a.hi, b.hi) ? yes << 16 : 0u);
  }
  return Step::kNext;
}

Handler resolve_set(const Insn& i) {
  switch (i.type2) {
    case Type::k_u32:
    case Type::k_b32:
      return set_scalar<U32>;
    case Type::k_s32:
      return set_scalar<S32>;
    case Type::k_f32:
      return set_scalar<F32>;
    case Type::k_f16x2:
      return set_pair<F16>;
    case Type::k_bf16x2:
      return set_pair<Bf16>;
    default:
      return nullptr;
  }
}

u64 window_of(s64 space) {
  switch (static_cast<Space>(space)) {
    case Space::kShared:
      return kSharedBase;
    case Space::kLocal:
      return kLocalBase;
    case Space::kParam:
      return kParamBase;
    default:
      return 0;  // global and const addresses are generic addresses already
  }
}

// args[0]: the space; args[1]: 1 turns a generic address into one of the space.
Step cvta(Machine&, Warp& warp, const Insn& insn, u32 mask) {
  const u64 window = window_of(insn.args[0]);
  for (int l = 0; l < kLanes; ++l) {
    if (!has_lane(mask, l)) continue;
    const u64 v = warp.value(insn.ops[1], l);
    warp.set(insn.ops[0], l, insn.args[1] != 0 ? v - window : v + window);
  }
  return Step::kNext;
}

Step isspacep(Machine&, Warp& warp, const Insn& insn, u32 mask) {
  const u64 window = window_of(insn.args[0]);
  const u64 wanted = window == 0 ? kGlobalBase : window;
  u32 r = 0;
  for (int l = 0; l < kLanes; ++l) {
    r |= static_cast<u32>(warp.value(insn.ops[1], l) >> kWindowBits == wanted >> kWindowBits) << l;
  }
  warp.set_pred(insn.ops[0], mask, r);
  return Step::kNext;
}

// mapa: the same offset in another CTA of the cluster. Works on shared and on generic addresses.
Step mapa(Machine& machine, Warp& warp, const Insn& insn, u32 mask) {
  for (int l = 0; l < kLanes; ++l) {
    if (!has_lane(mask, l)) continue;
    const u64 a = warp.value(insn.ops[1], l) + static_cast<u64>(insn.ops[1].imm);
    const u64 rank = warp.value(insn.ops[2], l);
    if (rank >= warp.cta->cluster->ctas.size()) {
      machine.fault(&warp, "BOUNDS",
                    format("mapa: CTA rank %llu in a cluster of %zu",
                           static_cast<unsigned long long>(rank), warp.cta->cluster->ctas.size()));
    }
    const u64 window = a >> kWindowBits << kWindowBits;
    warp.set(insn.ops[0], l, window | (rank + 1) << kRankShift | (a & kSharedOffsetMask));
  }
  return Step::kNext;
}

Step getctarank(Machine&, Warp& warp, const Insn& insn, u32 mask) {
  for (int l = 0; l < kLanes; ++l) {
    if (!has_lane(mask, l)) continue;
    const u32 rank = static_cast<u32>(warp.value(insn.ops[1], l)) >> kRankShift;
    warp.set(insn.ops[0], l, rank == 0 ? warp.cta->rank : rank - 1);
  }
  return Step::kNext;
}

}  // namespace

void register_moves(Registry& r) {
  r.add("mov", resolve_mov);
  r.add("pack", [](const Insn&) -> Handler { return pack; });
  r.add("unpack", [](const Insn&) -> Handler { return unpack; });
  r.add("selp",
        [](const Insn& i) -> Handler { return type_bytes(i.type) == 8 ? selp<u64> : selp<u32>; });
  r.add("setp", resolve_setp);
  r.add("set", resolve_set);
  r.add("pand", [](const Insn&) -> Handler { return pred_logic<PredAnd>; });
  r.add("por", [](const Insn&) -> Handler { return pred_logic<PredOr>; });
  r.add("pxor", [](const Insn&) -> Handler { return pred_logic<PredXor>; });
  r.add("pnot", [](const Insn&) -> Handler { return pred_not; });
  r.add("cvta", [](const Insn&) -> Handler { return cvta; });
  r.add("isspacep", [](const Insn&) -> Handler { return isspacep; });
  r.add("mapa", [](const Insn&) -> Handler { return mapa; });
  r.add("getctarank", [](const Insn&) -> Handler { return getctarank; });
}

}  // namespace emulator
