// RMSNorm and 1x128 FP8 quantisation of one row per CTA, with plain SIMT code.
//
//   y = x / sqrt(mean(x^2) + eps) * w;  s = max(amax of 128 y's, 1e-4) / 448;  q = e4m3(y / s)
//
// Shapes: x [rows, hidden] bf16, w [hidden] bf16, q [rows, hidden] e4m3, s [rows, hidden / 128]
// fp32;
//   hidden is a multiple of 1024. 128 threads, 8 values each a step; 16 lanes share a quantisation
//   group.
#include "ptx.cuh"

constexpr int kThreads = 128, kVector = 8;

DEVICE void load8(float (&v)[kVector], const uint16* p) {
  const uint4 raw = *reinterpret_cast<const uint4*>(p);
  const uint32 words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    v[2 * i] = __uint_as_float(words[i] << 16);
    v[2 * i + 1] = __uint_as_float(words[i] & 0xFFFF0000u);
  }
}

DEVICE float block_sum(float value, float* scratch) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(0xFFFFFFFFu, value, step);
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = value;
#ifndef BUG_NO_SYNC
  __syncthreads();
#endif
  return scratch[0] + scratch[1] + scratch[2] + scratch[3];
}

extern "C" __global__ void __launch_bounds__(kThreads)
    rms_norm_quantize(const uint16* x, const uint16* w, uint8* q, float* s, int hidden, float eps) {
  __shared__ float scratch[kThreads / 32];
  const uint16* row = x + static_cast<uint64>(blockIdx.x) * hidden;
  float sum = 0.f, v[kVector], g[kVector];
  for (int c = threadIdx.x * kVector; c < hidden; c += kThreads * kVector) {
    load8(v, row + c);
#pragma unroll
    for (int i = 0; i < kVector; ++i) sum = __fmaf_rn(v[i], v[i], sum);
  }
  const float inverse = 1.f / __fsqrt_rn(block_sum(sum, scratch) / hidden + eps);

  for (int c = threadIdx.x * kVector; c < hidden; c += kThreads * kVector) {
    load8(v, row + c);
    load8(g, w + c);
    float amax = 0.f;
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      v[i] = __fmul_rn(__fmul_rn(v[i], inverse), g[i]);
      amax = fmaxf(amax, fabsf(v[i]));
    }
#pragma unroll
    for (int step = 8; step > 0; step /= 2) {
#ifdef BUG_SHUFFLE_MASK
      // Half the warp calls, yet the mask names all of it.
      if (threadIdx.x % 32 < 16) amax = fmaxf(amax, __shfl_xor_sync(0xFFFFFFFFu, amax, step));
#else
      amax = fmaxf(amax, __shfl_xor_sync(0xFFFFFFFFu, amax, step));
#endif
    }
    const float scale = __fdiv_rn(fmaxf(amax, 1e-4f), 448.f);
    uint32 packed[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const uint32 low = e4m3x2(__fdiv_rn(v[4 * i], scale), __fdiv_rn(v[4 * i + 1], scale));
      const uint32 high = e4m3x2(__fdiv_rn(v[4 * i + 2], scale), __fdiv_rn(v[4 * i + 3], scale));
      packed[i] = low | high << 16;
    }
    const uint64 at = static_cast<uint64>(blockIdx.x) * hidden + c;
#ifdef BUG_MISALIGNED
    *reinterpret_cast<uint2*>(q + at + 4) = make_uint2(packed[0], packed[1]);
#else
    *reinterpret_cast<uint2*>(q + at) = make_uint2(packed[0], packed[1]);
#endif
#ifdef BUG_SCALE_UNWRITTEN
    if (c % 128 == 0 && c > 0) s[at / 128] = scale;
#else
    if (c % 128 == 0) s[at / 128] = scale;
#endif
  }
}
