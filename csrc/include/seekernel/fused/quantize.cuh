// Block quantisers: e4m3 by 1x128 (activations) and 128x128 (weights), int4 by 1x128, and back.
//
//   quantize_fp8_1x128:     s = max(amax(|group|), 1e-4) / 448;  q = e4m3(x / s)
//   quantize_fp8_128x128:   s = amax(|block|) / 448, 1 where that is 0;  q = e4m3(w / s)
//   dequantize_fp8_128x128: out = q * s
//   quantize_int4_g128:     s = amax(|group|) / 7, 1 where that is 0;  q = round(w / s) in [-7, 7]
//
// Shapes: x, w, out [m, k] in T = float or bfloat16_t, rows strided; q [m, k] bytes of e4m3, or
//   [m, k / 2] of two int4 values each, even column in the low nibble. Scales are fp32: 1x128
//   [ceil(k / 128), stride >= round_up(m, 4)] ("M-major", as TMA loads them; columns from m to
//   round_up(m, 4) become 0), 128x128 [ceil(m / 128), stride >= ceil(k / 128)], int4
//   [m, ceil(k / 128)] with rows `stride_scale` apart.
// kAligned: k % 8 == 0, rows of x at multiples of 16 bytes and of q at multiples of 8 (4 of int4);
//   otherwise values move one at a time. Quotients are IEEE ones, so the bits are those of the
//   reference; a NaN does not count in amax, stays NaN in e4m3 and becomes 0 in int4.
// Roles: 16 threads, 8 columns each, take a group of 128; a CTA of 256 threads takes `rows` rows
//   and 16 / rows groups of each (1x128, int4), or one 128x128 block, held in registers between
//   the two passes.
// Shared memory: 128x128: 8 floats, one per warp, and one barrier between their writes and reads.
// Bound: HBM: 3 bytes a value from bf16, 5 from fp32. Not measured yet.
#pragma once

#include <seekernel/fused/vector.cuh>
#include <seekernel/ptx/barrier.cuh>
#include <seekernel/ptx/convert_e4m3.cuh>
#include <seekernel/ptx/expand_e4m3.cuh>

