// Cached tokens out of their pages, in order: the input of kv_b_proj for a prefill over a prefix.
//
//   latent[cu[r] + t], k_pe[cu[r] + t] = values of token t of request r
//
// Shapes: block_table [b, max_pages], entries past a request's last page may hold anything;
//   cu_seqlens_kv [b + 1]; latent [s_kv, kv_lora], k_pe [s_kv, rope] in T = float or bfloat16_t.
//   Rows start at multiples of 16 bytes.
// Roles: a warp takes kTokensPerWarp tokens, 8 values a lane and step; it finds the request of the
//   first by bisection, and walks on from there.
// Bound: HBM: 1152 + 1152 bytes a token of V3 from bf16, 656 or 576 + 1152 from FP8.
#pragma once

#include <seekernel/attention/latent_cache.cuh>
#include <seekernel/ptx/barrier.cuh>

namespace seekernel {

constexpr int kGatherWarps = 4, kGatherTokensPerWarp = 4;

template <typename T>
__global__ void __launch_bounds__(32 * kGatherWarps)
    mla_gather_latent(const __grid_constant__ latent_cache_t cache, const int32_t* block_table,
                      int64_t stride_table, const int32_t* cu_seqlens_kv, int b, int s_kv,
                      T* latent, int64_t stride_latent_s, T* k_pe, int64_t stride_k_pe_s) {
  ptx::griddepcontrol_wait();
  ptx::griddepcontrol_launch_dependents();
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int begin = (blockIdx.x * kGatherWarps + warp) * kGatherTokensPerWarp;
  const int end = min(begin + kGatherTokensPerWarp, s_kv);
  if (begin >= end) return;
  int request = 0, beyond = b;  // cu[request] <= begin < cu[beyond]
  while (beyond - request > 1) {
    const int middle = (request + beyond) / 2;
    if (cu_seqlens_kv[middle] <= begin) {
      request = middle;
    } else {
      beyond = middle;
    }
  }
  for (int row = begin; row < end; ++row) {
    while (cu_seqlens_kv[request + 1] <= row) ++request;
    const int token = row - cu_seqlens_kv[request];
    const int64_t page = block_table[request * stride_table + token / cache.page_size];
    const uint8_t* from = cache.row(page, token % cache.page_size);
    for (int column = 8 * lane; column < cache.kv_lora + cache.rope; column += 256) {
      float v[8];
      load_latent(v, cache, from, column);
      if (column < cache.kv_lora) {
        store(latent + row * stride_latent_s + column, v);
      } else {
        store(k_pe + row * stride_k_pe_s + column - cache.kv_lora, v);
      }
    }
  }
}

}  // namespace seekernel
