// Fences and proxies.

#include "machine.h"

namespace emulator {
namespace {

// fence, membar: what relaxed reads before it saw becomes known, and what is known now is what
// relaxed writes after it publish. Scopes are not told apart: a .cta fence counts as .gpu.
Step fence(Machine&, Warp& warp, const Insn&, u32) {
  warp.know.seen.join(warp.know.heard);
  warp.know.fenced.join(warp.know.seen);
  warp.tick();
  return Step::kNext;
}

// fence.proxy.async: all that this warp knows, by whomever, is now visible to the async proxy.
// The .global and .shared::cta variants are not told apart from the full one.
Step fence_proxy(Machine&, Warp& warp, const Insn&, u32) {
  warp.know.async.join(warp.know.seen);
  warp.tick();
  return Step::kNext;
}

// fence.mbarrier_init: this warp's inits are visible to other agents' asynchronous operations once
// those are ordered after this warp by a barrier.
Step fence_mbarrier_init(Machine&, Warp& warp, const Insn&, u32) {
  for (const auto& [address, barrier] : warp.cta->mbarriers) {
    if (barrier->init_who == warp.who(kWarpAgent)) barrier->init_fenced = true;
  }
  // It is a release fence at cluster scope; other writes are not told apart from inits.
  warp.know.fenced.join(warp.know.seen);
  warp.tick();
  return Step::kNext;
}

}  // namespace

void register_fences(Registry& r) {
  r.add("fence", [](const Insn&) -> Handler { return fence; });
  r.add("fence_proxy", [](const Insn&) -> Handler { return fence_proxy; });
  r.add("fence_mbarrier_init", [](const Insn&) -> Handler { return fence_mbarrier_init; });
}

}  // namespace emulator
