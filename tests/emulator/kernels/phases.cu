// A ring of mbarriers between ordinary threads: y[c, t] = 3 * x[c, t] for c chunks of 32 values.
//
// Warp 0 writes chunks into a two-slot ring, warp 1 reads them. full[s] and empty[s] expect 32
// arrivals each, one per lane. With -DTOKEN the consumer's side of `empty` is waited for by state
// token. The barriers are invalidated at the end and their memory is used for something else.
#include "ptx.cuh"

constexpr int kSlots = 2;

extern "C" __global__ void __launch_bounds__(64) phases(const float* x, float* y, int chunks) {
  __shared__ float ring[kSlots][32];
  __shared__ __align__(8) uint64 bars[2 * kSlots];
  const uint32 full = shared_address(bars), empty = full + 8 * kSlots;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (threadIdx.x == 0) {
    for (int s = 0; s < 2 * kSlots; ++s) mbarrier_init(full + 8 * s, 32);
  }
#ifndef BUG_NO_INIT_SYNC
  __syncthreads();
#endif
  for (int c = 0; c < chunks; ++c) {
    const int s = c % kSlots;
    const uint32 parity = c / kSlots & 1;
    if (warp == 0) {
#ifdef BUG_STALE_EMPTY
      // The phase before the right one: complete since long ago.
      mbarrier_wait_parity(empty + 8 * s, 1);
#else
      mbarrier_wait_parity(empty + 8 * s, parity ^ 1);
#endif
      ring[s][lane] = x[c * 32 + lane];
      mbarrier_arrive(full + 8 * s);
#ifdef BUG_EXTRA_ARRIVE
      // Completes the next phase of this slot, too, with nothing in it.
      if (c == 0) mbarrier_arrive(full + 8 * s);
#endif
#ifdef BUG_REINIT
      if (lane == 0 && c == kSlots) mbarrier_init(full + 8 * s, 32);
#endif
    } else {
#ifdef BUG_STALE_FULL
      mbarrier_wait_parity(full + 8 * s, 0);
#else
      mbarrier_wait_parity(full + 8 * s, parity);
#endif
      const float value = ring[s][lane];
#ifdef BUG_MISSING_LANE
      if (lane != 31) mbarrier_arrive(empty + 8 * s);
#else
      mbarrier_arrive(empty + 8 * s);
#endif
      y[c * 32 + lane] = 3.f * value;
    }
  }
  __syncthreads();
#ifdef TOKEN
  // Both warps meet once more on a fresh barrier, by token instead of by parity.
  if (threadIdx.x == 0) {
    mbarrier_inval(full);
    mbarrier_init(full, 64);
  }
  __syncthreads();
  const uint64 state = mbarrier_arrive_token(full);
  mbarrier_wait_token(full, state);
#endif
#ifdef BUG_USE_AFTER_INVAL
  __syncthreads();
  if (threadIdx.x == 0) mbarrier_inval(full);
  __syncthreads();
  if (threadIdx.x == 0) mbarrier_arrive(full);
#endif
}
