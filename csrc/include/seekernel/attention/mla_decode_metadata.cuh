// The plan of a decode step (mla_decode_plan.cuh), from lengths that only the device knows.
//
// Inputs: seq_lens [b], cu_seqlens_q [b + 1] int32. Outputs: parts [num_parts], items [1 + s] rows.
// One CTA. Requests are scanned for the first item and the first unit of cost of each; part p
// begins
//   where the cost p / num_parts of the total is reached, found by binary search; a cut that would
//   leave a single block moves to the end of the item. Then one thread per part ranks the cuts, and
//   all threads write the items.
// Shared memory: 16 (b + 1) bytes, dynamic.
// Bound: latency, a few microseconds; once a step, not once a layer.
#pragma once

#include <seekernel/attention/mla_decode_plan.cuh>

namespace seekernel {

namespace mla_decode_metadata_detail {

// Inclusive sum over the CTA of whole warps; `scratch` holds 32 values and may be used again.
template <int kThreads>
SEEKERNEL_DEVICE int64_t block_scan(int64_t value, int64_t* scratch) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const int64_t other = __shfl_up_sync(0xFFFFFFFFu, value, step);
    if (lane >= step) value += other;
  }
  if (lane == 31) scratch[warp] = value;
  __syncthreads();
  for (int i = 0; i < warp; ++i) value += scratch[i];
  __syncthreads();
  return value;
}

// Index of the first of `count` ascending values that is greater than `key`.
template <typename T>
SEEKERNEL_DEVICE int upper_bound(const T* values, int count, T key) {
  int low = 0;
  while (count > 0) {
    const int half = count / 2;
    if (values[low + half] <= key) {
      low += half + 1;
      count -= half + 1;
    } else {
      count = half;
    }
  }
  return low;
}

struct request_t {
  SEEKERNEL_DEVICE request_t(const int32_t* seq_lens, const int32_t* cu_seqlens_q, int request,
                             int h_q, int rows_per_item, int item_blocks, int split_blocks) {
    length = max(0, seq_lens[request]);
    num_rows = (cu_seqlens_q[request + 1] - cu_seqlens_q[request]) * h_q;
    num_items = ceil_div(num_rows, rows_per_item);
    num_blocks = ceil_div(length, kMlaBlockKeys);
    num_pieces = split_blocks > 0 ? max(1, ceil_div(num_blocks, split_blocks)) : 1;
    item_cost = num_blocks + num_pieces * item_blocks;
  }
  int length, num_rows, num_items, num_blocks, num_pieces, item_cost;
};

}  // namespace mla_decode_metadata_detail

