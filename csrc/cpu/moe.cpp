// CPU boundary of moe_gate, moe_plan, moe_finalize.
#include "cpu/dtype.h"
#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "host/check.h"

namespace seekernel::cpu {
namespace {

constexpr auto kActivations = {ScalarType::Float, ScalarType::BFloat16};
constexpr int64_t kTokensPerGateChunk = 16;
constexpr int64_t kElementsPerChunk = 16384;

std::string got(const char* name, int64_t value) {
  return std::string(name) + "=" + std::to_string(value);
}

Scoring scoring_of(const Checker& check, const std::string& name) {
  if (name == "sigmoid") return Scoring::kSigmoid;
  if (name == "softmax") return Scoring::kSoftmax;
  check.fail("scoring_func: expected sigmoid or softmax, got '" + name + "'");
}

void moe_gate(const Tensor& logits, const OptionalTensor& bias, int64_t n_group, int64_t topk_group,
              const std::string& scoring_func, bool norm_topk_prob, double routed_scaling_factor,
              const Tensor& weights, const Tensor& ids) {
  Checker check("moe_gate");
  Dim m("m"), e("e"), top_k("top_k");
  check("logits", logits).shape({m, e}).dtype({ScalarType::Float}).last_dim_contiguous();
  if (bias) check("bias", *bias).shape({e}).dtype({ScalarType::Float}).contiguous();
  check("weights", weights).shape({m, top_k}).dtype({ScalarType::Float}).last_dim_contiguous();
  check("ids", ids).shape({m, top_k}).dtype({ScalarType::Int}).last_dim_contiguous();
  const Scoring scoring = scoring_of(check, scoring_func);
  check.require(e >= 1 && e <= kMaxExperts,
                "logits: expected 1 to 1024 experts, got " + got("e", e));
  check.require(n_group >= 1 && e % n_group == 0, "n_group: expected a divisor of " + got("e", e) +
                                                      ", got " + std::to_string(n_group));
  check.require(topk_group >= 1 && topk_group <= n_group, "topk_group: expected 1 to " +
                                                              got("n_group", n_group) + ", got " +
                                                              std::to_string(topk_group));
  const int64_t candidates = topk_group * (e / n_group);
  check.require(top_k >= 1 && top_k <= kMaxTopK && top_k <= candidates,
                "ids: expected top_k from 1 to 16 and at most " + std::to_string(candidates) +
                    " experts in topk_group groups, got " + got("top_k", top_k));
  if (m == 0) return;
  const MoeGateArgs args{.num_experts = e,
                         .n_group = n_group,
                         .topk_group = topk_group,
                         .top_k = top_k,
                         .stride_logits_m = logits.stride(0),
                         .stride_weights_m = weights.stride(0),
                         .stride_ids_m = ids.stride(0),
                         .scoring = scoring,
                         .norm_topk_prob = norm_topk_prob,
                         .routed_scaling_factor = static_cast<float>(routed_scaling_factor),
                         .logits = static_cast<const float*>(logits.const_data_ptr()),
                         .bias = bias ? static_cast<const float*>(bias->const_data_ptr()) : nullptr,
                         .weights = static_cast<float*>(weights.mutable_data_ptr()),
                         .ids = static_cast<int32_t*>(ids.mutable_data_ptr())};
  parallel_chunks(m, kTokensPerGateChunk,
                  [&](int64_t begin, int64_t end) { kernels().moe.gate(args, begin, end); });
}

// A stable counting sort; one thread, because a pass over m * top_k ids is cheaper than a barrier.
void moe_plan(const Tensor& ids, int64_t first_expert, const Tensor& offsets,
              const Tensor& row_token, const Tensor& token_row) {
  Checker check("moe_plan");
  Dim m("m"), top_k("top_k"), num_offsets("num_local+1");
  check("ids", ids).shape({m, top_k}).dtype({ScalarType::Int}).contiguous();
  Dim num_rows("m*top_k", m * top_k);
  check("offsets", offsets).shape({num_offsets}).dtype({ScalarType::Int}).contiguous();
  check("row_token", row_token).shape({num_rows}).dtype({ScalarType::Int}).contiguous();
  check("token_row", token_row).shape({m, top_k}).dtype({ScalarType::Int}).contiguous();
  check.require(num_offsets >= 1, "offsets: expected num_local+1 values, got none");
  check.require(num_rows <= INT32_MAX,
                "ids: expected at most 2^31-1 ids, got " + std::to_string(num_rows.value()));
  check.require(first_expert >= 0,
                "first_expert: expected at least 0, got " + std::to_string(first_expert));
  const int64_t num_local = num_offsets - 1;
  const int64_t size = num_rows;
  const int32_t* id = static_cast<const int32_t*>(ids.const_data_ptr());
  int32_t* offset = static_cast<int32_t*>(offsets.mutable_data_ptr());
  int32_t* token_of = static_cast<int32_t*>(row_token.mutable_data_ptr());
  int32_t* row_of = static_cast<int32_t*>(token_row.mutable_data_ptr());
  const auto local = [&](int64_t i) {
    const int64_t expert = id[i] - first_expert;
    return expert >= 0 && expert < num_local ? expert : int64_t{-1};
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
    if (expert >= 0) token_of[row_of[i]] = static_cast<int32_t>(i / top_k);
  }
  for (int64_t row = offset[num_local]; row < size; ++row) token_of[row] = -1;
}

void moe_finalize(const Tensor& y, const Tensor& token_row, const Tensor& weights,
                  const OptionalTensor& shared, const Tensor& out) {
  Checker check("moe_finalize");
  Dim rows("rows"), m("m"), n("n"), top_k("top_k");
  check("y", y).shape({rows, n}).dtype(kActivations).last_dim_contiguous();
  check("token_row", token_row).shape({m, top_k}).dtype({ScalarType::Int}).contiguous();
  check("weights", weights).shape({m, top_k}).dtype({ScalarType::Float}).contiguous();
  if (shared) check("shared", *shared).shape({m, n}).same_dtype("y", y).last_dim_contiguous();
  check("out", out).shape({m, n}).same_dtype("y", y).last_dim_contiguous();
  const int32_t* row_of = static_cast<const int32_t*>(token_row.const_data_ptr());
  for (int64_t i = 0; i < m * top_k; ++i) {
    if (row_of[i] < -1 || row_of[i] >= rows) {
      check.fail("token_row: expected -1 or a row below " + got("rows", rows) + ", got " +
                 std::to_string(row_of[i]));
    }
  }
  if (m == 0 || n == 0) return;
  const MoeFinalizeArgs args{.dtype = dtype_of(y),
                             .n = n,
                             .top_k = top_k,
                             .stride_y_m = y.stride(0),
                             .stride_shared_m = shared ? shared->stride(0) : 0,
                             .stride_out_m = out.stride(0),
                             .y = y.const_data_ptr(),
                             .token_row = row_of,
                             .weights = static_cast<const float*>(weights.const_data_ptr()),
                             .shared = shared ? shared->const_data_ptr() : nullptr,
                             .out = out.mutable_data_ptr()};
  const int64_t elements = n * (top_k + 1);
  const int64_t chunk = elements >= kElementsPerChunk ? 1 : kElementsPerChunk / elements;
  parallel_chunks(m, chunk,
                  [&](int64_t begin, int64_t end) { kernels().moe.finalize(args, begin, end); });
}

}  // namespace
}  // namespace seekernel::cpu

STABLE_TORCH_LIBRARY_IMPL(seekernel, CPU, m) {
  m.impl("moe_gate", TORCH_BOX(&seekernel::cpu::moe_gate));
  m.impl("moe_plan", TORCH_BOX(&seekernel::cpu::moe_plan));
  m.impl("moe_finalize", TORCH_BOX(&seekernel::cpu::moe_finalize));
}
