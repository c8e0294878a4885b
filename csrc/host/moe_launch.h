// What the CUDA boundaries of the routing ops share: kernel parameters from checked tensors, and
// the choice of instances.
#pragma once

#include "host/moe_check.h"
//
#include <seekernel/moe/gate.cuh>
#include <seekernel/moe/plan.cuh>
#include <seekernel/moe/router_gemm.cuh>

namespace seekernel::cuda {

inline unsigned divide_up(int a, int b) { return static_cast<unsigned>((a + b - 1) / b); }

template <class T>
const T* data_of(const OptionalTensor& tensor) {
  return tensor ? static_cast<const T*>(tensor->const_data_ptr()) : nullptr;
}

template <class T>
T* writable(const OptionalTensor& tensor) {
  return tensor ? static_cast<T*>(tensor->mutable_data_ptr()) : nullptr;
}

// Checks x, weight and the logits of a router GEMM.
router_operands_t router_operands(const Checker& check, const Tensor& x, const Tensor& weight,
                                  const char* out_name, const Tensor& out);

gate_config_t gate_config(const GateOptions& options, const GateSizes& sizes);

plan_config_t plan_config(const Checker& check, const Tensor& ids, int64_t first_expert,
                          const PlanTensors& plan, const PlanSizes& sizes);

void launch_router_gemm(const char* op, const router_operands_t& operands, cudaStream_t stream);
void launch_gate(const char* op, const Tensor& logits, const OptionalTensor& bias,
                 const gate_config_t& config, const Tensor& weights, const Tensor& ids,
                 const OptionalTensor& error, cudaStream_t stream);
void launch_plan(const char* op, const plan_config_t& config, cudaStream_t stream);

// Calls f with an empty object whose type says how many experts a lane holds: 32 times as many in
// all, at least num_experts.
template <int kCount>
struct per_lane_t {
  static constexpr int value = kCount;
};

template <class F>
void with_per_lane(int num_experts, const F& f) {
  if (num_experts <= 64) return f(per_lane_t<2>());
  if (num_experts <= 256) return f(per_lane_t<8>());
  if (num_experts <= 512) return f(per_lane_t<16>());
  f(per_lane_t<32>());
}

}  // namespace seekernel::cuda
