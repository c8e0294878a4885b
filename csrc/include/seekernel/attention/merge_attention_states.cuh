// Two results of attention over different keys, as if over all of them.
//
//   lse = ln(e^lse_a + e^lse_b);  out = out_a e^(lse_a - lse) + out_b e^(lse_b - lse)
//
// Shapes: out [s, h, d_v], out_a and out_b likewise, each bf16 or float, strided; lse [s, h] fp32,
//   contiguous. A state whose lse is -inf is not looked at. out may be out_a or out_b, lse theirs.
// Roles: a warp takes a row, 8 values a lane and step. d_v % 8 == 0, rows start at multiples of 16
//   bytes.
// Bound: HBM, two reads and a write.
#pragma once

#include <seekernel/fused/vector.cuh>
#include <seekernel/ptx/barrier.cuh>

namespace seekernel {

struct attention_state_t {
  void* out;
  float* lse;
  int64_t stride_s, stride_h;  // elements
  int32_t is_float, unused;
};

struct merge_states_args_t {
  attention_state_t a, b, result;
  int64_t num_rows;  // s * h
  int32_t h, d_v;
};

namespace merge_states_detail {

SEEKERNEL_DEVICE void add_scaled(float (&sum)[8], const attention_state_t& state, int64_t at,
                                 float weight) {
  if (weight == 0.0f) return;
  float v[8];
  if (state.is_float) {
    load(v, static_cast<const float*>(state.out) + at);
  } else {
    load(v, static_cast<const bfloat16_t*>(state.out) + at);
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) sum[i] += weight * v[i];
}

}  // namespace merge_states_detail

template <int kThreads>
__global__ void __launch_bounds__(kThreads)
    merge_attention_states(const __grid_constant__ merge_states_args_t args) {
  namespace detail = merge_states_detail;
  ptx::griddepcontrol_wait();
  ptx::griddepcontrol_launch_dependents();
  const int64_t row = static_cast<int64_t>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
  if (row >= args.num_rows) return;
  constexpr float kNegInfinity = -__builtin_huge_valf();
  const float lse_a = args.a.lse[row], lse_b = args.b.lse[row];
  const float top = fmaxf(lse_a, lse_b);
  const bool is_empty = lse_a == kNegInfinity && lse_b == kNegInfinity;
  float weight_a = lse_a == kNegInfinity ? 0.0f : expf(lse_a - top);
  float weight_b = lse_b == kNegInfinity ? 0.0f : expf(lse_b - top);
  const float total = weight_a + weight_b;
  if (!is_empty) {
    weight_a /= total;
    weight_b /= total;
  }
  __syncwarp();  // lse may be lse_a: it is written after every lane has read
  const int64_t s = row / args.h, head = row % args.h;
  for (int column = threadIdx.x % 32 * 8; column < args.d_v; column += 256) {
    float sum[8] = {};
    detail::add_scaled(sum, args.a, s * args.a.stride_s + head * args.a.stride_h + column,
                       weight_a);
    detail::add_scaled(sum, args.b, s * args.b.stride_s + head * args.b.stride_h + column,
                       weight_b);
    const int64_t at = s * args.result.stride_s + head * args.result.stride_h + column;
    if (args.result.is_float) {
      store(static_cast<float*>(args.result.out) + at, sum);
    } else {
      store(static_cast<bfloat16_t*>(args.result.out) + at, sum);
    }
  }
  if (threadIdx.x % 32 == 0) args.result.lse[row] = is_empty ? kNegInfinity : top + logf(total);
}

}  // namespace seekernel
