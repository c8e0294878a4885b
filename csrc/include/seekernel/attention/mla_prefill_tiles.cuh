// Which work a CTA of a ragged prefill takes: tiles of 128 queries of one head of one sequence.
//
// Tiles are numbered by sections of heads (small enough that their keys stay in L2), then by query
// block with the last, longest ones of a sequence first, then by head. CTA c takes tile c of every
// even round of gridDim.x tiles and its mirror image in odd rounds: long and short ones alternate.
// Which CTA computes a tile changes nothing in its result. Nothing is read on the host.
#pragma once

#include <seekernel/ptx/types.cuh>

namespace seekernel {

// The part of the launch's arguments that says what the tiles are.
struct mla_prefill_shape_t {
  const int32_t* cu_seqlens_q;   // [b + 1]
  const int32_t* cu_seqlens_kv;  // [b + 1]
  int32_t b, h, heads_per_section, causal;
};

struct mla_prefill_tile_t {
  int32_t head;
  int32_t q_begin;  // rows of q, kv: of the sequence's first
  int32_t kv_begin;
  int32_t s_q, s_kv;
  int32_t query;     // the tile's first, in the sequence
  int32_t offset;    // query i sees keys [0, i + offset), and all of them unless causal
  int32_t num_keys;  // that any query of the tile sees
};

constexpr int kMlaPrefillRows = 128;

// Sums over the lanes below this one, its own included.
SEEKERNEL_DEVICE int warp_inclusive_sum(int value) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const int below = __shfl_up_sync(0xFFFFFFFFu, value, step);
    if (lane >= step) value += below;
  }
  return value;
}

// The tiles of one CTA, one after the other; every warp that calls it does so converged.
class mla_prefill_work_t {
 public:
  SEEKERNEL_DEVICE explicit mla_prefill_work_t(const mla_prefill_shape_t& shape) : shape_(shape) {
    for (int first = 0; first < shape.b; first += 32) {
      num_blocks_ += __shfl_sync(0xFFFFFFFFu, warp_inclusive_sum(blocks_of(first)), 31);
    }
  }

  // False when there is no tile left.
  SEEKERNEL_DEVICE bool next(mla_prefill_tile_t& tile) {
    const int64_t in_round = round_ % 2 == 0 ? blockIdx.x : gridDim.x - 1 - blockIdx.x;
    const int64_t index = round_ * gridDim.x + in_round;
    // A mirrored round may end before this CTA's tile, but then it is the last one.
    if (index >= static_cast<int64_t>(num_blocks_) * shape_.h) return false;
    ++round_;
    const int64_t per_section = static_cast<int64_t>(num_blocks_) * shape_.heads_per_section;
    const int section = static_cast<int>(index / per_section);
    const int first_head = section * shape_.heads_per_section;
    const int heads = min(shape_.heads_per_section, shape_.h - first_head);
    const int rest = static_cast<int>(index % per_section);
    tile.head = first_head + rest % heads;
    locate(rest / heads, tile);
    return true;
  }

 private:
  // Query blocks of the sequence that this lane looks at.
  SEEKERNEL_DEVICE int blocks_of(int first) const {
    const int i = first + threadIdx.x % 32;
    return i < shape_.b
               ? ceil_div(shape_.cu_seqlens_q[i + 1] - shape_.cu_seqlens_q[i], kMlaPrefillRows)
               : 0;
  }

  SEEKERNEL_DEVICE void locate(int block, mla_prefill_tile_t& tile) const {
    int first = 0, before = 0, sums = 0, below = 0;
    for (;; first += 32) {
      sums = warp_inclusive_sum(blocks_of(first));
      const int total = __shfl_sync(0xFFFFFFFFu, sums, 31);
      if (block < before + total) break;
      before += total;
    }
    const unsigned passed = __ballot_sync(0xFFFFFFFFu, before + sums <= block);
    const int lane = __popc(passed);  // sums ascend: the first lane beyond the block
    below = lane == 0 ? 0 : __shfl_sync(0xFFFFFFFFu, sums, lane - 1);
    const int sequence = first + lane;
    tile.q_begin = shape_.cu_seqlens_q[sequence];
    tile.kv_begin = shape_.cu_seqlens_kv[sequence];
    tile.s_q = shape_.cu_seqlens_q[sequence + 1] - tile.q_begin;
    tile.s_kv = shape_.cu_seqlens_kv[sequence + 1] - tile.kv_begin;
    const int last = ceil_div(tile.s_q, kMlaPrefillRows) - 1;
    tile.query = (last - (block - before - below)) * kMlaPrefillRows;
    tile.offset = tile.s_kv - tile.s_q + 1;
    const int end = min(tile.query + kMlaPrefillRows, tile.s_q) - 1 + tile.offset;
    tile.num_keys = shape_.causal ? max(0, end) : tile.s_kv;
  }

  const mla_prefill_shape_t& shape_;
  int num_blocks_ = 0;
  int64_t round_ = 0;
};

}  // namespace seekernel
