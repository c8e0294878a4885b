// Attention over the latent cache (mla_decode) and over expanded keys and values (mla_prefill).
#pragma once

#include "cpu/kernels/dtype.h"
#include "cpu/kernels/mla_prepare.h"

namespace seekernel::cpu {

struct MlaDecodeArgs {
  Dtype q_dtype;
  Dtype out_dtype;
  int64_t h_q;
  int64_t d_qk;
  int64_t d_v;
  int64_t stride_q_s;  // elements
  int64_t stride_q_h;
  int64_t stride_out_s;
  int64_t stride_out_h;
  const void* q;
  PagedCache cache;
  float scale;  // softmax scale times log2(e): scores are exponents of two
  void* out;
  float* lse;  // [s, h_q] contiguous
};

// One query token: it sees keys [0, num_keys) of the request whose pages are given.
struct MlaDecodeToken {
  int64_t row;
  const int32_t* pages;
  int64_t num_keys;
};

struct MlaPrefillArgs {
  Dtype q_dtype;
  Dtype kv_dtype;
  Dtype k_pe_dtype;
  Dtype out_dtype;
  bool causal;
  int64_t d_nope;
  int64_t d_rope;
  int64_t d_v;
  int64_t stride_q_s;
  int64_t stride_q_h;
  int64_t stride_kv_s;
  int64_t stride_kv_h;
  int64_t stride_k_pe_s;
  int64_t stride_out_s;
  int64_t stride_out_h;
  int64_t h;
  const void* q;
  const void* kv;  // per head: k_nope, then v
  const void* k_pe;
  float scale;  // as in MlaDecodeArgs
  void* out;
  float* lse;
  const void* previous_out;  // null: nothing to merge with
  const float* previous_lse;
  Dtype previous_dtype;
  int64_t stride_previous_s;
  int64_t stride_previous_h;
};

// Finished attention over some keys: out [s, h, d_v], lse [s, h] contiguous.
struct AttentionState {
  Dtype dtype;
  int64_t stride_s;
  int64_t stride_h;
  const void* out;
  const float* lse;
};

struct MergeStatesArgs {
  AttentionState states[2];
  int64_t h;
  int64_t d_v;
  Dtype out_dtype;
  int64_t stride_out_s;
  int64_t stride_out_h;
  void* out;
  float* lse;
};

struct MlaPrefillSequence {
  int64_t q_begin;
  int64_t s_q;
  int64_t kv_begin;
  int64_t s_kv;
};

// A partial result is one float array per panel of R = rows_per_panel heads: R x d_v_padded sums, R
// maxima (as exponents of two), R denominators. Rows never mix, whatever panel they are in.
struct AttentionKernels {
  int64_t rows_per_panel;
  int64_t queries_per_block;
  int64_t (*partial_size)(int64_t d_v);  // of one panel
  int64_t (*decode_scratch_size)(const MlaDecodeArgs& args, int64_t heads);
  int64_t (*prefill_scratch_size)(const MlaPrefillArgs& args);
  // Heads [head_begin, head_end) of one token over keys [key_begin, key_end), each read once.
  void (*mla_decode_chunk)(const MlaDecodeArgs& args, const MlaDecodeToken& token,
                           int64_t head_begin, int64_t head_end, int64_t key_begin, int64_t key_end,
                           float* scratch, float* partial);
  // Adds `partial` into `total`: called in ascending order of keys, so that bits are fixed.
  void (*mla_decode_merge)(const MlaDecodeArgs& args, int64_t heads, const float* partial,
                           float* total);
  void (*mla_decode_finish)(const MlaDecodeArgs& args, const MlaDecodeToken& token,
                            int64_t head_begin, int64_t head_end, const float* total);
  // Queries [begin, end) of one sequence and head, at most queries_per_block of them.
  void (*mla_prefill_block)(const MlaPrefillArgs& args, const MlaPrefillSequence& sequence,
                            int64_t head, int64_t begin, int64_t end, float* scratch);
  // Rows are s * h; `scratch` holds d_v floats.
  void (*merge_attention_states)(const MergeStatesArgs& args, int64_t row_begin, int64_t row_end,
                                 float* scratch);
};

}  // namespace seekernel::cpu
