// moe_plan: a stable counting sort of the routed rows by expert, and the tile map of the grouped
// GEMMs.
//
//   row r of local expert e: offsets[e] <= r < offsets[e + 1];  row_token[token_row[t, j]] = t
//
// Shapes: ids [m, columns] int32; offsets [num_local + 1], row_token [m * columns], token_row [m,
//   columns] int32; tiles [., 4] int32 and num_tiles [1] as scheduler/tiles.cuh wants them, tiles
//   of block_rows rows, null for none; loads [num_logical] int64 or null, added to; replicas
//   [num_logical, num_replicas] int32 or null: the physical experts of a logical one, then -1.
// An id with replicas becomes replicas[id][(token + column) % their number]. Physical experts
//   first_expert .. first_expert + num_local - 1 are this rank's; any other id, -1 too, has no row.
// Roles: a cluster of 1 to 8 CTAs; each warp owns a contiguous piece of the ids and counts it, 32
//   ids a step: match_any finds the lanes of one expert, the first of them adds. A column of these
//   counts is summed over the warps, then over the CTAs of the cluster through distributed shared
//   memory, then over the experts; the second pass gives each id the row that its count so far
//   says. No atomics on what is sorted, so that the order is that of the ids.
// Shared memory: counts [warps, num_local], then four arrays [num_local + 1], int32.
// Bound: latency, 2 us at 512 ids; 16 bytes an id.
#pragma once

#include <seekernel/ptx/barrier.cuh>
#include <seekernel/ptx/cluster_memory.cuh>
#include <seekernel/ptx/types.cuh>

namespace seekernel {

struct plan_config_t {
  const int32_t* ids;
  const int32_t* replicas;
  int32_t* offsets;
  int32_t* row_token;
  int32_t* token_row;
  int32_t* tiles;
  int32_t* num_tiles;
  int64_t* loads;
  int32_t m, columns;
  int32_t first_expert, num_local;
  int32_t num_logical, num_replicas;  // of replicas; num_logical also of loads
  int32_t block_rows, reserved;
};

// Bytes of shared memory that a plan takes.
__host__ __device__ constexpr int plan_shared_words(int num_warps, int num_local) {
  return num_warps * num_local + 4 * (num_local + 1);
}

// Sums of rows (low half) and tiles (high half) of all threads before this one, by a CTA.
SEEKERNEL_DEVICE uint64_t block_exclusive_sum(uint64_t value, uint64_t* scratch) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, num_warps = blockDim.x / 32;
  uint64_t sum = value;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const uint64_t other = __shfl_up_sync(0xffffffffu, sum, step);
    if (lane >= step) sum += other;
  }
  if (lane == 31) scratch[warp] = sum;
  __syncthreads();  // orders each warp's sum before the reads of all
  uint64_t warps = lane < num_warps ? scratch[lane] : 0;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const uint64_t other = __shfl_up_sync(0xffffffffu, warps, step);
    if (lane >= step) warps += other;
  }
  const uint64_t before = __shfl_sync(0xffffffffu, warps, warp > 0 ? warp - 1 : 0);
  return sum - value + (warp > 0 ? before : 0);
}

// Called by all threads of a CTA of whole warps, by all CTAs of a cluster of `num_ranks`; ids may
// lie in shared or global memory. `shared`: plan_shared_words words.
struct planner_t {
  const plan_config_t& config;
  const int32_t* ids;
  uint32_t* shared;
  int rank, num_ranks;

  int num_ids, lane, warp, num_warps;
  int begin, end;  // this warp's ids, begin a multiple of 32
  uint32_t* counts;
  uint32_t *mine, *starts, *rows_before, *tiles_before;

  SEEKERNEL_DEVICE planner_t(const plan_config_t& config, const int32_t* ids, uint32_t* shared,
                             int rank, int num_ranks)
      : config(config), ids(ids), shared(shared), rank(rank), num_ranks(num_ranks) {
    lane = threadIdx.x % 32;
    warp = threadIdx.x / 32;
    num_warps = blockDim.x / 32;
    num_ids = config.m * config.columns;
    const int per_warp = ceil_div(ceil_div(num_ids, 32), num_ranks * num_warps) * 32;
    begin = min((rank * num_warps + warp) * per_warp, num_ids);
    end = min(begin + per_warp, num_ids);
    counts = shared + warp * config.num_local;
    mine = shared + num_warps * config.num_local;
    starts = mine + config.num_local + 1;
    rows_before = starts + config.num_local + 1;
    tiles_before = rows_before + config.num_local + 1;
  }

  // The local expert of id `i`, or -1.
  SEEKERNEL_DEVICE int local_expert(int i, int id) const {
    if (config.replicas != nullptr) {
      if (id < 0 || id >= config.num_logical) return -1;
      const int32_t* physical = config.replicas + static_cast<int64_t>(id) * config.num_replicas;
      int count = 0;
      while (count < config.num_replicas && physical[count] >= 0) ++count;
      if (count == 0) return -1;
      const int token = i / config.columns;
      id = physical[(token + i - token * config.columns) % count];
    }
    const uint32_t local = static_cast<uint32_t>(id) - static_cast<uint32_t>(config.first_expert);
    return id >= 0 && local < static_cast<uint32_t>(config.num_local) ? static_cast<int>(local)
                                                                      : -1;
  }

