// CPU boundary of mla_prepare, rope_interleaved, mla_gather_latent: checks, then rows over threads.
#include <algorithm>

#include "cpu/dtype.h"
#include "cpu/isa.h"
#include "cpu/paged.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"
#include "host/check.h"

namespace seekernel::cpu {
namespace {

constexpr auto kActivations = {ScalarType::Float, ScalarType::BFloat16};
constexpr int64_t kElementsPerChunk = 16384;  // below this a second thread costs more than it saves

int64_t rows_per_chunk(int64_t n) { return std::max<int64_t>(1, kElementsPerChunk / n); }

int64_t slot_at(const Tensor& slots, int64_t i) {
  return slots.scalar_type() == ScalarType::Long
             ? static_cast<const int64_t*>(slots.const_data_ptr())[i]
             : static_cast<const int32_t*>(slots.const_data_ptr())[i];
}

void check_position(const Checker& check, const int32_t* positions, int64_t i, int64_t max_pos) {
  if (positions[i] >= 0 && positions[i] < max_pos) return;
  check.fail("positions[" + std::to_string(i) + "]: expected a value in [0, max_pos=" +
             std::to_string(max_pos) + "), got " + std::to_string(positions[i]));
}

void mla_prepare(const Tensor& qkv_a, const OptionalTensor& q_norm_weight,
                 const Tensor& kv_norm_weight, const Tensor& positions, const Tensor& cos_sin,
                 const Tensor& slots, double eps, const OptionalTensor& q_latent,
                 const Tensor& kv_cache, const OptionalTensor& kv_scale) {
  Checker check("mla_prepare");
  Dim s("s"), q_lora("q_lora"), kv_lora("kv_lora"), max_pos("max_pos"), rope("rope");
  Dim num_pages("num_pages"), page_size("page_size");
  check.require(q_norm_weight.has_value() == q_latent.has_value(),
                "expected q_norm_weight and q_latent together or neither, got one of them");
  check("kv_norm_weight", kv_norm_weight).shape({kv_lora}).dtype(kActivations).contiguous();
  check("cos_sin", cos_sin).shape({max_pos, rope}).dtype({ScalarType::Float}).last_dim_contiguous();
  check.require(rope.value() % 2 == 0,
                "cos_sin: expected an even last dimension, got " + rope.describe());
  if (q_norm_weight.has_value()) {
    check("q_norm_weight", *q_norm_weight).shape({q_lora}).dtype(kActivations).contiguous();
  } else {
    q_lora.bind(0);
  }
  check("qkv_a", qkv_a)
      .shape({s, q_lora.value() + kv_lora.value() + rope.value()})
      .dtype(kActivations)
      .last_dim_contiguous();
  check("positions", positions).shape({s}).dtype({ScalarType::Int}).contiguous();
  check("slots", slots).shape({s}).dtype({ScalarType::Int, ScalarType::Long}).contiguous();
  if (q_latent.has_value()) {
    check("q_latent", *q_latent)
        .shape({s, q_lora})
        .same_dtype("qkv_a", qkv_a)
        .last_dim_contiguous();
  }
  const PagedCache cache =
      check_paged_cache(check, kv_cache, kv_scale, num_pages, page_size, kv_lora, rope);
  const auto* position = static_cast<const int32_t*>(positions.const_data_ptr());
  const int64_t num_slots = num_pages.value() * page_size.value();
  for (int64_t i = 0; i < s; ++i) {
    const int64_t slot = slot_at(slots, i);
    if (slot < -1 || slot >= num_slots) {
      check.fail("slots[" + std::to_string(i) + "]: expected -1 or a value in [0, " +
                 std::to_string(num_slots) + "), got " + std::to_string(slot));
    }
    if (slot >= 0) check_position(check, position, i, max_pos);
  }
  if (s == 0) return;
  const MlaPrepareArgs args{
      .dtype = dtype_of(qkv_a),
      .q_weight_dtype = q_norm_weight.has_value() ? dtype_of(*q_norm_weight) : Dtype::kFloat32,
      .kv_weight_dtype = dtype_of(kv_norm_weight),
      .q_lora = q_lora,
      .stride_qkv_s = qkv_a.stride(0),
      .stride_q_latent_s = q_latent.has_value() ? q_latent->stride(0) : 0,
      .stride_cos_sin = cos_sin.stride(0),
      .qkv_a = qkv_a.const_data_ptr(),
      .q_norm_weight = q_norm_weight.has_value() ? q_norm_weight->const_data_ptr() : nullptr,
      .kv_norm_weight = kv_norm_weight.const_data_ptr(),
      .positions = position,
      .cos_sin = static_cast<const float*>(cos_sin.const_data_ptr()),
      .slots = slots.const_data_ptr(),
      .wide_slots = slots.scalar_type() == ScalarType::Long,
      .eps = static_cast<float>(eps),
      .q_latent = q_latent.has_value() ? q_latent->mutable_data_ptr() : nullptr,
      .cache = cache};
  parallel_chunks(s, rows_per_chunk(qkv_a.size(1) + 1), [&](int64_t begin, int64_t end) {
    kernels().mla_prepare.mla_prepare(args, begin, end, thread_scratch(kv_lora + rope));
  });
}

void rope_interleaved(const Tensor& x, const Tensor& positions, const Tensor& cos_sin) {
  Checker check("rope_interleaved");
  Dim s("s"), h("h"), rope("rope"), max_pos("max_pos");
  check("x", x).shape({s, h, rope}).dtype(kActivations).last_dim_contiguous();
  check("positions", positions).shape({s}).dtype({ScalarType::Int}).contiguous();
  check("cos_sin", cos_sin).shape({max_pos, rope}).dtype({ScalarType::Float}).last_dim_contiguous();
  check.require(rope.value() % 2 == 0,
                "x: expected an even last dimension, got " + rope.describe());
  const auto* position = static_cast<const int32_t*>(positions.const_data_ptr());
  for (int64_t i = 0; i < s; ++i) check_position(check, position, i, max_pos);
  if (s == 0 || h == 0 || rope == 0) return;
  const RopeArgs args{.dtype = dtype_of(x),
                      .h = h,
                      .rope = rope,
                      .stride_x_s = x.stride(0),
                      .stride_x_h = x.stride(1),
                      .stride_cos_sin = cos_sin.stride(0),
                      .positions = position,
                      .cos_sin = static_cast<const float*>(cos_sin.const_data_ptr()),
                      .x = x.mutable_data_ptr()};
  parallel_chunks(s, rows_per_chunk(h * rope), [&](int64_t begin, int64_t end) {
    kernels().mla_prepare.rope_interleaved(args, begin, end);
  });
}

void mla_gather_latent(const Tensor& kv_cache, const Tensor& block_table,
                       const Tensor& cu_seqlens_kv, const Tensor& latent, const Tensor& k_pe,
                       const OptionalTensor& kv_scale) {
  Checker check("mla_gather_latent");
  Dim b("b"), s_kv("s_kv"), kv_lora("kv_lora"), rope("rope");
  Dim num_pages("num_pages"), page_size("page_size"), max_pages("max_pages");
  check("latent", latent).shape({s_kv, kv_lora}).dtype(kActivations).last_dim_contiguous();
  check("k_pe", k_pe).shape({s_kv, rope}).dtype(kActivations).last_dim_contiguous();
  const PagedCache cache =
      check_paged_cache(check, kv_cache, kv_scale, num_pages, page_size, kv_lora, rope);
  check("block_table", block_table)
      .shape({b, max_pages})
      .dtype({ScalarType::Int})
      .last_dim_contiguous();
  const int32_t* offsets = check_offsets(check, "cu_seqlens_kv", cu_seqlens_kv, b, s_kv);
  for (int64_t i = 0; i < b; ++i) {
    check_pages(check, block_table, i, offsets[i + 1] - offsets[i], page_size, num_pages);
  }
  const MlaGatherArgs args{.cache = cache,
                           .latent_dtype = dtype_of(latent),
                           .k_pe_dtype = dtype_of(k_pe),
                           .stride_latent_s = latent.stride(0),
                           .stride_k_pe_s = k_pe.stride(0),
                           .latent = latent.mutable_data_ptr(),
                           .k_pe = k_pe.mutable_data_ptr()};
  const auto* table = static_cast<const int32_t*>(block_table.const_data_ptr());
  parallel_chunks(s_kv, rows_per_chunk(kv_lora + rope + 1), [&](int64_t begin, int64_t end) {
    int64_t request = std::upper_bound(offsets, offsets + b + 1, begin) - offsets - 1;
    while (begin < end) {
      const int64_t stop = std::min<int64_t>(end, offsets[request + 1]);
      kernels().mla_prepare.mla_gather_latent(args, table + request * block_table.stride(0),
                                              begin - offsets[request], stop - offsets[request],
                                              begin, thread_scratch(kv_lora + rope));
      begin = stop;
      ++request;
    }
  });
}

}  // namespace
}  // namespace seekernel::cpu

STABLE_TORCH_LIBRARY_IMPL(seekernel, CPU, m) {
  m.impl("mla_prepare", TORCH_BOX(&seekernel::cpu::mla_prepare));
  m.impl("rope_interleaved", TORCH_BOX(&seekernel::cpu::rope_interleaved));
  m.impl("mla_gather_latent", TORCH_BOX(&seekernel::cpu::mla_gather_latent));
}
