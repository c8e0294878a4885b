// moe_route: router_gemm, moe_gate and moe_plan in one launch, for few tokens.
//
// Shapes: as theirs; at most kRouteMaxTokens tokens. counter [1] uint32: 0 before and after.
// Roles: every cluster computes its tile of the logits (router_gemm.cuh). A CTA that has written
// its
//   part takes a ticket; the cluster one of whose CTAs drew the last one knows that all logits are
//   there, and goes on alone: a warp per token for the gate, then the plan by its first CTA, to
//   which the others push their ids through distributed shared memory. The same device functions as
//   the three kernels, hence the same bits.
// Tickets: thread 0 of a CTA fences (the barrier ahead has handed it the CTA's logits), adds to
//   *counter, fences, and pushes what it drew to every CTA of its cluster; a cluster barrier later
//   all of them agree. Nobody waits for another cluster: any order of clusters ends.
// Shared memory: router_gemm's, then reused by the gate's scratch or the plan; ids and tickets
// apart. Bound: a chain of latencies. See README.md.
#pragma once

#include <seekernel/moe/gate.cuh>
#include <seekernel/moe/plan.cuh>
#include <seekernel/moe/router_gemm.cuh>

namespace seekernel {

constexpr int kRouteMaxTokens = 128;
constexpr int kRouteThreads = 256;

// Words of dynamic shared memory: the largest phase, and the ids of all tokens.
template <class Tile, int kPerLane>
__host__ __device__ constexpr int route_scratch_words(int num_local) {
  const int gemm = Tile::kSharedFloats, gate = kRouteThreads * kPerLane;
  const int plan = plan_shared_words(kRouteThreads / 32, num_local);
  const int largest = gemm > gate ? gemm : gate;
  return ((largest > plan ? largest : plan) + 3) / 4 * 4;
}

// Whether this cluster is the last one to have its logits in memory.
template <int kSplits>
SEEKERNEL_DEVICE bool last_cluster(uint32_t* counter) {
  __shared__ uint32_t tickets[kSplits];
  __syncthreads();  // hands the CTA's logits to thread 0
  if (threadIdx.x == 0) {
    __threadfence();
    const uint32_t ticket = atomicAdd(counter, 1u);
    __threadfence();
    const uint32_t slot = ptx::shared_address(&tickets[ptx::cluster_ctarank()]);
#pragma unroll
    for (int peer = 0; peer < kSplits; ++peer) ptx::store_cluster(ptx::mapa(slot, peer), ticket);
  }
  ptx::barrier_cluster_arrive();
  ptx::barrier_cluster_wait();
  const uint32_t last = gridDim.x * gridDim.y * gridDim.z - 1;
  bool found = false;
#pragma unroll
  for (int i = 0; i < kSplits; ++i) found |= tickets[i] == last;
  return found;
}

// plan.ids is where the gate's ids go; `weights` and they have top_k + num_shared columns.
template <class Tile, int kPerLane>
__global__ void __launch_bounds__(kRouteThreads, 1)
    moe_route(const router_operands_t router, const gate_config_t gate, const plan_config_t plan,
              const float* bias, float* weights, int32_t* ids, int32_t* error, uint32_t* counter) {
  static_assert(Tile::kThreads == kRouteThreads, "every phase has the same threads");
  extern __shared__ __align__(16) float route_shared[];
  router_gemm_tile<Tile>(router, route_shared);
  if (!last_cluster<Tile::kSplits>(counter)) return;

  const int rank = ptx::cluster_ctarank(), warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (rank == 0 && threadIdx.x == 0) *counter = 0;
  uint32_t* words = reinterpret_cast<uint32_t*>(route_shared);
  int32_t* all_ids =
      reinterpret_cast<int32_t*>(words + route_scratch_words<Tile, kPerLane>(plan.num_local));
  const uint32_t inbox = ptx::mapa(ptx::shared_address(all_ids), 0);
  uint32_t faults = 0;
  for (int token = rank * (kRouteThreads / 32) + warp; token < router.m;
       token += Tile::kSplits * (kRouteThreads / 32)) {
    int32_t id;
    float weight;
    gate_token<kPerLane>(gate, router.out + token * router.stride_out_m, bias,
                         words + warp * 32 * kPerLane, id, weight, faults);
    if (lane < plan.columns) {
      const int at = token * plan.columns + lane;
      weights[at] = weight;
      ids[at] = id;
      ptx::store_cluster(inbox + 4 * at, static_cast<uint32_t>(id));
    }
  }
  report_faults(faults, error);
  ptx::barrier_cluster_arrive();
  ptx::barrier_cluster_wait();  // all ids have arrived
  if (rank != 0) return;
  planner_t(plan, all_ids, words, 0, 1).run();
}

}  // namespace seekernel
