// What happens to a token before and after the latent cache: norms, rope, paged append, paged
// gather.
#pragma once

#include "cpu/kernels/dtype.h"

namespace seekernel::cpu {

// Row `slot` of a paged cache sits at page slot / page_size, row slot % page_size. The formats are
// those of host/latent_cache.h.
struct PagedCache {
  Dtype dtype;
  bool blocks;  // e4m3 with a multiplier per 128 latent values and a bfloat16 rope key
  int64_t kv_lora;
  int64_t rope;
  int64_t page_size;
  int64_t stride_page;  // elements
  int64_t stride_row;
  float scale;  // of e4m3 without blocks
  void* data;
};

struct MlaPrepareArgs {
  Dtype dtype;  // of qkv_a and q_latent
  Dtype q_weight_dtype;
  Dtype kv_weight_dtype;
  int64_t q_lora;  // 0: qkv_a holds no query part
  int64_t stride_qkv_s;
  int64_t stride_q_latent_s;
  int64_t stride_cos_sin;
  const void* qkv_a;
  const void* q_norm_weight;
  const void* kv_norm_weight;
  const int32_t* positions;
  const float* cos_sin;
  const void* slots;
  bool wide_slots;  // int64, else int32; -1: the row is not stored
  float eps;
  void* q_latent;
  PagedCache cache;
};

struct RopeArgs {
  Dtype dtype;
  int64_t h;
  int64_t rope;
  int64_t stride_x_s;
  int64_t stride_x_h;
  int64_t stride_cos_sin;
  const int32_t* positions;
  const float* cos_sin;
  void* x;
};

struct MlaGatherArgs {
  PagedCache cache;
  Dtype latent_dtype;
  Dtype k_pe_dtype;
  int64_t stride_latent_s;
  int64_t stride_k_pe_s;
  void* latent;
  void* k_pe;
};

// `scratch` holds kv_lora + rope floats.
struct MlaPrepareKernels {
  void (*mla_prepare)(const MlaPrepareArgs& args, int64_t row_begin, int64_t row_end,
                      float* scratch);
  void (*rope_interleaved)(const RopeArgs& args, int64_t row_begin, int64_t row_end);
  // Tokens [token_begin, token_end) of the request whose pages are given go to rows from row_begin.
  void (*mla_gather_latent)(const MlaGatherArgs& args, const int32_t* pages, int64_t token_begin,
                            int64_t token_end, int64_t row_begin, float* scratch);
};

}  // namespace seekernel::cpu
