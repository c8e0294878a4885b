// Split-K sum through global memory: y[c] = sum over splits of sum over the split's rows of x[row,
// c].
//
// Shapes: x [rows, 128] fp32, partial [splits, 128] fp32 workspace, counter [1] u32 zero on entry
// and
//   on exit, y [128] fp32. The grid is (splits); split b owns rows b, b + splits, ...
// Protocol: each CTA publishes its partial sums, then thread 0 takes a ticket; the CTA that draws
// the
//   last ticket sums all partials in split order, so the result does not depend on the schedule.
// -DSPIN: no ticket; CTA 0 waits until the counter says that everybody has published.
#include "ptx.cuh"

constexpr int kColumns = 128;

DEVICE uint32 load_acquire(const uint32* p) {
  uint32 value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(p) : "memory");
  return value;
}

DEVICE uint32 load_relaxed(const uint32* p) {
  uint32 value;
  asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(p) : "memory");
  return value;
}

// Publish the CTA's writes and take a ticket. Thread 0 alone: the barrier before has handed it the
// other threads' writes, its first fence passes them on, its second one receives other CTAs'.
DEVICE uint32 take_ticket(uint32* counter) {
#ifndef BUG_NO_FENCE
  __threadfence();
#endif
#ifdef BUG_PLAIN_COUNTER
  const uint32 ticket = *counter;
  *counter = ticket + 1;
#else
  const uint32 ticket = atomicAdd(counter, 1u);
#endif
#ifndef BUG_NO_ACQUIRE_FENCE
  __threadfence();
#endif
  return ticket;
}

extern "C" __global__ void __launch_bounds__(kColumns)
    split_k(const float* x, float* partial, uint32* counter, float* y, int rows) {
  const int column = threadIdx.x, splits = gridDim.x;
  float sum = 0.f;
  for (int row = blockIdx.x; row < rows; row += splits) sum += x[row * kColumns + column];
#ifdef BUG_SAME_SLOT
  partial[column] = sum;
#else
  partial[blockIdx.x * kColumns + column] = sum;
#endif

#ifndef BUG_NO_SYNC
  __syncthreads();
#endif
#ifdef SPIN
  if (threadIdx.x == 0) take_ticket(counter);
  if (blockIdx.x != 0) return;
  if (threadIdx.x == 0) {
#ifdef BUG_SPIN_FOREVER
    while (load_acquire(counter) != splits + 1) __nanosleep(20);
#elif defined(BUG_SPIN_RELAXED)
    while (load_relaxed(counter) != splits) __nanosleep(20);
#else
    while (load_acquire(counter) != splits) __nanosleep(20);
#endif
  }
  __syncthreads();
#else
  __shared__ uint32 ticket;
  if (threadIdx.x == 0) ticket = take_ticket(counter);
  __syncthreads();
#ifdef BUG_FIRST_REDUCES
  if (ticket != 0) return;
#else
  if (ticket != splits - 1) return;
#endif
#endif
  float total = 0.f;
  for (int split = 0; split < splits; ++split) total += partial[split * kColumns + column];
  y[column] = total;
  if (threadIdx.x == 0) *counter = 0;
}
