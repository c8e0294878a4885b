// Reverse each run of 32 values through shared memory, inside one warp: y[32 i + l] = x[32 i + 31 -
// l].
//
// Shapes: x, y [128 * blocks] u32. No CTA barrier: the lanes of a warp exchange values among
// themselves, which since Volta needs a __syncwarp between the store and the load, and another one
// before the buffer is used again.
#include "ptx.cuh"

extern "C" __global__ void __launch_bounds__(128)
    warp_exchange(const uint32* x, uint32* y, int rounds) {
  __shared__ uint32 buffer[128];
  const int thread = threadIdx.x, warp = thread / 32 * 32, lane = thread % 32;
  uint32 value = x[blockIdx.x * 128 + thread];
  for (int round = 0; round < rounds; ++round) {
    buffer[thread] = value;
#ifdef BUG_HALF_MASK
    // Each half waits for itself alone, but lane l reads what lane 31 - l wrote.
    if (lane < 16)
      __syncwarp(0x0000FFFFu);
    else
      __syncwarp(0xFFFF0000u);
#elif !defined(BUG_NO_SYNCWARP)
    __syncwarp();
#endif
    value = *const_cast<const volatile uint32*>(buffer + warp + 31 - lane);
#ifndef BUG_NO_REUSE_SYNCWARP
    __syncwarp();
#endif
  }
  y[blockIdx.x * 128 + thread] = value;
}
