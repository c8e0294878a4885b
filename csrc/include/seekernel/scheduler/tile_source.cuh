// What tiles.cuh walks over, as a kernel parameter. Plain C++ for host and device, includes
// nothing.
#pragma once

namespace seekernel {

namespace tile_kind {
constexpr int dense = 0, batched = 1, offsets = 2, contiguous = 3, masked = 4, tile_map = 5;
}  // namespace tile_kind

// What the kinds keep in it: tiles.cuh. Members that a kind does not use are zero.
struct tile_source_t {
  const void* groups;
  const int* num_tiles;
  int m;  // rows: of the matrix, of a batch, of m_indices, of a masked group's memory
  int num_groups;
  int offset_bytes;  // 4 or 8
  int band;          // at least 1
  int band_n;        // 0, or 1: bands of column blocks
  int block_rows;    // rows of a tile where the walker's kRows is 0
};
static_assert(sizeof(tile_source_t) == 40, "the same on host and device");

}  // namespace seekernel
