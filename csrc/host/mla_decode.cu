// CUDA boundary of mla_decode_metadata and mla_decode: checks, tensor maps, launches.
#include <climits>
#include <cmath>
#include <cstring>

// The host's headers come first: seekernel/ptx/types.cuh gives the integer names of NVRTC.
#include "driver/tensor_map.h"
#include "heuristics/mla_decode.h"
#include "host/check.h"
#include "host/latent_cache.h"
#include "host/launch.h"
//
#include <seekernel/attention/mla_combine.cuh>
#include <seekernel/attention/mla_decode_metadata.cuh>
#include <seekernel/attention/sm90_mla_decode.cuh>
#include <seekernel/attention/sm90_mla_decode_fp8.cuh>

namespace seekernel::cuda {
namespace {

using heuristics::MlaDecodeShape;

constexpr int64_t kDqk = 576, kDv = 512;
constexpr int kPlanThreads = 256;
constexpr int64_t kMaxRequests = 12288;  // 16 bytes of shared memory each
constexpr double kLog2E = 1.4426950408889634;

std::string number(int64_t value) { return std::to_string(value); }

void require_heads(const Checker& check, int64_t h_q) {
  check.require(h_q >= 1 && h_q <= 128, "h_q: expected 1 to 128, got " + number(h_q));
}

void require_split(const Checker& check, int64_t split_tokens) {
  check.require(split_tokens >= 0 && split_tokens % kMlaBlockKeys == 0 && split_tokens < INT_MAX,
                "split_tokens: expected 0 or a multiple of 64, got " + number(split_tokens));
}

// The plan's tensors: a row of `parts` per SM, of `items` per query token and one.
void check_plan(const Checker& check, const Tensor& parts, const Tensor& items, int64_t s,
                const Tensor& like, const char* like_name) {
  check("parts", parts).shape({num_sms(like.get_device_index()), 8}).dtype({ScalarType::Int});
  check("parts", parts).contiguous().same_device(like_name, like);
  check("items", items).shape({s + 1, 8}).dtype({ScalarType::Int}).contiguous();
  check("items", items).same_device(like_name, like);
}

void mla_decode_metadata(const Tensor& seq_lens, const Tensor& cu_seqlens_q, int64_t h_q,
                         int64_t split_tokens, const Tensor& parts, const Tensor& items) {
  const Checker check("mla_decode_metadata");
  Dim b("b"), rows("s + 1"), eight("8", 8);
  check("seq_lens", seq_lens).shape({b}).dtype({ScalarType::Int}).contiguous();
  check("cu_seqlens_q", cu_seqlens_q).shape({b.value() + 1}).dtype({ScalarType::Int}).contiguous();
  check("cu_seqlens_q", cu_seqlens_q).same_device("seq_lens", seq_lens);
  check("items", items).shape({rows, eight});
  check.require(rows.value() >= 1, "items: expected shape [s + 1, 8], got shape [0, 8]");
  const int64_t s = rows.value() - 1;
  check_plan(check, parts, items, s, seq_lens, "seq_lens");
  require_heads(check, h_q);
  require_split(check, split_tokens);
  check.require(b <= kMaxRequests, "seq_lens: expected at most " + number(kMaxRequests) +
                                       " requests, got " + number(b));
  const int32_t device = seq_lens.get_device_index();
  const MlaDecodeShape shape = heuristics::mla_decode_shape(s, b, h_q, num_sms(device));
  check.require(shape.num_parts < kPlanThreads,
                "parts: expected fewer than 256 parts, got " + number(shape.num_parts));
  const DeviceGuard guard(device);
  launch({.block = {kPlanThreads},
          .shared_bytes = static_cast<size_t>(16 * (b.value() + 1)),
          .pdl = true},
         current_stream(device), "mla_decode_metadata",
         seekernel::mla_decode_metadata<kPlanThreads>,
         static_cast<const int32_t*>(seq_lens.const_data_ptr()),
         static_cast<const int32_t*>(cu_seqlens_q.const_data_ptr()), static_cast<int>(b.value()),
         static_cast<int>(h_q), shape.rows_per_item(), shape.num_parts,
         heuristics::kMlaDecodeUnitBlocks, heuristics::kMlaDecodeMinBlocks,
         static_cast<int>(split_tokens / kMlaBlockKeys),
         static_cast<mla_part_t*>(parts.mutable_data_ptr()),
         static_cast<mla_item_t*>(items.mutable_data_ptr()));
}

tensor_map_t encode(const cu::TensorMap& description) {
  const cu::CUtensorMap encoded = cu::tensor_maps().get(description);
  tensor_map_t map;
  static_assert(sizeof map == sizeof encoded);
  std::memcpy(&map, &encoded, sizeof map);
  return map;
}

uint64_t address_of(const Tensor& tensor) {
  return reinterpret_cast<uint64_t>(tensor.const_data_ptr());
}

struct Step {
  const Tensor& q;
  const Tensor& kv_cache;
  LatentCache cache;
  const Tensor& block_table;
  const Tensor& parts;
  const Tensor& items;
  const Tensor& out;
  const Tensor& lse;
  const Tensor& partial_out;
  const Tensor& partial_lse;
  float scale_log2;
  bool causal;
  MlaDecodeShape shape;
};

tensor_map_t map_of_q(const Step& step, cu::ElementType element) {
  return encode(cu::matrix_map(address_of(step.q), element, kDqk, step.q.size(0) * step.q.size(1),
                               2 * step.q.stride(1), 64, 64, cu::Swizzle::k128));
}

tensor_map_t map_of_cache(const Step& step, cu::ElementType element) {
  const int64_t page_size = step.kv_cache.size(1);
  const int64_t dims[3] = {kDqk, page_size, step.kv_cache.size(0)};
  const int64_t box[3] = {64, std::min<int64_t>(page_size, kMlaBlockKeys), 1};
  cu::TensorMap map;
  map.address = address_of(step.kv_cache);
  map.rank = 3;
  map.element = element;
  map.swizzle = cu::Swizzle::k128;
  for (int i = 0; i < 3; ++i) {
    map.dims[i] = static_cast<uint64_t>(dims[i]);
    map.box[i] = static_cast<uint32_t>(box[i]);
  }
  map.strides_bytes[0] = static_cast<uint64_t>(2 * step.kv_cache.stride(1));
  map.strides_bytes[1] = static_cast<uint64_t>(2 * step.kv_cache.stride(0));
  return encode(map);
}

template <class T>
void launch_step(const Step& step) {
  const int32_t device = step.q.get_device_index();
  const cudaStream_t stream = current_stream(device);
  const auto element =
      std::is_same_v<T, bfloat16_t> ? cu::ElementType::kBfloat16 : cu::ElementType::kFloat16;
  const mla_decode_args_t<T> args = {
      .block_table = static_cast<const int32_t*>(step.block_table.const_data_ptr()),
      .stride_table = step.block_table.stride(0),
      .parts = static_cast<const mla_part_t*>(step.parts.const_data_ptr()),
      .items = static_cast<const mla_item_t*>(step.items.const_data_ptr()),
      .out = static_cast<T*>(step.out.mutable_data_ptr()),
      .lse = static_cast<float*>(step.lse.mutable_data_ptr()),
      .partial_out = static_cast<float*>(step.partial_out.mutable_data_ptr()),
      .partial_lse = static_cast<float*>(step.partial_lse.mutable_data_ptr()),
      .scale_log2 = step.scale_log2,
      .h_q = static_cast<int32_t>(step.q.size(1)),
      .page_size = static_cast<int32_t>(step.kv_cache.size(1)),
      .num_pages = static_cast<int32_t>(step.kv_cache.size(0)),
      .causal = step.causal};
  const LaunchShape shape{.grid = {static_cast<unsigned>(step.shape.row_blocks),
                                   static_cast<unsigned>(step.shape.num_parts)},
                          .block = {384},
                          .shared_bytes = sm90_mla_decode_detail::Plan::kBytes,
                          .pdl = true};
  const tensor_map_t map_q = map_of_q(step, element);
  if (step.cache.format == LatentFormat::kValues) {
    launch(shape, stream, "mla_decode", sm90_mla_decode<T>, map_q, map_of_cache(step, element),
           args);
  } else if constexpr (std::is_same_v<T, bfloat16_t>) {
    const mla_fp8_cache_t cache = {.data = static_cast<const uint8_t*>(step.cache.data),
                                   .stride_page = step.cache.stride_page,
                                   .stride_row = step.cache.stride_row,
                                   .kv_scale = step.cache.kv_scale};
    launch(shape, stream, "mla_decode",
           step.cache.format == LatentFormat::kBlocks
               ? sm90_mla_decode_fp8<latent_format_t::kBlocks>
               : sm90_mla_decode_fp8<latent_format_t::kFlat>,
           map_q, cache, args);
  }
  launch({.grid = {static_cast<unsigned>(4 * num_sms(device))}, .block = {256}, .pdl = true},
         stream, "mla_combine", mla_combine<T>, args.items,
         static_cast<const float*>(args.partial_out), static_cast<const float*>(args.partial_lse),
         args.out, args.lse, step.shape.rows_per_item());
}

void mla_decode(const Tensor& q, const Tensor& kv_cache, const Tensor& block_table,
                const Tensor& seq_lens, const Tensor& cu_seqlens_q, double softmax_scale,
                bool causal, int64_t d_v, const Tensor& out, const Tensor& lse,
                const OptionalTensor& kv_scale, const OptionalTensor& parts,
                const OptionalTensor& items, const OptionalTensor& partial_out,
                const OptionalTensor& partial_lse, int64_t split_tokens) {
  const Checker check("mla_decode");
  Dim s("s"), b("b"), h_q("h_q"), num_pages("num_pages"), page_size("page_size");
  Dim max_pages("max_pages"), partial_rows("partial_rows");
  check("q", q).shape({s, h_q, kDqk}).dtype({ScalarType::BFloat16, ScalarType::Half});
  check("q", q).last_dim_contiguous();
  require_heads(check, h_q);
  check.require(s * h_q < INT_MAX - 64, "q: expected s * h_q < 2^31 - 65, got " +
                                            number(s.value()) + " * " + number(h_q.value()));
  check.require(d_v == kDv, "d_v: expected 512, got " + number(d_v));
  check.require(softmax_scale > 0 && std::isfinite(softmax_scale),
                "softmax_scale: expected a positive value, got " + std::to_string(softmax_scale));
  check.require(q.stride(1) % 8 == 0 && (s <= 1 || q.stride(0) == h_q * q.stride(1)),
                "q: expected rows of one distance, a multiple of 8, got strides " +
                    number(q.stride(0)) + ", " + number(q.stride(1)));
  const LatentCache cache =
      check_latent_cache(check, kv_cache, kv_scale, num_pages, page_size, kDv, kDqk - kDv);
  const bool fp8 = cache.format != LatentFormat::kValues;
  if (!fp8) check("kv_cache", kv_cache).same_dtype("q", q);
  check.require(!fp8 || q.scalar_type() == ScalarType::BFloat16,
                "q: expected dtype bfloat16 with an FP8 kv_cache, got float16");
  check("kv_cache", kv_cache).same_device("q", q);
  check.require(page_size == 16 || page_size == 32 || page_size == 64 || page_size == 128,
                "kv_cache: expected page_size 16, 32, 64 or 128, got " + number(page_size));
  const int64_t unit = fp8 ? 16 : 8;  // elements of 16 bytes
  check.require(kv_cache.stride(0) % unit == 0 && kv_cache.stride(1) % unit == 0 &&
                    address_of(kv_cache) % 16 == 0 && address_of(q) % 16 == 0,
                "kv_cache, q: expected rows and pages that start at multiples of 16 bytes");
  check("seq_lens", seq_lens).shape({b}).dtype({ScalarType::Int}).same_device("q", q).contiguous();
  check("block_table", block_table).shape({b, max_pages}).dtype({ScalarType::Int});
  check("block_table", block_table).same_device("q", q).last_dim_contiguous();
  check("cu_seqlens_q", cu_seqlens_q).shape({b.value() + 1}).dtype({ScalarType::Int});
  check("cu_seqlens_q", cu_seqlens_q).same_device("q", q).contiguous();
  check("out", out).shape({s, h_q, kDv}).same_dtype("q", q).same_device("q", q).contiguous();
  check("lse", lse).shape({s, h_q}).dtype({ScalarType::Float}).same_device("q", q).contiguous();
  require_split(check, split_tokens);
  check.require(
      parts.has_value() && items.has_value() && partial_out.has_value() && partial_lse.has_value(),
      "expected parts, items, partial_out and partial_lse, got not all of them");
  check_plan(check, *parts, *items, s, q, "q");
  const MlaDecodeShape shape =
      heuristics::mla_decode_shape(s, b, h_q, num_sms(q.get_device_index()));
  check("partial_out", *partial_out).shape({partial_rows, kDv}).dtype({ScalarType::Float});
  check("partial_out", *partial_out).same_device("q", q).contiguous();
  check("partial_lse", *partial_lse).shape({partial_rows}).dtype({ScalarType::Float});
  check("partial_lse", *partial_lse).same_device("q", q).contiguous();
  const int64_t needed =
      heuristics::mla_decode_partial_rows(shape, s, h_q, split_tokens, max_pages * page_size);
  check.require(partial_rows >= needed, "partial_out: expected at least " + number(needed) +
                                            " rows, got " + number(partial_rows));
  if (s == 0 || b == 0) return;
  check.require(num_pages > 0, "kv_cache: expected num_pages > 0, got 0");
  const DeviceGuard guard(q.get_device_index());
  const Step step{.q = q,
                  .kv_cache = kv_cache,
                  .cache = cache,
                  .block_table = block_table,
                  .parts = *parts,
                  .items = *items,
                  .out = out,
                  .lse = lse,
                  .partial_out = *partial_out,
                  .partial_lse = *partial_lse,
                  .scale_log2 = static_cast<float>(softmax_scale * kLog2E),
                  .causal = causal,
                  .shape = shape};
  if (q.scalar_type() == ScalarType::BFloat16) return launch_step<bfloat16_t>(step);
  launch_step<float16_t>(step);
}

}  // namespace
}  // namespace seekernel::cuda

STABLE_TORCH_LIBRARY_IMPL(seekernel, CUDA, m) {
  m.impl("mla_decode_metadata", TORCH_BOX(&seekernel::cuda::mla_decode_metadata));
  m.impl("mla_decode", TORCH_BOX(&seekernel::cuda::mla_decode));
}
