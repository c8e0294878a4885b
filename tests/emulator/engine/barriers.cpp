// Named barriers, cluster barriers, setmaxnreg and programmatic dependent launch.

#include "machine.h"

namespace emulator {
namespace {

// What barrier.red hands to every lane: a count, or a predicate.
void write_reduction(Warp& warp, const NamedBarrier& barrier) {
  const Insn& insn = *warp.barrier_insn;
  switch (insn.args[1]) {
    case 1:
      for (int l = 0; l < kLanes; ++l) warp.set(insn.ops.back(), l, barrier.true_lanes);
      break;
    case 2:
      warp.set_pred(insn.ops.back(), kFullMask,
                    barrier.true_lanes == barrier.voting_lanes ? kFullMask : 0);
      break;
    case 3:
      warp.set_pred(insn.ops.back(), kFullMask, barrier.true_lanes != 0 ? kFullMask : 0);
      break;
    default:
      break;
  }
}

// args: [0] 1 waits, 0 only arrives; [1] reduction: 0 none, 1 popc, 2 and, 3 or; [2] 1 if a thread
// count is given. ops: id[, thread count][, predicate, result].
Step named_barrier(Machine& machine, Warp& warp, const Insn& insn, u32 mask) {
  Cta& cta = *warp.cta;
  const int lane = first_lane(mask);
  const u64 id = warp.value(insn.ops[0], lane);
  const u32 all = static_cast<u32>(cta.warps.size()) * kLanes;
  const u64 count = insn.args[2] != 0 ? warp.value(insn.ops[1], lane) : all;
  if (id >= cta.barriers.size()) {
    machine.fault(&warp, "DIVERGENCE",
                  format("barrier id %llu, expected 0 to 15", static_cast<unsigned long long>(id)));
  }
  if (count == 0 || count % kLanes != 0 || count > all) {
    machine.fault(
        &warp, "DIVERGENCE",
        format("barrier %llu: thread count %llu, expected a multiple of 32 up to %u",
               static_cast<unsigned long long>(id), static_cast<unsigned long long>(count), all));
  }
  NamedBarrier& barrier = cta.barriers[id];
  if (barrier.arrived != 0 && barrier.expected != count) {
    machine.fault(&warp, "DIVERGENCE",
                  format("barrier %llu: this warp says %llu threads, an earlier one said %u",
                         static_cast<unsigned long long>(id),
                         static_cast<unsigned long long>(count), barrier.expected));
  }
  barrier.expected = static_cast<u32>(count);
  barrier.know.join(warp.know);
  warp.sync_lanes(kFullMask);
  barrier.arrived += kLanes;
  if (insn.args[1] != 0) {
    const u32 votes = warp.pred(insn.ops[insn.ops.size() - 2]) & mask;
    barrier.true_lanes += static_cast<u32>(__builtin_popcount(votes));
    barrier.voting_lanes += static_cast<u32>(__builtin_popcount(mask));
  }
  ++machine.progress;
  if (insn.args[0] != 0) {
    barrier.waiting.push_back(&warp);
    warp.state = WarpState::kAtBarrier;
    warp.waits_on = static_cast<u32>(id);
    warp.barrier_insn = &insn;
  }
  if (barrier.arrived == barrier.expected) {
    for (Warp* waiting : barrier.waiting) {
      waiting->know.join(barrier.know);
      waiting->sync_lanes(kFullMask);
      write_reduction(*waiting, barrier);
      waiting->state = WarpState::kRunnable;
    }
    barrier = NamedBarrier{};
    barrier.know = Knowledge(cta.cluster->id);
  }
  return Step::kYield;
}

bool complete_cluster(Cluster& cluster) {
  for (const auto& cta : cluster.ctas) {
    for (const auto& warp : cta->warps) {
      // Warps that have exited count as arrived, as on the hardware.
      if (warp->state != WarpState::kDone && !warp->cluster_arrived) return false;
    }
  }
  ++cluster.phase;
  cluster.arrived = 0;
  cluster.done = cluster.arriving;
  for (const auto& cta : cluster.ctas) {
    for (const auto& warp : cta->warps) {
      warp->cluster_arrived = false;
      if (warp->state == WarpState::kAtClusterBarrier) warp->state = WarpState::kRunnable;
    }
  }
  return true;
}

// args[0]: 1 for .relaxed, which publishes only what a fence has made visible before.
Step cluster_arrive(Machine& machine, Warp& warp, const Insn& insn, u32) {
  Cluster& cluster = *warp.cta->cluster;
  if (warp.cluster_arrived) {
    machine.fault(&warp, "DIVERGENCE", "barrier.cluster.arrive twice without a wait");
  }
  warp.cluster_arrived = true;
  warp.cluster_phase = cluster.phase + 1;
  if (insn.args[0] == 0) {
    cluster.arriving.join(warp.know);
  } else {
    Knowledge published(cluster.id);
    published.seen.join(warp.know.fenced);
    published.fenced.join(warp.know.fenced);
    published.async.join(warp.know.async);
    // That the CTA runs is known from its arrival alone.
    published.seen.raise(warp.who(kWarpAgent), 1);
    cluster.arriving.join(published);
  }
  warp.sync_lanes(kFullMask);
  ++machine.progress;
  ++cluster.arrived;
  complete_cluster(cluster);
  return Step::kNext;
}

Step cluster_wait(Machine& machine, Warp& warp, const Insn&, u32) {
  Cluster& cluster = *warp.cta->cluster;
  if (warp.cluster_phase == 0) {
    machine.fault(&warp, "DIVERGENCE", "barrier.cluster.wait without an arrive");
  }
  if (cluster.phase < warp.cluster_phase && !complete_cluster(cluster)) {
    warp.state = WarpState::kAtClusterBarrier;
    return Step::kBlocked;
  }
  warp.cluster_phase = 0;
  warp.know.join(cluster.done);
  warp.sync_lanes(kFullMask);
  return Step::kYield;
}

constexpr u32 kLeastRegisters = 24;
constexpr u32 kMostRegisters = 256;
constexpr u32 kPatience = 20000;  // tries

// args: [0] 1 inc, 0 dec; [1] count. The pool is what the CTA's warps leave of the register file;
// how many registers a thread starts with follows from the launch bounds, as ptxas allots them.
Step setmaxnreg(Machine& machine, Warp& warp, const Insn& insn, u32) {
  const u32 count = static_cast<u32>(insn.args[1]);
  const bool inc = insn.args[0] != 0;
  if (count < kLeastRegisters || count > kMostRegisters || count % 8 != 0) {
    machine.fault(&warp, "SETMAXNREG",
                  format("count %u, expected a multiple of 8 in [24, 256]", count));
  }
  if (inc ? count < warp.num_registers : count > warp.num_registers) {
    machine.report(
        &warp, "SETMAXNREG", 0,
        format("%s to %u by a warp that holds %u", inc ? "inc" : "dec", count, warp.num_registers));
    return Step::kNext;
  }
  Cta& cta = *warp.cta;
  const s64 change = (static_cast<s64>(count) - warp.num_registers) * kLanes;
  if (change > cta.free_registers) {
    // Another warp may still give registers back; this one waits, but not for ever.
    if (++warp.blocked_tries < kPatience) return Step::kBlocked;
    machine.fault(
        &warp, "SETMAXNREG",
        format("inc to %u needs %lld registers of the pool, which never has more than "
               "%lld",
               count, static_cast<long long>(change), static_cast<long long>(cta.free_registers)));
  }
  warp.blocked_tries = 0;
  cta.free_registers -= change;
  warp.num_registers = count;
  ++machine.progress;
  return Step::kNext;
}

// From here on the launches before this one have finished and their writes are visible. Whatever
// touches their data earlier is reported as PDL, because without this wait they may still run.
Step dependency_wait(Machine&, Warp& warp, const Insn&, u32) {
  const u32 predecessor = warp.cta->cluster->id << kComponentBits | kPredecessor;
  warp.know.seen.raise(predecessor, 1);
  warp.know.async.raise(predecessor, 1);
  return Step::kNext;
}

Step launch_dependents(Machine&, Warp&, const Insn&, u32) { return Step::kNext; }

}  // namespace

void wake_cluster_barrier(Cluster& cluster) {
  if (cluster.arrived != 0) complete_cluster(cluster);
}

void register_barriers(Registry& r) {
  const auto aligned = Convergence::kAligned;
  r.add("bar", [](const Insn&) -> Handler { return named_barrier; }, aligned);
  r.add("cluster_arrive", [](const Insn&) -> Handler { return cluster_arrive; }, aligned);
  r.add("cluster_wait", [](const Insn&) -> Handler { return cluster_wait; }, aligned);
  r.add("setmaxnreg", [](const Insn&) -> Handler { return setmaxnreg; }, aligned);
  r.add("dependency_wait", [](const Insn&) -> Handler { return dependency_wait; });
  r.add("launch_dependents", [](const Insn&) -> Handler { return launch_dependents; });
}

}  // namespace emulator