namespace seekernel {
namespace quantize_detail {

constexpr int kGroup = 128, kColumns = 8, kThreadsPerGroup = kGroup / kColumns, kThreads = 256;
constexpr float kE4M3Max = 448.0f, kInt4Max = 7.0f;

// `count` of 8 values, zeros behind; with kAligned it is 8 or not positive.
template <bool kAligned, typename T>
SEEKERNEL_DEVICE void load_some(float (&v)[kColumns], const T* p, int count) {
  if (kAligned && count > 0) {
    load(v, p);
    return;
  }
#pragma unroll
  for (int i = 0; i < kColumns; ++i) {
    float one[1] = {0.0f};
    if (!kAligned && i < count) load(one, p + i);
    v[i] = one[0];
  }
}

SEEKERNEL_DEVICE float largest(const float (&v)[kColumns], float best) {
#pragma unroll
  for (int i = 0; i < kColumns; ++i) best = fmaxf(best, fabsf(v[i]));
  return best;
}

// The largest of a group's 16 threads, in each of them; whole warps call it.
SEEKERNEL_DEVICE float largest_of_group(float best) {
#pragma unroll
  for (int step = kThreadsPerGroup / 2; step > 0; step /= 2) {
    best = fmaxf(best, __shfl_xor_sync(0xffffffffu, best, step));
  }
  return best;
}

template <bool kAligned>
SEEKERNEL_DEVICE void store_e4m3(uint8_t* q, const float (&v)[kColumns], float scale, int count) {
  uint32_t words[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float* x = v + 4 * i;
    words[i] = ptx::pack_e4m3x2(x[0] / scale, x[1] / scale) |
               static_cast<uint32_t>(ptx::pack_e4m3x2(x[2] / scale, x[3] / scale)) << 16;
  }
  if constexpr (kAligned) {
    if (count > 0) *reinterpret_cast<uint2*>(q) = make_uint2(words[0], words[1]);
  } else {
#pragma unroll
    for (int i = 0; i < kColumns; ++i) {
      if (i < count) q[i] = static_cast<uint8_t>(words[i / 4] >> 8 * (i % 4));
    }
  }
}

// A CTA's share of a matrix of 1x128 groups: this thread's row, group, and first column in it.
struct group_t {
  int row, group, column;
  SEEKERNEL_DEVICE explicit group_t(int rows) {
    const int slot = threadIdx.x / kThreadsPerGroup;
    row = blockIdx.x * rows + slot % rows;
    group = blockIdx.y * (kThreads / kThreadsPerGroup / rows) + slot / rows;
    column = group * kGroup + threadIdx.x % kThreadsPerGroup * kColumns;
  }
};

}  // namespace quantize_detail

// Grid: (ceil(round_up(m, 4) / rows), ceil(groups * rows / 16)); rows is a power of two up to 16.
template <typename T, bool kAligned>
__global__ void __launch_bounds__(quantize_detail::kThreads)
    quantize_fp8_1x128(const T* x, uint8_t* q, float* scale, int m, int k, int rows,
                       int64_t stride_x, int64_t stride_q, int64_t stride_scale) {
  namespace detail = quantize_detail;
  ptx::griddepcontrol_launch_dependents();
  ptx::griddepcontrol_wait();
  const detail::group_t at(rows);
  const int count = at.row < m ? k - at.column : 0;
  float v[detail::kColumns];
  detail::load_some<kAligned>(v, x + at.row * stride_x + at.column, count);
  const float amax = detail::largest_of_group(detail::largest(v, 0.0f));
  const float s = fmaxf(amax, 1e-4f) / detail::kE4M3Max;
  detail::store_e4m3<kAligned>(q + at.row * stride_q + at.column, v, s, count);
  const bool is_first = threadIdx.x % detail::kThreadsPerGroup == 0;
  if (is_first && at.group * detail::kGroup < k && at.row < (m + 3) / 4 * 4) {
    scale[at.group * stride_scale + at.row] = at.row < m ? s : 0.0f;
  }
}

// Grid: (ceil(k / 128), ceil(n / 128)).
template <typename T, bool kAligned>
__global__ void __launch_bounds__(quantize_detail::kThreads)
    quantize_fp8_128x128(const T* w, uint8_t* q, float* scale, int n, int k, int64_t stride_w,
                         int64_t stride_q, int64_t stride_scale) {
  namespace detail = quantize_detail;
  __shared__ float of_warp[detail::kThreads / 32];
  constexpr int kRows = detail::kGroup * detail::kThreadsPerGroup / detail::kThreads;
  constexpr int kRowStep = detail::kGroup / kRows;
  ptx::griddepcontrol_launch_dependents();
  ptx::griddepcontrol_wait();
  const int column =
      blockIdx.x * detail::kGroup + threadIdx.x % detail::kThreadsPerGroup * detail::kColumns;
  const int first_row = blockIdx.y * detail::kGroup + threadIdx.x / detail::kThreadsPerGroup;
  float v[kRows][detail::kColumns], best = 0.0f;
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    const int row = first_row + kRowStep * i;
    detail::load_some<kAligned>(v[i], w + row * stride_w + column, row < n ? k - column : 0);
    best = detail::largest(v[i], best);
  }
  best = detail::largest_of_group(best);
  best = fmaxf(best, __shfl_xor_sync(0xffffffffu, best, 16));
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = best;
  __syncthreads();
#pragma unroll
  for (int i = 0; i < detail::kThreads / 32; ++i) best = fmaxf(best, of_warp[i]);
  const float quotient = best / detail::kE4M3Max;
  const float s = quotient > 0.0f ? quotient : 1.0f;
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    const int row = first_row + kRowStep * i;
    detail::store_e4m3<kAligned>(q + row * stride_q + column, v[i], s, row < n ? k - column : 0);
  }
  if (threadIdx.x == 0) scale[blockIdx.y * stride_scale + blockIdx.x] = s;
}

