// Mixture-of-experts routing: which experts a token goes to, and the weighted sum of what comes
// back.
#pragma once

#include "cpu/kernels/dtype.h"

namespace seekernel::cpu {

constexpr int64_t kGateExperts = 1024;
constexpr int64_t kGateTopK = 16;

enum class Scoring : int32_t { kSigmoid, kSoftmax };
enum GateFault : int32_t { kNaNLogit = 1, kInfiniteLogit = 2 };

struct MoeGateArgs {
  int64_t num_experts;  // at most kGateExperts, a multiple of n_group
  int64_t n_group;
  int64_t topk_group;  // at most n_group
  int64_t top_k;       // at most kGateTopK, and at most the experts of topk_group groups
  int64_t num_shared;  // further columns: experts num_experts, num_experts + 1, ... of weight 1
  int64_t stride_logits_m;
  int64_t stride_weights_m;
  int64_t stride_ids_m;
  Scoring scoring;
  bool norm_topk_prob;
  float routed_scaling_factor;
  const float* logits;
  const float* bias;  // null: none
  float* weights;
  int32_t* ids;
  int32_t* error;  // null: none; GateFault bits are or-ed into it
};

struct MoeFinalizeArgs {
  Dtype dtype;  // of y, shared and out
  int64_t n;
  int64_t top_k;
  int64_t stride_y_m;
  int64_t stride_shared_m;
  int64_t stride_out_m;
  const void* y;
  const int32_t* token_row;
  const float* weights;
  const void* shared;  // null: none
  void* out;
};

struct MoeKernels {
  // Ranges are tokens.
  void (*gate)(const MoeGateArgs& args, int64_t token_begin, int64_t token_end);
  void (*finalize)(const MoeFinalizeArgs& args, int64_t token_begin, int64_t token_end);
};

}  // namespace seekernel::cpu
