// Which tile of a GEMM a CTA computes next: one walk for dense, batched and grouped problems.
//
//   tile_walker_t<kKind, kRows> walker(source, num_n_blocks, first, stride);
//   for (tile_t tile; walker.next(tile);) ...
//
// kRows is the rows of a tile; 0 takes them from source.block_rows at run time.
//
// Called by whole warps, converged; every warp of a CTA that walks on its own sees the same tiles,
// so nothing is passed on through memory. A CTA takes tiles first, first + stride, ...: give
// blockIdx.x and gridDim.x, or a cluster's index and their number where a cluster of CTAs shares a
// tile. The order depends on nothing but the source: results never depend on timing. All of
// source's device memory is read here, never before the constructor: call griddepcontrol_wait first
// unless the kind is dense or batched, which read none.
//
// Kinds, and what `tile_source_t` holds for each (unused members are zero):
//   dense       m rows; one matrix B.
//   batched     num_groups products of m rows; A and D [g, m, .], B [g, n, k].
//   offsets     groups: int32 or int64 offsets [num_groups + 1] (offset_bytes 4 or 8), ascending:
//               group i is rows offsets[i] .. offsets[i + 1] of A and D, starting at any row.
//               Nothing is padded; scales are addressed by the same rows. offsets[0] may be > 0.
//   contiguous  groups: int32 m_indices [m], the group of each row, or -1: not computed. A group
//               starts at a multiple of kRows; what follows it up to the next one is -1.
//   masked      groups: int32 masked_m [num_groups]; A and D [g, m, .], of which group i uses the
//               first masked_m[i] rows.
//   tile_map    groups: the tile map below, num_tiles: how many of its rows count.
//
// The tile map, made by the routing plan instead of scanning here, is int32 [>= num_tiles, 4], 16
// byte aligned, a row per tile of the rows of A:
//     {group, row0, rows, 0}
//   group: index of B, 0 .. num_groups - 1;
//   row0:  first row of A, D and of the scales (rows of different tiles do not overlap);
//   rows:  how many, 1 .. kRows of the kernel that reads the map: a plan made for blocks of 64 rows
//          serves every kernel whose tile has at least 64, such as both the 64- and the 128-row
//          one;
//   the last word is reserved and 0.
// A group's tiles stand together, groups in ascending order; a group without rows has none.
// num_tiles is one int32 in device memory, at most the number of rows allocated, which
//     ceil_div(total_rows, block_rows) + min(num_groups, total_rows)
// always suffices for.
//
// Raster: tiles that run at the same time should share operands in L2. Within a group (or matrix)
// the row blocks are cut into bands of `band` (8 or 16); the walk goes through a band column block
// by column block, all row blocks of the band for each. With band_n the axes change places. A tile
// map is one matrix of num_tiles row blocks in this respect.
#pragma once

#include <seekernel/ptx/types.cuh>
#include <seekernel/scheduler/tile_source.cuh>

namespace seekernel {

struct tile_t {
  int row;      // first row, in the matrix `batch` of A and D
  int rows;     // valid rows, 1 .. kRows
  int n_block;  // 0 .. num_n_blocks - 1
  int batch;    // batched and masked: which matrix of A and D; else 0
  int group;    // which matrix of B
};

namespace tiles_detail {

struct cell_t {
  int m_block, n_block;
};

// The `index`-th cell of a raster of num_m x num_n blocks, see above.
SEEKERNEL_DEVICE cell_t raster(int index, int num_m, int num_n, int band, bool band_n) {
  const int across = band_n ? num_n : num_m, along = band_n ? num_m : num_n;
  const int first = index / (band * along) * band;
  const int width = min(band, across - first);
  const int inside = index - first * along;
  const int step = inside / width, offset = first + inside - step * width;
  return band_n ? cell_t{step, offset} : cell_t{offset, step};
}

}  // namespace tiles_detail

template <int kKind, int kRows>
struct tile_walker_t {
  static constexpr bool kScans = kKind == tile_kind::offsets || kKind == tile_kind::masked;

  SEEKERNEL_DEVICE tile_walker_t(const tile_source_t& source, int num_n_blocks, int first,
                                 int stride)
      : source_(source), num_n_(num_n_blocks), index_(first), stride_(stride) {
    if constexpr (kScans) {
      prefetch(0);
      open_chunk();
    } else if constexpr (kKind == tile_kind::tile_map) {
      num_m_ = *source.num_tiles;
    } else {
      num_m_ = ceil_div(source.m, block_rows());
    }
  }

