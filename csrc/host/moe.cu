// CUDA boundary of router_gemm, moe_gate, moe_plan: checks, choice of instance, grid, launch.
#include <algorithm>
#include <climits>

// The host's headers come first: seekernel/ptx/types.cuh gives the integer names of NVRTC.
#include "host/check.h"
#include "host/launch.h"
//
#include "host/moe_launch.h"

namespace seekernel::cuda {
namespace {

constexpr int64_t kMaxPlanShared = 200 * 1024;
constexpr int kMaxPlanThreads = 1024;

int64_t row_stride(const Tensor& tensor) { return tensor.size(0) <= 1 ? 0 : tensor.stride(0); }

bool aligned_rows(const Tensor& tensor) {
  return reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % 16 == 0 &&
         row_stride(tensor) % 8 == 0;
}

template <class Tile>
void launch_tile(const char* op, const router_operands_t& operands, cudaStream_t stream) {
  const unsigned experts = divide_up(operands.num_experts, Tile::kExperts);
  const unsigned tokens = divide_up(operands.m, Tile::kTokens);
  launch({.grid = {Tile::kSplits, experts, tokens},
          .block = {Tile::kThreads},
          .shared_bytes = Tile::kSharedFloats * sizeof(float),
          .cluster = {Tile::kSplits},
          .pdl = true},
         stream, op, seekernel::router_gemm<Tile>, operands);
}

}  // namespace

router_operands_t router_operands(const Checker& check, const Tensor& x, const Tensor& weight,
                                  const char* out_name, const Tensor& out) {
  Dim m("m"), e("e"), k("k");
  check("x", x).shape({m, k}).dtype({ScalarType::BFloat16}).last_dim_contiguous();
  check("weight", weight).shape({e, k}).dtype({ScalarType::BFloat16}).last_dim_contiguous();
  check("weight", weight).same_device("x", x);
  check(out_name, out).shape({m, e}).dtype({ScalarType::Float}).last_dim_contiguous();
  check(out_name, out).same_device("x", x);
  check.require(k % 8 == 0, "x: expected k a multiple of 8, got k=" + std::to_string(k.value()));
  check.require(m <= 65535 * 64 && e <= 65535 * 16 && k <= INT_MAX / 2,
                "expected m and e below 2^20 and k below 2^30, got m=" + std::to_string(m.value()) +
                    ", e=" + std::to_string(e.value()) + ", k=" + std::to_string(k.value()));
  if (!aligned_rows(x)) check("x", x).fail("rows that start at multiples of 16 bytes");
  if (!aligned_rows(weight))
    check("weight", weight).fail("rows that start at multiples of 16 bytes");
  return {.x = static_cast<const bfloat16_t*>(x.const_data_ptr()),
          .w = static_cast<const bfloat16_t*>(weight.const_data_ptr()),
          .out = static_cast<float*>(out.mutable_data_ptr()),
          .m = static_cast<int>(m),
          .num_experts = static_cast<int>(e),
          .k = static_cast<int>(k),
          .stride_x_m = row_stride(x),
          .stride_w_e = row_stride(weight),
          .stride_out_m = row_stride(out)};
}

gate_config_t gate_config(const GateOptions& options, const GateSizes& sizes) {
  return {.num_experts = static_cast<int>(sizes.num_experts),
          .n_group = static_cast<int>(options.n_group),
          .topk_group = static_cast<int>(options.topk_group),
          .top_k = static_cast<int>(sizes.top_k),
          .num_shared = static_cast<int>(options.num_shared),
          .softmax = sizes.softmax,
          .norm_topk_prob = options.norm_topk_prob,
          .routed_scaling_factor = static_cast<float>(options.routed_scaling_factor)};
}

plan_config_t plan_config(const Checker& check, const Tensor& ids, int64_t first_expert,
                          const PlanTensors& plan, const PlanSizes& sizes) {
  check.require(sizes.num_local <= 8192,
                "offsets: expected at most 8192 experts on a CUDA device, got " +
                    std::to_string(sizes.num_local));
  return {.ids = static_cast<const int32_t*>(ids.const_data_ptr()),
          .replicas = data_of<int32_t>(plan.replicas),
          .offsets = static_cast<int32_t*>(plan.offsets.mutable_data_ptr()),
          .row_token = static_cast<int32_t*>(plan.row_token.mutable_data_ptr()),
          .token_row = static_cast<int32_t*>(plan.token_row.mutable_data_ptr()),
          .tiles = writable<int32_t>(plan.tiles),
          .num_tiles = writable<int32_t>(plan.num_tiles),
          .loads = writable<seekernel::int64_t>(plan.loads),
          .m = static_cast<int>(sizes.m),
          .columns = static_cast<int>(sizes.columns),
          .first_expert = static_cast<int>(first_expert),
          .num_local = static_cast<int>(sizes.num_local),
          .num_logical = static_cast<int>(sizes.num_logical),
          .num_replicas = static_cast<int>(sizes.num_replicas),
          .block_rows = static_cast<int>(plan.block_rows),
          .reserved = 0};
}

void launch_router_gemm(const char* op, const router_operands_t& operands, cudaStream_t stream) {
  if (operands.m == 0 || operands.num_experts == 0) return;
  if (operands.m <= 8) return launch_tile<router_tile_8_t>(op, operands, stream);
  if (operands.m <= 32) return launch_tile<router_tile_32_t>(op, operands, stream);
  if (operands.m <= 128) return launch_tile<router_tile_64_t>(op, operands, stream);
  launch_tile<router_tile_wide_t>(op, operands, stream);
}

void launch_gate(const char* op, const Tensor& logits, const OptionalTensor& bias,
                 const gate_config_t& config, const Tensor& weights, const Tensor& ids,
                 const OptionalTensor& error, cudaStream_t stream) {
  const int m = static_cast<int>(logits.size(0));
  if (m == 0) return;
  const unsigned grid = divide_up(m, kGateWarps);
  with_per_lane(config.num_experts, [&]<class N>(N) {
    launch({.grid = {grid}, .block = {32 * kGateWarps}, .pdl = true}, stream, op,
           seekernel::moe_gate<N::value>, static_cast<const float*>(logits.const_data_ptr()),
           data_of<float>(bias), static_cast<float*>(weights.mutable_data_ptr()),
           static_cast<int32_t*>(ids.mutable_data_ptr()), writable<int32_t>(error), m,
           row_stride(logits), row_stride(weights), row_stride(ids), config);
  });
}

// One CTA while its warps take few steps; more share the ids through their cluster.
void launch_plan(const char* op, const plan_config_t& config, cudaStream_t stream) {
  const int64_t num_ids = int64_t{config.m} * config.columns;
  const unsigned ranks = num_ids <= 4096 ? 1 : num_ids <= 16384 ? 4 : 8;
  const int64_t most_warps =
      (kMaxPlanShared / 4 - 4 * (config.num_local + 1)) / std::max(config.num_local, 1);
  const int64_t wanted = num_ids <= 1024 ? 8 : kMaxPlanThreads / 32;
  const int warps = static_cast<int>(std::min(wanted, most_warps));
  launch({.grid = {ranks},
          .block = {32u * warps},
          .shared_bytes = static_cast<size_t>(4 * plan_shared_words(warps, config.num_local)),
          .cluster = {ranks},
          .pdl = true},
         stream, op, seekernel::moe_plan<kMaxPlanThreads>, config);
}

namespace {

void router_gemm(const Tensor& x, const Tensor& weight, const Tensor& out) {
  const router_operands_t operands = router_operands(Checker("router_gemm"), x, weight, "out", out);
  const DeviceGuard guard(x.get_device_index());
  launch_router_gemm("router_gemm", operands, current_stream(x.get_device_index()));
}

void moe_gate(const Tensor& logits, OptionalTensor bias, int64_t n_group, int64_t topk_group,
              std::string scoring_func, bool norm_topk_prob, double routed_scaling_factor,
              const Tensor& weights, const Tensor& ids, OptionalTensor error, int64_t num_shared) {
  const Checker check("moe_gate");
  const GateOptions options{
      n_group, topk_group, scoring_func, norm_topk_prob, routed_scaling_factor, num_shared};
  const GateSizes sizes = check_gate(check, logits, bias, options, weights, ids, error);
  check.require(sizes.m <= INT_MAX, "logits: expected m < 2^31, got m=" + std::to_string(sizes.m));
  const DeviceGuard guard(logits.get_device_index());
  launch_gate("moe_gate", logits, bias, gate_config(options, sizes), weights, ids, error,
              current_stream(logits.get_device_index()));
}

void moe_plan(const Tensor& ids, int64_t first_expert, const Tensor& offsets,
              const Tensor& row_token, const Tensor& token_row, OptionalTensor replicas,
              int64_t block_rows, OptionalTensor tiles, OptionalTensor num_tiles,
              OptionalTensor loads) {
  const Checker check("moe_plan");
  const PlanTensors plan{offsets,    row_token, token_row, replicas,
                         block_rows, tiles,     num_tiles, loads};
  const PlanSizes sizes = check_plan(check, ids, first_expert, plan);
  const DeviceGuard guard(ids.get_device_index());
  launch_plan("moe_plan", plan_config(check, ids, first_expert, plan, sizes),
              current_stream(ids.get_device_index()));
}

}  // namespace
}  // namespace seekernel::cuda

STABLE_TORCH_LIBRARY_IMPL(seekernel, CUDA, m) {
  m.impl("router_gemm", TORCH_BOX(&seekernel::cuda::router_gemm));
  m.impl("moe_gate", TORCH_BOX(&seekernel::cuda::moe_gate));
  m.impl("moe_plan", TORCH_BOX(&seekernel::cuda::moe_plan));
}
