// CPU boundary of moe_gate, moe_plan, moe_route, moe_permute_fp8, moe_finalize.
#include <cstring>

#include "cpu/dtype.h"
#include "cpu/isa.h"
#include "cpu/norm_quantize.h"
#include "cpu/parallel.h"
#include "cpu/router.h"
#include "host/moe_check.h"

namespace seekernel::cpu {
namespace {

constexpr auto kActivations = {ScalarType::Float, ScalarType::BFloat16};
constexpr int64_t kTokensPerGateChunk = 16;
constexpr int64_t kElementsPerChunk = 16384;

std::string got(const char* name, int64_t value) {
  return std::string(name) + "=" + std::to_string(value);
}

void run_gate(const Checker& check, const Tensor& logits, const OptionalTensor& bias,
              const GateOptions& options, const Tensor& weights, const Tensor& ids,
              const OptionalTensor& error) {
  const GateSizes sizes = check_gate(check, logits, bias, options, weights, ids, error);
  if (sizes.m == 0) return;
  const MoeGateArgs args{
      .num_experts = sizes.num_experts,
      .n_group = options.n_group,
      .topk_group = options.topk_group,
      .top_k = sizes.top_k,
      .num_shared = options.num_shared,
      .stride_logits_m = logits.stride(0),
      .stride_weights_m = weights.stride(0),
      .stride_ids_m = ids.stride(0),
      .scoring = sizes.softmax ? Scoring::kSoftmax : Scoring::kSigmoid,
      .norm_topk_prob = options.norm_topk_prob,
      .routed_scaling_factor = static_cast<float>(options.routed_scaling_factor),
      .logits = static_cast<const float*>(logits.const_data_ptr()),
      .bias = bias ? static_cast<const float*>(bias->const_data_ptr()) : nullptr,
      .weights = static_cast<float*>(weights.mutable_data_ptr()),
      .ids = static_cast<int32_t*>(ids.mutable_data_ptr()),
      .error = error ? static_cast<int32_t*>(error->mutable_data_ptr()) : nullptr};
  parallel_chunks(sizes.m, kTokensPerGateChunk,
                  [&](int64_t begin, int64_t end) { kernels().moe.gate(args, begin, end); });
}

void moe_gate(const Tensor& logits, OptionalTensor bias, int64_t n_group, int64_t topk_group,
              std::string scoring_func, bool norm_topk_prob, double routed_scaling_factor,
              const Tensor& weights, const Tensor& ids, OptionalTensor error, int64_t num_shared) {
  run_gate(Checker("moe_gate"), logits, bias,
           {n_group, topk_group, scoring_func, norm_topk_prob, routed_scaling_factor, num_shared},
           weights, ids, error);
}

// The physical expert of each id, or -1: ids themselves, unless there is a table of replicas.
class PhysicalExperts {
 public:
  PhysicalExperts(const Tensor& ids, const OptionalTensor& replicas, const PlanSizes& sizes)
      : ids_(static_cast<const int32_t*>(ids.const_data_ptr())),
        replicas_(replicas ? static_cast<const int32_t*>(replicas->const_data_ptr()) : nullptr),
        sizes_(sizes) {}

  int64_t operator()(int64_t i) const {
    const int64_t id = ids_[i];
    if (replicas_ == nullptr) return id;
    if (id < 0 || id >= sizes_.num_logical) return -1;
    const int32_t* physical = replicas_ + id * sizes_.num_replicas;
    int64_t count = 0;
    while (count < sizes_.num_replicas && physical[count] >= 0) ++count;
    return count == 0 ? -1 : physical[(i / sizes_.columns + i % sizes_.columns) % count];
  }

  int32_t id(int64_t i) const { return ids_[i]; }

