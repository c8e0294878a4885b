// Transpose 16x16 tiles of 16-bit values: stmatrix into shared memory, ldmatrix.trans back.
//
// Shapes: x, y [tiles, 16, 16] u16; y[t] = x[t]^T. One warp a tile, four warps a CTA. A thread
// holds four 8x8 fragments: registers 0..3 are the tiles (0,0), (8,0), (0,8), (8,8) by (row,
// column).
#include "ptx.cuh"

constexpr int kPitch = 48;  // bytes: 16 values and 16 bytes of padding, against bank conflicts

extern "C" __global__ void __launch_bounds__(128) matrix_transpose(const uint16* x, uint16* y) {
  __shared__ __align__(16) uint8 smem[4][16 * kPitch];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const uint64 tile = (blockIdx.x * 4ull + warp) * 256;
  const int row = lane / 4, column = lane % 4 * 2;
  uint32 r[4], t[4];
#pragma unroll
  for (int i = 0; i < 4; ++i)
    r[i] = *reinterpret_cast<const uint32*>(x + tile + (row + i % 2 * 8) * 16 + column + i / 2 * 8);
#ifdef BUG_ROW_ALIGNMENT
  const uint32 base = shared_address(smem[warp]) + 8;
#else
  const uint32 base = shared_address(smem[warp]);
#endif
  const uint32 address = base + lane % 16 * kPitch + lane / 16 * 16;
  stmatrix_x4(address, r);
  __syncwarp();
#ifdef BUG_OTHER_WARP
  const uint32 from = shared_address(smem[(warp + 1) % 4]) + lane % 16 * kPitch + lane / 16 * 16;
  ldmatrix_x4_trans(t, from);
#else
  ldmatrix_x4_trans(t, address);
#endif
  // Transposing swaps the off-diagonal tiles.
  const uint32 out[4] = {t[0], t[2], t[1], t[3]};
#pragma unroll
  for (int i = 0; i < 4; ++i)
    *reinterpret_cast<uint32*>(y + tile + (row + i % 2 * 8) * 16 + column + i / 2 * 8) = out[i];
}
