// What the boundaries of the routing ops check alike on the CPU and on CUDA devices.
#pragma once

#include <string>

#include "host/fused_check.h"

namespace seekernel {

constexpr int64_t kMaxExperts = 1024;
constexpr int64_t kMaxTopK = 16;

struct GateOptions {
  int64_t n_group, topk_group;
  const std::string& scoring_func;
  bool norm_topk_prob;
  double routed_scaling_factor;
  int64_t num_shared;
};

struct GateSizes {
  int64_t m, num_experts, top_k;
  bool softmax;
};

// Shapes, dtypes, strides, devices and options of moe_gate; logits may be its input or an output.
GateSizes check_gate(const Checker& check, const Tensor& logits, const OptionalTensor& bias,
                     const GateOptions& options, const Tensor& weights, const Tensor& ids,
                     const OptionalTensor& error);

struct PlanTensors {
  const Tensor& offsets;
  const Tensor& row_token;
  const Tensor& token_row;
  const OptionalTensor& replicas;
  int64_t block_rows;
  const OptionalTensor& tiles;
  const OptionalTensor& num_tiles;
  const OptionalTensor& loads;
};

struct PlanSizes {
  int64_t m, columns, num_local;
  int64_t num_logical, num_replicas;  // 0 without replicas; num_logical also that of loads
};

PlanSizes check_plan(const Checker& check, const Tensor& ids, int64_t first_expert,
                     const PlanTensors& plan);

struct FinalizeTensors {
  const Tensor& y;
  const Tensor& token_row;
  const Tensor& weights;
  const OptionalTensor& shared;
  const OptionalTensor& out;
  const OptionalTensor& residual;
  const OptionalTensor& norm_weight;
  NormOutputs norm;  // none, or one at least with norm_weight
};

struct FinalizeSizes {
  int64_t rows, m, n, top_k;
};

// The dtypes of y and of norm_weight are the device's business.
FinalizeSizes check_finalize(const Checker& check, const FinalizeTensors& tensors);

struct PermuteSizes {
  int64_t m, rows, n, groups;
};

PermuteSizes check_permute(const Checker& check, const Tensor& q, const Tensor& scale,
                           const Tensor& row_token, const Tensor& q_out, const Tensor& scale_out);

}  // namespace seekernel
