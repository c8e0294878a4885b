// ldmatrix, stmatrix and movmatrix: 8x8 tiles of 16-bit elements across a warp.

#include "machine.h"

namespace emulator {
namespace {

constexpr u32 kRowBytes = 16;

// Lane l holds elements (row l / 4, columns 2 (l % 4) and the next) of each tile.
struct Place {
  int row, column;
};
Place place(int lane, int half, bool transposed) {
  const Place p{lane / 4, lane % 4 * 2 + half};
  return transposed ? Place{p.column, p.row} : p;
}

// args: [0] tiles, [1] transposed. ldmatrix ops: tiles, address. stmatrix ops: tiles, address.
template <bool kStore>
Step move_tiles(Machine& machine, Warp& warp, const Insn& insn, u32) {
  const int num = static_cast<int>(insn.args[0]);
  const bool transposed = insn.args[1] != 0;
  const char* what = kStore ? "stmatrix" : "ldmatrix";
  const Operand& where = insn.ops[num];
  std::array<u8*, kLanes> rows{};
  std::array<u32, kLanes> offsets{};
  // Lane 8 t + r gives the address of row r of tile t.
  for (int l = 0; l < num * 8; ++l) {
    u64 address = warp.address(where, l);
    if (machine.resolve(warp, Space::kShared, address) != Space::kShared) continue;
    const auto target = machine.shared_target(warp, static_cast<u32>(address), kRowBytes, what);
    if (target.offset % kRowBytes != 0) {
      machine.fault(&warp, "MISALIGNED",
                    format("%s: row address 0x%x is not a multiple of 16", what, target.offset));
    }
    rows[l] = machine.access_shared(warp, target, kRowBytes, kStore, machine.actor(warp), what);
    offsets[l] = target.offset;
  }
  for (int t = 0; t < num; ++t) {
    u32 banks = 0;  // the eight 16-byte bank groups
    for (int r = 0; r < 8; ++r) {
      const u32 bank = 1u << (offsets[t * 8 + r] / kRowBytes % 8);
      machine.counters.shared_bank_conflicts += (banks & bank) != 0;
      banks |= bank;
    }
  }
  ++machine.counters.shared_accesses;
  for (int t = 0; t < num; ++t) {
    u32* registers = warp.reg<u32>(insn.ops[t]);
    for (int l = 0; l < kLanes; ++l) {
      u32 v = kStore ? registers[l] : 0;
      for (int half = 0; half < 2; ++half) {
        const Place p = place(l, half, transposed);
        u8* element = rows[t * 8 + p.row] + p.column * 2;
        u16 h = static_cast<u16>(v >> 16 * half);
        if (kStore) {
          std::memcpy(element, &h, 2);
        } else {
          std::memcpy(&h, element, 2);
          v |= static_cast<u32>(h) << 16 * half;
        }
      }
      if (!kStore) registers[l] = v;
    }
  }
  if (kStore) ++machine.progress;
  return Step::kNext;
}

// movmatrix.trans. ops: d, a.
Step transpose(Machine&, Warp& warp, const Insn& insn, u32) {
  std::array<u32, kLanes> from{};
  std::memcpy(from.data(), warp.reg<u32>(insn.ops[1]), sizeof from);
  for (int l = 0; l < kLanes; ++l) {
    u32 v = 0;
    for (int half = 0; half < 2; ++half) {
      const Place p = place(l, half, true);
      const u32 source = from[static_cast<std::size_t>(p.row * 4 + p.column / 2)];
      v |= (source >> 16 * (p.column % 2) & 0xffffu) << 16 * half;
    }
    warp.reg<u32>(insn.ops[0])[l] = v;
  }
  return Step::kNext;
}

}  // namespace

void register_matrix(Registry& r) {
  const auto aligned = Convergence::kAligned;
  r.add("ldmatrix", [](const Insn&) -> Handler { return move_tiles<false>; }, aligned);
  r.add("stmatrix", [](const Insn&) -> Handler { return move_tiles<true>; }, aligned);
  r.add("movmatrix", [](const Insn&) -> Handler { return transpose; }, aligned);
}

}  // namespace emulator
