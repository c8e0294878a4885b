// Sampling: one token per row, log-probabilities, verification of drafted tokens.
#pragma once

#include "cpu/kernels/dtype.h"

namespace seekernel::cpu {

struct SampleArgs {
  Dtype dtype;  // of logits
  int64_t v;
  int64_t stride_logits_r;
  const void* logits;
  const float* temperature;
  const int32_t* top_k;
  const float* top_p;
  const float* min_p;
  const int64_t* seeds;
  const int64_t* offsets;
  // All null, or all but extra_ids given.
  const float* repetition;
  const float* presence;
  const float* frequency;
  const int32_t* token_counts;
  const int32_t* slots;
  const int32_t* extra_ids;
  int64_t num_slots;
  int64_t num_extra;  // at most 64
  const int32_t* bias_ids;
  const float* bias;
  int64_t num_bias;
  const int32_t* mask;  // null: everything allowed
  int32_t* ids;
  int32_t* status;
  float* probs;  // null: not wanted
};

struct TokenLogprobsArgs {
  Dtype dtype;  // of logits
  int64_t v;
  int64_t num_top;  // at most 64
  int64_t stride_logits_r;
  const void* logits;
  const int32_t* ids;
  float* logprobs;
  int32_t* ranks;
  int32_t* top_ids;
  float* top_logprobs;
};

struct MtpRelaxedArgs {
  int64_t n;
  int64_t num_top;
  int64_t num_slots;
  float relaxed_delta;
  int64_t begin_thinking_id;
  int64_t end_thinking_id;
  const int32_t* top_ids;
  const float* top_logprobs;
  const int32_t* draft_ids;
  const int32_t* slots;
  float* slot_delta;
  int32_t* out_ids;
  int32_t* num_out;
};

struct MtpRejectionArgs {
  int64_t n;
  int64_t v;
  const float* target_probs;
  const float* draft_probs;  // null: each draft had probability 1
  const int32_t* draft_ids;
  const int64_t* seeds;
  const int64_t* offsets;
  int32_t* out_ids;
  int32_t* num_out;
};

struct SamplingKernels {
  // Floats of scratch that sample and token_logprobs need for a vocabulary.
  int64_t (*scratch_size)(int64_t v);
  // Ranges are rows, or requests.
  void (*sample)(const SampleArgs& args, float* scratch, int64_t begin, int64_t end);
  void (*token_logprobs)(const TokenLogprobsArgs& args, float* scratch, int64_t begin, int64_t end);
  void (*mtp_relaxed)(const MtpRelaxedArgs& args, int64_t begin, int64_t end);
  void (*mtp_rejection)(const MtpRejectionArgs& args, int64_t begin, int64_t end);
};

}  // namespace seekernel::cpu
