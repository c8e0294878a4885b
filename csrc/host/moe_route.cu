// CUDA boundary of moe_route: one launch for few tokens, the three kernels one after the other
// otherwise.
#include "host/check.h"
#include "host/launch.h"
//
#include "host/moe_launch.h"
//
#include <seekernel/moe/route.cuh>

namespace seekernel::cuda {
namespace {

constexpr int64_t kMaxFusedExperts = 512;

struct RouteCall {
  router_operands_t router;
  gate_config_t gate;
  plan_config_t plan;
  const float* bias;
  float* weights;
  int32_t* ids;
  int32_t* error;
  uint32_t* counter;
};

template <class Tile>
void launch_route(const RouteCall& call, cudaStream_t stream) {
  const unsigned experts = divide_up(call.router.num_experts, Tile::kExperts);
  const unsigned tokens = divide_up(call.router.m, Tile::kTokens);
  const auto run = [&]<class N>(N) {
    const int words =
        route_scratch_words<Tile, N::value>(call.plan.num_local) + call.plan.m * call.plan.columns;
    launch({.grid = {Tile::kSplits, experts, tokens},
            .block = {kRouteThreads},
            .shared_bytes = 4 * static_cast<size_t>(words),
            .cluster = {Tile::kSplits},
            .pdl = true},
           stream, "moe_route", seekernel::moe_route<Tile, N::value>, call.router, call.gate,
           call.plan, call.bias, call.weights, call.ids, call.error, call.counter);
  };
  if (call.gate.num_experts <= 64) return run(per_lane_t<2>());
  if (call.gate.num_experts <= 256) return run(per_lane_t<8>());
  run(per_lane_t<16>());
}

void moe_route(const Tensor& x, const Tensor& weight, OptionalTensor bias, int64_t n_group,
               int64_t topk_group, std::string scoring_func, bool norm_topk_prob,
               double routed_scaling_factor, int64_t first_expert, const Tensor& logits,
               const Tensor& weights, const Tensor& ids, const Tensor& offsets,
               const Tensor& row_token, const Tensor& token_row, OptionalTensor replicas,
               int64_t block_rows, OptionalTensor tiles, OptionalTensor num_tiles,
               OptionalTensor loads, OptionalTensor error, int64_t num_shared,
               OptionalTensor counter) {
  const Checker check("moe_route");
  const GateOptions options{
      n_group, topk_group, scoring_func, norm_topk_prob, routed_scaling_factor, num_shared};
  const PlanTensors plan{offsets,    row_token, token_row, replicas,
                         block_rows, tiles,     num_tiles, loads};
  const router_operands_t router = router_operands(check, x, weight, "logits", logits);
  const GateSizes gate_sizes = check_gate(check, logits, bias, options, weights, ids, error);
  const PlanSizes plan_sizes = check_plan(check, ids, first_expert, plan);
  check("weights", weights).contiguous();
  if (counter) {
    check("counter", *counter).shape({1}).dtype({ScalarType::Int}).same_device("x", x);
  }
  const gate_config_t gate_args = gate_config(options, gate_sizes);
  const plan_config_t plan_args = plan_config(check, ids, first_expert, plan, plan_sizes);
  const DeviceGuard guard(x.get_device_index());
  const cudaStream_t stream = current_stream(x.get_device_index());

  const bool fused = counter && router.m >= 1 && router.m <= kRouteMaxTokens &&
                     gate_sizes.num_experts <= kMaxFusedExperts && plan_sizes.num_local <= 1024;
  if (!fused) {
    launch_router_gemm("moe_route", router, stream);
    launch_gate("moe_route", logits, bias, gate_args, weights, ids, error, stream);
    return launch_plan("moe_route", plan_args, stream);
  }
  const RouteCall call{.router = router,
                       .gate = gate_args,
                       .plan = plan_args,
                       .bias = data_of<float>(bias),
                       .weights = static_cast<float*>(weights.mutable_data_ptr()),
                       .ids = static_cast<int32_t*>(ids.mutable_data_ptr()),
                       .error = writable<int32_t>(error),
                       .counter = writable<uint32_t>(counter)};
  if (router.m <= 8) return launch_route<router_tile_8_t>(call, stream);
  if (router.m <= 32) return launch_route<router_tile_32_t>(call, stream);
  launch_route<router_tile_64_t>(call, stream);
}

}  // namespace
}  // namespace seekernel::cuda

STABLE_TORCH_LIBRARY_IMPL(seekernel, CUDA, m) {
  m.impl("moe_route", TORCH_BOX(&seekernel::cuda::moe_route));
}
