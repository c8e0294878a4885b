// Sum tiles of several CTAs into one global tile with TMA reductions: y[r, c] += sum over b of x[b,
// r, c].
//
// Shapes: x [blocks, 16, 32] fp32, y [16, 32] fp32 and z [512] fp32, both zero on entry; grid
// (blocks). The 2-D reduction goes through a tensor map of y, the 1-D one through a pointer to z (z
// gets the same sums). Values are small integers, so the order of the sums does not matter.
#include "ptx.cuh"

#ifdef BUG_UNALIGNED_COORDINATE
constexpr int kX = 1, kY = 0;  // a row of the box must start on a 16-byte boundary of the tensor
#elif defined(BUG_NEGATIVE_COORDINATE)
constexpr int kX = 0, kY = -1;  // loads may start outside, stores and reductions may not
#else
constexpr int kX = 0, kY = 0;
#endif
constexpr int kRows = 16, kColumns = 32, kCount = kRows * kColumns;

extern "C" __global__ void __launch_bounds__(128)
    tma_reduce(const float* x, const __grid_constant__ tensor_map_t map_y, float* y, float* z,
               float* seen) {
  __shared__ __align__(128) float tile[kCount];
  for (int i = threadIdx.x; i < kCount; i += 128) tile[i] = x[blockIdx.x * kCount + i];
#ifndef BUG_NO_PROXY_FENCE
  fence_proxy_async_shared();
#endif
#ifndef BUG_NO_SYNC
  __syncthreads();
#endif
  if (threadIdx.x == 0) {
    tma_reduce_add_2d(&map_y, shared_address(tile), kX, kY);
    bulk_reduce_add_f32(z, shared_address(tile), sizeof(tile));
    bulk_commit_group();
#ifdef BUG_PLAIN_STORE
    // Somebody else's reduction may be in flight on this element.
    y[0] = 0.f;
#endif
#ifndef BUG_NO_READ_WAIT
    bulk_wait_group_read<0>();
#endif
#ifdef BUG_NO_READ_WAIT
    tile[0] = -1.f;
#endif
#ifdef BUG_READ_BEFORE_COMPLETION
    // The .read form says that the source was read, not that the sums have arrived.
    seen[blockIdx.x] = *const_cast<const volatile float*>(z);
#endif
    bulk_wait_group<0>();
    seen[blockIdx.x] = 1.f;
  }
}
