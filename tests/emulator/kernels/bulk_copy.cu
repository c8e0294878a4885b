// Copy with the 1-D bulk engine through shared memory: y = x, in chunks of 1 KB a CTA.
//
// Shapes: x, y [1024 * chunks] bytes; grid (blocks), block b owns chunks b, b + blocks, ...
// Protocol: one thread loads a chunk (mbarrier, bytes), waits for it, stores it, and reuses the
// buffer
//   only when the store has read it. With -DTOUCH the threads add 1 to each byte in between, which
//   needs the proxy fence on the way out.
#include "ptx.cuh"

constexpr int kBytes = 1024;

extern "C" __global__ void __launch_bounds__(128) bulk_copy(const uint8* x, uint8* y, int chunks) {
  __shared__ __align__(128) uint8 buffer[kBytes];
  __shared__ __align__(8) uint64 bar_storage;
  const uint32 bar = shared_address(&bar_storage), smem = shared_address(buffer);
  if (threadIdx.x == 0) {
    mbarrier_init(bar, 1);
    fence_mbarrier_init();
  }
  __syncthreads();
  int turn = 0;
  for (int chunk = blockIdx.x; chunk < chunks; chunk += gridDim.x, ++turn) {
    const uint64 at = static_cast<uint64>(chunk) * kBytes;
    if (threadIdx.x == 0) {
#ifndef BUG_NO_READ_WAIT
      bulk_wait_group_read<0>();
#endif
#ifdef BUG_TX_SHORT
      mbarrier_arrive_expect_tx(bar, kBytes - 16);
#else
      mbarrier_arrive_expect_tx(bar, kBytes);
#endif
#ifdef BUG_MISALIGNED
      bulk_load(smem, x + at + 8, kBytes, bar);
#elif defined(BUG_PAST_THE_END)
      bulk_load(smem, x + at + 512, kBytes, bar);
#else
      bulk_load(smem, x + at, kBytes, bar);
#endif
    }
#if defined(TOUCH) && !defined(BUG_ONE_WAITER)
    mbarrier_wait_parity(bar, turn & 1);
#else
    // Nobody else may wait here: without a CTA barrier thread 0 can run two phases ahead of them.
    if (threadIdx.x == 0) mbarrier_wait_parity(bar, turn & 1);
#endif
#ifdef TOUCH
    for (int i = threadIdx.x; i < kBytes; i += 128) buffer[i] += 1;
#ifndef BUG_NO_PROXY_FENCE
    fence_proxy_async_shared();
#endif
    __syncthreads();
#endif
    if (threadIdx.x == 0) {
      bulk_store(y + at, smem, kBytes);
      bulk_commit_group();
    }
#ifdef TOUCH
    __syncthreads();
#endif
  }
  if (threadIdx.x == 0) bulk_wait_group<0>();
}
