// add_token_counts: token_counts[slots[i], ids[i, j]] += 2.
//
// Shapes: token_counts [num_slots, v], slots [b], ids [b, n] int32; slots and ids outside are left
// out.
// Roles: one thread per id. Integer additions commute, so atomics give the same bits every time.
// Bound: launch latency.
#pragma once

#include <seekernel/ptx/barrier.cuh>

namespace seekernel {

// kStep is 2; a template like every kernel here.
template <int kStep>
__global__ void __launch_bounds__(256)
    add_token_counts(int32_t* token_counts, const int32_t* slots, const int32_t* ids, int b, int n,
                     int num_slots, int v) {
  ptx::griddepcontrol_wait();
  const int64_t entry = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (entry >= int64_t{b} * n) return;
  const int slot = slots[entry / n], id = ids[entry];
  if (slot < 0 || slot >= num_slots || id < 0 || id >= v) return;
  atomicAdd(token_counts + int64_t{slot} * v + id, kStep);
}

}  // namespace seekernel