  // The next tile, or false once there is none.
  SEEKERNEL_DEVICE bool next(tile_t& tile) {
    if constexpr (kScans) {
      return next_scanned(tile);
    } else {
      const int per_batch = num_m_ * num_n_;
      const int num_batches = kKind == tile_kind::batched ? source_.num_groups : 1;
      for (; index_ < per_batch * num_batches; index_ += stride_) {
        const int batch = kKind == tile_kind::batched ? index_ / per_batch : 0;
        const auto cell = tiles_detail::raster(index_ - batch * per_batch, num_m_, num_n_,
                                               source_.band, source_.band_n != 0);
        if (!fill(tile, cell, batch)) continue;
        index_ += stride_;
        return true;
      }
      return false;
    }
  }

 private:
  SEEKERNEL_DEVICE int block_rows() const { return kRows != 0 ? kRows : source_.block_rows; }

  SEEKERNEL_DEVICE bool fill(tile_t& tile, tiles_detail::cell_t cell, int batch) const {
    tile.n_block = cell.n_block;
    tile.batch = batch;
    if constexpr (kKind == tile_kind::tile_map) {
      const int4 entry = static_cast<const int4*>(source_.groups)[cell.m_block];
      tile.group = entry.x;
      tile.row = entry.y;
      tile.rows = entry.z;
      return true;
    } else {
      tile.row = cell.m_block * block_rows();
      tile.rows = min(block_rows(), source_.m - tile.row);
      tile.group = batch;
      if constexpr (kKind == tile_kind::contiguous) {
        const int* ids = static_cast<const int*>(source_.groups) + tile.row;
        tile.group = ids[0];
        if (tile.group < 0) return false;
        // The rows of the group are the first ones of the tile.
        int rows = 0;
        for (int i = threadIdx.x % 32; i < tile.rows; i += 32) rows += ids[i] == tile.group;
        tile.rows = __reduce_add_sync(0xffffffffu, rows);
      }
      return true;
    }
  }

  // offsets and masked: lane i of the warp looks after group chunk + i of the 32 at hand. Tiles are
  // counted group by group, which the walk never goes back on.
  SEEKERNEL_DEVICE void prefetch(int chunk) {
    const int group = chunk + static_cast<int>(threadIdx.x % 32);
    next_row_ = next_rows_ = 0;
    if (group >= source_.num_groups) return;
    if constexpr (kKind == tile_kind::masked) {
      next_rows_ = static_cast<const int*>(source_.groups)[group];
    } else if (source_.offset_bytes == 8) {
      const int64_t* offsets = static_cast<const int64_t*>(source_.groups) + group;
      next_row_ = static_cast<int>(offsets[0]);
      next_rows_ = static_cast<int>(offsets[1]) - next_row_;
    } else {
      const int* offsets = static_cast<const int*>(source_.groups) + group;
      next_row_ = offsets[0];
      next_rows_ = offsets[1] - next_row_;
    }
  }

  // Takes over what was prefetched for chunk_ and asks for the groups behind it.
  SEEKERNEL_DEVICE void open_chunk() {
    row_ = next_row_;
    rows_ = next_rows_;
    const int lane = threadIdx.x % 32;
    int sum = ceil_div(rows_, block_rows()) * num_n_;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const int other = __shfl_up_sync(0xffffffffu, sum, step);
      if (lane >= step) sum += other;
    }
    last_ = end_ + sum;
    end_ = __shfl_sync(0xffffffffu, last_, 31);
    if (chunk_ + 32 < source_.num_groups) prefetch(chunk_ + 32);
  }

  SEEKERNEL_DEVICE bool next_scanned(tile_t& tile) {
    while (index_ >= end_) {
      chunk_ += 32;
      if (chunk_ >= source_.num_groups) return false;
      open_chunk();
    }
    const int owner = __ffs(__ballot_sync(0xffffffffu, index_ < last_)) - 1;
    const int row = __shfl_sync(0xffffffffu, row_, owner);
    const int rows = __shfl_sync(0xffffffffu, rows_, owner);
    const int num_m = ceil_div(rows, block_rows());
    const int begin = __shfl_sync(0xffffffffu, last_, owner) - num_m * num_n_;
    const auto cell =
        tiles_detail::raster(index_ - begin, num_m, num_n_, source_.band, source_.band_n != 0);
    tile.group = chunk_ + owner;
    tile.batch = kKind == tile_kind::masked ? tile.group : 0;
    tile.row = row + cell.m_block * block_rows();
    tile.rows = min(block_rows(), rows - cell.m_block * block_rows());
    tile.n_block = cell.n_block;
    index_ += stride_;
    return true;
  }

  const tile_source_t& source_;
  int num_n_, index_, stride_;
  int num_m_ = 0;
  int chunk_ = 0, end_ = 0;            // the 32 groups from chunk_ on have tiles up to end_
  int row_ = 0, rows_ = 0, last_ = 0;  // of this lane's group: its tiles end before last_
  int next_row_ = 0, next_rows_ = 0;
};

}  // namespace seekernel
