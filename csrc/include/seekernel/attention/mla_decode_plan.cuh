// The plan of a decode step: which CTA attends from which rows to which keys, and who merges what.
//
// An item is up to rows_per_item query rows (row = token * h_q + head) of one request: its cost is
// the number of its blocks of 64 keys plus what an item costs by itself. A part is a run of items,
// its ends may lie inside one. An item that parts cut is split: each piece leaves a partial result,
// mla_combine merges them in ascending order of keys.
//   balanced: parts of equal cost, cut between any two blocks: the pieces depend on the batch;
//   split_blocks > 0: items are cut every split_blocks blocks, whatever the batch: a row's bits
//     depend on its own keys alone.
#pragma once

#include <seekernel/ptx/barrier.cuh>
#include <seekernel/ptx/types.cuh>

namespace seekernel {

constexpr int kMlaBlockKeys = 64;

// One row of the tensor `parts`: from (item, block) up to, not with, (end_item, end_block).
struct mla_part_t {
  int32_t item, block, end_item, end_block;
  int32_t piece;         // of `item`: pieces that earlier parts hold
  int32_t split_blocks;  // 0: balanced
  int32_t unused[2];
};

// One row of the tensor `items`, from row 1 on.
struct mla_item_t {
  int32_t request;
  int32_t row;            // first query row: token * h_q + head
  int32_t num_rows;       // at most rows_per_item
  int32_t seq_len;        // keys of the request
  int32_t first_bound;    // a causal query of token t sees keys below t + first_bound
  int32_t first_partial;  // row of its first partial result; its pieces lie num_rows apart
  int32_t num_splits;     // 0: whole
  int32_t split_item;     // not of this item: the item that is the index-th of those split
};

// Row 0 of the tensor `items`.
struct mla_plan_size_t {
  int32_t num_items, num_split_items, unused[6];
};

static_assert(sizeof(mla_part_t) == 32 && sizeof(mla_item_t) == 32, "rows of 8 int32");

// A piece of an item that one CTA computes: blocks [begin, end); partial: the row where its partial
// result begins, negative where it is the whole item.
struct mla_unit_t {
  mla_item_t item;
  int32_t begin, end, partial;
};

// Walks the units of a part.
struct mla_work_t {
  SEEKERNEL_DEVICE mla_work_t(const mla_part_t* parts, const mla_item_t* items, int part)
      : part_(parts[part]), items_(items + 1), item_(part_.item), block_(part_.block) {}

  SEEKERNEL_DEVICE bool next(mla_unit_t& unit) {
    if (item_ > part_.end_item || (item_ == part_.end_item && block_ >= part_.end_block)) {
      return false;
    }
    unit.item = items_[item_];
    const int num_blocks = ceil_div(unit.item.seq_len, kMlaBlockKeys);
    unit.begin = block_;
    unit.end = item_ == part_.end_item ? part_.end_block : num_blocks;
    if (part_.split_blocks > 0) unit.end = min(unit.end, block_ + part_.split_blocks);
    unit.partial = -1;
    if (unit.item.num_splits > 0) {
      const int piece =
          part_.split_blocks > 0 ? block_ / part_.split_blocks : (block_ > 0 ? part_.piece : 0);
      unit.partial = unit.item.first_partial + piece * unit.item.num_rows;
    }
    block_ = unit.end;
    if (block_ >= num_blocks) {
      ++item_;
      block_ = 0;
    }
    return true;
  }

 private:
  mla_part_t part_;
  const mla_item_t* items_;
  int item_, block_;
};

}  // namespace seekernel