// Grid: (rows n, ceil(k / 2048)): 8 columns a thread.
template <typename T, bool kAligned>
__global__ void __launch_bounds__(quantize_detail::kThreads)
    dequantize_fp8_128x128(const uint8_t* q, const float* scale, T* out, int k, int64_t stride_q,
                           int64_t stride_scale, int64_t stride_out) {
  namespace detail = quantize_detail;
  ptx::griddepcontrol_launch_dependents();
  ptx::griddepcontrol_wait();
  const int64_t row = blockIdx.x;
  const int column = (blockIdx.y * detail::kThreads + threadIdx.x) * detail::kColumns;
  if (column >= k) return;
  const uint8_t* source = q + row * stride_q + column;
  const float s = scale[row / detail::kGroup * stride_scale + column / detail::kGroup];
  uint32_t words[2] = {0, 0};
  if constexpr (kAligned) {
    const uint2 raw = *reinterpret_cast<const uint2*>(source);
    words[0] = raw.x, words[1] = raw.y;
  } else {
#pragma unroll
    for (int i = 0; i < detail::kColumns; ++i) {
      if (column + i < k) words[i / 4] |= static_cast<uint32_t>(source[i]) << 8 * (i % 4);
    }
  }
  float v[detail::kColumns];
#pragma unroll
  for (int i = 0; i < detail::kColumns; i += 2) {
    const uint32_t pair = ptx::unpack_e4m3x2(static_cast<uint16_t>(words[i / 4] >> 8 * (i % 4)));
    v[i] = ptx::half_to_float(static_cast<uint16_t>(pair)) * s;
    v[i + 1] = ptx::half_to_float(static_cast<uint16_t>(pair >> 16)) * s;
  }
  T* target = out + row * stride_out + column;
  if constexpr (kAligned) {
    store(target, v);
  } else {
#pragma unroll
    for (int i = 0; i < detail::kColumns; ++i) {
      const float one[1] = {v[i]};
      if (column + i < k) store(target + i, one);
    }
  }
}

// Grid: as quantize_fp8_1x128 over m itself. k is even; scale [m, ceil(k / 128)].
template <typename T, bool kAligned>
__global__ void __launch_bounds__(quantize_detail::kThreads)
    quantize_int4_g128(const T* w, uint8_t* q, float* scale, int m, int k, int rows,
                       int64_t stride_w, int64_t stride_q, int64_t stride_scale) {
  namespace detail = quantize_detail;
  ptx::griddepcontrol_launch_dependents();
  ptx::griddepcontrol_wait();
  const detail::group_t at(rows);
  const int count = at.row < m ? k - at.column : 0;
  float v[detail::kColumns];
  detail::load_some<kAligned>(v, w + at.row * stride_w + at.column, count);
  const float amax = detail::largest_of_group(detail::largest(v, 0.0f));
  const float quotient = amax / detail::kInt4Max;
  const float s = quotient > 0.0f ? quotient : 1.0f;
  uint32_t packed = 0;
#pragma unroll
  for (int i = 0; i < detail::kColumns; ++i) {
    // The conversion rounds to the nearest even integer and turns NaN into 0.
    const int code = max(-7, min(7, __float2int_rn(v[i] / s)));
    packed |= static_cast<uint32_t>(code & 15) << 4 * i;
  }
  uint8_t* target = q + at.row * stride_q + at.column / 2;
  if constexpr (kAligned) {
    if (count > 0) *reinterpret_cast<uint32_t*>(target) = packed;
  } else {
#pragma unroll
    for (int i = 0; i < detail::kColumns / 2; ++i) {
      if (2 * i < count) target[i] = static_cast<uint8_t>(packed >> 8 * i);
    }
  }
  const bool is_first = threadIdx.x % detail::kThreadsPerGroup == 0;
  if (is_first && at.group * detail::kGroup < k && at.row < m) {
    scale[at.row * stride_scale + at.group] = s;
  }
}

}  // namespace seekernel
