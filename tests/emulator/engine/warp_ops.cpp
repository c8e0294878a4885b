// Exchange between the lanes of a warp: shfl, vote, match, redux, elect, bar.warp.sync.
//
// The member mask is the last operand; the scheduler has brought the named lanes together.
// Of these only bar.warp.sync orders memory accesses between lanes: the CUDA guide says that
// shuffles and votes imply no memory barrier.

#include "machine.h"

namespace emulator {
namespace {

enum ShuffleMode : u8 { kUp, kDown, kButterfly, kIndex };

// args[0]: mode. ops: d, p, a, b, c, members.
Step shfl(Machine& machine, Warp& warp, const Insn& insn, u32 mask) {
  const u32* a = warp.reg<u32>(insn.ops[2]);
  const u32* b = warp.reg<u32>(insn.ops[3]);
  const u32* c = warp.reg<u32>(insn.ops[4]);
  std::array<u32, kLanes> result{};
  u32 in_range = 0;
  for (int l = 0; l < kLanes; ++l) {
    if (!has_lane(mask, l)) continue;
    const u32 segment = c[l] >> 8 & 31u, clamp = c[l] & 31u, by = b[l] & 31u;
    const u32 lane = static_cast<u32>(l);
    const s32 highest = static_cast<s32>((lane & segment) | (clamp & ~segment));
    const s32 lowest = static_cast<s32>(lane & segment);
    s32 from = 0;
    bool ok = false;
    switch (insn.args[0]) {
      case kUp:
        from = l - static_cast<s32>(by);
        ok = from >= highest;
        break;
      case kDown:
        from = l + static_cast<s32>(by);
        ok = from <= highest;
        break;
      case kButterfly:
        from = static_cast<s32>(lane ^ by);
        ok = from <= highest;
        break;
      default:
        from = lowest | static_cast<s32>(by & ~segment);
        ok = from <= highest;
        break;
    }
    if (!ok) from = l;
    if (!has_lane(mask, from & 31)) {
      machine.report(&warp, "DIVERGENCE", 0,
                     format("shfl.sync: lane %d reads lane %d, which does not take part", l, from));
      from = l;
    }
    result[l] = a[from & 31];
    in_range |= static_cast<u32>(ok) << l;
  }
  for (int l = 0; l < kLanes; ++l) {
    if (has_lane(mask, l)) warp.set(insn.ops[0], l, result[l]);
  }
  warp.set_pred(insn.ops[1], mask, in_range);
  return Step::kNext;
}

enum VoteMode : u8 { kAll, kAny, kUniform, kBallot };

// args[0]: mode. ops: d, a, members.
Step vote(Machine&, Warp& warp, const Insn& insn, u32 mask) {
  const u32 p = warp.pred(insn.ops[1]) & mask;
  if (insn.args[0] == kBallot) {
    for (int l = 0; l < kLanes; ++l) {
      if (has_lane(mask, l)) warp.set(insn.ops[0], l, p);
    }
    return Step::kNext;
  }
  const bool all = p == mask, any = p != 0;
  const bool result = insn.args[0] == kAll ? all : insn.args[0] == kAny ? any : all || !any;
  warp.set_pred(insn.ops[0], mask, result ? kFullMask : 0);
  return Step::kNext;
}

// args[0]: 1 for match.all. ops: d, p, a, members.
Step match(Machine&, Warp& warp, const Insn& insn, u32 mask) {
  std::array<u32, kLanes> equal{};
  bool all = true;
  for (int l = 0; l < kLanes; ++l) {
    if (!has_lane(mask, l)) continue;
    for (int k = 0; k < kLanes; ++k) {
      if (has_lane(mask, k) && warp.value(insn.ops[2], k) == warp.value(insn.ops[2], l)) {
        equal[l] |= 1u << k;
      }
    }
    all &= equal[l] == mask;
  }
  for (int l = 0; l < kLanes; ++l) {
    if (!has_lane(mask, l)) continue;
    warp.set(insn.ops[0], l, insn.args[0] != 0 ? (all ? mask : 0) : equal[l]);
  }
  warp.set_pred(insn.ops[1], mask, all ? kFullMask : 0);
  return Step::kNext;
}

enum ReduxOp : u8 { kReduxAdd, kReduxMin, kReduxMax, kReduxAnd, kReduxOr, kReduxXor };

// args[0]: operation. ops: d, a, members.
Step redux(Machine&, Warp& warp, const Insn& insn, u32 mask) {
  u32 r = warp.reg<u32>(insn.ops[1])[first_lane(mask)];
  for (int l = first_lane(mask) + 1; l < kLanes; ++l) {
    if (!has_lane(mask, l)) continue;
    const u32 v = warp.reg<u32>(insn.ops[1])[l];
    const bool less = insn.type == Type::k_s32 ? static_cast<s32>(v) < static_cast<s32>(r) : v < r;
    switch (insn.args[0]) {
      case kReduxAdd:
        r += v;
        break;
      case kReduxMin:
        r = less ? v : r;
        break;
      case kReduxMax:
        r = less ? r : v;
        break;
      case kReduxAnd:
        r &= v;
        break;
      case kReduxOr:
        r |= v;
        break;
      default:
        r ^= v;
        break;
    }
  }
  for (int l = 0; l < kLanes; ++l) {
    if (has_lane(mask, l)) warp.set(insn.ops[0], l, r);
  }
  return Step::kNext;
}

// The lowest member is elected. ops: d, p, members.
Step elect(Machine&, Warp& warp, const Insn& insn, u32 mask) {
  const int leader = first_lane(mask);
  for (int l = 0; l < kLanes; ++l) {
    if (has_lane(mask, l)) warp.set(insn.ops[0], l, static_cast<u64>(leader));
  }
  warp.set_pred(insn.ops[1], mask, 1u << leader);
  return Step::kNext;
}

Step bar_warp(Machine&, Warp& warp, const Insn&, u32 mask) {
  warp.sync_lanes(mask);
  return Step::kNext;
}

}  // namespace

void register_warp_ops(Registry& r) {
  const auto members = Convergence::kMemberMask;
  r.add("shfl", [](const Insn&) -> Handler { return shfl; }, members);
  r.add("vote", [](const Insn&) -> Handler { return vote; }, members);
  r.add("match", [](const Insn&) -> Handler { return match; }, members);
  r.add("redux", [](const Insn&) -> Handler { return redux; }, members);
  r.add("elect", [](const Insn&) -> Handler { return elect; }, members);
  r.add("bar_warp", [](const Insn&) -> Handler { return bar_warp; }, members);
}

}  // namespace emulator