// item_blocks: what a unit costs besides its keys, in blocks. min_blocks: the least cost of a part.
template <int kThreads>
__global__ void __launch_bounds__(kThreads)
    mla_decode_metadata(const int32_t* seq_lens, const int32_t* cu_seqlens_q, int b, int h_q,
                        int rows_per_item, int num_parts, int item_blocks, int min_blocks,
                        int split_blocks, mla_part_t* parts, mla_item_t* items) {
  namespace detail = mla_decode_metadata_detail;
  extern __shared__ __align__(1024) uint8_t dynamic_smem[];
  __shared__ int64_t scratch[32];
  __shared__ int32_t begin_item[kThreads + 1], begin_block[kThreads + 1];  // of parts
  __shared__ int32_t cut_item[kThreads], cut_rank[kThreads];  // by cut: item, split items so far
  int64_t* first_cost = reinterpret_cast<int64_t*>(dynamic_smem);
  int32_t* first_item = reinterpret_cast<int32_t*>(first_cost + b + 1);
  int32_t* first_split_item = first_item + b + 1;  // fixed pieces only
  const int thread = threadIdx.x;

  ptx::griddepcontrol_wait();
  ptx::griddepcontrol_launch_dependents();

  // 1. Where each request's items and costs begin.
  int64_t base_cost = 0, base_items = 0;
  for (int base = 0; base < b; base += kThreads) {
    const int request = base + thread;
    int64_t cost = 0, counts = 0;  // counts: items, split items << 32
    if (request < b) {
      const detail::request_t r(seq_lens, cu_seqlens_q, request, h_q, rows_per_item, item_blocks,
                                split_blocks);
      cost = static_cast<int64_t>(r.num_items) * r.item_cost;
      counts = r.num_items + (r.num_pieces > 1 ? static_cast<int64_t>(r.num_items) << 32 : 0);
    }
    const int64_t cost_end = base_cost + detail::block_scan<kThreads>(cost, scratch);
    const int64_t counts_end = base_items + detail::block_scan<kThreads>(counts, scratch);
    if (request < b) {
      first_cost[request] = cost_end - cost;
      first_item[request] = static_cast<int32_t>(counts_end - counts);
      first_split_item[request] = static_cast<int32_t>((counts_end - counts) >> 32);
    }
    if (thread == kThreads - 1) {
      scratch[0] = cost_end;
      scratch[1] = counts_end;
    }
    __syncthreads();
    base_cost = scratch[0];
    base_items = scratch[1];
    __syncthreads();
  }
  const int num_items = static_cast<int32_t>(base_items);
  if (thread == 0) {
    first_cost[b] = base_cost;
    first_item[b] = num_items;
  }
  __syncthreads();

  // 2. Where each part begins.
  const int used_parts = static_cast<int>(
      min(static_cast<int64_t>(num_parts), max(int64_t{1}, base_cost / min_blocks)));
  if (thread <= num_parts) {
    int item = num_items, block = 0;
    const int64_t cost = thread < used_parts ? thread * base_cost / used_parts : base_cost;
    if (cost < base_cost) {
      const int request = detail::upper_bound(first_cost, b, cost) - 1;
      const detail::request_t r(seq_lens, cu_seqlens_q, request, h_q, rows_per_item, item_blocks,
                                split_blocks);
      const int64_t offset = cost - first_cost[request];
      item = first_item[request] + static_cast<int>(offset / r.item_cost);
      const int rest = static_cast<int>(offset % r.item_cost);
      if (split_blocks > 0) {
        block = ceil_div(rest, split_blocks + item_blocks) * split_blocks;
        if (block >= r.num_blocks && rest > 0) {
          ++item;
          block = 0;
        }
      } else {
        block = max(0, rest - item_blocks);
        if (block == 1) block = 0;
        if (block > 0 && block + 1 >= r.num_blocks) {
          ++item;
          block = 0;
        }
      }
    }
    begin_item[thread] = item;
    begin_block[thread] = block;
  }
  __syncthreads();

  // 3. Rank the cuts of balanced parts: begins inside an item, equal ones counted once.
  const int item = thread <= num_parts ? begin_item[thread] : 0;
  const int block = thread < num_parts ? begin_block[thread] : 0;
  const bool inside = block > 0 && split_blocks == 0;
  const bool same_item = thread > 0 && inside && begin_item[thread - 1] == item;
  const bool is_cut = inside && !(same_item && begin_block[thread - 1] == block);
  const bool is_first = is_cut && !(same_item && begin_block[thread - 1] > 0);
  const int64_t ranks =
      detail::block_scan<kThreads>((is_cut ? 1 : 0) + (is_first ? int64_t{1} << 32 : 0), scratch);
  const int cuts = static_cast<int32_t>(ranks), split_items = static_cast<int32_t>(ranks >> 32);
  if (is_cut) {
    cut_item[cuts - 1] = item;
    cut_rank[cuts - 1] = split_items;
  }
  if (thread == kThreads - 1) scratch[0] = ranks;
  __syncthreads();
  const int num_cuts = static_cast<int32_t>(scratch[0]);

  if (thread < num_parts) {
    parts[thread] = {.item = item,
                     .block = begin_block[thread],
                     .end_item = begin_item[thread + 1],
                     .end_block = begin_block[thread + 1],
                     .piece = inside ? cuts - detail::upper_bound(cut_item, num_cuts, item - 1) : 0,
                     .split_blocks = split_blocks,
                     .unused = {}};
  }

  // 4. The items, and who of them is split.
  const int num_split_items = split_blocks > 0 ? static_cast<int32_t>(base_items >> 32)
                                               : static_cast<int32_t>(scratch[0] >> 32);
  for (int i = thread; i < num_items; i += kThreads) {
    const int request = detail::upper_bound(first_item, b, i) - 1;
    const detail::request_t r(seq_lens, cu_seqlens_q, request, h_q, rows_per_item, item_blocks,
                              split_blocks);
    const int row = (i - first_item[request]) * rows_per_item;
    mla_item_t entry = {.request = request,
                        .row = cu_seqlens_q[request] * h_q + row,
                        .num_rows = min(rows_per_item, r.num_rows - row),
                        .seq_len = r.length,
                        .first_bound = r.length + 1 - cu_seqlens_q[request + 1],
                        .first_partial = 0,
                        .num_splits = 0,
                        .split_item = -1};
    if (split_blocks == 0) {
      const int before = detail::upper_bound(cut_item, num_cuts, i - 1);
      const int own = detail::upper_bound(cut_item, num_cuts, i) - before;
      entry.first_partial = (before + (before > 0 ? cut_rank[before - 1] : 0)) * rows_per_item;
      entry.num_splits = own > 0 ? own + 1 : 0;
    } else if (r.num_pieces > 1) {
      entry.num_splits = r.num_pieces;
    }
    items[1 + i] = entry;
  }
  __syncthreads();

  if (is_first) items[split_items].split_item = item;
  if (thread == 0) {
    auto* size = reinterpret_cast<mla_plan_size_t*>(items);
    *size = {.num_items = num_items,

             .num_split_items = num_split_items,
             .unused = {}};
  }
  if (split_blocks == 0) return;

  // 5. Fixed pieces: where each item's partial results begin.
  int64_t base_rows = 0;
  for (int base = 0; base < b; base += kThreads) {
    const int request = base + thread;
    int64_t rows = 0;
    int pieces = 0, count = 0;
    if (request < b) {
      const detail::request_t r(seq_lens, cu_seqlens_q, request, h_q, rows_per_item, item_blocks,
                                split_blocks);
      pieces = r.num_pieces;
      count = pieces > 1 ? r.num_items : 0;
      rows = pieces > 1 ? static_cast<int64_t>(r.num_rows) * pieces : 0;
    }
    const int64_t end = base_rows + detail::block_scan<kThreads>(rows, scratch);
    for (int i = 0; i < count; ++i) {
      items[1 + first_item[request] + i].first_partial =
          static_cast<int32_t>(end - rows) + i * rows_per_item * pieces;
      items[1 + first_split_item[request] + i].split_item = first_item[request] + i;
    }
    if (thread == kThreads - 1) scratch[0] = end;
    __syncthreads();
    base_rows = scratch[0];
    __syncthreads();
  }
}

}  // namespace seekernel
