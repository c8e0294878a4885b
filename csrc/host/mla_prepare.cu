// CUDA boundary of mla_prepare, rope_interleaved, mla_gather_latent, merge_attention_states:
// checks, grid, launch. Positions, slots, block tables and lengths stay on the device: nothing
// checks them.
#include <algorithm>
#include <climits>

// The host's headers come first: seekernel/ptx/types.cuh gives the integer names of NVRTC.
#include "host/check.h"
#include "host/latent_cache.h"
#include "host/launch.h"
//
#include <seekernel/attention/merge_attention_states.cuh>
#include <seekernel/attention/mla_gather_latent.cuh>
#include <seekernel/attention/mla_prepare.cuh>
#include <seekernel/fused/rope.cuh>

namespace seekernel::cuda {
namespace {

constexpr auto kActivations = {ScalarType::Float, ScalarType::BFloat16};
constexpr int kVector = 8;

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t element_bytes(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return 4;
    case ScalarType::BFloat16:
      return 2;
    default:
      return 1;
  }
}

bool is_float(const Tensor& tensor) { return tensor.scalar_type() == ScalarType::Float; }

// 16-byte accesses: every row starts at a multiple of 16 bytes.
void require_aligned(const Checker& check, const char* name, const Tensor& tensor) {
  bool aligned = reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % 16 == 0;
  for (int64_t i = 0; i + 1 < tensor.dim(); ++i) {
    aligned =
        aligned && (tensor.size(i) <= 1 || tensor.stride(i) * element_bytes(tensor) % 16 == 0);
  }
  if (!aligned) check(name, tensor).fail("rows that start at multiples of 16 bytes");
}

void require_vectors(const Checker& check, const char* name, int64_t size, int64_t largest) {
  check.require(size % kVector == 0 && size <= largest,
                std::string(name) + ": expected a multiple of 8 up to " + std::to_string(largest) +
                    ", got " + std::to_string(size));
}

// Calls f with a null pointer of the tensor's element type.
template <class F>
void with_type(const Tensor& tensor, const F& f) {
  if (is_float(tensor)) return f(static_cast<float*>(nullptr));
  f(static_cast<bfloat16_t*>(nullptr));
}

latent_cache_t device_cache(const Checker& check, const Tensor& kv_cache,
                            const OptionalTensor& kv_scale, Dim& num_pages, Dim& page_size,
                            int64_t kv_lora, int64_t rope) {
  const LatentCache cache =
      check_latent_cache(check, kv_cache, kv_scale, num_pages, page_size, kv_lora, rope);
  require_aligned(check, "kv_cache", kv_cache);
  check.require(page_size <= INT_MAX, "kv_cache: expected page_size < 2^31");
  // The rope key lies behind kv_lora / 128 multipliers, and starts at a multiple of 16 bytes.
  check.require(cache.format != LatentFormat::kBlocks || kv_lora % 512 == 0,
                "kv_cache: expected kv_lora to be a multiple of 512 in the uint8 format, got " +
                    std::to_string(kv_lora));
  const int64_t bytes = element_bytes(kv_cache);
  return {.data = static_cast<uint8_t*>(cache.data),
          .stride_page_bytes = cache.stride_page * bytes,
          .stride_row_bytes = cache.stride_row * bytes,
          .kv_scale = cache.kv_scale,
          .format = cache.format == LatentFormat::kBlocks ? kLatentBlocks
                    : cache.format == LatentFormat::kFlat ? kLatentFlat
                    : is_float(kv_cache)                  ? kLatentFloat
                                                          : kLatentBfloat16,
          .page_size = static_cast<int32_t>(page_size.value()),
          .kv_lora = static_cast<int32_t>(kv_lora),
          .rope = static_cast<int32_t>(rope)};
}

void mla_prepare(const Tensor& qkv_a, const OptionalTensor& q_norm_weight,
                 const Tensor& kv_norm_weight, const Tensor& positions, const Tensor& cos_sin,
                 const Tensor& slots, double eps, const OptionalTensor& q_latent,
                 const Tensor& kv_cache, const OptionalTensor& kv_scale) {
  const Checker check("mla_prepare");
  Dim s("s"), q_lora("q_lora"), kv_lora("kv_lora"), max_pos("max_pos"), rope("rope");
  Dim num_pages("num_pages"), page_size("page_size");
  const bool has_q = q_norm_weight.has_value();
  check.require(has_q == q_latent.has_value(),
                "expected q_norm_weight and q_latent together or neither, got one of them");
  const auto on_device = [&](const char* name, const Tensor& tensor) {
    check(name, tensor).same_device("qkv_a", qkv_a).last_dim_contiguous();
    require_aligned(check, name, tensor);
  };
  check("kv_norm_weight", kv_norm_weight).shape({kv_lora}).dtype(kActivations);
  on_device("kv_norm_weight", kv_norm_weight);
  check("cos_sin", cos_sin).shape({max_pos, rope}).dtype({ScalarType::Float});
  on_device("cos_sin", cos_sin);
  if (has_q) {
    check("q_norm_weight", *q_norm_weight).shape({q_lora}).dtype(kActivations);
    on_device("q_norm_weight", *q_norm_weight);
  } else {
    q_lora.bind(0);
  }
  check("qkv_a", qkv_a)
      .shape({s, q_lora.value() + kv_lora.value() + rope.value()})
      .dtype(kActivations);
  on_device("qkv_a", qkv_a);
  check("positions", positions).shape({s}).dtype({ScalarType::Int}).contiguous();
  check("positions", positions).same_device("qkv_a", qkv_a);
  check("slots", slots).shape({s}).dtype({ScalarType::Int, ScalarType::Long}).contiguous();
  check("slots", slots).same_device("qkv_a", qkv_a);
  if (has_q) {
    check("q_latent", *q_latent).shape({s, q_lora}).same_dtype("qkv_a", qkv_a);
    on_device("q_latent", *q_latent);
  }
  // One warp more holds the rope key; all are in one CTA.
  require_vectors(check, "q_norm_weight: q_lora", q_lora, 4096);
  require_vectors(check, "kv_norm_weight: kv_lora", kv_lora, 2048);
  require_vectors(check, "cos_sin: rope", rope, 256);
  const latent_cache_t cache =
      device_cache(check, kv_cache, kv_scale, num_pages, page_size, kv_lora, rope);
  check("kv_cache", kv_cache).same_device("qkv_a", qkv_a);
  check.require(s <= INT_MAX, "expected s < 2^31, got " + s.describe());
  if (s == 0) return;
  const auto threads = [](int64_t size) {
    return static_cast<int32_t>(divide_up(size, kVector * 32) * 32);
  };
  const mla_prepare_args_t args = {
      .qkv_a = qkv_a.const_data_ptr(),
      .q_norm_weight = has_q ? q_norm_weight->const_data_ptr() : nullptr,
      .kv_norm_weight = kv_norm_weight.const_data_ptr(),
      .positions = static_cast<const int32_t*>(positions.const_data_ptr()),
      .cos_sin = static_cast<const float*>(cos_sin.const_data_ptr()),
      .slots = slots.const_data_ptr(),
      .q_latent = has_q ? q_latent->mutable_data_ptr() : nullptr,
      .stride_qkv_s = qkv_a.stride(0),
      .stride_q_latent_s = has_q ? q_latent->stride(0) : 0,
      .stride_cos_sin = cos_sin.stride(0),
      .cache = cache,
      .eps = static_cast<float>(eps),
      .q_lora = static_cast<int32_t>(q_lora.value()),
      .q_threads = threads(q_lora),
      .kv_threads = threads(kv_lora),
      .q_weight_is_float = has_q && is_float(*q_norm_weight),
      .kv_weight_is_float = is_float(kv_norm_weight),
      .slots_are_wide = slots.scalar_type() == ScalarType::Long};
  const int32_t device = qkv_a.get_device_index();
  const DeviceGuard guard(device);
  const LaunchShape shape = {
      .grid = {static_cast<unsigned>(s.value())},
      .block = {static_cast<unsigned>(args.q_threads + args.kv_threads + 32)},
      .pdl = true};
  with_type(qkv_a, [&]<class T>(T*) {
    launch(shape, current_stream(device), "mla_prepare", seekernel::mla_prepare<T>, args);
  });
}

void rope_interleaved(const Tensor& x, const Tensor& positions, const Tensor& cos_sin) {
  const Checker check("rope_interleaved");
  Dim s("s"), h("h"), rope("rope"), max_pos("max_pos");
  check("x", x).shape({s, h, rope}).dtype(kActivations).last_dim_contiguous();
  check("positions", positions).shape({s}).dtype({ScalarType::Int}).contiguous();
  check("positions", positions).same_device("x", x);
  check("cos_sin", cos_sin).shape({max_pos, rope}).dtype({ScalarType::Float}).last_dim_contiguous();
  check("cos_sin", cos_sin).same_device("x", x);
  require_vectors(check, "x: rope", rope, INT_MAX - 7);
  if (s == 0 || h == 0 || rope == 0) return;
  require_aligned(check, "x", x);
  require_aligned(check, "cos_sin", cos_sin);
  const int64_t num_vectors = s * h * (rope / kVector);
  check.require(h <= INT_MAX && divide_up(num_vectors, 256) <= INT_MAX,
                "expected fewer than 2^42 values");
  const int32_t device = x.get_device_index();
  const DeviceGuard guard(device);
  with_type(x, [&]<class T>(T*) {
    launch(
        {.grid = {static_cast<unsigned>(divide_up(num_vectors, 256))}, .block = {256}, .pdl = true},
        current_stream(device), "rope_interleaved", seekernel::rope_interleaved<T>,
        static_cast<T*>(x.mutable_data_ptr()),
        static_cast<const int32_t*>(positions.const_data_ptr()),
        static_cast<const float*>(cos_sin.const_data_ptr()), num_vectors, h.value(), rope.value(),
        x.stride(0), x.stride(1), cos_sin.stride(0));
  });
}

void mla_gather_latent(const Tensor& kv_cache, const Tensor& block_table,
                       const Tensor& cu_seqlens_kv, const Tensor& latent, const Tensor& k_pe,
                       const OptionalTensor& kv_scale) {
  const Checker check("mla_gather_latent");
  Dim b("b"), s_kv("s_kv"), kv_lora("kv_lora"), rope("rope");
  Dim num_pages("num_pages"), page_size("page_size"), max_pages("max_pages");
  check("latent", latent).shape({s_kv, kv_lora}).dtype(kActivations).last_dim_contiguous();
  check("k_pe", k_pe).shape({s_kv, rope}).same_dtype("latent", latent).last_dim_contiguous();
  check("k_pe", k_pe).same_device("latent", latent);
  require_vectors(check, "latent: kv_lora", kv_lora, INT_MAX / 2);
  require_vectors(check, "k_pe: rope", rope, INT_MAX / 2);
  const latent_cache_t cache =
      device_cache(check, kv_cache, kv_scale, num_pages, page_size, kv_lora, rope);
  check("kv_cache", kv_cache).same_device("latent", latent);
  check("block_table", block_table).shape({b, max_pages}).dtype({ScalarType::Int});
  check("block_table", block_table).last_dim_contiguous().same_device("latent", latent);
  check("cu_seqlens_kv", cu_seqlens_kv).shape({b.value() + 1}).dtype({ScalarType::Int});
  check("cu_seqlens_kv", cu_seqlens_kv).contiguous().same_device("latent", latent);
  check.require(s_kv <= INT_MAX / 2 && b <= INT_MAX / 2, "expected fewer than 2^30 tokens");
  if (s_kv == 0) return;
  check.require(b > 0, "latent: expected no rows for no request, got " + s_kv.describe());
  require_aligned(check, "latent", latent);
  require_aligned(check, "k_pe", k_pe);
  const int32_t device = latent.get_device_index();
  const DeviceGuard guard(device);
  with_type(latent, [&]<class T>(T*) {
    launch({.grid = {static_cast<unsigned>(divide_up(s_kv, kGatherWarps * kGatherTokensPerWarp))},
            .block = {32 * kGatherWarps},
            .pdl = true},
           current_stream(device), "mla_gather_latent", seekernel::mla_gather_latent<T>, cache,
           static_cast<const int32_t*>(block_table.const_data_ptr()), block_table.stride(0),
           static_cast<const int32_t*>(cu_seqlens_kv.const_data_ptr()), b.value(), s_kv.value(),
           static_cast<T*>(latent.mutable_data_ptr()), latent.stride(0),
           static_cast<T*>(k_pe.mutable_data_ptr()), k_pe.stride(0));
  });
}

void merge_attention_states(const Tensor& out_a, const Tensor& lse_a, const Tensor& out_b,
                            const Tensor& lse_b, const Tensor& out, const Tensor& lse) {
  const Checker check("merge_attention_states");
  Dim s("s"), h("h"), d_v("d_v");
  const auto state = [&](const char* name, const Tensor& tensor, const char* lse_name,
                         const Tensor& state_lse) -> attention_state_t {
    check(name, tensor).shape({s, h, d_v}).dtype(kActivations).last_dim_contiguous();
    check(name, tensor).same_device("out", out);
    require_aligned(check, name, tensor);
    check(lse_name, state_lse).shape({s, h}).dtype({ScalarType::Float}).contiguous();
    check(lse_name, state_lse).same_device("out", out);
    return {.out = tensor.mutable_data_ptr(),
            .lse = static_cast<float*>(state_lse.mutable_data_ptr()),
            .stride_s = tensor.stride(0),
            .stride_h = tensor.stride(1),
            .is_float = is_float(tensor)};
  };
  merge_states_args_t args = {};
  args.result = state("out", out, "lse", lse);
  args.a = state("out_a", out_a, "lse_a", lse_a);
  args.b = state("out_b", out_b, "lse_b", lse_b);
  require_vectors(check, "out: d_v", d_v, INT_MAX / 2);
  args.num_rows = s * h;
  check.require(h <= INT_MAX && args.num_rows <= INT_MAX, "expected fewer than 2^31 rows");
  args.h = static_cast<int32_t>(h.value());
  args.d_v = static_cast<int32_t>(d_v.value());
  if (args.num_rows == 0) return;
  const int32_t device = out.get_device_index();
  const DeviceGuard guard(device);
  launch(
      {.grid = {static_cast<unsigned>(divide_up(args.num_rows, 8))}, .block = {256}, .pdl = true},
      current_stream(device), "merge_attention_states", seekernel::merge_attention_states<256>,
      args);
}

}  // namespace
}  // namespace seekernel::cuda

STABLE_TORCH_LIBRARY_IMPL(seekernel, CUDA, m) {
  m.impl("mla_prepare", TORCH_BOX(&seekernel::cuda::mla_prepare));
  m.impl("rope_interleaved", TORCH_BOX(&seekernel::cuda::rope_interleaved));
  m.impl("mla_gather_latent", TORCH_BOX(&seekernel::cuda::mla_gather_latent));
  m.impl("merge_attention_states", TORCH_BOX(&seekernel::cuda::merge_attention_states));
}