  SEEKERNEL_DEVICE void count() {
    for (int i = threadIdx.x; i < num_warps * config.num_local; i += blockDim.x) shared[i] = 0;
    __syncthreads();
    for (int base = begin; base < end; base += 32) {
      const int i = base + lane;
      const int id = i < end ? ids[i] : -1;
      const int expert = i < end ? local_expert(i, id) : -1;
      const uint32_t peers = __match_any_sync(0xffffffffu, expert);
      if (expert >= 0 && lane == __ffs(peers) - 1) counts[expert] += __popc(peers);
      if (config.loads != nullptr) {
        const uint32_t same = __match_any_sync(0xffffffffu, id);
        if (id >= 0 && id < config.num_logical && lane == __ffs(same) - 1) {
          atomicAdd(reinterpret_cast<unsigned long long*>(config.loads + id),
                    static_cast<unsigned long long>(__popc(same)));
        }
      }
      __syncwarp();  // the next step may add to the same count from another lane
    }
    __syncthreads();
    for (int e = threadIdx.x; e < config.num_local; e += blockDim.x) {
      uint32_t sum = 0;
      for (int w = 0; w < num_warps; ++w) {
        const uint32_t value = shared[w * config.num_local + e];
        shared[w * config.num_local + e] = sum;
        sum += value;
      }
      mine[e] = sum;
    }
  }

  // rows_before and tiles_before of every expert; starts: where this CTA's rows of it begin.
  SEEKERNEL_DEVICE void scan() {
    __shared__ uint64_t scratch[32];
    if (num_ranks > 1) {
      ptx::barrier_cluster_arrive();
      ptx::barrier_cluster_wait();  // every CTA's `mine` is there
    } else {
      __syncthreads();
    }
    const int per_thread = ceil_div<int>(config.num_local, blockDim.x);
    const int first = min(static_cast<int>(threadIdx.x) * per_thread, config.num_local);
    const int last = min(first + per_thread, config.num_local);
    uint64_t total = 0;
    for (int e = first; e < last; ++e) {
      uint32_t all = 0, before = 0;
      for (int r = 0; r < num_ranks; ++r) {
        const uint32_t value = num_ranks > 1
                                   ? ptx::load_cluster(ptx::mapa(ptx::shared_address(mine + e), r))
                                   : mine[e];
        if (r == rank) before = all;
        all += value;
      }
      starts[e] = before;
      rows_before[e] = all;
      total += all | static_cast<uint64_t>(num_tiles_of(all)) << 32;
    }
    if (num_ranks > 1) ptx::barrier_cluster_arrive();  // no more reads of the others' memory
    uint64_t before = block_exclusive_sum(total, scratch);
    for (int e = first; e < last; ++e) {
      const uint32_t all = rows_before[e], rows = static_cast<uint32_t>(before);
      starts[e] += rows;
      rows_before[e] = rows;
      tiles_before[e] = before >> 32;
      if (rank == 0) config.offsets[e] = rows;
      before += all | static_cast<uint64_t>(num_tiles_of(all)) << 32;
    }
    if (threadIdx.x == blockDim.x - 1) {
      rows_before[config.num_local] = static_cast<uint32_t>(before);
      tiles_before[config.num_local] = before >> 32;
      if (rank == 0) config.offsets[config.num_local] = static_cast<int32_t>(before);
      if (rank == 0 && config.tiles != nullptr) *config.num_tiles = before >> 32;
    }
    __syncthreads();
  }

  SEEKERNEL_DEVICE uint32_t num_tiles_of(uint32_t rows) const {
    return config.tiles != nullptr ? ceil_div<uint32_t>(rows, config.block_rows) : 0;
  }

  SEEKERNEL_DEVICE void scatter() {
    for (int base = begin; base < end; base += 32) {
      const int i = base + lane;
      const int expert = i < end ? local_expert(i, ids[i]) : -1;
      const uint32_t peers = __match_any_sync(0xffffffffu, expert);
      const uint32_t ahead = __popc(peers & ((1u << lane) - 1));
      int row = -1;
      if (expert >= 0) {
        row = starts[expert] + counts[expert] + ahead;
        config.row_token[row] = i / config.columns;
      }
      if (i < end) config.token_row[i] = row;
      __syncwarp();  // all have read the count
      if (expert >= 0 && ahead == 0) counts[expert] += __popc(peers);
      __syncwarp();  // and the next step reads the new one
    }
    const int thread = rank * blockDim.x + threadIdx.x, num_threads = num_ranks * blockDim.x;
    const int num_rows = rows_before[config.num_local];
    for (int i = num_rows + thread; i < num_ids; i += num_threads) config.row_token[i] = -1;
    if (config.tiles == nullptr) return;
    const int num_tiles = tiles_before[config.num_local];
    for (int tile = thread; tile < num_tiles; tile += num_threads) write_tile(tile);
  }

  // The group of a tile is the last one whose tiles begin at or before it, so one that has tiles.
  SEEKERNEL_DEVICE void write_tile(int tile) const {
    int low = 0, high = config.num_local;
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      (static_cast<int>(tiles_before[middle]) <= tile ? low : high) = middle;
    }
    const int row = rows_before[low] + (tile - tiles_before[low]) * config.block_rows;
    const int rows = min(static_cast<int>(rows_before[low + 1]) - row, config.block_rows);
    reinterpret_cast<int4*>(config.tiles)[tile] = make_int4(low, row, rows, 0);
  }

  SEEKERNEL_DEVICE void run() {
    count();
    scan();
    scatter();
    if (num_ranks > 1) ptx::barrier_cluster_wait();  // of scan(): nobody leaves while read
  }
};

// One cluster is the whole grid; at most kMaxThreads threads a CTA.
template <int kMaxThreads>
__global__ void __launch_bounds__(kMaxThreads) moe_plan(const plan_config_t config) {
  extern __shared__ __align__(16) uint32_t plan_shared[];
  ptx::griddepcontrol_wait();
  ptx::griddepcontrol_launch_dependents();
  planner_t(config, config.ids, plan_shared, blockIdx.x, gridDim.x).run();
}

}  // namespace seekernel
