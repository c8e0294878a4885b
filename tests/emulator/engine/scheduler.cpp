// Who runs next: clusters are admitted, warps take turns, the splits of a warp take turns.

#include <algorithm>

#include "machine.h"

namespace emulator {
namespace {

constexpr u32 kIdleRounds = 32;

const char* state_text(WarpState state) {
  switch (state) {
    case WarpState::kRunnable:
      return "runnable";
    case WarpState::kAtBarrier:
      return "waits at a named barrier";
    case WarpState::kAtMbarrier:
      return "waits on an mbarrier";
    case WarpState::kAtClusterBarrier:
      return "waits at barrier.cluster";
    case WarpState::kAtWgmma:
      return "waits for its warpgroup's wgmma commits";
    case WarpState::kDone:
      return "has exited";
  }
  return "";
}

}  // namespace

void Machine::run() {
  const u32 ctas_per_cluster = shape.cluster[0] * shape.cluster[1] * shape.cluster[2];
  const std::size_t limit = std::max(1u, options.resident_ctas / ctas_per_cluster);
  std::vector<Warp*> runnable;
  u32 idle_rounds = 0;
  u64 progress_seen = 0;
  u64 last_progress = 0, instructions_then = 0;
  for (;;) {
    ++turn_;
    if (!queue_.empty()) run_due();
    if (cluster_finished_) {
      cluster_finished_ = false;
      retire_clusters();
    }
    if (clusters_.empty() && next_cluster_ == num_clusters_) return;
    runnable.clear();
    for (Warp* warp : warps_) {
      if (warp->state == WarpState::kRunnable) runnable.push_back(warp);
    }
    // CTAs start a few turns apart, whatever the others do: a grid that needs all of its CTAs
    // (counters, split-K, grid barriers) gets them, and a plain one stays small in the cache.
    const bool room = next_cluster_ < num_clusters_ && clusters_.size() < limit;
    if (room && (runnable.empty() || turn_ % 32 == 0)) {
      admit_cluster(next_cluster_++);
      continue;
    }
    if (runnable.empty()) {
      if (run_oldest()) continue;
      // try_wait may give up for no reason, so code that polls two barriers in turn, or peeks and
      // goes on, must get another chance; only rounds in which nothing moves are a deadlock.
      idle_rounds = progress == progress_seen ? idle_rounds + 1 : 0;
      progress_seen = progress;
      if (idle_rounds > kIdleRounds || !wake_all_pollers()) report_deadlock();
      continue;
    }
    const bool random_order = options.order == Order::kRandom;
    Warp& warp =
        *runnable[random_order ? random() % runnable.size() : ++round_robin_ % runnable.size()];
    run_warp(warp, random_order ? 1 + random() % options.burst : options.burst);
    if (progress != last_progress) {
      last_progress = progress;
      instructions_then = counters.warp_instructions;
    }
    if (counters.warp_instructions > options.max_instructions ||
        counters.warp_instructions - instructions_then > options.max_idle_instructions) {
      fault(
          &warp, "LIVELOCK",
          format("the launch is not done after %llu warp instructions, %llu of them since the last "
                 "store, arrival or copy; this warp was running",
                 static_cast<unsigned long long>(counters.warp_instructions),
                 static_cast<unsigned long long>(counters.warp_instructions - instructions_then)));
    }
  }
}

bool Machine::pick_split(Warp& warp) {
  auto& splits = warp.splits;
  // Splits that meet at one place of one call run together again.
  for (std::size_t a = 0; a < splits.size(); ++a) {
    for (std::size_t b = a + 1; b < splits.size();) {
      if (splits[a].pc == splits[b].pc && splits[a].stack == splits[b].stack) {
        splits[a].mask |= splits[b].mask;
        splits[a].wait = SplitWait::kNone;
        splits.erase(splits.begin() + static_cast<std::ptrdiff_t>(b));
      } else {
        ++b;
      }
    }
  }
  // The lowest program counter first, which lets the others catch up; now and then another one,
  // because lanes make progress independently of each other.
  const std::size_t none = splits.size();
  std::size_t pick = none;
  for (std::size_t i = 0; i < splits.size(); ++i) {
    if (splits[i].wait != SplitWait::kNone) continue;
    if (pick == none || splits[i].pc < splits[pick].pc) pick = i;
  }
  if (pick != none && splits.size() > 1 && random() % 8 == 0) {
    const std::size_t other = random() % splits.size();
    if (splits[other].wait == SplitWait::kNone) pick = other;
  }
  if (pick != none) {
    warp.current = pick;
    return true;
  }
  // All wait. Splits that poll an mbarrier put the warp to sleep until one of them may go on.
  bool polls = false;
  for (Split& split : splits) {
    if (split.wait != SplitWait::kPoll) continue;
    polls = true;
    if ((split.polled->phase & 1u) != split.parity) {
      split.wait = SplitWait::kNone;
      return pick_split(warp);
    }
  }
  if (polls) {
    warp.state = WarpState::kAtMbarrier;
    return false;
  }
  std::string parts;
  for (const Split& split : splits) {
    parts += format("; lanes %08x at %s", split.mask, program->location(split.pc).c_str());
  }
  warp.last_pc = splits[0].pc;
  fault(&warp, "DIVERGENCE", "the lanes of a warp wait for each other at different places" + parts);
}

bool Machine::ready_to_converge(Warp& warp, const Insn& insn, u32 mask) {
  u32 wanted = warp.alive;
  if (insn.convergence == Convergence::kMemberMask) {
    const Operand& members = insn.ops.back();
    wanted = static_cast<u32>(warp.value(members, first_lane(mask)));
    for (int lane = 0; lane < kLanes; ++lane) {
      if (has_lane(mask, lane) && static_cast<u32>(warp.value(members, lane)) != wanted) {
        // Two groups with masks of their own may meet at one instruction: run them one by one.
        wanted = 0;
        break;
      }
    }
    if (wanted == 0) return true;
    wanted &= warp.alive;
    if ((mask & ~wanted) != 0) {
      fault(&warp, "DIVERGENCE",
            format("lanes %08x execute %s with member mask %08x, which leaves them out", mask,
                   insn.text.c_str(), wanted));
    }
  }
  if ((mask & wanted) == wanted) return true;
  if (warp.splits.size() > 1) {
    warp.splits[warp.current].wait = SplitWait::kConverge;
    return false;
  }
  fault(&warp, "DIVERGENCE",
        format("%s needs lanes %08x but only %08x arrive", insn.opcode.c_str(), wanted, mask));
}

void Machine::run_warp(Warp& warp, u32 budget) {
  const Insn* insns = program->insns.data();
  while (budget-- != 0) {
    if (warp.splits.size() > 1) {
      if (!pick_split(warp)) return;
    } else if (warp.splits[0].wait == SplitWait::kPoll) {
      const Split& split = warp.splits[0];
      if (split.polled->live && (split.polled->phase & 1u) == split.parity) {
        warp.state = WarpState::kAtMbarrier;
        return;
      }
      warp.splits[0].wait = SplitWait::kNone;
      warp.current = 0;
    } else {
      warp.current = 0;
    }
    Split& split = warp.splits[warp.current];
    const Insn& insn = insns[split.pc];
    u32 mask = split.mask;
    if (insn.predicated) mask &= insn.pred_negated ? ~warp.preds[insn.pred] : warp.preds[insn.pred];
    warp.last_pc = split.pc;
    ++counters.warp_instructions;
    counters.thread_instructions += static_cast<u64>(__builtin_popcount(mask));
    if (mask == 0) {
      ++split.pc;
      continue;
    }
    if (insn.convergence != Convergence::kNone && !ready_to_converge(warp, insn, mask)) continue;
    if (insn.checks_definedness || insn.tracks_definedness || insn.touches_wgmma_registers) {
      check_registers(warp, insn, mask);
    }
    const Step step = insn.handler(*this, warp, insn, mask);
    if (step == Step::kJumped) {
      if (warp.splits.empty()) {
        finish_warp(warp);
        return;
      }
      continue;
    }
    if (step == Step::kBlocked) return;
    ++warp.splits[warp.current].pc;
    if (step == Step::kYield) return;
  }
}

void Machine::finish_warp(Warp& warp) {
  warp.state = WarpState::kDone;
  Cta& cta = *warp.cta;
  ++cta.warps_done;
  ++progress;
  cluster_finished_ |= --cta.cluster->warps_left == 0;
  if (warp.num_in_flight != 0) {
    report(&warp, "WGMMA", 0, "the warp exits while a wgmma is in flight");
  }
  cta.at_exit.join(warp.know.seen);
  wake_cluster_barrier(*cta.cluster);
  if (cta.warps_done != cta.warps.size()) return;
  for (const auto& [who, access] : cta.remote_accesses) {
    if (cta.at_exit.get(who) >= access.value) continue;
    report(&warp, "RACE", access.pc,
           format("the CTA may exit before another one's access to its shared memory at %s",
                  program->location(access.pc).c_str()));
  }
}

void Machine::check_registers(Warp& warp, const Insn& insn, u32 mask) {
  if (insn.touches_wgmma_registers) {
    for (std::size_t i = 0; i < insn.ops.size(); ++i) {
      const Operand& o = insn.ops[i];
      if (o.bank != 0 || (o.kind != OperandKind::kReg32 && o.kind != OperandKind::kReg64)) continue;
      const u32 word = o.offset / kLanes;
      const bool writes = i < insn.num_dests;
      // A register A operand may still be read while in flight, an accumulator may not.
      const u16 in_flight = warp.wgmma_in_flight[word];
      if (in_flight != 0 && (writes || in_flight >= 0x100)) {
        report(&warp, "WGMMA", 0,
               format("register %s while a wgmma still uses it: no wgmma.wait_group in between",
                      writes ? "written" : "read"));
        warp.wgmma_in_flight[word] = 0;
      }
      if (writes) warp.wgmma_dirty[word] = 1;
    }
  }
  if (!program->tracks_definedness) return;
  const bool copies = insn.opcode == "mov" || insn.opcode == "pack" || insn.opcode == "unpack";
  u32 undefined = 0;
  if (insn.checks_definedness) {
    for (std::size_t i = insn.num_dests; i < insn.ops.size(); ++i) {
      const Operand& o = insn.ops[i];
      if (o.bank != 0 || (o.kind != OperandKind::kReg32 && o.kind != OperandKind::kReg64)) continue;
      undefined |= ~warp.defined[o.offset / kLanes] & mask;
    }
    // A copy moves the mark along; wgmma with scale-d false ignores its accumulator.
    if (undefined != 0 && !copies && insn.opcode != "wgmma") {
      report(&warp, "UNINIT", 0,
             format("lanes %08x read a register that this path never wrote: %s", undefined,
                    insn.text.c_str()));
    }
  }
  if (!insn.tracks_definedness) return;
  for (std::size_t i = 0; i < insn.num_dests && i < insn.ops.size(); ++i) {
    const Operand& o = insn.ops[i];
    if (o.bank != 0 || (o.kind != OperandKind::kReg32 && o.kind != OperandKind::kReg64)) continue;
    u32& defined = warp.defined[o.offset / kLanes];
    defined = copies ? (defined & ~mask) | (mask & ~undefined) : defined | mask;
  }
}

void Machine::wake_pollers() {
  for (Warp* warp : warps_) {
    if (warp->state != WarpState::kAtMbarrier) continue;
    for (Split& split : warp->splits) {
      if (split.wait != SplitWait::kPoll) continue;
      if (!split.polled->live || (split.polled->phase & 1u) != split.parity) {
        split.wait = SplitWait::kNone;
        warp->state = WarpState::kRunnable;
      }
    }
  }
}

bool Machine::wake_all_pollers() {
  bool any = false;
  for (Warp* warp : warps_) {
    if (warp->state != WarpState::kAtMbarrier) continue;
    any = true;
    warp->state = WarpState::kRunnable;
    for (Split& split : warp->splits) {
      if (split.wait == SplitWait::kPoll) split.wait = SplitWait::kNone;
    }
  }
  return any;
}

void Machine::report_deadlock() {
  std::string text =
      "no warp can run and no asynchronous work is left; every warp that has not exited:";
  int shown = 0;
  for (Warp* warp : warps_) {
    if (warp->state == WarpState::kDone || ++shown > 24) continue;
    const Cta& cta = *warp->cta;
    text += format("\n    CTA %u,%u,%u warp %u %s", cta.x, cta.y, cta.z, warp->index,
                   state_text(warp->state));
    for (const Split& split : warp->splits) {
      // A warp that sleeps has its counter behind the instruction it sleeps in.
      const bool slept = warp->state == WarpState::kAtBarrier ||
                         (warp->state == WarpState::kAtMbarrier && warp->splits.size() == 1);
      text += format(" at %s", program->location(slept ? warp->last_pc : split.pc).c_str());
      if (split.polled == nullptr || warp->state != WarpState::kAtMbarrier) continue;
      const Mbarrier& b = *split.polled;
      text += format(
          " (mbarrier 0x%x, waits for parity %u; it is in phase %u with %u of %u arrivals and %lld "
          "bytes pending, last used at %s)",
          b.address, split.parity, b.phase, b.pending, b.count, static_cast<long long>(b.tx),
          program->location(b.last_pc).c_str());
    }
    if (warp->state == WarpState::kAtBarrier) {
      const NamedBarrier& b = cta.barriers[warp->waits_on];
      text +=
          format(" (barrier %u, %u of %u threads arrived)", warp->waits_on, b.arrived, b.expected);
    }
    if (warp->state == WarpState::kAtClusterBarrier) {
      text += format(" (%u warps of the cluster arrived)", cta.cluster->arrived);
    }
  }
  fault(nullptr, "DEADLOCK", text);
}

}  // namespace emulator
