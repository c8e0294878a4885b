// ld and st of every space and width, with the counters that addresses give for free.
//
// args: [0] space, [1] number of vector elements, [2] order (see Ordering).
// ld: ops are destinations then address. st: ops are values then address.

#include "access.h"

#include <algorithm>

namespace emulator {

void synchronise_location(Machine& machine, Warp& warp, u64 key, bool is_shared, bool reads,
                          bool writes, bool acquire, bool release) {
  if (!machine.options.checks) return;
  Cluster& cluster = *warp.cta->cluster;
  auto& table = is_shared ? cluster.locations : machine.global_locations;
  Knowledge& location = table.try_emplace(key, Knowledge(cluster.id)).first->second;
  if (reads) {
    warp.know.heard.join(location.seen);
    if (acquire) {
      warp.know.seen.join(location.seen);
      warp.know.async.join(location.async);
    }
  }
  if (writes) {
    location.seen.join(release ? warp.know.seen : warp.know.fenced);
    location.async.join(warp.know.async);
    if (release) warp.tick();
  }
}

u64 shared_key(const Machine::SharedTarget& where) {
  return static_cast<u64>(where.cta->rank) << 32 | where.offset;
}

namespace {

constexpr u32 kSectorBytes = 32;
constexpr u32 kBanks = 32;

// Conflicts of one access: extra cycles over the one per 128 bytes that cannot be avoided.
u32 bank_conflicts(const std::array<u32, kLanes>& offsets, u32 mask, u32 span) {
  const int group = span <= 4 ? 32 : span == 8 ? 16 : 8;
  u32 extra = 0;
  for (int start = 0; start < kLanes; start += group) {
    std::array<std::array<u32, 8>, kBanks> words;
    std::array<u32, kBanks> used{};
    u32 worst = 1;
    for (int l = start; l < start + group; ++l) {
      if (!has_lane(mask, l)) continue;
      for (u32 word = offsets[l] / 4; word <= (offsets[l] + span - 1) / 4; ++word) {
        const u32 bank = word % kBanks;
        const u32 known = std::min(used[bank], 8u);
        bool seen = false;
        for (u32 i = 0; i < known; ++i) seen |= words[bank][i] == word;
        if (seen) continue;
        if (used[bank] < 8) words[bank][used[bank]] = word;
        worst = std::max(worst, ++used[bank]);
      }
    }
    extra += worst - 1;
  }
  return extra;
}

void count_global(Machine& machine, const std::array<u64, kLanes>& addresses, u32 mask, u32 span,
                  bool write) {
  std::array<u64, kLanes> sectors;
  u32 num = 0, lanes = 0;
  for (int l = 0; l < kLanes; ++l) {
    if (!has_lane(mask, l)) continue;
    ++lanes;
    sectors[num++] = addresses[l] / kSectorBytes;
  }
  std::sort(sectors.begin(), sectors.begin() + num);
  const u32 distinct =
      static_cast<u32>(std::unique(sectors.begin(), sectors.begin() + num) - sectors.begin());
  const u32 least = (lanes * span + kSectorBytes - 1) / kSectorBytes;
  Counters& c = machine.counters;
  c.global_sectors += distinct;
  c.uncoalesced_accesses += distinct > 2 * least;
  (write ? c.global_store_bytes : c.global_load_bytes) += static_cast<u64>(lanes) * span;
}

void load_element(Warp& warp, const Operand& o, int lane, Type type, const u8* from) {
  u64 v = 0;
  std::memcpy(&v, from, type_bytes(type));
  if (type == Type::k_s8) v = static_cast<u64>(static_cast<s64>(static_cast<s8>(v)));
  if (type == Type::k_s16) v = static_cast<u64>(static_cast<s64>(static_cast<s16>(v)));
  if (type == Type::k_s32) v = static_cast<u64>(static_cast<s64>(static_cast<s32>(v)));
  warp.set(o, lane, v);
}

void check_mbarrier_word(Machine& machine, Warp& warp, const Machine::SharedTarget& where, u32 span,
                         const char* what) {
  const auto& barriers = where.cta->mbarriers;
  if (barriers.empty()) return;
  auto next = barriers.lower_bound(where.offset >= 7 ? where.offset - 7 : 0);
  if (next == barriers.end() || next->first >= where.offset + span || !next->second->live) return;
  machine.report(&warp, "MBARRIER", next->second->last_pc,
                 format("%s touches the live mbarrier at shared 0x%x", what, next->first));
}

u8* local_memory(Machine& machine, Warp& warp, u64 address, u32 span, int lane) {
  const u32 size = machine.program->local_bytes;
  if (address + span > size || address + span < span) {
    machine.fault(&warp, "BOUNDS",
                  format("local address 0x%llx + %u of %u bytes",
                         static_cast<unsigned long long>(address), span, size));
  }
  return warp.local.data() + static_cast<std::size_t>(lane) * size + address;
}

u8* param_memory(Machine& machine, Warp& warp, u64 address, u32 span, bool write) {
  if (write) machine.fault(&warp, "BOUNDS", "store to kernel parameters");
  if (address + span > machine.params.size() || address + span < span) {
    machine.fault(&warp, "BOUNDS",
                  format("parameter offset 0x%llx + %u of %zu bytes",
                         static_cast<unsigned long long>(address), span, machine.params.size()));
  }
  return machine.params.data() + address;
}

template <bool kStore>
Step access(Machine& machine, Warp& warp, const Insn& insn, u32 mask) {
  const auto space = static_cast<Space>(insn.args[0]);
  const u32 num = static_cast<u32>(insn.args[1]);
  const auto order = static_cast<Ordering>(insn.args[2]);
  const bool strong = order != Ordering::kWeak;
  const u32 element = type_bytes(insn.type);
  const u32 span = element * num;
  const Operand& where = insn.ops[num];
  const char* what = kStore ? "store" : "load";
  std::array<u64, kLanes> global{};
  std::array<u32, kLanes> shared{};
  u32 global_mask = 0, shared_mask = 0;
  for (int l = 0; l < kLanes; ++l) {
    if (!has_lane(mask, l)) continue;
    u64 address = warp.address(where, l);
    const Space actual = machine.resolve(warp, space, address);
    u8* memory = nullptr;
    const Actor actor = machine.actor(warp, static_cast<u32>(l), strong);
    if (actual == Space::kShared) {
      const auto target = machine.shared_target(warp, static_cast<u32>(address), span, what);
      if (target.offset % span != 0) {
        machine.fault(
            &warp, "MISALIGNED",
            format("%s: shared address 0x%x is not a multiple of %u", what, target.offset, span));
      }
      if (machine.options.checks) check_mbarrier_word(machine, warp, target, span, what);
      memory = machine.access_shared(warp, target, span, kStore, actor, what);
      shared[l] = target.offset;
      shared_mask |= 1u << l;
      if (strong) {
        synchronise_location(machine, warp, shared_key(target), true, !kStore, kStore,
                             order == Ordering::kAcquire, order == Ordering::kRelease);
      }
    } else if (actual == Space::kGlobal) {
      memory = machine.access_global(warp, address, span, kStore, actor, what, span);
      global[l] = address;
      global_mask |= 1u << l;
      if (strong) {
        synchronise_location(machine, warp, address, false, !kStore, kStore,
                             order == Ordering::kAcquire, order == Ordering::kRelease);
      }
    } else if (actual == Space::kLocal) {
      memory = local_memory(machine, warp, address, span, l);
    } else {
      memory = param_memory(machine, warp, address, span, kStore);
    }
    for (u32 k = 0; k < num; ++k) {
      if (kStore) {
        const u64 v = warp.value(insn.ops[k], l);
        std::memcpy(memory + k * element, &v, element);
      } else {
        load_element(warp, insn.ops[k], l, insn.type, memory + k * element);
      }
    }
  }
  if (kStore) ++machine.progress;
  if (global_mask != 0) count_global(machine, global, global_mask, span, kStore);
  if (shared_mask != 0) {
    ++machine.counters.shared_accesses;
    machine.counters.shared_bank_conflicts += bank_conflicts(shared, shared_mask, span);
  }
  // A strong load is how warps poll: let the one that is waited for run.
  return strong && !kStore ? Step::kYield : Step::kNext;
}

// Kernel parameters at a known offset, the same for all lanes. args as above, args[3]: the offset.
Step load_param(Machine& machine, Warp& warp, const Insn& insn, u32 mask) {
  const u32 num = static_cast<u32>(insn.args[1]);
  const u32 element = type_bytes(insn.type);
  const u8* memory =
      param_memory(machine, warp, static_cast<u64>(insn.args[3]), element * num, false);
  for (u32 k = 0; k < num; ++k) {
    for (int l = 0; l < kLanes; ++l) {
      if (has_lane(mask, l)) load_element(warp, insn.ops[k], l, insn.type, memory + k * element);
    }
  }
  return Step::kNext;
}

Handler check_width(const Insn& i, Handler handler) {
  if (i.args[1] < 1 || i.args[1] > 8) return nullptr;
  const u32 span = type_bytes(i.type) * static_cast<u32>(i.args[1]);
  return type_bytes(i.type) <= 8 && span <= 16 && (span & (span - 1)) == 0 ? handler : nullptr;
}

}  // namespace

void register_access(Registry& r) {
  r.add("ld", [](const Insn& i) { return check_width(i, access<false>); });
  r.add("st", [](const Insn& i) { return check_width(i, access<true>); });
  r.add("ld_param", [](const Insn& i) { return check_width(i, load_param); });
}

}  // namespace emulator
