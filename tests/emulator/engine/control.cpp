// Branches, calls, exits, traps, clocks and sleeping.

#include "machine.h"

namespace emulator {
namespace {

// A new place to wake up: splits that wait for lanes must look again when the set of lanes changes.
void reconsider(Warp& warp) {
  for (Split& split : warp.splits) {
    if (split.wait == SplitWait::kConverge) split.wait = SplitWait::kNone;
  }
}

Step nop(Machine&, Warp&, const Insn&, u32) { return Step::kNext; }
Step yield(Machine&, Warp&, const Insn&, u32) { return Step::kYield; }

// Sends `mask` of the current split to `target` and lets the rest fall through.
void jump(Warp& warp, u32 mask, u32 target) {
  Split& split = warp.splits[warp.current];
  if (split.mask == mask) {
    split.pc = target;
    return;
  }
  Split taken = split;
  taken.mask = mask;
  taken.pc = target;
  taken.wait = SplitWait::kNone;
  split.mask &= ~mask;
  ++split.pc;
  warp.splits.push_back(std::move(taken));
}

Step branch(Machine&, Warp& warp, const Insn& insn, u32 mask) {
  jump(warp, mask, static_cast<u32>(insn.target));
  return Step::kJumped;
}

// brx.idx: args are the targets.
Step branch_indexed(Machine& machine, Warp& warp, const Insn& insn, u32 mask) {
  const Split base = warp.splits[warp.current];
  std::vector<Split> parts;
  for (int l = 0; l < kLanes; ++l) {
    if (!has_lane(mask, l)) continue;
    const u64 index = warp.value(insn.ops[0], l);
    if (index >= insn.args.size()) {
      machine.fault(&warp, "BOUNDS",
                    format("brx.idx: index %llu of %zu targets",
                           static_cast<unsigned long long>(index), insn.args.size()));
    }
    Split part = base;
    part.pc = static_cast<u32>(insn.args[index]);
    part.mask = 1u << l;
    parts.push_back(part);
  }
  Split& split = warp.splits[warp.current];
  split.mask &= ~mask;
  ++split.pc;
  if (split.mask == 0) {
    warp.splits.erase(warp.splits.begin() + static_cast<std::ptrdiff_t>(warp.current));
  }
  warp.splits.insert(warp.splits.end(), parts.begin(), parts.end());
  return Step::kJumped;
}

Step exit_lanes(Machine&, Warp& warp, const Insn&, u32 mask) {
  warp.alive &= ~mask;
  Split& split = warp.splits[warp.current];
  split.mask &= ~mask;
  ++split.pc;
  if (split.mask == 0) {
    warp.splits.erase(warp.splits.begin() + static_cast<std::ptrdiff_t>(warp.current));
  }
  reconsider(warp);
  return Step::kJumped;
}

Step ret(Machine& machine, Warp& warp, const Insn& insn, u32 mask) {
  std::vector<u32>& stack = warp.splits[warp.current].stack;
  if (stack.empty()) return exit_lanes(machine, warp, insn, mask);
  const u32 back = stack.back();
  jump(warp, mask, back);
  // jump() put the returning lanes either into the current split or into a new last one.
  Split& returning = warp.splits[warp.current].pc == back && warp.splits[warp.current].mask == mask
                         ? warp.splits[warp.current]
                         : warp.splits.back();
  returning.stack.pop_back();
  return Step::kJumped;
}

constexpr std::size_t kDeepestCall = 64;

Step call(Machine& machine, Warp& warp, const Insn& insn, u32 mask) {
  const u32 back = warp.splits[warp.current].pc + 1;
  if (warp.splits[warp.current].stack.size() >= kDeepestCall) {
    machine.fault(&warp, "BOUNDS", "calls nest deeper than 64: recursion is not supported");
  }
  const u32 target = static_cast<u32>(insn.target);
  jump(warp, mask, target);
  Split& calling = warp.splits[warp.current].pc == target && warp.splits[warp.current].mask == mask
                       ? warp.splits[warp.current]
                       : warp.splits.back();
  calling.stack.push_back(back);
  return Step::kJumped;
}

Step trap(Machine& machine, Warp& warp, const Insn& insn, u32) {
  machine.fault(
      &warp, "TRAP",
      insn.opcode == "assertfail" ? "a device assertion failed" : "the kernel executed a trap");
}

// Clocks count executed instructions: monotonic and reproducible, no measure of time.
Step clock(Machine& machine, Warp& warp, const Insn& insn, u32 mask) {
  for (int l = 0; l < kLanes; ++l) {
    if (has_lane(mask, l)) warp.set(insn.ops[0], l, machine.counters.warp_instructions);
  }
  return Step::kYield;
}

Step activemask(Machine&, Warp& warp, const Insn& insn, u32 mask) {
  for (int l = 0; l < kLanes; ++l) {
    if (has_lane(mask, l)) warp.set(insn.ops[0], l, mask);
  }
  return Step::kNext;
}

}  // namespace

void register_control(Registry& r) {
  r.add("nop", [](const Insn&) -> Handler { return nop; });
  r.add("yield", [](const Insn&) -> Handler { return yield; });
  r.add("bra", [](const Insn&) -> Handler { return branch; });
  r.add("brx_idx", [](const Insn&) -> Handler { return branch_indexed; });
  r.add("call", [](const Insn&) -> Handler { return call; });
  r.add("ret", [](const Insn&) -> Handler { return ret; });
  r.add("exit", [](const Insn&) -> Handler { return exit_lanes; });
  r.add("trap", [](const Insn&) -> Handler { return trap; });
  r.add("assertfail", [](const Insn&) -> Handler { return trap; });
  r.add("clock", [](const Insn&) -> Handler { return clock; });
  r.add("activemask", [](const Insn&) -> Handler { return activemask; });
}

}  // namespace emulator
