// What follows the down-projection of MLA, in one launch: both norms, rope, paged append, FP8.
//
//   q, latent, k_pe = split(qkv_a);  q_latent = rms_norm(q)
//   cache[slot] = [rms_norm(latent), rope_interleaved(k_pe)], quantised as the cache's format says
//
// Shapes: qkv_a [s, q_lora + kv_lora + rope] and q_latent [s, q_lora] in T = float or bfloat16_t;
//   weights [q_lora], [kv_lora] float or bf16; positions [s]; cos_sin [max_pos, rope] fp32; slots
//   [s] int32 or int64, -1: the row is not stored, and its position may be anything. Sizes are
//   multiples of 8 (kv_lora of 128 in blocks), rows start at multiples of 16 bytes.
// Roles: a CTA per row, 8 values a thread, all in registers: `q_threads` for q, `kv_threads` for
//   the latent, a last warp for the rope key. In blocks, 16 neighbouring threads hold one.
// Shared memory: a sum of squares per warp, and one barrier between their writes and reads.
// Bound: launch and memory latency at decode, HBM at prefill (8.4 KB a row of V3 in bf16).
#pragma once

#include <seekernel/attention/latent_cache.cuh>
#include <seekernel/fused/rope.cuh>

namespace seekernel {

struct mla_prepare_args_t {
  const void* qkv_a;
  const void* q_norm_weight;
  const void* kv_norm_weight;
  const int32_t* positions;
  const float* cos_sin;
  const void* slots;
  void* q_latent;
  int64_t stride_qkv_s, stride_q_latent_s, stride_cos_sin;  // elements
  latent_cache_t cache;
  float eps;
  int32_t q_lora, q_threads, kv_threads;  // threads: multiples of 32 that cover 8 values each
  int32_t q_weight_is_float, kv_weight_is_float, slots_are_wide;
};

namespace mla_prepare_detail {

SEEKERNEL_DEVICE void load_weight(float (&w)[8], const void* weight, int is_float, int column) {
  if (is_float) return load(w, static_cast<const float*>(weight) + column);
  load(w, static_cast<const bfloat16_t*>(weight) + column);
}

SEEKERNEL_DEVICE float sum_of_squares(const float (&v)[8]) {
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < 8; ++i) sum += v[i] * v[i];
#pragma unroll
  for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
  return sum;
}

// v * weight / rms, from the sums of the warps [first, last), added in their order.
SEEKERNEL_DEVICE void normalise(float (&v)[8], const float (&w)[8], const float* sums, int first,
                                int last, int n, float eps) {
  float total = 0.0f;
  for (int i = first; i < last; ++i) total += sums[i];
  const float inverse = 1.0f / sqrtf(total / static_cast<float>(n) + eps);
#pragma unroll
  for (int i = 0; i < 8; ++i) v[i] = v[i] * inverse * w[i];
}

}  // namespace mla_prepare_detail

template <typename T>
__global__ void __launch_bounds__(1024)
    mla_prepare(const __grid_constant__ mla_prepare_args_t args) {
  namespace detail = mla_prepare_detail;
  __shared__ float sums[32];
  const latent_cache_t& cache = args.cache;
  const int thread = threadIdx.x, warp = thread / 32;
  const int q_warps = args.q_threads / 32, kv_warps = args.kv_threads / 32;
  const bool is_q = warp < q_warps, is_rope = warp >= q_warps + kv_warps;
  // The column of this thread's first value in its part, and how many the part has.
  const int column = 8 * (thread - (is_q      ? 0
                                    : is_rope ? args.q_threads + args.kv_threads
                                              : args.q_threads));
  const int size = is_q ? args.q_lora : is_rope ? cache.rope : cache.kv_lora;
  const bool is_live = column < size;
  float v[8] = {}, w[8] = {};
  // Weights are constants: they need not wait for the kernel before.
  if (is_live && is_q) {
    detail::load_weight(w, args.q_norm_weight, args.q_weight_is_float, column);
  } else if (is_live && !is_rope) {
    detail::load_weight(w, args.kv_norm_weight, args.kv_weight_is_float, column);
  }
  ptx::griddepcontrol_wait();
  ptx::griddepcontrol_launch_dependents();

  const int64_t row = blockIdx.x;
  const int64_t slot = args.slots_are_wide ? static_cast<const int64_t*>(args.slots)[row]
                                           : static_cast<const int32_t*>(args.slots)[row];
  const int part = is_q ? 0 : is_rope ? args.q_lora + cache.kv_lora : args.q_lora;
  const T* x = static_cast<const T*>(args.qkv_a) + row * args.stride_qkv_s + part;
  if (is_live) load(v, x + column);
  const float squares = detail::sum_of_squares(v);
  if (thread % 32 == 0) sums[warp] = squares;
  __syncthreads();  // orders each warp's sum before the reads of the others

  if (is_q) {
    detail::normalise(v, w, sums, 0, q_warps, args.q_lora, args.eps);
    T* out = static_cast<T*>(args.q_latent) + row * args.stride_q_latent_s;
    if (is_live) store(out + column, v);
    return;
  }
  if (slot < 0) return;
  uint8_t* out = cache.row(slot / cache.page_size, slot % cache.page_size);
  if (is_rope) {
    if (!is_live) return;
    rotate(v, args.cos_sin + args.positions[row] * args.stride_cos_sin, cache.rope, column);
    store_latent(v, cache, out, cache.kv_lora + column, 1.0f);
    return;
  }
  detail::normalise(v, w, sums, q_warps, q_warps + kv_warps, cache.kv_lora, args.eps);
  float scale = 1.0f;
  if (cache.format == kLatentBlocks) {
    float amax = 0.0f;
#pragma unroll
    for (int i = 0; i < 8; ++i) amax = fmaxf(amax, fabsf(v[i]));
#pragma unroll
    for (int step = 8; step > 0; step /= 2) {
      amax = fmaxf(amax, __shfl_xor_sync(0xffffffffu, amax, step));
    }
    scale = latent_block_scale(amax);
  }
  if (is_live) store_latent(v, cache, out, column, scale);
}

}  // namespace seekernel
