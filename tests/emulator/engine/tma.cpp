// TMA tile copies: load (with multicast), store, reduce, prefetch, and bulk-group waits.
//
// At issue the shared and global ranges are judged and recorded for the asynchronous agent: a load
// writes as "phase n of its mbarrier", a store reads and writes as "bulk group n of its warp".
// The bytes move when the schedule says so.

#include "bulk.h"
#include "tensor_map.h"

namespace emulator {

TensorMap read_tensor_map(Machine& machine, Warp& warp, u64 address) {
  const Space space = machine.resolve(warp, Space::kGeneric, address);
  if (address % 64 != 0) {
    machine.fault(
        &warp, "TENSORMAP",
        format("address 0x%llx is not a multiple of 64", static_cast<unsigned long long>(address)));
  }
  const u8* from = nullptr;
  if (space == Space::kParam) {
    if (address + kTensorMapBytes > machine.params.size()) {
      machine.fault(&warp, "TENSORMAP", "the map reaches past the kernel parameters");
    }
    from = machine.params.data() + address;
  } else if (space == Space::kGlobal) {
    from = machine.access_global(warp, address, kTensorMapBytes, false, machine.actor(warp),
                                 "tensor map", 64);
  } else {
    machine.fault(&warp, "TENSORMAP", "a tensor map must lie in parameter or global memory");
  }
  TensorMap map;
  std::memcpy(&map, from, sizeof map);
  if (map.magic != kTensorMapMagic || map.rank < 1 || map.rank > kMaxRank ||
      map.element >= std::size(kElementTypes)) {
    machine.fault(&warp, "TENSORMAP", "the operand does not point to a tensor map");
  }
  return map;
}

void check_tile_target(Machine& machine, Warp& warp, const Tile& tile, u32 offset) {
  if (offset % 128 != 0) {
    machine.fault(&warp, "MISALIGNED",
                  format("TMA: shared address 0x%x is not a multiple of 128", offset));
  }
  const u32 span = tile.map.swizzle == 0 ? ~0u : 16u << tile.map.swizzle;
  if (tile.row_bytes() > span) {
    machine.fault(
        &warp, "TENSORMAP",
        format("box rows of %u bytes exceed the swizzle span of %u", tile.row_bytes(), span));
  }
}

namespace {

Tile make_tile(Machine& machine, Warp& warp, const Insn& insn, int lane, std::size_t map_op,
               std::size_t first_coordinate) {
  Tile tile;
  tile.map = read_tensor_map(machine, warp, warp.value(insn.ops[map_op], lane));
  const int rank = static_cast<int>(insn.args[0]);
  if (rank != tile.map.rank) {
    machine.fault(&warp, "TENSORMAP",
                  format("a %dd instruction with a %d-dimensional map", rank, tile.map.rank));
  }
  for (int d = 0; d < rank; ++d) {
    tile.origin[d] = static_cast<s32>(warp.value(insn.ops[first_coordinate + d], lane));
  }
  // Hopper faults unless the innermost coordinate is a multiple of 16 bytes (seen on an H100).
  if (tile.origin[0] * static_cast<s64>(tile.element_bytes()) % 16 != 0) {
    machine.fault(&warp, "TENSORMAP",
                  format("innermost coordinate %d times %u bytes is not a multiple of 16",
                         tile.origin[0], tile.element_bytes()));
  }
  return tile;
}

// Stores clip at the tensor's end in chunks of 16 bytes, loads at the element.
u32 stored_elements(const Tile& tile, u32 first, u32 count) {
  const u32 chunk = 16 / tile.element_bytes();
  return std::min(tile.map.box[0] - first, (count + chunk - 1) / chunk * chunk);
}

void touch_shared(Machine& machine, Warp& warp, const Tile& tile,
                  const Machine::SharedTarget& where, bool write, const Actor& actor,
                  const char* what) {
  if (tile.row_pitch() == tile.row_bytes()) {
    machine.access_shared(warp, where, tile.num_bytes(), write, actor, what);
    return;
  }
  for (u32 row = 0; row < tile.num_rows(); ++row) {
    for (u32 x = 0; x < tile.row_bytes(); x += 16) {
      const u32 at = swizzle_address(where.offset + row * tile.row_pitch() + x, tile.map.swizzle);
      machine.access_shared(warp, {where.cta, at}, 16, write, actor, what);
    }
  }
}

void touch_global(Machine& machine, Warp& warp, const Tile& tile, bool write, const Actor& actor,
                  const char* what) {
  tile.for_each_row([&](u32, u64 address, u32 first, u32 count) {
    if (write && count != 0) count = stored_elements(tile, first, count);
    if (count != 0) {
      machine.access_global(warp, address, count * tile.element_bytes(), write, actor, what,
                            tile.element_bytes());
    }
  });
}

void fill_outside(u8* to, u32 num_bytes, const Tile& tile) {
  std::memset(to, 0, num_bytes);
  const Type type = kElementTypes[tile.map.element];
  if (!tile.map.nan_fill || !is_float(type)) return;
  // The chip fills every 16 bits with the same pattern, whatever the format.
  const u16 fill = 0x7ff7;
  for (u32 i = 0; i < num_bytes; i += 2) std::memcpy(to + i, &fill, 2);
}

void load_tile(Machine& machine, const Tile& tile, Cta& cta, u32 offset) {
  const u32 row_bytes = tile.row_bytes();
  const u32 element = tile.element_bytes();
  std::vector<u8> row_data(row_bytes);
  tile.for_each_row([&](u32 row, u64 address, u32 first, u32 count) {
    fill_outside(row_data.data(), row_bytes, tile);
    if (count != 0) {
      std::memcpy(row_data.data() + first * element, machine.memory.data(address), count * element);
    }
    for (u32 x = 0; x < row_bytes; x += 16) {
      const u32 to = swizzle_address(offset + row * tile.row_pitch() + x, tile.map.swizzle);
      std::memcpy(cta.shared.data() + to, row_data.data() + x, std::min(16u, row_bytes - x));
    }
  });
  ++cta.shared_version;
}

// Stores or reduces; `op` is ignored for plain stores.
void store_tile(Machine& machine, const Tile& tile, const Cta& cta, u32 offset, bool reduce,
                AtomicOp op) {
  const u32 row_bytes = tile.row_bytes();
  const u32 element = tile.element_bytes();
  const Type type = kElementTypes[tile.map.element];
  std::vector<u8> row_data(row_bytes);
  tile.for_each_row([&](u32 row, u64 address, u32 first, u32 count) {
    if (count == 0) return;
    count = stored_elements(tile, first, count);
    for (u32 x = 0; x < row_bytes; x += 16) {
      const u32 from = swizzle_address(offset + row * tile.row_pitch() + x, tile.map.swizzle);
      std::memcpy(row_data.data() + x, cta.shared.data() + from, std::min(16u, row_bytes - x));
    }
    u8* to = machine.memory.data(address);
    const u8* from = row_data.data() + first * element;
    if (!reduce) {
      std::memcpy(to, from, count * element);
      return;
    }
    reduce_elements(op, type, to, from, count);
  });
}

// ops: destination, map, mbarrier, multicast mask or none, coordinates. args[0]: rank.
Step load(Machine& machine, Warp& warp, const Insn& insn, u32 mask) {
  for (int l = 0; l < kLanes; ++l) {
    if (!has_lane(mask, l)) continue;
    const Tile tile = make_tile(machine, warp, insn, l, 1, 4);
    LoadParts parts;
    parts.num_bytes = tile.num_bytes();
    parts.footprint = tile.footprint();
    parts.touch_source = [&](const Actor& actor) {
      touch_global(machine, warp, tile, false, actor, "TMA load");
    };
    parts.touch_target = [&](const Machine::SharedTarget& where, const Actor& actor) {
      touch_shared(machine, warp, tile, where, true, actor, "TMA load");
    };
    parts.prepare = [&](const Machine::SharedTarget& where) {
      check_tile_target(machine, warp, tile, where.offset);
      return [tile, where](Machine& m) { load_tile(m, tile, *where.cta, where.offset); };
    };
    issue_load(machine, warp, insn, l, parts);
  }
  return Step::kNext;
}

// ops: map, source, coordinates. args: [0] rank, [1] reduces, [2] AtomicOp.
Step store(Machine& machine, Warp& warp, const Insn& insn, u32 mask) {
  const bool reduce = insn.args[1] != 0;
  const auto op = static_cast<AtomicOp>(insn.args[2]);
  for (int l = 0; l < kLanes; ++l) {
    if (!has_lane(mask, l)) continue;
    // CUTLASS lets a whole warp issue one and the same store. Repeating it changes nothing, so it
    // counts once; repeated reductions would add up and are not merged.
    if (!reduce && repeats_earlier_lane(warp, insn, mask, l)) continue;
    const Tile tile = make_tile(machine, warp, insn, l, 0, 2);
    for (int d = 0; d < tile.map.rank; ++d) {
      // Loads fill the outside; stores below zero fault on the chip, in any dimension.
      if (tile.origin[d] < 0) {
        machine.fault(&warp, "TENSORMAP",
                      format("store or reduction at coordinate %d of dimension "
                             "%d: negative ones are for loads only",
                             tile.origin[d], d));
      }
    }
    const u32 num_bytes = tile.num_bytes();
    const auto where = machine.shared_target(warp, static_cast<u32>(warp.address(insn.ops[1], l)),
                                             tile.footprint(), "TMA store");
    check_tile_target(machine, warp, tile, where.offset);
    const BulkActors actors = bulk_actors(machine, warp, reduce);
    touch_shared(machine, warp, tile, where, false, actors.read, "TMA store");
    touch_global(machine, warp, tile, true, actors.write, "TMA store");
    AsyncOp work{AsyncKind::kBulkStore, &warp, warp.bulk_groups, 0, nullptr};
    work.run = [tile, where, reduce, op](Machine& m) {
      store_tile(m, tile, *where.cta, where.offset, reduce, op);
    };
    machine.issue(std::move(work));
    machine.counters.tma_store_bytes += num_bytes;
    ++machine.counters.tma_instructions;
  }
  return Step::kNext;
}

// cp.async.bulk.prefetch.tensor: only the map is looked at. ops: map, coordinates.
Step prefetch(Machine& machine, Warp& warp, const Insn& insn, u32 mask) {
  make_tile(machine, warp, insn, first_lane(mask), 0, 1);
  return Step::kNext;
}

// prefetch.tensormap. ops: address.
Step prefetch_map(Machine& machine, Warp& warp, const Insn& insn, u32 mask) {
  const int lane = first_lane(mask);
  u64 address = warp.address(insn.ops[0], lane);
  if (insn.args[0] != 0) address += kParamBase;
  read_tensor_map(machine, warp, address);
  return Step::kNext;
}

}  // namespace

void register_tma(Registry& r) {
  r.add("tma_load", [](const Insn&) -> Handler { return load; });
  r.add("tma_store", [](const Insn&) -> Handler { return store; });
  r.add("tma_prefetch", [](const Insn&) -> Handler { return prefetch; });
  r.add("prefetch_tensormap", [](const Insn&) -> Handler { return prefetch_map; });
}

}  // namespace emulator
