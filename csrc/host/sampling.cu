// CUDA boundary of sample, token_logprobs, add_token_counts, mtp_verify_*: cluster size, grid,
// launch.
#include <algorithm>
#include <climits>

// The host's headers come first: seekernel/ptx/types.cuh gives the integer names of NVRTC.
#include "host/launch.h"
#include "host/sampling_checks.h"
//
#include <seekernel/sampling/mtp_verify.cuh>
#include <seekernel/sampling/sample.cuh>
#include <seekernel/sampling/token_counts.cuh>
#include <seekernel/sampling/token_logprobs.cuh>

namespace seekernel::cuda {
namespace {

constexpr int kSmallThreads = 128;
constexpr int kRejectionThreads = 512;
constexpr size_t kMaxSharedBytes = 227 * 1024;
constexpr int kMinTokensPerCta = 2048;  // fewer are not worth a cluster's barriers

template <class T>
const T* in(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}
template <class T>
T* out(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

unsigned blocks(int64_t count, int threads) {
  return static_cast<unsigned>((count + threads - 1) / threads);
}

// CTAs that share a row: as many as have enough to do, at most 8, the portable limit.
int ctas_per_row(int64_t v) {
  int num_ctas = 1;
  while (num_ctas < kMaxCtas && v > int64_t{num_ctas} * kMinTokensPerCta) num_ctas *= 2;
  return num_ctas;
}

void require_rows(const char* op, int64_t rows, int num_ctas) {
  Checker(op).require(rows <= INT_MAX / num_ctas, "expected fewer than 2^31 / " +
                                                      std::to_string(num_ctas) + " rows, got " +
                                                      std::to_string(rows));
}

bool aligned16(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

// Whether rows can be read four elements at a time.
bool rows_aligned(const Tensor& logits, const OptionalTensor* counts) {
  const bool wide =
      counts == nullptr || !counts->has_value() || aligned16((*counts)->const_data_ptr());
  return wide && logits.size(1) % 4 == 0 && logits.stride(0) % 4 == 0 &&
         aligned16(logits.const_data_ptr());
}

// Calls f with the kernel's element type (as a null pointer) and alignment.
template <class F>
void with_instance(const Tensor& logits, bool aligned, const F& f) {
  const auto pick = [&]<class T>(T* none) {
    if (aligned) return f(none, std::true_type{});
    f(none, std::false_type{});
  };
  if (logits.scalar_type() == ScalarType::Float) return pick(static_cast<float*>(nullptr));
  pick(static_cast<uint16_t*>(nullptr));
}

LaunchShape row_launch(const char* op, int64_t rows, int64_t v, int num_ctas, size_t more_bytes) {
  const size_t bytes =
      row_shared_bytes(static_cast<int>(v), num_ctas, kRowThreads / 32) + more_bytes;
  Checker(op).require(bytes <= kMaxSharedBytes,
                      "logits: expected a row that 8 CTAs can hold in shared memory (v up to about "
                      "450000), got v=" +
                          std::to_string(v));
  require_rows(op, rows, num_ctas);
  return {.grid = {static_cast<unsigned>(rows * num_ctas)},
          .block = {kRowThreads},
          .shared_bytes = bytes,
          .cluster = {static_cast<unsigned>(num_ctas)},
          .pdl = true};
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
  if (sizes.r == 0) return;
  const int num_ctas = ctas_per_row(sizes.v);
  const LaunchShape shape = row_launch("sample", sizes.r, sizes.v, num_ctas, 0);
  const sample_args_t args{
      .logits = logits.const_data_ptr(),
      .stride_logits_r = logits.stride(0),
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
      .bias_ids = data_or_null<int32_t>(bias_ids),
      .bias = data_or_null<float>(bias),
      .mask = data_or_null<int32_t>(mask),
      .ids = out<int32_t>(ids),
      .status = out<int32_t>(status),
      .probs = probs ? out<float>(*probs) : nullptr,
      .v = static_cast<int32_t>(sizes.v),
      .num_ctas = num_ctas,
      .num_slots = static_cast<int32_t>(sizes.num_slots),
      .num_extra = static_cast<int32_t>(sizes.num_extra),
      .num_bias = static_cast<int32_t>(sizes.num_bias),
      .reserved = 0,
  };
  const int32_t device = logits.get_device_index();
  const DeviceGuard guard(device);
  with_instance(logits, rows_aligned(logits, &token_counts), [&]<class T>(T*, auto aligned) {
    launch(shape, current_stream(device), "sample", seekernel::sample<T, aligned.value>, args);
  });
}

void token_logprobs(const Tensor& logits, const Tensor& ids, const Tensor& logprobs,
                    const Tensor& ranks, const Tensor& top_ids, const Tensor& top_logprobs) {
  check_token_logprobs(logits, ids, logprobs, ranks, top_ids, top_logprobs);
  const int64_t r = logits.size(0), v = logits.size(1);
  if (r == 0) return;
  const int num_ctas = ctas_per_row(v);
  const LaunchShape shape = row_launch("token_logprobs", r, v, num_ctas, sizeof(top_lists_t));
  const token_logprobs_args_t args{
      .logits = logits.const_data_ptr(),
      .stride_logits_r = logits.stride(0),
      .ids = in<int32_t>(ids),
      .logprobs = out<float>(logprobs),
      .ranks = out<int32_t>(ranks),
      .top_ids = out<int32_t>(top_ids),
      .top_logprobs = out<float>(top_logprobs),
      .v = static_cast<int32_t>(v),
      .num_ctas = num_ctas,
      .num_top = static_cast<int32_t>(top_ids.size(1)),
      .reserved = 0,
  };
  const int32_t device = logits.get_device_index();
  const DeviceGuard guard(device);
  with_instance(logits, rows_aligned(logits, nullptr), [&]<class T>(T*, auto aligned) {
    launch(shape, current_stream(device), "token_logprobs",
           seekernel::token_logprobs<T, aligned.value>, args);
  });
}

void add_token_counts(const Tensor& token_counts, const Tensor& slots, const Tensor& ids) {
  check_add_token_counts(token_counts, slots, ids);
  const int64_t b = ids.size(0), n = ids.size(1);
  Checker("add_token_counts")
      .require(ids.numel() <= INT_MAX && token_counts.size(0) <= INT_MAX &&
                   token_counts.size(1) <= INT_MAX,
               "expected sizes below 2^31");
  if (b * n == 0) return;
  const int32_t device = ids.get_device_index();
  const DeviceGuard guard(device);
  launch({.grid = {blocks(b * n, 256)}, .block = {256}, .pdl = true}, current_stream(device),
         "add_token_counts", seekernel::add_token_counts<2>, out<int32_t>(token_counts),
         in<int32_t>(slots), in<int32_t>(ids), static_cast<int>(b), static_cast<int>(n),
         static_cast<int>(token_counts.size(0)), static_cast<int>(token_counts.size(1)));
}

void mtp_verify_strict(const Tensor& target_ids, const Tensor& draft_ids, const Tensor& out_ids,
                       const Tensor& num_out) {
  const MtpSizes sizes = check_mtp_strict(target_ids, draft_ids, out_ids, num_out);
  require_rows("mtp_verify_strict", sizes.b * (sizes.n + 1), 1);
  if (sizes.b == 0) return;
  const int32_t device = draft_ids.get_device_index();
  const DeviceGuard guard(device);
  launch({.grid = {blocks(sizes.b, kSmallThreads)}, .block = {kSmallThreads}, .pdl = true},
         current_stream(device), "mtp_verify_strict", seekernel::mtp_verify_strict<kSmallThreads>,
         in<int32_t>(target_ids), in<int32_t>(draft_ids), out<int32_t>(out_ids),
         out<int32_t>(num_out), static_cast<int>(sizes.b), static_cast<int>(sizes.n));
}

void mtp_verify_relaxed(const Tensor& top_ids, const Tensor& top_logprobs, const Tensor& draft_ids,
                        const Tensor& slots, double relaxed_delta, int64_t begin_thinking_id,
                        int64_t end_thinking_id, const Tensor& slot_delta, const Tensor& out_ids,
                        const Tensor& num_out) {
  const MtpSizes sizes = check_mtp_relaxed(top_ids, top_logprobs, draft_ids, slots, relaxed_delta,
                                           slot_delta, out_ids, num_out);
  require_rows("mtp_verify_relaxed", top_ids.numel(), 1);
  if (sizes.b == 0) return;
  const mtp_relaxed_args_t args{
      .top_ids = in<int32_t>(top_ids),
      .top_logprobs = in<float>(top_logprobs),
      .draft_ids = in<int32_t>(draft_ids),
      .slots = in<int32_t>(slots),
      .slot_delta = out<float>(slot_delta),
      .out_ids = out<int32_t>(out_ids),
      .num_out = out<int32_t>(num_out),
      .begin_thinking_id = begin_thinking_id,
      .end_thinking_id = end_thinking_id,
      .b = static_cast<int32_t>(sizes.b),
      .n = static_cast<int32_t>(sizes.n),
      .num_top = static_cast<int32_t>(sizes.num_top),
      .num_slots = static_cast<int32_t>(sizes.last),
      .relaxed_delta = static_cast<float>(relaxed_delta),
      .reserved = 0,
  };
  const int32_t device = draft_ids.get_device_index();
  const DeviceGuard guard(device);
  launch({.grid = {blocks(sizes.b, kSmallThreads)}, .block = {kSmallThreads}, .pdl = true},
         current_stream(device), "mtp_verify_relaxed", seekernel::mtp_verify_relaxed<kSmallThreads>,
         args);
}

void mtp_verify_rejection(const Tensor& target_probs, const OptionalTensor& draft_probs,
                          const Tensor& draft_ids, const Tensor& seeds, const Tensor& offsets,
                          const Tensor& out_ids, const Tensor& num_out) {
  const MtpSizes sizes =
      check_mtp_rejection(target_probs, draft_probs, draft_ids, seeds, offsets, out_ids, num_out);
  if (sizes.b == 0) return;
  const int num_ctas = ctas_per_row(sizes.last);
  require_rows("mtp_verify_rejection", sizes.b, num_ctas);
  const mtp_rejection_args_t args{
      .target_probs = in<float>(target_probs),
      .draft_probs = data_or_null<float>(draft_probs),
      .draft_ids = in<int32_t>(draft_ids),
      .seeds = in<int64_t>(seeds),
      .offsets = in<int64_t>(offsets),
      .out_ids = out<int32_t>(out_ids),
      .num_out = out<int32_t>(num_out),
      .v = static_cast<int32_t>(sizes.last),
      .num_ctas = num_ctas,
      .n = static_cast<int32_t>(sizes.n),
      .reserved = 0,
  };
  const int32_t device = draft_ids.get_device_index();
  const DeviceGuard guard(device);
  launch({.grid = {static_cast<unsigned>(sizes.b * num_ctas)},
          .block = {kRejectionThreads},
          .shared_bytes = sizeof(row_scratch_t),
          .cluster = {static_cast<unsigned>(num_ctas)},
          .pdl = true},
         current_stream(device), "mtp_verify_rejection",
         seekernel::mtp_verify_rejection<kRejectionThreads>, args);
}

}  // namespace
}  // namespace seekernel::cuda

STABLE_TORCH_LIBRARY_IMPL(seekernel, CUDA, m) {
  m.impl("sample", TORCH_BOX(&seekernel::cuda::sample));
  m.impl("token_logprobs", TORCH_BOX(&seekernel::cuda::token_logprobs));
  m.impl("add_token_counts", TORCH_BOX(&seekernel::cuda::add_token_counts));
  m.impl("mtp_verify_strict", TORCH_BOX(&seekernel::cuda::mtp_verify_strict));
  m.impl("mtp_verify_relaxed", TORCH_BOX(&seekernel::cuda::mtp_verify_relaxed));
  m.impl("mtp_verify_rejection", TORCH_BOX(&seekernel::cuda::mtp_verify_rejection));
}