 private:
  const int32_t* ids_;
  const int32_t* replicas_;
  const PlanSizes& sizes_;
};

void write_tiles(const int32_t* offsets, int64_t num_local, int64_t block_rows, int32_t* tiles,
                 int32_t* num_tiles) {
  int32_t* entry = tiles;
  for (int64_t e = 0; e < num_local; ++e) {
    for (int64_t row = offsets[e]; row < offsets[e + 1]; row += block_rows, entry += 4) {
      const int64_t left = offsets[e + 1] - row;
      entry[0] = static_cast<int32_t>(e);
      entry[1] = static_cast<int32_t>(row);
      entry[2] = static_cast<int32_t>(left < block_rows ? left : block_rows);
      entry[3] = 0;
    }
  }
  *num_tiles = static_cast<int32_t>((entry - tiles) / 4);
}

// A stable counting sort; one thread, because a pass over m * top_k ids is cheaper than a barrier.
void run_plan(const Checker& check, const Tensor& ids, int64_t first_expert,
              const PlanTensors& plan) {
  const PlanSizes sizes = check_plan(check, ids, first_expert, plan);
  const int64_t num_local = sizes.num_local, size = sizes.m * sizes.columns;
  const PhysicalExperts physical(ids, plan.replicas, sizes);
  int32_t* offset = static_cast<int32_t*>(plan.offsets.mutable_data_ptr());
  int32_t* token_of = static_cast<int32_t*>(plan.row_token.mutable_data_ptr());
  int32_t* row_of = static_cast<int32_t*>(plan.token_row.mutable_data_ptr());
  const auto local = [&](int64_t i) {
    const int64_t id = physical(i), expert = id - first_expert;
    return id >= 0 && expert >= 0 && expert < num_local ? expert : int64_t{-1};
  };

  // Count into the slot after next, so that the scatter can use offset[e + 1] as the cursor of
  // expert e and leave behind what the caller wants: where expert e ends.
  for (int64_t e = 0; e <= num_local; ++e) offset[e] = 0;
  for (int64_t i = 0; i < size; ++i) {
    const int64_t expert = local(i);
    if (expert >= 0 && expert + 2 <= num_local) ++offset[expert + 2];
  }
  for (int64_t e = 2; e <= num_local; ++e) offset[e] += offset[e - 1];
  for (int64_t i = 0; i < size; ++i) {
    const int64_t expert = local(i);
    row_of[i] = expert < 0 ? -1 : offset[expert + 1]++;
    if (expert >= 0) token_of[row_of[i]] = static_cast<int32_t>(i / sizes.columns);
  }
  for (int64_t row = offset[num_local]; row < size; ++row) token_of[row] = -1;

  if (plan.tiles) {
    write_tiles(offset, num_local, plan.block_rows,
                static_cast<int32_t*>(plan.tiles->mutable_data_ptr()),
                static_cast<int32_t*>(plan.num_tiles->mutable_data_ptr()));
  }
  if (plan.loads) {
    int64_t* loads = static_cast<int64_t*>(plan.loads->mutable_data_ptr());
    for (int64_t i = 0; i < size; ++i) {
      const int64_t id = physical.id(i);
      if (id >= 0 && id < sizes.num_logical) ++loads[id];
    }
  }
}

void moe_plan(const Tensor& ids, int64_t first_expert, const Tensor& offsets,
              const Tensor& row_token, const Tensor& token_row, OptionalTensor replicas,
              int64_t block_rows, OptionalTensor tiles, OptionalTensor num_tiles,
              OptionalTensor loads) {
  run_plan(Checker("moe_plan"), ids, first_expert,
           {offsets, row_token, token_row, replicas, block_rows, tiles, num_tiles, loads});
}

void moe_route(const Tensor& x, const Tensor& weight, OptionalTensor bias, int64_t n_group,
               int64_t topk_group, std::string scoring_func, bool norm_topk_prob,
               double routed_scaling_factor, int64_t first_expert, const Tensor& logits,
               const Tensor& weights, const Tensor& ids, const Tensor& offsets,
               const Tensor& row_token, const Tensor& token_row, OptionalTensor replicas,
               int64_t block_rows, OptionalTensor tiles, OptionalTensor num_tiles,
               OptionalTensor loads, OptionalTensor error, int64_t num_shared,
               OptionalTensor counter) {
  Checker check("moe_route");
  if (counter) check("counter", *counter).shape({1}).dtype({ScalarType::Int});
  const GateOptions options{
      n_group, topk_group, scoring_func, norm_topk_prob, routed_scaling_factor, num_shared};
  const PlanTensors plan{offsets,    row_token, token_row, replicas,
                         block_rows, tiles,     num_tiles, loads};
  // All checks come before anything is written.
  check_gate(check, logits, bias, options, weights, ids, error);
  check_plan(check, ids, first_expert, plan);
  router_gemm(x, weight, logits);
  run_gate(check, logits, bias, options, weights, ids, error);
  run_plan(check, ids, first_expert, plan);
}

void moe_finalize(const Tensor& y, const Tensor& token_row, const Tensor& weights,
                  OptionalTensor shared, OptionalTensor out, OptionalTensor residual,
                  OptionalTensor norm_weight, double eps, OptionalTensor normed, OptionalTensor q,
                  OptionalTensor scale) {
  Checker check("moe_finalize");
  const FinalizeTensors tensors{y,   token_row, weights,     shared,
                                out, residual,  norm_weight, {normed, q, scale}};
  const FinalizeSizes sizes = check_finalize(check, tensors);
  check("y", y).dtype(kActivations);
  if (norm_weight) check("norm_weight", *norm_weight).dtype(kActivations);
  const int64_t m = sizes.m, n = sizes.n, top_k = sizes.top_k;
  const int32_t* row_of = static_cast<const int32_t*>(token_row.const_data_ptr());
  for (int64_t i = 0; i < m * top_k; ++i) {
    if (row_of[i] < -1 || row_of[i] >= sizes.rows) {
      check.fail("token_row: expected -1 or a row below " + got("rows", sizes.rows) + ", got " +
                 std::to_string(row_of[i]));
    }
  }
  if (m == 0 || n == 0) return;
  const MoeFinalizeArgs args{.dtype = dtype_of(y),
                             .n = n,
                             .top_k = top_k,
                             .stride_y_m = y.stride(0),
                             .stride_shared_m = shared ? shared->stride(0) : 0,
                             .stride_out_m = out ? out->stride(0) : n,
                             .y = y.const_data_ptr(),
                             .token_row = row_of,
                             .weights = static_cast<const float*>(weights.const_data_ptr()),
                             .shared = shared ? shared->const_data_ptr() : nullptr,
                             .out = out ? out->mutable_data_ptr() : nullptr};
  const AddArgs add{.dtype = args.dtype,
                    .n = n,
                    .stride_x_m = args.stride_out_m,
                    .stride_out_m = residual ? residual->stride(0) : 0,
                    .x = args.out,
                    .out = residual ? residual->mutable_data_ptr() : nullptr};
  std::optional<NormQuantize> norm;
  if (norm_weight) norm.emplace(*residual, *norm_weight, eps, tensors.norm);
  const int64_t element_bytes = args.dtype == Dtype::kFloat32 ? 4 : 2;
  const int64_t elements = n * (top_k + 1);
  const int64_t chunk = elements >= kElementsPerChunk ? 1 : kElementsPerChunk / elements;
  parallel_chunks(m, chunk, [&](int64_t begin, int64_t end) {
    if (args.out != nullptr) {
      kernels().moe.finalize(args, begin, end);
      if (add.out != nullptr) kernels().norm.add(add, begin, end);
    } else {
      for (int64_t token = begin; token < end; ++token) {  // the sum itself lives in scratch
        MoeFinalizeArgs one = args;
        one.token_row += token * top_k;
        one.weights += token * top_k;
        if (one.shared != nullptr) {
          one.shared =
              static_cast<const char*>(one.shared) + token * one.stride_shared_m * element_bytes;
        }
        one.out = thread_scratch(n);
        kernels().moe.finalize(one, 0, 1);
        AddArgs row = add;
        row.x = one.out;
        row.out = static_cast<char*>(add.out) + token * add.stride_out_m * element_bytes;
        kernels().norm.add(row, 0, 1);
      }
    }
    if (norm) norm->run(begin, end);
  });
}

void moe_permute_fp8(const Tensor& q, const Tensor& scale, const Tensor& row_token,
                     const Tensor& q_out, const Tensor& scale_out) {
  Checker check("moe_permute_fp8");
  const PermuteSizes sizes = check_permute(check, q, scale, row_token, q_out, scale_out);
  const int32_t* token_of = static_cast<const int32_t*>(row_token.const_data_ptr());
  for (int64_t i = 0; i < sizes.rows; ++i) {
    check.require(token_of[i] >= -1 && token_of[i] < sizes.m,
                  "row_token: expected -1 or a token below " + got("m", sizes.m) + ", got " +
                      std::to_string(token_of[i]));
  }
  const char* from = static_cast<const char*>(q.const_data_ptr());
  char* to = static_cast<char*>(q_out.mutable_data_ptr());
  const float* scale_from = static_cast<const float*>(scale.const_data_ptr());
  float* scale_to = static_cast<float*>(scale_out.mutable_data_ptr());
  const int64_t stride_q = q.stride(0), stride_q_out = q_out.stride(0);
  const int64_t stride_scale = scale.stride(0), stride_scale_out = scale_out.stride(0);
  const int64_t chunk = sizes.n >= kElementsPerChunk ? 1 : kElementsPerChunk / (sizes.n + 1);
  parallel_chunks(sizes.rows, chunk, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t token = token_of[row];
      if (token < 0) continue;
      std::memcpy(to + row * stride_q_out, from + token * stride_q, sizes.n);
      for (int64_t group = 0; group < sizes.groups; ++group) {
        scale_to[group * stride_scale_out + row] = scale_from[group * stride_scale + token];
      }
    }
  });
}

}  // namespace
}  // namespace seekernel::cpu

STABLE_TORCH_LIBRARY_IMPL(seekernel, CPU, m) {
  m.impl("moe_gate", TORCH_BOX(&seekernel::cpu::moe_gate));
  m.impl("moe_plan", TORCH_BOX(&seekernel::cpu::moe_plan));
  m.impl("moe_route", TORCH_BOX(&seekernel::cpu::moe_route));
  m.impl("moe_permute_fp8", TORCH_BOX(&seekernel::cpu::moe_permute_fp8));
  m.impl("moe_finalize", TORCH_BOX(&seekernel::cpu::moe_finalize));
}
