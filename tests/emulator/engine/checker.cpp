// The happens-before judgement, reports, and the checked access to shared and global memory.

#include "machine.h"

namespace emulator {

void Machine::report(Warp* warp, const char* category, u32 other_pc, const std::string& text) {
  if (!options.checks) return;
  std::string where;
  u32 pc = 0;
  if (warp != nullptr) {
    pc = warp->last_pc;
    where = format(" [CTA %u,%u,%u warp %u at %s]", warp->cta->x, warp->cta->y, warp->cta->z,
                   warp->index, program->location(pc).c_str());
  }
  if (!reports.add(category, pc, other_pc, text + where)) throw Fault();
}

void Machine::fault(Warp* warp, const char* category, const std::string& text) {
  const bool checks = options.checks;
  options.checks = true;  // a launch that cannot go on must say why, checker or not
  report(warp, category, 0, text);
  options.checks = checks;
  throw Fault();
}

bool Machine::ordered(const Access& access, const Actor& actor) const {
  if (access.grid != grid_number()) {
    return access.grid < floor_grid_ || actor.know->seen.knows_predecessor();
  }
  if (access.who == actor.who) {
    if (access.async) {
      // Copies of one mbarrier phase, or operations of one group, are unordered among themselves.
      return access.value != actor.value || !actor.async;
    }
    // Two lanes that store the same word in one instruction: one of them wins, as CUDA says.
    if (access.pc == actor.pc && access.value == actor.value) return true;
    if (access.lane == actor.lane && access.lane != kAnyLane) return true;
    // ldmatrix, then stmatrix over the same rows: both wait for all lanes, so the reads are issued
    // before the writes. CUTLASS epilogues rely on it. The other direction needs bar.warp.sync.
    if (access.read && access.lane == kAnyLane && actor.lane == kAnyLane) return true;
    const Warp& warp = *actor.warp;
    // Collective instructions (ldmatrix, stmatrix) and broadcast reads stand for every lane.
    const u32 lanes_from = actor.lane == kAnyLane ? 0 : actor.lane;
    const u32 lanes_to = actor.lane == kAnyLane ? kLanes : actor.lane + 1;
    for (u32 a = lanes_from; a < lanes_to; ++a) {
      if (access.lane != kAnyLane) {
        if (a != access.lane && access.value >= warp.synced[a][access.lane]) return false;
        continue;
      }
      for (u32 b = 0; b < kLanes; ++b) {
        if (a != b && has_lane(warp.started, static_cast<int>(b)) &&
            has_lane(warp.started, static_cast<int>(a)) && access.value >= warp.synced[a][b]) {
          return false;
        }
      }
    }
    return true;
  }
  return actor.know->seen.get(access.who) >= access.value;
}

void Warp::sync_lanes(u32 mask) {
  tick();
  std::array<u32, kLanes> known{};
  for (int a = 0; a < kLanes; ++a) {
    if (!has_lane(mask, a)) continue;
    for (int b = 0; b < kLanes; ++b) known[b] = std::max(known[b], synced[a][b]);
  }
  for (int b = 0; b < kLanes; ++b) {
    if (has_lane(mask, b)) known[b] = now;
  }
  for (int a = 0; a < kLanes; ++a) {
    if (has_lane(mask, a)) synced[a] = known;
  }
}

void Machine::note_remote(const Actor& actor, Cta& target) {
  if (!options.checks || actor.warp->cta == &target) return;
  Access& last = target.remote_accesses[actor.who];
  last.value = actor.value;
  last.who = actor.who;
  last.pc = actor.pc;
}

Actor Machine::actor(Warp& warp, u32 lane, bool strong) const {
  return Actor{&warp, &warp.know, warp.who(kWarpAgent), warp.now, warp.last_pc, lane,
               false, strong};
}

Machine::SharedTarget Machine::shared_target(Warp& warp, u32 address, u32 num_bytes,
                                             const char* what) {
  const u32 rank = address >> kRankShift;
  const u32 offset = address & kSharedOffsetMask;
  Cta* cta = warp.cta;
  if (rank != 0) {
    const auto& ctas = warp.cta->cluster->ctas;
    if (rank > ctas.size()) {
      fault(&warp, "BOUNDS",
            format("%s: shared address 0x%x names CTA rank %u of a cluster of %zu", what, address,
                   rank - 1, ctas.size()));
    }
    cta = ctas[rank - 1].get();
    bool started = cta == warp.cta;
    for (const auto& other : cta->warps) {
      started |= warp.know.seen.get(other->who(kWarpAgent)) != 0;
    }
    if (!started) {
      report(&warp, "RACE", 0,
             format("%s: CTA rank %u of the cluster may not have started: no cluster barrier yet",
                    what, rank - 1));
    }
    if (cta->warps_done == cta->warps.size()) {
      fault(&warp, "RACE",
            format("%s: the shared memory of CTA rank %u is used after that CTA has exited", what,
                   rank - 1));
    }
  }
  if (offset < kSharedStart || offset + static_cast<u64>(num_bytes) > cta->shared.size()) {
    fault(&warp, "BOUNDS",
          format("%s: shared address 0x%x + %u bytes is outside the CTA's [0x%x, 0x%zx)", what,
                 offset, num_bytes, kSharedStart, cta->shared.size()));
  }
  return {cta, offset};
}

Space Machine::resolve(Warp& warp, Space space, u64& address) {
  if (space == Space::kConst) return Space::kGlobal;
  if (space != Space::kGeneric) return space;
  const u64 window = address >> kWindowBits << kWindowBits;
  if (window == kGlobalBase) return Space::kGlobal;
  if (window == kSharedBase) {
    address -= kSharedBase;
    return Space::kShared;
  }
  if (window == kLocalBase) {
    address -= kLocalBase;
    return Space::kLocal;
  }
  if (window == kParamBase) {
    address -= kParamBase;
    return Space::kParam;
  }
  fault(&warp, "BOUNDS",
        format("generic address 0x%llx is in no address space",
               static_cast<unsigned long long>(address)));
}

u8* Machine::access_shared(Warp& warp, SharedTarget where, u32 num_bytes, bool write,
                           const Actor& actor, const char* what) {
  Cta& cta = *where.cta;
  note_remote(actor, cta);
  u8* state = cta.shared_state.data() + where.offset;
  if (write) {
    ++cta.shared_version;
    std::memset(state, kInitialised, num_bytes);
  } else if (options.checks) {
    for (u32 i = 0; i < num_bytes; ++i) {
      if (state[i] == kInitialised) continue;
      report(&warp, "UNINIT", 0,
             format("%s of shared 0x%x (CTA rank %u), which nothing has written", what,
                    where.offset + i, cta.rank));
      break;
    }
  }
  if (options.checks) {
    cta.shadow.touch(*this, where.offset, num_bytes, write, actor, "shared");
  }
  return cta.shared.data() + where.offset;
}

u8* Machine::access_global(Warp& warp, u64 address, u32 num_bytes, bool write, const Actor& actor,
                           const char* what, u32 alignment) {
  const auto shown = static_cast<unsigned long long>(address);
  if (!memory.contains(address, num_bytes)) {
    fault(&warp, "BOUNDS", format("%s: global address 0x%llx is in no allocation", what, shown));
  }
  if (address % alignment != 0) {
    fault(&warp, "MISALIGNED",
          format("%s: global address 0x%llx is not a multiple of %u", what, shown, alignment));
  }
  u8* state = memory.state(address);
  for (u32 i = 0; i < num_bytes; ++i) {
    if (state[i] == kInitialised) continue;
    if (state[i] == kUnallocated) {
      fault(&warp, "BOUNDS",
            format("%s: global address 0x%llx + %u: %s", what, shown, i,
                   memory.describe(address + i)));
    }
    if (!write) {
      report(&warp, "UNINIT", 0,
             format("%s of global 0x%llx, which nothing has written (%s)", what, shown + i,
                    memory.describe(address + i)));
      break;
    }
  }
  if (write) std::memset(state, kInitialised, num_bytes);
  if (options.checks) {
    global_shadow.touch(*this, address - kGlobalBase, num_bytes, write, actor, "global");
  }
  return memory.data(address);
}

u32 Machine::new_component(Cluster& cluster) {
  if (cluster.num_components >= kMaxComponents) {
    throw LoadError("cluster: expected at most 4096 warps, groups and mbarriers in all");
  }
  return cluster.id << kComponentBits | cluster.num_components++;
}

}  // namespace emulator
