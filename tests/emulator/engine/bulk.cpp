// One-dimensional bulk copies and reductions, st.async, bulk groups.

#include "bulk.h"

namespace emulator {

BulkActors bulk_actors(Machine& machine, Warp& warp, bool strong) {
  Actor read = machine.actor(warp);
  read.async = true;
  read.value = warp.bulk_groups + 1;
  Actor write = read;
  read.who = warp.who(kBulkReadAgent);
  write.who = warp.who(kBulkAgent);
  write.strong = strong;
  return {read, write};
}

bool repeats_earlier_lane(Warp& warp, const Insn& insn, u32 mask, int lane) {
  for (int earlier = 0; earlier < lane; ++earlier) {
    if (!has_lane(mask, earlier)) continue;
    bool same = true;
    for (const Operand& o : insn.ops) {
      same &= o.kind == OperandKind::kNone || warp.value(o, earlier) == warp.value(o, lane);
    }
    if (same) return true;
  }
  return false;
}

void reduce_elements(AtomicOp op, Type type, u8* to, const u8* from, u32 count) {
  const u32 element = type_bytes(type);
  for (u32 i = 0; i < count; ++i) {
    u64 old = 0, b = 0;
    std::memcpy(&old, to + i * element, element);
    std::memcpy(&b, from + i * element, element);
    const u64 next = apply_atomic(op, type, old, b, 0);
    std::memcpy(to + i * element, &next, element);
  }
}

void issue_load(Machine& machine, Warp& warp, const Insn& insn, int lane, const LoadParts& parts) {
  const Cluster& cluster = *warp.cta->cluster;
  const u32 destination = static_cast<u32>(warp.address(insn.ops[0], lane));
  const u32 signal = static_cast<u32>(warp.address(insn.ops[2], lane));
  const bool multicast = insn.ops[3].kind != OperandKind::kNone;
  std::vector<std::pair<u32, u32>> targets;
  if (multicast) {
    const u32 ranks = static_cast<u32>(warp.value(insn.ops[3], lane)) & 0xffffu;
    if (ranks == 0 || ranks >> cluster.ctas.size() != 0) {
      machine.fault(
          &warp, "BOUNDS",
          format("multicast mask 0x%x in a cluster of %zu CTAs", ranks, cluster.ctas.size()));
    }
    for (u32 rank = 0; rank < cluster.ctas.size(); ++rank) {
      if ((ranks >> rank & 1u) == 0) continue;
      const u32 prefix = (rank + 1) << kRankShift;
      targets.emplace_back(prefix | (destination & kSharedOffsetMask),
                           prefix | (signal & kSharedOffsetMask));
    }
  } else {
    targets.emplace_back(destination, signal);
  }
  bool first = true;
  for (const auto& [to, on] : targets) {
    const auto where = machine.shared_target(warp, to, parts.footprint, "bulk copy");
    const auto bell = machine.shared_target(warp, on, 8, "bulk copy");
    Mbarrier& barrier = machine.mbarrier_at(warp, bell, "bulk copy");
    machine.check_async_init(warp, barrier);
    Actor actor = machine.actor(warp);
    actor.async = true;
    actor.who = barrier.who;
    actor.value = barrier.phase + 1;
    if (first) parts.touch_source(actor);
    first = false;
    auto move = parts.prepare(where);
    parts.touch_target(where, actor);
    const u32 num_bytes = parts.num_bytes;
    barrier.in_flight += num_bytes;
    AsyncOp work{AsyncKind::kLoad, &warp, 0, 0, nullptr};
    work.run = [move = std::move(move), bell, num_bytes](Machine& m) {
      move(m);
      m.mbarrier_complete_tx(*bell.cta->mbarriers.at(bell.offset), num_bytes);
    };
    machine.issue(std::move(work));
    machine.counters.tma_load_bytes += num_bytes;
  }
  ++machine.counters.tma_instructions;
}

namespace {

void check_bulk(Machine& machine, Warp& warp, u64 a, u64 b, u64 num_bytes) {
  if (num_bytes == 0 || num_bytes % 16 != 0 || a % 16 != 0 || b % 16 != 0) {
    machine.fault(&warp, "MISALIGNED",
                  format("bulk copy of %llu bytes: size and both addresses (0x%llx, 0x%llx) must "
                         "be multiples of 16",
                         static_cast<unsigned long long>(num_bytes),
                         static_cast<unsigned long long>(a), static_cast<unsigned long long>(b)));
  }
}

// Global or own shared memory to shared memory of the cluster.
// ops: destination, source, mbarrier, multicast mask or none, bytes.
// args: [0] source is shared, [1] reduces, [2] AtomicOp.
Step load(Machine& machine, Warp& warp, const Insn& insn, u32 mask) {
  const bool from_shared = insn.args[0] != 0, reduce = insn.args[1] != 0;
  const auto op = static_cast<AtomicOp>(insn.args[2]);
  const Type type = insn.type;
  for (int l = 0; l < kLanes; ++l) {
    if (!has_lane(mask, l)) continue;
    const u64 size = warp.value(insn.ops[4], l);
    const u64 source = warp.address(insn.ops[1], l);
    check_bulk(machine, warp, warp.address(insn.ops[0], l), source, size);
    const u32 num_bytes = static_cast<u32>(size);
    Cta* own = warp.cta;
    const u32 from_offset = static_cast<u32>(source) & kSharedOffsetMask;
    LoadParts parts;
    parts.num_bytes = parts.footprint = num_bytes;
    parts.touch_source = [&](const Actor& actor) {
      if (from_shared) {
        const auto from = machine.shared_target(warp, from_offset, num_bytes, "bulk copy");
        machine.access_shared(warp, from, num_bytes, false, actor, "bulk copy");
      } else {
        machine.access_global(warp, source, num_bytes, false, actor, "bulk copy", 16);
      }
    };
    parts.touch_target = [&](const Machine::SharedTarget& where, const Actor& actor) {
      if (reduce) machine.access_shared(warp, where, num_bytes, false, actor, "bulk reduce");
      machine.access_shared(warp, where, num_bytes, true, actor, "bulk copy");
    };
    parts.prepare = [&](const Machine::SharedTarget& where) {
      return [=](Machine& m) {
        const u8* from = from_shared ? own->shared.data() + from_offset : m.memory.data(source);
        u8* to = where.cta->shared.data() + where.offset;
        if (reduce) {
          reduce_elements(op, type, to, from, num_bytes / type_bytes(type));
        } else {
          std::memcpy(to, from, num_bytes);
        }
        ++where.cta->shared_version;
      };
    };
    issue_load(machine, warp, insn, l, parts);
  }
  return Step::kNext;
}

// Shared to global memory. ops: destination, source, bytes. args: [0] reduces, [1] AtomicOp.
Step store(Machine& machine, Warp& warp, const Insn& insn, u32 mask) {
  const bool reduce = insn.args[0] != 0;
  const auto op = static_cast<AtomicOp>(insn.args[1]);
  const Type type = insn.type;
  for (int l = 0; l < kLanes; ++l) {
    if (!has_lane(mask, l)) continue;
    if (!reduce && repeats_earlier_lane(warp, insn, mask, l)) continue;
    const u64 destination = warp.address(insn.ops[0], l);
    const u64 size = warp.value(insn.ops[2], l);
    check_bulk(machine, warp, destination, warp.address(insn.ops[1], l), size);
    const u32 num_bytes = static_cast<u32>(size);
    const auto where = machine.shared_target(warp, static_cast<u32>(warp.address(insn.ops[1], l)),
                                             num_bytes, "bulk store");
    const BulkActors actors = bulk_actors(machine, warp, reduce);
    machine.access_shared(warp, where, num_bytes, false, actors.read, "bulk store");
    if (reduce) {
      machine.access_global(warp, destination, num_bytes, false, actors.write, "bulk reduce", 16);
    }
    machine.access_global(warp, destination, num_bytes, true, actors.write, "bulk store", 16);
    AsyncOp work{AsyncKind::kBulkStore, &warp, warp.bulk_groups, 0, nullptr};
    work.run = [=](Machine& m) {
      const u8* from = where.cta->shared.data() + where.offset;
      u8* to = m.memory.data(destination);
      if (reduce) {
        reduce_elements(op, type, to, from, num_bytes / type_bytes(type));
      } else {
        std::memcpy(to, from, num_bytes);
      }
    };
    machine.issue(std::move(work));
    machine.counters.tma_store_bytes += num_bytes;
    ++machine.counters.tma_instructions;
  }
  return Step::kNext;
}

Step commit(Machine&, Warp& warp, const Insn&, u32) {
  ++warp.bulk_groups;
  return Step::kNext;
}

// args: [0] groups that may stay pending, [1] 1 for .read: only the sources must be free again.
Step wait(Machine& machine, Warp& warp, const Insn& insn, u32) {
  const u32 keep = static_cast<u32>(insn.args[0]);
  if (warp.bulk_groups <= keep) return Step::kNext;
  const u32 reached = warp.bulk_groups - keep;
  machine.flush(warp, AsyncKind::kBulkStore, reached);
  warp.know.seen.raise(warp.who(kBulkReadAgent), reached);
  if (insn.args[1] == 0) {
    warp.know.seen.raise(warp.who(kBulkAgent), reached);
    warp.know.async.raise(warp.who(kBulkAgent), reached);
  }
  warp.tick();
  return Step::kNext;
}

// st.async: a store into the cluster that completes on an mbarrier beside its target.
// ops: address, values, mbarrier. args[0]: vector elements.
Step store_async(Machine& machine, Warp& warp, const Insn& insn, u32 mask) {
  const u32 num = static_cast<u32>(insn.args[0]);
  const u32 element = type_bytes(insn.type);
  for (int l = 0; l < kLanes; ++l) {
    if (!has_lane(mask, l)) continue;
    const u32 span = num * element;
    const auto where = machine.shared_target(warp, static_cast<u32>(warp.address(insn.ops[0], l)),
                                             span, "st.async");
    const auto bell = machine.shared_target(
        warp, static_cast<u32>(warp.address(insn.ops[1 + num], l)), 8, "st.async");
    if (where.offset % span != 0) {
      machine.fault(&warp, "MISALIGNED", format("st.async: shared address 0x%x", where.offset));
    }
    Mbarrier& barrier = machine.mbarrier_at(warp, bell, "st.async");
    machine.check_async_init(warp, barrier);
    Actor actor = machine.actor(warp, static_cast<u32>(l));
    actor.async = true;
    actor.who = barrier.who;
    actor.value = barrier.phase + 1;
    machine.access_shared(warp, where, span, true, actor, "st.async");
    std::array<u8, 16> value{};
    for (u32 k = 0; k < num; ++k) {
      const u64 v = warp.value(insn.ops[1 + k], l);
      std::memcpy(value.data() + k * element, &v, element);
    }
    barrier.in_flight += span;
    AsyncOp work{AsyncKind::kLoad, &warp, 0, 0, nullptr};
    work.run = [where, bell, span, value](Machine& m) {
      std::memcpy(where.cta->shared.data() + where.offset, value.data(), span);
      ++where.cta->shared_version;
      m.mbarrier_complete_tx(*bell.cta->mbarriers.at(bell.offset), span);
    };
    machine.issue(std::move(work));
  }
  return Step::kNext;
}

}  // namespace

void register_bulk(Registry& r) {
  r.add("bulk_load", [](const Insn&) -> Handler { return load; });
  r.add("bulk_store", [](const Insn&) -> Handler { return store; });
  r.add("bulk_commit", [](const Insn&) -> Handler { return commit; });
  r.add("bulk_wait", [](const Insn&) -> Handler { return wait; });
  r.add("st_async", [](const Insn& i) -> Handler {
    return type_bytes(i.type) <= 8 && type_bytes(i.type) * i.args[0] <= 16 ? store_async : nullptr;
  });
}

}  // namespace emulator
