// Rows in global memory as float vectors: loads and stores of kVector values of float or
// bfloat16_t, by 16 bytes at a time where kVector is 8, one value at a time where it is 1.
#pragma once

#include <seekernel/ptx/matrix.cuh>
#include <seekernel/ptx/types.cuh>

namespace seekernel {

struct bfloat16_t {
  uint16_t bits;
};

struct float16_t {
  uint16_t bits;
};

SEEKERNEL_DEVICE float to_float(uint32_t bfloat16_bits) {
  return __uint_as_float(bfloat16_bits << 16);
}

template <int kVector>
SEEKERNEL_DEVICE void load(float (&v)[kVector], const float* p) {
  static_assert(kVector == 8 || kVector == 1, "two 16-byte loads, or one value");
  if constexpr (kVector == 1) {
    v[0] = *p;
  } else {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float4 quad = reinterpret_cast<const float4*>(p)[i];
      v[4 * i] = quad.x;
      v[4 * i + 1] = quad.y;
      v[4 * i + 2] = quad.z;
      v[4 * i + 3] = quad.w;
    }
  }
}

// Eight bfloat16 values, the first in the low half of x.
SEEKERNEL_DEVICE void unpack(float (&v)[8], uint4 raw) {
  const uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    v[2 * i] = to_float(words[i] & 0xffffu);
    v[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
  }
}

template <int kVector>
SEEKERNEL_DEVICE void load(float (&v)[kVector], const bfloat16_t* p) {
  static_assert(kVector == 8 || kVector == 1, "one 16-byte load, or one value");
  if constexpr (kVector == 1) {
    v[0] = to_float(p->bits);
  } else {
    unpack(v, *reinterpret_cast<const uint4*>(p));
  }
}

template <int kVector>
SEEKERNEL_DEVICE void store(float* p, const float (&v)[kVector]) {
  if constexpr (kVector == 1) {
    *p = v[0];
  } else {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      reinterpret_cast<float4*>(p)[i] =
          make_float4(v[4 * i], v[4 * i + 1], v[4 * i + 2], v[4 * i + 3]);
    }
  }
}

template <int kVector>
SEEKERNEL_DEVICE void store(bfloat16_t* p, const float (&v)[kVector]) {
  if constexpr (kVector == 1) {
    p->bits = static_cast<uint16_t>(ptx::pack_bf16x2(v[0], 0.0f));
  } else {
    *reinterpret_cast<uint4*>(p) =
        make_uint4(ptx::pack_bf16x2(v[0], v[1]), ptx::pack_bf16x2(v[2], v[3]),
                   ptx::pack_bf16x2(v[4], v[5]), ptx::pack_bf16x2(v[6], v[7]));
  }
}

// v as memory of type T would give it back.
template <int kVector>
SEEKERNEL_DEVICE void round_to(float (&)[kVector], const float*) {}
template <int kVector>
SEEKERNEL_DEVICE void round_to(float (&v)[kVector], const bfloat16_t*) {
#pragma unroll
  for (int i = 0; i < kVector; ++i) v[i] = to_float(ptx::pack_bf16x2(v[i], 0.0f) & 0xffffu);
}

// The sum of `value` over a CTA of whole warps, in every thread, in an order that does not depend
// on timing. `scratch` holds 32 floats of shared memory and may be used again after the next
// barrier.
SEEKERNEL_DEVICE float block_sum(float value, float* scratch) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, num_warps = blockDim.x / 32;
#pragma unroll
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
  if (lane == 0) scratch[warp] = value;
  __syncthreads();  // orders each warp's sum before the reads of all
  value = lane < num_warps ? scratch[lane] : 0.0f;
#pragma unroll
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
  return value;
}

}  // namespace seekernel
