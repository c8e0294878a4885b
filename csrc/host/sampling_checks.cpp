#include "host/sampling_checks.h"

namespace seekernel {
namespace {

constexpr auto kLogits = {ScalarType::Float, ScalarType::BFloat16};

// A contiguous tensor of one dtype on the device of the first one.
struct Column {
  const Checker& check;
  const char* first_name;
  const Tensor& first;

  void operator()(const char* name, const Tensor& tensor, std::initializer_list<Size> shape,
                  ScalarType dtype) const {
    check(name, tensor).shape(shape).dtype({dtype}).contiguous().same_device(first_name, first);
  }
  void operator()(const char* name, const OptionalTensor& tensor, std::initializer_list<Size> shape,
                  ScalarType dtype) const {
    if (tensor) (*this)(name, *tensor, shape, dtype);
  }
};

void check_vocabulary(const Checker& check, int64_t v) {
  check.require(v >= 1 && v < kMaxVocabulary,
                "logits: expected v from 1 to 2^20 - 1, got v=" + std::to_string(v));
}

}  // namespace

SampleSizes check_sample(const SampleTensors& t) {
  Checker check("sample");
  Dim r("r"), v("v");
  check("logits", t.logits).shape({r, v}).dtype(kLogits).last_dim_contiguous();
  check_vocabulary(check, v);
  const Column column{check, "logits", t.logits};
  column("temperature", t.temperature, {r}, ScalarType::Float);
  column("top_k", t.top_k, {r}, ScalarType::Int);
  column("top_p", t.top_p, {r}, ScalarType::Float);
  column("min_p", t.min_p, {r}, ScalarType::Float);
  column("seeds", t.seeds, {r}, ScalarType::Long);
  column("offsets", t.offsets, {r}, ScalarType::Long);
  column("repetition", t.repetition, {r}, ScalarType::Float);
  column("presence", t.presence, {r}, ScalarType::Float);
  column("frequency", t.frequency, {r}, ScalarType::Float);
  Dim num_slots("num_slots"), num_extra("e"), num_bias("c"), words("ceil(v/32)", (v + 31) / 32);
  column("token_counts", t.token_counts, {num_slots, v}, ScalarType::Int);
  column("slots", t.slots, {r}, ScalarType::Int);
  column("extra_ids", t.extra_ids, {r, num_extra}, ScalarType::Int);
  column("bias_ids", t.bias_ids, {r, num_bias}, ScalarType::Int);
  column("bias", t.bias, {r, num_bias}, ScalarType::Float);
  column("mask", t.mask, {r, words}, ScalarType::Int);
  column("ids", t.ids, {r}, ScalarType::Int);
  column("status", t.status, {r}, ScalarType::Int);
  column("probs", t.probs, {r, v}, ScalarType::Float);
  const bool penalties = t.repetition.has_value();
  check.require(penalties == t.presence.has_value() && penalties == t.frequency.has_value() &&
                    penalties == t.token_counts.has_value() && penalties == t.slots.has_value() &&
                    (penalties || !t.extra_ids.has_value()),
                "penalties: expected repetition, presence, frequency, token_counts and slots "
                "together (with or without extra_ids) or none of them, got some");
  check.require(t.bias_ids.has_value() == t.bias.has_value(),
                "bias: expected bias_ids and bias together or neither, got one");
  SampleSizes sizes{.r = r, .v = v};
  if (t.token_counts) sizes.num_slots = num_slots;
  if (t.extra_ids) sizes.num_extra = num_extra;
  if (t.bias_ids) sizes.num_bias = num_bias;
  check.require(sizes.num_extra <= kMaxExtraIds,
                "extra_ids: expected at most 64 columns, got " + std::to_string(sizes.num_extra));
  return sizes;
}

void check_token_logprobs(const Tensor& logits, const Tensor& ids, const Tensor& logprobs,
                          const Tensor& ranks, const Tensor& top_ids, const Tensor& top_logprobs) {
  Checker check("token_logprobs");
  Dim r("r"), v("v"), n("n");
  check("logits", logits).shape({r, v}).dtype(kLogits).last_dim_contiguous();
  check_vocabulary(check, v);
  const Column column{check, "logits", logits};
  column("ids", ids, {r}, ScalarType::Int);
  column("logprobs", logprobs, {r}, ScalarType::Float);
  column("ranks", ranks, {r}, ScalarType::Int);
  column("top_ids", top_ids, {r, n}, ScalarType::Int);
  column("top_logprobs", top_logprobs, {r, n}, ScalarType::Float);
  check.require(n <= kMaxTopLogprobs && n <= v,
                "top_ids: expected n from 0 to 64 and at most v=" + std::to_string(v.value()) +
                    ", got n=" + std::to_string(n.value()));
}

void check_add_token_counts(const Tensor& token_counts, const Tensor& slots, const Tensor& ids) {
  Checker check("add_token_counts");
  Dim num_slots("num_slots"), v("v"), b("b"), n("n");
  check("token_counts", token_counts).shape({num_slots, v}).dtype({ScalarType::Int}).contiguous();
  const Column column{check, "token_counts", token_counts};
  column("slots", slots, {b}, ScalarType::Int);
  column("ids", ids, {b, n}, ScalarType::Int);
}

MtpSizes check_mtp_strict(const Tensor& target_ids, const Tensor& draft_ids, const Tensor& out_ids,
                          const Tensor& num_out) {
  Checker check("mtp_verify_strict");
  Dim b("b"), n("n");
  check("draft_ids", draft_ids).shape({b, n}).dtype({ScalarType::Int}).contiguous();
  const Column column{check, "draft_ids", draft_ids};
  Dim n1("n+1", n + 1);
  column("target_ids", target_ids, {b, n1}, ScalarType::Int);
  column("out_ids", out_ids, {b, n1}, ScalarType::Int);
  column("num_out", num_out, {b}, ScalarType::Int);
  return {.b = b, .n = n};
}

MtpSizes check_mtp_relaxed(const Tensor& top_ids, const Tensor& top_logprobs,
                           const Tensor& draft_ids, const Tensor& slots, double relaxed_delta,
                           const Tensor& slot_delta, const Tensor& out_ids, const Tensor& num_out) {
  Checker check("mtp_verify_relaxed");
  Dim b("b"), n("n"), num_top("t"), num_slots("num_slots");
  check("draft_ids", draft_ids).shape({b, n}).dtype({ScalarType::Int}).contiguous();
  const Column column{check, "draft_ids", draft_ids};
  Dim n1("n+1", n + 1);
  column("top_ids", top_ids, {b, n1, num_top}, ScalarType::Int);
  column("top_logprobs", top_logprobs, {b, n1, num_top}, ScalarType::Float);
  column("slots", slots, {b}, ScalarType::Int);
  column("slot_delta", slot_delta, {num_slots}, ScalarType::Float);
  column("out_ids", out_ids, {b, n1}, ScalarType::Int);
  column("num_out", num_out, {b}, ScalarType::Int);
  check.require(num_top >= 1, "top_ids: expected t of at least 1, got 0");
  check.require(relaxed_delta >= 0.0, "relaxed_delta: expected a number of at least 0, got " +
                                          std::to_string(relaxed_delta));
  return {.b = b, .n = n, .last = num_slots, .num_top = num_top};
}

MtpSizes check_mtp_rejection(const Tensor& target_probs, const OptionalTensor& draft_probs,
                             const Tensor& draft_ids, const Tensor& seeds, const Tensor& offsets,
                             const Tensor& out_ids, const Tensor& num_out) {
  Checker check("mtp_verify_rejection");
  Dim b("b"), n("n"), v("v");
  check("draft_ids", draft_ids).shape({b, n}).dtype({ScalarType::Int}).contiguous();
  const Column column{check, "draft_ids", draft_ids};
  Dim n1("n+1", n + 1);
  column("target_probs", target_probs, {b, n1, v}, ScalarType::Float);
  column("draft_probs", draft_probs, {b, n, v}, ScalarType::Float);
  column("seeds", seeds, {b}, ScalarType::Long);
  column("offsets", offsets, {b}, ScalarType::Long);
  column("out_ids", out_ids, {b, n1}, ScalarType::Int);
  column("num_out", num_out, {b}, ScalarType::Int);
  check.require(v >= 1 && v < kMaxVocabulary,
                "target_probs: expected v from 1 to 2^20 - 1, got v=" + std::to_string(v.value()));
  return {.b = b, .n = n, .last = v};
}

}  // namespace seekernel
