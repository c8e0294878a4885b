#include "host/moe_check.h"

namespace seekernel {
namespace {

std::string got(const char* name, int64_t value) {
  return std::string(name) + "=" + std::to_string(value);
}

}  // namespace

GateSizes check_gate(const Checker& check, const Tensor& logits, const OptionalTensor& bias,
                     const GateOptions& options, const Tensor& weights, const Tensor& ids,
                     const OptionalTensor& error) {
  Dim m("m"), e("e"), columns(options.num_shared == 0 ? "top_k" : "top_k+num_shared");
  check("logits", logits).shape({m, e}).dtype({ScalarType::Float}).last_dim_contiguous();
  if (bias) {
    check("bias", *bias).shape({e}).dtype({ScalarType::Float}).contiguous();
    check("bias", *bias).same_device("logits", logits);
  }
  check("weights", weights).shape({m, columns}).dtype({ScalarType::Float}).last_dim_contiguous();
  check("weights", weights).same_device("logits", logits);
  check("ids", ids).shape({m, columns}).dtype({ScalarType::Int}).last_dim_contiguous();
  check("ids", ids).same_device("logits", logits);
  if (error) {
    check("error", *error).shape({1}).dtype({ScalarType::Int}).same_device("logits", logits);
  }
  const bool softmax = options.scoring_func == "softmax";
  check.require(softmax || options.scoring_func == "sigmoid",
                "scoring_func: expected sigmoid or softmax, got '" + options.scoring_func + "'");
  check.require(e >= 1 && e <= kMaxExperts,
                "logits: expected 1 to 1024 experts, got " + got("e", e));
  const int64_t n_group = options.n_group, topk_group = options.topk_group;
  check.require(n_group >= 1 && e % n_group == 0, "n_group: expected a divisor of " + got("e", e) +
                                                      ", got " + std::to_string(n_group));
  check.require(topk_group >= 1 && topk_group <= n_group, "topk_group: expected 1 to " +
                                                              got("n_group", n_group) + ", got " +
                                                              std::to_string(topk_group));
  check.require(options.num_shared >= 0 && options.num_shared <= kMaxTopK,
                "num_shared: expected 0 to 16, got " + std::to_string(options.num_shared));
  const int64_t candidates = topk_group * (e / n_group);
  const int64_t top_k = columns - options.num_shared;
  check.require(top_k >= 1 && top_k <= kMaxTopK && top_k <= candidates,
                "ids: expected top_k from 1 to 16 and at most " + std::to_string(candidates) +
                    " experts in topk_group groups, got " + got("top_k", top_k));
  return {m, e, top_k, softmax};
}

PlanSizes check_plan(const Checker& check, const Tensor& ids, int64_t first_expert,
                     const PlanTensors& plan) {
  Dim m("m"), top_k("top_k"), num_offsets("num_local+1");
  const auto like_ids = [&](const char* name, const Tensor& tensor) {
    return check(name, tensor).same_device("ids", ids);
  };
  check("ids", ids).shape({m, top_k}).dtype({ScalarType::Int}).contiguous();
  Dim num_rows("m*top_k", m * top_k);
  check("offsets", plan.offsets).shape({num_offsets}).dtype({ScalarType::Int}).contiguous();
  like_ids("offsets", plan.offsets);
  check("row_token", plan.row_token).shape({num_rows}).dtype({ScalarType::Int}).contiguous();
  like_ids("row_token", plan.row_token);
  check("token_row", plan.token_row).shape({m, top_k}).dtype({ScalarType::Int}).contiguous();
  like_ids("token_row", plan.token_row);
  check.require(num_offsets >= 1, "offsets: expected num_local+1 values, got none");
  check.require(num_rows <= INT32_MAX,
                "ids: expected at most 2^31-1 ids, got " + std::to_string(num_rows.value()));
  check.require(first_expert >= 0 && first_expert <= INT32_MAX,
                "first_expert: expected at least 0, got " + std::to_string(first_expert));
  const int64_t num_local = num_offsets - 1;
  Dim num_logical("num_logical"), num_replicas("num_replicas");
  if (plan.replicas) {
    check("replicas", *plan.replicas).shape({num_logical, num_replicas}).dtype({ScalarType::Int});
    check("replicas", *plan.replicas).contiguous();
    like_ids("replicas", *plan.replicas);
  }
  if (plan.loads) {
    check("loads", *plan.loads).shape({num_logical}).dtype({ScalarType::Long}).contiguous();
    like_ids("loads", *plan.loads);
  }
  check.require(plan.tiles.has_value() == plan.num_tiles.has_value(),
                "tiles and num_tiles: expected both or neither");
  if (plan.tiles) {
    check.require(plan.block_rows >= 1 && plan.block_rows <= INT32_MAX,
                  "block_rows: expected at least 1, got " + std::to_string(plan.block_rows));
    Dim capacity("num_tiles");
    check("tiles", *plan.tiles).shape({capacity, 4}).dtype({ScalarType::Int}).contiguous();
    like_ids("tiles", *plan.tiles);
    check("num_tiles", *plan.num_tiles).shape({1}).dtype({ScalarType::Int});
    like_ids("num_tiles", *plan.num_tiles);
    const int64_t needed = (num_rows + plan.block_rows - 1) / plan.block_rows +
                           (num_local < num_rows ? num_local : num_rows.value());
    check.require(capacity >= needed, "tiles: expected at least " + std::to_string(needed) +
                                          " rows, got " + std::to_string(capacity.value()));
  }
  return {m, top_k, num_local, plan.replicas || plan.loads ? num_logical.value() : 0,
          plan.replicas ? num_replicas.value() : 0};
}

FinalizeSizes check_finalize(const Checker& check, const FinalizeTensors& tensors) {
  Dim rows("rows"), m("m"), n("n"), top_k("top_k");
  const Tensor& y = tensors.y;
  const auto like_y = [&](const char* name, const Tensor& tensor) {
    check(name, tensor).shape({m, n}).same_dtype("y", y).same_device("y", y).last_dim_contiguous();
  };
  check("y", y).shape({rows, n}).dtype({ScalarType::Float, ScalarType::BFloat16});
  check("y", y).last_dim_contiguous();
  check("token_row", tensors.token_row).shape({m, top_k}).dtype({ScalarType::Int}).contiguous();
  check("token_row", tensors.token_row).same_device("y", y);
  check("weights", tensors.weights).shape({m, top_k}).dtype({ScalarType::Float}).contiguous();
  check("weights", tensors.weights).same_device("y", y);
  if (tensors.shared) like_y("shared", *tensors.shared);
  if (tensors.out) like_y("out", *tensors.out);
  if (tensors.residual) like_y("residual", *tensors.residual);
  check.require(tensors.out || tensors.residual,
                "out, residual: expected at least one of them, got neither");
  if (tensors.norm_weight) {
    check("norm_weight", *tensors.norm_weight).shape({n}).same_device("y", y).contiguous();
    check.require(tensors.residual.has_value(), "residual: expected with norm_weight, got None");
    check_norm_outputs(check, "normed", tensors.norm, m, n, "y", y);
  } else {
    check.require(!tensors.norm.out && !tensors.norm.q && !tensors.norm.scale,
                  "normed, q, scale: expected with norm_weight only");
  }
  return {rows, m, n, top_k};
}

PermuteSizes check_permute(const Checker& check, const Tensor& q, const Tensor& scale,
                           const Tensor& row_token, const Tensor& q_out, const Tensor& scale_out) {
  Dim m("m"), rows("rows"), n("n");
  check("row_token", row_token).shape({rows}).dtype({ScalarType::Int}).contiguous();
  check("row_token", row_token).same_device("q", q);
  check_quantized(check, "q", q, "scale", scale, m, n, "row_token", row_token);
  check_quantized(check, "q_out", q_out, "scale_out", scale_out, rows, n, "q", q);
  return {m, rows, n, (n + 127) / 128};
}

}  // namespace seekernel
