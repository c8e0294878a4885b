// cp.async: 4 to 16 bytes per lane from global to shared, in groups, or arriving on an mbarrier.
//
// These copies belong to the generic proxy: wgmma or TMA reads of what they wrote need
// fence.proxy.async like any st.shared.

#include "machine.h"

namespace emulator {
namespace {

// The epoch a copy issued now belongs to; it is known once a wait covers it.
u32 open_epoch(const Warp& warp) { return warp.cp_epoch + 1; }

// args[0]: bytes. ops: destination, source[, source bytes].
Step copy(Machine& machine, Warp& warp, const Insn& insn, u32 mask) {
  const u32 num_bytes = static_cast<u32>(insn.args[0]);
  for (int l = 0; l < kLanes; ++l) {
    if (!has_lane(mask, l)) continue;
    const auto where = machine.shared_target(warp, static_cast<u32>(warp.address(insn.ops[0], l)),
                                             num_bytes, "cp.async");
    const u64 source = warp.address(insn.ops[1], l);
    u32 used = num_bytes;
    if (insn.ops.size() > 2) used = static_cast<u32>(warp.value(insn.ops[2], l));
    if (where.offset % num_bytes != 0) {
      machine.fault(
          &warp, "MISALIGNED",
          format("cp.async: shared address 0x%x is not a multiple of %u", where.offset, num_bytes));
    }
    if (used > num_bytes) {
      machine.fault(&warp, "BOUNDS", format("cp.async: source size %u of %u", used, num_bytes));
    }
    Actor actor = machine.actor(warp, static_cast<u32>(l));
    if (used != 0) {
      machine.access_global(warp, source, used, false, actor, "cp.async", num_bytes);
    }
    actor.who = warp.who(kCpAsyncAgent);
    actor.value = open_epoch(warp);
    machine.access_shared(warp, where, num_bytes, true, actor, "cp.async");
    AsyncOp op{AsyncKind::kCpAsync, &warp, open_epoch(warp) - 1, 0, nullptr};
    op.run = [where, source, used, num_bytes](Machine& m) {
      u8* to = where.cta->shared.data() + where.offset;
      std::memset(to, 0, num_bytes);
      if (used != 0) std::memcpy(to, m.memory.data(source), used);
      ++where.cta->shared_version;
    };
    machine.issue(std::move(op));
    machine.counters.global_load_bytes += used;
  }
  return Step::kNext;
}

Step commit(Machine&, Warp& warp, const Insn&, u32) {
  warp.cp_groups.push_back(++warp.cp_epoch);
  return Step::kNext;
}

// args[0]: how many of the latest groups may be pending; -1 waits for everything.
Step wait(Machine& machine, Warp& warp, const Insn& insn, u32) {
  const s64 keep = insn.args[0];
  u32 reached = 0;
  if (keep < 0) {
    reached = ++warp.cp_epoch;
  } else if (static_cast<s64>(warp.cp_groups.size()) > keep) {
    reached = warp.cp_groups[warp.cp_groups.size() - 1 - static_cast<std::size_t>(keep)];
  }
  if (reached == 0) return Step::kNext;
  machine.flush(warp, AsyncKind::kCpAsync, reached);
  warp.know.seen.raise(warp.who(kCpAsyncAgent), reached);
  warp.tick();
  return Step::kNext;
}

// cp.async.mbarrier.arrive: one arrival per lane once its earlier copies have landed.
// args[0]: 1 for .noinc. ops: address.
Step arrive(Machine& machine, Warp& warp, const Insn& insn, u32 mask) {
  const u32 reached = ++warp.cp_epoch;
  for (int l = 0; l < kLanes; ++l) {
    if (!has_lane(mask, l)) continue;
    const auto where = machine.shared_target(warp, static_cast<u32>(warp.address(insn.ops[0], l)),
                                             8, "cp.async.mbarrier.arrive");
    Mbarrier& barrier = machine.mbarrier_at(warp, where, "cp.async.mbarrier.arrive");
    // Without .noinc the pending count rises first, so that the arrival changes nothing in sum.
    if (insn.args[0] == 0) ++barrier.pending;
    Knowledge know = warp.know;
    know.seen.raise(warp.who(kCpAsyncAgent), reached);
    AsyncOp op{AsyncKind::kCpAsync, &warp, reached, 0, nullptr};
    Warp* self = &warp;
    op.run = [self, where, reached, know = std::move(know)](Machine& m) {
      m.flush(*self, AsyncKind::kCpAsync, reached);
      m.mbarrier_arrive(*self, *where.cta->mbarriers.at(where.offset), 1, know);
    };
    machine.issue(std::move(op));
  }
  warp.tick();
  return Step::kNext;
}

}  // namespace

void register_cp_async(Registry& r) {
  r.add("cp_async", [](const Insn& i) -> Handler {
    return i.args[0] == 4 || i.args[0] == 8 || i.args[0] == 16 ? copy : nullptr;
  });
  r.add("cp_async_commit", [](const Insn&) -> Handler { return commit; });
  r.add("cp_async_wait", [](const Insn&) -> Handler { return wait; });
  r.add("cp_async_arrive", [](const Insn&) -> Handler { return arrive; });
}

}  // namespace emulator
