// mbarriers: phases, parities, transaction counts, state tokens, remote arrival.
//
// The state lives beside shared memory; its 8 bytes are only marked, because PTX makes them opaque.
// An arrival publishes what its warp knows. A successful wait learns all that was published up to
// the completed phase (arrivals are read-modify-writes of one object, a release sequence).
// A copy's epoch is "phase n of its mbarrier", so only who has seen that phase may use its bytes.

#include "alu.h"

namespace emulator {

namespace {
constexpr u32 kMaxCount = (1u << 20) - 1;
}

Mbarrier& Machine::mbarrier_at(Warp& warp, SharedTarget where, const char* what) {
  const auto found = where.cta->mbarriers.find(where.offset);
  if (found == where.cta->mbarriers.end() || !found->second->live) {
    fault(&warp, "MBARRIER",
          format("%s: no live mbarrier at shared 0x%x (CTA rank %u)", what, where.offset,
                 where.cta->rank));
  }
  Mbarrier& barrier = *found->second;
  if (options.checks && barrier.init_who != warp.who(kWarpAgent) &&
      warp.know.seen.get(barrier.init_who) < barrier.init_value) {
    report(&warp, "RACE", barrier.init_pc,
           format("%s of mbarrier 0x%x is not ordered after its init at %s", what, where.offset,
                  program->location(barrier.init_pc).c_str()));
  }
  barrier.last_pc = warp.last_pc;
  return barrier;
}

void Machine::mbarrier_arrive(Warp& warp, Mbarrier& barrier, u32 count, const Knowledge& know) {
  if (count > barrier.pending) {
    fault(&warp, "MBARRIER",
          format("mbarrier 0x%x: %u arrivals but phase %u only waits for %u more", barrier.address,
                 count, barrier.phase, barrier.pending));
  }
  ++progress;
  barrier.arriving.join(know);
  barrier.pending -= count;
  mbarrier_check_phase(barrier);
}

void Machine::mbarrier_complete_tx(Mbarrier& barrier, u64 num_bytes) {
  ++progress;
  barrier.tx -= static_cast<s64>(num_bytes);
  barrier.in_flight -= std::min(barrier.in_flight, num_bytes);
  mbarrier_check_phase(barrier);
}

void Machine::mbarrier_check_phase(Mbarrier& barrier) {
  if (barrier.pending != 0 || barrier.tx != 0) return;
  if (barrier.in_flight != 0) {
    report(
        nullptr, "MBARRIER", barrier.last_pc,
        format("mbarrier 0x%x completes phase %u while %llu bytes of copies are in flight: "
               "expect_tx is too small (last used at %s)",
               barrier.address, barrier.phase, static_cast<unsigned long long>(barrier.in_flight),
               program->location(barrier.last_pc).c_str()));
  }
  ++barrier.phase;
  barrier.pending = barrier.count;
  barrier.arriving.seen.raise(barrier.who, barrier.phase);
  barrier.arriving.async.raise(barrier.who, barrier.phase);
  barrier.done = barrier.arriving;
  wake_pollers();
}

void Machine::check_async_init(Warp& warp, Mbarrier& barrier) {
  if (!options.checks || barrier.init_fenced ||
      warp.know.async.get(barrier.init_who) >= barrier.init_value) {
    return;
  }
  report(&warp, "PROXY", barrier.init_pc,
         format("mbarrier 0x%x: its init at %s is not fenced towards the async proxy "
                "(fence.mbarrier_init or fence.proxy.async)",
                barrier.address, program->location(barrier.init_pc).c_str()));
  barrier.init_fenced = true;
}

namespace {

constexpr u32 kBytes = 8;

Machine::SharedTarget target_of(Machine& machine, Warp& warp, const Operand& o, int lane,
                                const char* what) {
  u64 address = warp.address(o, lane);
  if (address >> kWindowBits != 0 &&
      machine.resolve(warp, Space::kGeneric, address) != Space::kShared) {
    machine.fault(&warp, "BOUNDS", format("%s: address is not in shared memory", what));
  }
  const auto where = machine.shared_target(warp, static_cast<u32>(address), kBytes, what);
  if (where.offset % kBytes != 0) {
    machine.fault(&warp, "MISALIGNED", format("%s: mbarrier at shared 0x%x", what, where.offset));
  }
  return where;
}

// ops: address, count.
Step init(Machine& machine, Warp& warp, const Insn& insn, u32 mask) {
  for (int l = 0; l < kLanes; ++l) {
    if (!has_lane(mask, l)) continue;
    const auto where = target_of(machine, warp, insn.ops[0], l, "mbarrier.init");
    machine.access_shared(warp, where, kBytes, true, machine.actor(warp, static_cast<u32>(l)),
                          "mbarrier.init");
    auto& slot = where.cta->mbarriers[where.offset];
    const u32 count = static_cast<u32>(warp.value(insn.ops[1], l));
    if (count == 0 || count > kMaxCount) {
      machine.fault(&warp, "MBARRIER", format("init with count %u, expected 1 to 2^20 - 1", count));
    }
    if (slot && slot->live) {
      machine.report(&warp, "MBARRIER", slot->init_pc,
                     format("init of mbarrier 0x%x, which is live since %s", where.offset,
                            machine.program->location(slot->init_pc).c_str()));
    }
    auto barrier = std::make_unique<Mbarrier>();
    barrier->cta = where.cta;
    barrier->address = where.offset;
    barrier->who = machine.new_component(*where.cta->cluster);
    barrier->live = true;
    barrier->init_who = warp.who(kWarpAgent);
    barrier->init_value = warp.now;
    barrier->init_pc = barrier->last_pc = warp.last_pc;
    barrier->count = barrier->pending = count;
    barrier->arriving = barrier->done = Knowledge(where.cta->cluster->id);
    if (slot) where.cta->replaced_mbarriers.push_back(std::move(slot));
    slot = std::move(barrier);
  }
  warp.tick();
  return Step::kNext;
}

Step inval(Machine& machine, Warp& warp, const Insn& insn, u32 mask) {
  for (int l = 0; l < kLanes; ++l) {
    if (!has_lane(mask, l)) continue;
    const auto where = target_of(machine, warp, insn.ops[0], l, "mbarrier.inval");
    Mbarrier& barrier = machine.mbarrier_at(warp, where, "mbarrier.inval");
    if (barrier.in_flight != 0) {
      machine.report(&warp, "MBARRIER", 0, "inval while copies towards the mbarrier are in flight");
    }
    barrier.live = false;
    for (const auto& other : where.cta->cluster->ctas) {
      for (const auto& waiting : other->warps) {
        for (const Split& split : waiting->splits) {
          if (split.wait == SplitWait::kPoll && split.polled == &barrier) {
            machine.fault(&warp, "MBARRIER", "inval of an mbarrier that a warp waits on");
          }
        }
      }
    }
  }
  return Step::kNext;
}

// args: [0] arrives, [1] expects bytes, [2] remote forms allowed, [3] cta scope.
// ops: state or none, address, bytes (if it expects), count (if it arrives).
Step arrive(Machine& machine, Warp& warp, const Insn& insn, u32 mask) {
  const bool arrives = insn.args[0] != 0, expects = insn.args[1] != 0;
  for (int l = 0; l < kLanes; ++l) {
    if (!has_lane(mask, l)) continue;
    const auto where = target_of(machine, warp, insn.ops[1], l, "mbarrier.arrive");
    Mbarrier& barrier = machine.mbarrier_at(warp, where, "mbarrier.arrive");
    machine.note_remote(machine.actor(warp), *where.cta);
    // The token names the phase that this arrival belongs to.
    warp.set(insn.ops[0], l, static_cast<u64>(barrier.phase) << 32 | barrier.pending);
    if (expects) {
      const u32 bytes = static_cast<u32>(warp.value(insn.ops[2], l));
      if (bytes > kMaxCount) {
        machine.fault(&warp, "MBARRIER", format("expect_tx of %u bytes, at most 2^20 - 1", bytes));
      }
      barrier.tx += bytes;
    }
    if (arrives) {
      const u32 count = static_cast<u32>(warp.value(insn.ops.back(), l));
      machine.mbarrier_arrive(warp, barrier, count, warp.know);
    } else {
      machine.mbarrier_check_phase(barrier);
    }
  }
  warp.tick();
  return Step::kNext;
}

// args: [0] 1 try_wait (may sleep), 0 test_wait; [1] 1 waits by parity, 0 by state token.
// ops: predicate, address, parity or state.
Step wait(Machine& machine, Warp& warp, const Insn& insn, u32 mask) {
  u32 done = 0;
  Mbarrier* pending = nullptr;
  u32 pending_parity = 0;
  ++machine.counters.mbarrier_waits;
  for (int l = 0; l < kLanes; ++l) {
    if (!has_lane(mask, l)) continue;
    const auto where = target_of(machine, warp, insn.ops[1], l, "mbarrier wait");
    if (where.cta != warp.cta) {
      machine.fault(&warp, "MBARRIER", "wait on the mbarrier of another CTA");
    }
    Mbarrier& barrier = machine.mbarrier_at(warp, where, "mbarrier wait");
    const u64 wanted = warp.value(insn.ops[2], l);
    u32 parity = static_cast<u32>(wanted);
    if (insn.args[1] == 0) {
      const u32 phase = static_cast<u32>(wanted >> 32);
      if (phase > barrier.phase || barrier.phase - phase > 1) {
        machine.report(&warp, "MBARRIER", 0,
                       format("wait with a state of phase %u while the mbarrier is in phase %u",
                              phase, barrier.phase));
      }
      parity = phase & 1u;
    } else if (parity > 1) {
      machine.fault(&warp, "MBARRIER", format("wait with parity %u, expected 0 or 1", parity));
    }
    if ((barrier.phase & 1u) != parity) {
      done |= 1u << l;
      warp.know.join(barrier.done);
    } else {
      pending = &barrier;
      pending_parity = parity;
    }
  }
  warp.set_pred(insn.ops[0], mask, done);
  if (pending == nullptr) return Step::kNext;
  if (insn.args[0] != 0) {
    Split& split = warp.splits[warp.current];
    split.wait = SplitWait::kPoll;
    split.polled = pending;
    split.parity = pending_parity;
  }
  return Step::kYield;
}

Step pending_count(Machine&, Warp& warp, const Insn& insn, u32 mask) {
  for (int l = 0; l < kLanes; ++l) {
    if (has_lane(mask, l)) warp.set(insn.ops[0], l, warp.value(insn.ops[1], l) & kFullMask);
  }
  return Step::kNext;
}

}  // namespace

void register_mbarrier(Registry& r) {
  r.add("mbarrier_init", [](const Insn&) -> Handler { return init; });
  r.add("mbarrier_inval", [](const Insn&) -> Handler { return inval; });
  r.add("mbarrier_arrive", [](const Insn&) -> Handler { return arrive; });
  r.add("mbarrier_wait", [](const Insn&) -> Handler { return wait; });
  r.add("mbarrier_pending", [](const Insn&) -> Handler { return pending_count; });
}

}  // namespace emulator
