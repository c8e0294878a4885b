// What the CPU and CUDA boundaries of the sampling ops check alike.
#pragma once

#include "host/check.h"

namespace seekernel {

constexpr int64_t kMaxVocabulary = int64_t{1} << 20;  // weights of 40 bits sum within 64
constexpr int64_t kMaxExtraIds = 64;
constexpr int64_t kMaxTopLogprobs = 64;

struct SampleTensors {
  const Tensor &logits, &temperature, &top_k, &top_p, &min_p, &seeds, &offsets;
  const OptionalTensor &repetition, &presence, &frequency, &token_counts, &slots, &extra_ids;
  const OptionalTensor &bias_ids, &bias, &mask;
  const Tensor &ids, &status;
  const OptionalTensor& probs;
};

struct SampleSizes {
  int64_t r, v;
  int64_t num_slots = 0, num_extra = 0, num_bias = 0;
};

struct MtpSizes {
  int64_t b, n;      // requests, drafts of each
  int64_t last = 0;  // num_slots and top-n, or v
  int64_t num_top = 0;
};

SampleSizes check_sample(const SampleTensors& t);
void check_token_logprobs(const Tensor& logits, const Tensor& ids, const Tensor& logprobs,
                          const Tensor& ranks, const Tensor& top_ids, const Tensor& top_logprobs);
void check_add_token_counts(const Tensor& token_counts, const Tensor& slots, const Tensor& ids);
MtpSizes check_mtp_strict(const Tensor& target_ids, const Tensor& draft_ids, const Tensor& out_ids,
                          const Tensor& num_out);
MtpSizes check_mtp_relaxed(const Tensor& top_ids, const Tensor& top_logprobs,
                           const Tensor& draft_ids, const Tensor& slots, double relaxed_delta,
                           const Tensor& slot_delta, const Tensor& out_ids, const Tensor& num_out);
MtpSizes check_mtp_rejection(const Tensor& target_probs, const OptionalTensor& draft_probs,
                             const Tensor& draft_ids, const Tensor& seeds, const Tensor& offsets,
                             const Tensor& out_ids, const Tensor& num_out);

// The data of a tensor that may be missing: then null.
template <class T>
const T* data_or_null(const OptionalTensor& tensor) {
  return tensor ? static_cast<const T*>(tensor->const_data_ptr()) : nullptr;
}

}  // namespace seekernel
