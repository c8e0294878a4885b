// The emulator's own 128-byte tensor map, and the walk over the rows of a box.
#pragma once

#include "machine.h"

namespace emulator {

inline constexpr u32 kTensorMapMagic = 0x50414d54;
inline constexpr u32 kTensorMapBytes = 128;
inline constexpr int kMaxRank = 5;

// Packed by the Python side (tensor_map.py), which has checked what the driver would check.
struct TensorMap {
  u32 magic;
  u8 rank;
  u8 element;  // index into kElementTypes
  u8 swizzle;  // log2(span / 16): 0 none, 1 32B, 2 64B, 3 128B
  u8 nan_fill;
  u64 address;
  u64 strides[kMaxRank];  // bytes; [0] is the element size
  u32 dims[kMaxRank];     // minus one: 2^32 is legal
  u16 box[kMaxRank];
  u8 element_strides[kMaxRank];
};
static_assert(sizeof(TensorMap) <= kTensorMapBytes);

inline constexpr Type kElementTypes[] = {Type::k_u8,  Type::k_u16, Type::k_u32, Type::k_s32,
                                         Type::k_u64, Type::k_s64, Type::k_f16, Type::k_f32,
                                         Type::k_f64, Type::k_bf16};

// Swizzling exchanges 16-byte chunks by the row's place in its 8-row group: address bits 4.. are
// xored with bits 7.. of the same shared address, so it follows the address and not the tile.
inline u32 swizzle_address(u32 address, u32 mode) {
  const u32 chunk_mask = mode == 3 ? 0x70u : mode == 2 ? 0x30u : mode == 1 ? 0x10u : 0u;
  return address ^ (address >> 3 & chunk_mask);
}

struct Tile {
  TensorMap map;
  std::array<s32, kMaxRank> origin{};

  u32 element_bytes() const { return type_bytes(kElementTypes[map.element]); }
  // The innermost dimension is dense whatever its element stride says, as in the driver.
  u32 extent(int d) const {
    const u32 step = d == 0 ? 1 : map.element_strides[d];
    return (map.box[d] + step - 1) / step;
  }
  u32 row_bytes() const { return map.box[0] * element_bytes(); }
  u32 num_rows() const {
    u32 rows = 1;
    for (int d = 1; d < map.rank; ++d) rows *= extent(d);
    return rows;
  }
  // What the mbarrier counts: the box alone.
  u32 num_bytes() const { return row_bytes() * num_rows(); }
  // Rows shorter than the swizzle span still lie a whole span apart, the gaps untouched.
  u32 row_pitch() const { return map.swizzle == 0 ? row_bytes() : 16u << map.swizzle; }
  u32 footprint() const { return row_pitch() * num_rows(); }

  // Calls f(row, address, first, count): elements [first, first + count) of the row lie inside the
  // tensor, the first of them at global `address`; count is 0 where the whole row is outside.
  template <class F>
  void for_each_row(F f) const {
    const s64 width = s64{map.dims[0]} + 1;
    const s64 x = origin[0];
    const s64 begin = std::max<s64>(0, -x);
    const s64 end = std::min<s64>(map.box[0], width - x);
    const u32 rows = num_rows();
    for (u32 row = 0; row < rows; ++row) {
      u64 address = map.address;
      bool inside = end > begin;
      u32 rest = row;
      for (int d = 1; d < map.rank; ++d) {
        const s64 c = s64{origin[d]} + s64{rest % extent(d)} * map.element_strides[d];
        rest /= extent(d);
        inside &= c >= 0 && c <= s64{map.dims[d]};
        address += static_cast<u64>(c) * map.strides[d];
      }
      if (!inside) {
        f(row, u64{0}, 0u, 0u);
      } else {
        f(row, address + static_cast<u64>(x + begin) * element_bytes(), static_cast<u32>(begin),
          static_cast<u32>(end - begin));
      }
    }
  }
};

// Reads and checks the map at a generic or parameter address; faults with TENSORMAP.
TensorMap read_tensor_map(Machine& machine, Warp& warp, u64 address);
// Checks the shared side of a tile copy.
void check_tile_target(Machine& machine, Warp& warp, const Tile& tile, u32 offset);

}  // namespace emulator
