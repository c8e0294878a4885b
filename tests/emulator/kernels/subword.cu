// Neighbouring bytes and halves written by different warps: out8[i] = x[255 - i], out16[i] = 257 *
// out8[i].
//
// Shapes: x, out8 [256] u8, out16 [256] u16. Thread t of 256 handles i = (t % 32) * 8 + t / 32, so
// the eight bytes of a 64-bit word belong to eight warps. Single-byte stores next to each other are
// no race; a read-modify-write of the word that holds a neighbour's byte is one.
#include "ptx.cuh"

extern "C" __global__ void __launch_bounds__(256)
    subword(const uint8* x, uint8* out8, uint16* out16) {
  __shared__ __align__(8) uint8 stage8[256];
  __shared__ __align__(8) uint16 stage16[256];
  const int i = threadIdx.x % 32 * 8 + threadIdx.x / 32;
  const uint8 value = x[i];
#ifdef BUG_WORD_STORE
  // Clear the rest of the pair: the neighbour's byte belongs to another warp.
  if (i % 2 == 0) *reinterpret_cast<uint16*>(stage8 + i) = value;
  if (i % 2 == 1) stage8[i] = value;
#else
  stage8[i] = value;
#endif
  stage16[i] = value * 257;
#ifndef BUG_NO_SYNC
  __syncthreads();
#endif
  const int mirror = 255 - i;
#ifdef BUG_GLOBAL_WORD_STORE
  if (i % 2 == 0) *reinterpret_cast<uint16*>(out8 + i) = stage8[mirror];
  if (i % 2 == 1) out8[i] = stage8[mirror];
#else
  out8[i] = stage8[mirror];
#endif
  out16[i] = stage16[mirror];
}
