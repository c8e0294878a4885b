// CPU boundary of sample, token_logprobs, add_token_counts, mtp_verify_*.
#include "cpu/dtype.h"
#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"
#include "host/sampling_checks.h"

namespace seekernel::cpu {
namespace {

template <class T>
const T* in(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}
template <class T>
T* out(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

void sample(const Tensor& logits, const Tensor& temperature, const Tensor& top_k,
            const Tensor& top_p, const Tensor& min_p, const Tensor& seeds, const Tensor& offsets,
            const OptionalTensor& repetition, const OptionalTensor& presence,
            const OptionalTensor& frequency, const OptionalTensor& token_counts,
            const OptionalTensor& slots, const OptionalTensor& extra_ids,
            const OptionalTensor& bias_ids, const OptionalTensor& bias, const OptionalTensor& mask,
            const Tensor& ids, const Tensor& status, const OptionalTensor& probs) {
  const SampleSizes sizes = check_sample({logits, temperature, top_k, top_p, min_p, seeds, offsets,
                                          repetition, presence, frequency, token_counts, slots,
                                          extra_ids, bias_ids, bias, mask, ids, status, probs});
  const SampleArgs args{
      .dtype = dtype_of(logits),
      .v = sizes.v,
      .stride_logits_r = logits.stride(0),
      .logits = logits.const_data_ptr(),
      .temperature = in<float>(temperature),
      .top_k = in<int32_t>(top_k),
      .top_p = in<float>(top_p),
      .min_p = in<float>(min_p),
      .seeds = in<int64_t>(seeds),
      .offsets = in<int64_t>(offsets),
      .repetition = data_or_null<float>(repetition),
      .presence = data_or_null<float>(presence),
      .frequency = data_or_null<float>(frequency),
      .token_counts = data_or_null<int32_t>(token_counts),
      .slots = data_or_null<int32_t>(slots),
      .extra_ids = data_or_null<int32_t>(extra_ids),
      .num_slots = sizes.num_slots,
      .num_extra = sizes.num_extra,
      .bias_ids = data_or_null<int32_t>(bias_ids),
      .bias = data_or_null<float>(bias),
      .num_bias = sizes.num_bias,
      .mask = data_or_null<int32_t>(mask),
      .ids = out<int32_t>(ids),
      .status = out<int32_t>(status),
      .probs = probs ? out<float>(*probs) : nullptr,
  };
  const SamplingKernels& table = kernels().sampling;
  parallel_chunks(sizes.r, 1, [&](int64_t begin, int64_t end) {
    table.sample(args, thread_scratch(table.scratch_size(args.v)), begin, end);
  });
}

void token_logprobs(const Tensor& logits, const Tensor& ids, const Tensor& logprobs,
                    const Tensor& ranks, const Tensor& top_ids, const Tensor& top_logprobs) {
  check_token_logprobs(logits, ids, logprobs, ranks, top_ids, top_logprobs);
  const TokenLogprobsArgs args{
      .dtype = dtype_of(logits),
      .v = logits.size(1),
      .num_top = top_ids.size(1),
      .stride_logits_r = logits.stride(0),
      .logits = logits.const_data_ptr(),
      .ids = in<int32_t>(ids),
      .logprobs = out<float>(logprobs),
      .ranks = out<int32_t>(ranks),
      .top_ids = out<int32_t>(top_ids),
      .top_logprobs = out<float>(top_logprobs),
  };
  const SamplingKernels& table = kernels().sampling;
  parallel_chunks(logits.size(0), 1, [&](int64_t begin, int64_t end) {
    table.token_logprobs(args, thread_scratch(table.scratch_size(args.v)), begin, end);
  });
}

// One thread: rows may share a slot.
void add_token_counts(const Tensor& token_counts, const Tensor& slots, const Tensor& ids) {
  check_add_token_counts(token_counts, slots, ids);
  const int64_t num_slots = token_counts.size(0), v = token_counts.size(1);
  const int64_t b = ids.size(0), n = ids.size(1);
  const int32_t* slot = in<int32_t>(slots);
  const int32_t* id = in<int32_t>(ids);
  int32_t* counts = out<int32_t>(token_counts);
  for (int64_t i = 0; i < b * n; ++i) {
    const int64_t row = slot[i / n];
    if (row < 0 || row >= num_slots || id[i] < 0 || id[i] >= v) continue;
    counts[row * v + id[i]] += 2;
  }
}

void mtp_verify_strict(const Tensor& target_ids, const Tensor& draft_ids, const Tensor& out_ids,
                       const Tensor& num_out) {
  const MtpSizes sizes = check_mtp_strict(target_ids, draft_ids, out_ids, num_out);
  const int64_t n = sizes.n;
  for (int64_t i = 0; i < sizes.b; ++i) {
    const int32_t* target = in<int32_t>(target_ids) + i * (n + 1);
    const int32_t* draft = in<int32_t>(draft_ids) + i * n;
    int32_t* row = out<int32_t>(out_ids) + i * (n + 1);
    int64_t emitted = 0;
    bool going = true;
    for (int64_t j = 0; j <= n; ++j) {
      going = going && target[j] >= 0;
      row[j] = going ? target[j] : -1;
      emitted += going;
      going = going && j < n && draft[j] == target[j];
    }
    out<int32_t>(num_out)[i] = static_cast<int32_t>(emitted);
  }
}

void mtp_verify_relaxed(const Tensor& top_ids, const Tensor& top_logprobs, const Tensor& draft_ids,
                        const Tensor& slots, double relaxed_delta, int64_t begin_thinking_id,
                        int64_t end_thinking_id, const Tensor& slot_delta, const Tensor& out_ids,
                        const Tensor& num_out) {
  const MtpSizes sizes = check_mtp_relaxed(top_ids, top_logprobs, draft_ids, slots, relaxed_delta,
                                           slot_delta, out_ids, num_out);
  const MtpRelaxedArgs args{
      .n = sizes.n,
      .num_top = sizes.num_top,
      .num_slots = sizes.last,
      .relaxed_delta = static_cast<float>(relaxed_delta),
      .begin_thinking_id = begin_thinking_id,
      .end_thinking_id = end_thinking_id,
      .top_ids = in<int32_t>(top_ids),
      .top_logprobs = in<float>(top_logprobs),
      .draft_ids = in<int32_t>(draft_ids),
      .slots = in<int32_t>(slots),
      .slot_delta = out<float>(slot_delta),
      .out_ids = out<int32_t>(out_ids),
      .num_out = out<int32_t>(num_out),
  };
  kernels().sampling.mtp_relaxed(args, 0, sizes.b);
}

void mtp_verify_rejection(const Tensor& target_probs, const OptionalTensor& draft_probs,
                          const Tensor& draft_ids, const Tensor& seeds, const Tensor& offsets,
                          const Tensor& out_ids, const Tensor& num_out) {
  const MtpSizes sizes =
      check_mtp_rejection(target_probs, draft_probs, draft_ids, seeds, offsets, out_ids, num_out);
  const MtpRejectionArgs args{
      .n = sizes.n,
      .v = sizes.last,
      .target_probs = in<float>(target_probs),
      .draft_probs = data_or_null<float>(draft_probs),
      .draft_ids = in<int32_t>(draft_ids),
      .seeds = in<int64_t>(seeds),
      .offsets = in<int64_t>(offsets),
      .out_ids = out<int32_t>(out_ids),
      .num_out = out<int32_t>(num_out),
  };
  parallel_chunks(sizes.b, 1, [&](int64_t begin, int64_t end) {
    kernels().sampling.mtp_rejection(args, begin, end);
  });
}

}  // namespace
}  // namespace seekernel::cpu

STABLE_TORCH_LIBRARY_IMPL(seekernel, CPU, m) {
  m.impl("sample", TORCH_BOX(&seekernel::cpu::sample));
  m.impl("token_logprobs", TORCH_BOX(&seekernel::cpu::token_logprobs));
  m.impl("add_token_counts", TORCH_BOX(&seekernel::cpu::add_token_counts));
  m.impl("mtp_verify_strict", TORCH_BOX(&seekernel::cpu::mtp_verify_strict));
  m.impl("mtp_verify_relaxed", TORCH_BOX(&seekernel::cpu::mtp_verify_relaxed));
  m.impl("mtp_verify_rejection", TORCH_BOX(&seekernel::cpu::mtp_verify_rejection));
}
