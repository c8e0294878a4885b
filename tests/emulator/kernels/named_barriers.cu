// A hand-off between warps with bar.arrive and bar.sync: y[c, t] = x[c, t] + c for c chunks of 32.
//
// Warp 0 fills a buffer and warp 1 drains it. Barrier 1 says "full", barrier 2 says "empty"; each
// counts 64 threads: one warp arrives without waiting, the other one syncs.
#include "ptx.cuh"

#ifdef BUG_COUNT
constexpr int kThreads = 96;
#else
constexpr int kThreads = 64;
#endif
#ifdef BUG_WRONG_ID
constexpr int kFullId = 3;
#else
constexpr int kFullId = 1;
#endif

extern "C" __global__ void __launch_bounds__(64)
    named_barriers(const float* x, float* y, int chunks) {
  __shared__ float buffer[32];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#ifdef BUG_DIVERGENT_SYNC
  // Half of each warp takes another barrier than the rest.
  if (lane < 16) asm volatile("barrier.sync.aligned 4, 64;" ::: "memory");
#endif
  for (int c = 0; c < chunks; ++c) {
    if (warp == 0) {
#ifndef BUG_NO_EMPTY_SYNC
      if (c > 0) named_barrier_sync<2, 64>();
#endif
      buffer[lane] = x[c * 32 + lane];
      named_barrier_arrive<1, kThreads>();
    } else {
      named_barrier_sync<kFullId, 64>();
      y[c * 32 + lane] = buffer[lane] + c;
      if (c + 1 < chunks) named_barrier_arrive<2, 64>();
    }
  }
}
