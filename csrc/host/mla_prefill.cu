// CUDA boundary of mla_prefill: checks, tensor maps, grid, launch.
#include <algorithm>
#include <climits>
#include <cmath>
#include <cstring>

// The host's headers come first: seekernel/ptx/types.cuh gives the integer names of NVRTC.
#include "driver/tensor_map.h"
#include "host/check.h"
#include "host/launch.h"
//
#include <seekernel/attention/sm90_mla_prefill.cuh>

namespace seekernel::cuda {
namespace {

constexpr int64_t kNope = 128, kRope = 64, kDv = 128;
constexpr double kLog2E = 1.4426950408889634;
constexpr int64_t kKeysBytesInL2 = int64_t{24} << 20;  // half of an H100's, the rest is Q and out

uint64_t address_of(const Tensor& tensor) {
  return reinterpret_cast<uint64_t>(tensor.const_data_ptr());
}

// TMA and 16-byte accesses: every row starts at a multiple of 16 bytes.
void require_aligned(const Checker& check, const char* name, const Tensor& tensor) {
  const int64_t bytes = tensor.scalar_type() == ScalarType::Float ? 4 : 2;
  bool aligned = address_of(tensor) % 16 == 0;
  for (int64_t i = 0; i + 1 < tensor.dim(); ++i) {
    aligned = aligned && (tensor.size(i) <= 1 || tensor.stride(i) * bytes % 16 == 0);
  }
  if (!aligned) check(name, tensor).fail("rows that start at multiples of 16 bytes");
}

// The stride of dimension i in bytes; a dimension of one element may claim any.
uint64_t stride_bytes(const Tensor& tensor, int64_t i) {
  return tensor.size(i) <= 1 ? 16 : static_cast<uint64_t>(2 * tensor.stride(i));
}

tensor_map_t encode(cu::TensorMap& description) {
  description.element = cu::ElementType::kBfloat16;
  description.swizzle = cu::Swizzle::k128;
  description.l2_promotion = cu::L2Promotion::k256;
  const cu::CUtensorMap encoded = cu::tensor_maps().get(description);
  tensor_map_t map;
  static_assert(sizeof map == sizeof encoded);
  std::memcpy(&map, &encoded, sizeof map);
  return map;
}

// Boxes of 128 rows x 1 head x 64 columns of x [s, h, d]; `fallback` is an address for an empty x,
// of which nothing is ever loaded.
tensor_map_t heads_map(const Tensor& x, uint64_t fallback) {
  cu::TensorMap map;
  map.rank = 3;
  map.address = x.size(0) == 0 ? fallback : address_of(x);
  const int64_t dims[3] = {x.size(2), x.size(1), std::max<int64_t>(1, x.size(0))};
  const uint32_t box[3] = {64, 1, 128};
  for (int i = 0; i < 3; ++i) {
    map.dims[i] = static_cast<uint64_t>(dims[i]);
    map.box[i] = box[i];
  }
  map.strides_bytes[0] = stride_bytes(x, 1);
  map.strides_bytes[1] = stride_bytes(x, 0);
  return encode(map);
}

template <class Out>
void launch_prefill(const mla_prefill_args_t<Out>& args, const Tensor& q, const Tensor& kv,
                    const Tensor& k_pe) {
  const int32_t device = q.get_device_index();
  const DeviceGuard guard(device);
  const uint64_t somewhere = address_of(q);
  cu::TensorMap k_pe_map;
  k_pe_map.rank = 2;
  k_pe_map.address = k_pe.size(0) == 0 ? somewhere : address_of(k_pe);
  k_pe_map.dims[0] = kRope;
  k_pe_map.dims[1] = static_cast<uint64_t>(std::max<int64_t>(1, k_pe.size(0)));
  k_pe_map.box[0] = kRope;
  k_pe_map.box[1] = 128;
  k_pe_map.strides_bytes[0] = stride_bytes(k_pe, 0);
  const int64_t max_tiles = (q.size(0) / kMlaPrefillRows + args.shape.b) * args.shape.h;
  const auto ctas = static_cast<unsigned>(std::min<int64_t>(num_sms(device), max_tiles));
  launch({.grid = {ctas},
          .block = {384},
          .shared_bytes = sm90_mla_prefill_detail::Plan::kBytes,
          .pdl = true},
         current_stream(device), "mla_prefill", seekernel::sm90_mla_prefill<Out>,
         heads_map(q, somewhere), heads_map(kv, somewhere), encode(k_pe_map), args);
}

void mla_prefill(const Tensor& q, const Tensor& kv, const Tensor& k_pe, const Tensor& cu_seqlens_q,
                 const Tensor& cu_seqlens_kv, double softmax_scale, bool causal, const Tensor& out,
                 const Tensor& lse, const OptionalTensor& previous_out,
                 const OptionalTensor& previous_lse) {
  const Checker check("mla_prefill");
  Dim s_q("s_q"), s_kv("s_kv"), h("h"), cu_size("b + 1");
  check("q", q).shape({s_q, h, kNope + kRope}).dtype({ScalarType::BFloat16});
  check("q", q).last_dim_contiguous();
  const auto check_like_q = [&](const char* name, const Tensor& tensor) {
    check(name, tensor).same_device("q", q).last_dim_contiguous();
    require_aligned(check, name, tensor);
  };
  check_like_q("q", q);
  check("k_pe", k_pe).shape({s_kv, kRope}).same_dtype("q", q);
  check_like_q("k_pe", k_pe);
  check("kv", kv).shape({s_kv, h, kNope + kDv}).same_dtype("q", q);
  check_like_q("kv", kv);
  check("out", out).shape({s_q, h, kDv}).dtype({ScalarType::BFloat16, ScalarType::Float});
  check_like_q("out", out);
  check("lse", lse).shape({s_q, h}).dtype({ScalarType::Float}).same_device("q", q).contiguous();
  check("cu_seqlens_q", cu_seqlens_q).shape({cu_size});
  check.require(cu_size.value() > 0, "cu_seqlens_q: expected shape [b + 1], got shape [0]");
  for (const auto& [name, offsets] :
       {std::pair{"cu_seqlens_q", &cu_seqlens_q}, std::pair{"cu_seqlens_kv", &cu_seqlens_kv}}) {
    check(name, *offsets).shape({cu_size}).dtype({ScalarType::Int}).contiguous();
    check(name, *offsets).same_device("q", q);
  }
  const bool merges = previous_out.has_value();
  check.require(merges == previous_lse.has_value(),
                "expected previous_out and previous_lse together or neither, got one of them");
  if (merges) {
    check("previous_out", *previous_out)
        .shape({s_q, h, kDv})
        .dtype({ScalarType::BFloat16, ScalarType::Float});
    check_like_q("previous_out", *previous_out);
    check("previous_lse", *previous_lse).shape({s_q, h}).dtype({ScalarType::Float}).contiguous();
    check("previous_lse", *previous_lse).same_device("q", q);
  }
  check.require(std::isfinite(softmax_scale) && softmax_scale > 0,
                "softmax_scale: expected a positive number, got " + std::to_string(softmax_scale));
  check.require(s_q <= INT_MAX - 128 && s_kv <= INT_MAX - 128 && h <= INT_MAX / 256,
                "expected fewer than 2^31 - 128 rows");
  if (s_q == 0 || h == 0) return;
  const int64_t head_bytes = std::max<int64_t>(1, s_kv * (kNope + kDv) * 2);
  const mla_prefill_shape_t shape = {
      .cu_seqlens_q = static_cast<const int32_t*>(cu_seqlens_q.const_data_ptr()),
      .cu_seqlens_kv = static_cast<const int32_t*>(cu_seqlens_kv.const_data_ptr()),
      .b = static_cast<int32_t>(cu_size.value() - 1),
      .h = static_cast<int32_t>(h.value()),
      .heads_per_section =
          static_cast<int32_t>(std::clamp<int64_t>(kKeysBytesInL2 / head_bytes, 1, h)),
      .causal = causal};
  const auto run = [&]<class Out>(Out*) {
    launch_prefill<Out>(
        {.shape = shape,
         .out = static_cast<Out*>(out.mutable_data_ptr()),
         .lse = static_cast<float*>(lse.mutable_data_ptr()),
         .previous_out = merges ? previous_out->const_data_ptr() : nullptr,
         .previous_lse =
             merges ? static_cast<const float*>(previous_lse->const_data_ptr()) : nullptr,
         .stride_out_s = out.stride(0),
         .stride_out_h = out.stride(1),
         .stride_previous_s = merges ? previous_out->stride(0) : 0,
         .stride_previous_h = merges ? previous_out->stride(1) : 0,
         .scale_log2 = static_cast<float>(softmax_scale * kLog2E),
         .previous_is_float = merges && previous_out->scalar_type() == ScalarType::Float},
        q, kv, k_pe);
  };
  if (out.scalar_type() == ScalarType::Float) return run(static_cast<float*>(nullptr));
  run(static_cast<bfloat16_t*>(nullptr));
}

}  // namespace
}  // namespace seekernel::cuda

STABLE_TORCH_LIBRARY_IMPL(seekernel, CUDA, m) {
  m.impl("mla_prefill", TORCH_BOX(&seekernel::cuda::mla_prefill));
}
