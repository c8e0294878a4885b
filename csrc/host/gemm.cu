// CUDA boundary of the GEMM ops, with the kernels compiled at build time: checks, configuration,
// launch.
#include "heuristics/aot.h"
#include "host/check.h"
#include "host/cuda.h"
#include "host/gemm_aot.h"
#include "host/launch.h"
#include "launch/fp8_gemm.h"

namespace seekernel::cuda {
namespace {

constexpr auto kOutputs = {ScalarType::BFloat16, ScalarType::Float};

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
uint64_t address(const Tensor& tensor) {
  return reinterpret_cast<uint64_t>(tensor.const_data_ptr());
}

// What TMA asks of a matrix: 16-byte aligned rows.
void check_aligned(const Checker& check, const char* name, const Tensor& tensor,
                   int element_bytes) {
  const bool aligned = address(tensor) % 16 == 0;
  const int64_t rows = tensor.dim() - 2;
  const bool stride_fits = tensor.size(rows) <= 1 || tensor.stride(rows) * element_bytes % 16 == 0;
  if (!aligned || !stride_fits)
    check(name, tensor).fail("rows that start at multiples of 16 bytes");
}

// Row stride of a matrix; that of a single row may be anything in torch.
int64_t row_stride(const Tensor& tensor) {
  const int64_t rows = tensor.dim() - 2, columns = rows + 1;
  return tensor.size(rows) > 1 ? tensor.stride(rows) : ceil_div(tensor.size(columns), 16) * 16;
}

void require_hopper(const Checker& check, int32_t device) {
  static const auto majors = [] {
    std::array<int, 64> all{};
    int num_devices = 0;
    cuda::check(cudaGetDeviceCount(&num_devices), "cudaGetDeviceCount");
    for (int i = 0; i < num_devices && i < 64; ++i) {
      cuda::check(cudaDeviceGetAttribute(&all[i], cudaDevAttrComputeCapabilityMajor, i),
                  "cudaDeviceGetAttribute");
    }
    return all;
  }();
  const int major = majors.at(static_cast<size_t>(device));
  check.require(major == 9, "expected a GPU of compute capability 9.0, got " +
                                std::to_string(major) +
                                ".x; seekernel.ops uses the reference there");
}

heuristics::GemmOutput output_of(const Tensor& out) {
  return out.scalar_type() == ScalarType::Float ? heuristics::GemmOutput::kFloat32
                                                : heuristics::GemmOutput::kBfloat16;
}

heuristics::GemmConfig aot_choice(const heuristics::GemmShape& shape, const heuristics::Gpu& gpu) {
  return heuristics::nearest_aot(heuristics::choose(shape, gpu, false), shape.k);
}

void run(const Checker& check, const launch::Fp8Gemm& problem, int32_t device) {
  require_hopper(check, device);
  const DeviceGuard guard(device);
  launch::fp8_gemm(problem, {.num_sms = num_sms(device)}, &aot_choice, &aot_kernel,
                   reinterpret_cast<uintptr_t>(current_stream(device)));
}

void fp8_gemm_nt(const Tensor& a, OptionalTensor a_scale, const Tensor& b, const Tensor& b_scale,
                 const Tensor& out) {
  const Checker check("fp8_gemm_nt");
  Dim m("m"), n("n"), k("k");
  check("a", a).shape({m, k}).dtype({ScalarType::Float8_e4m3fn}).last_dim_contiguous();
  check.require(a_scale.has_value(), "a_scale: expected a tensor on CUDA, got None");
  Dim k_blocks("ceil(k/128)", ceil_div(k, 128)), padded_m("round_up(m, 4)", ceil_div(m, 4) * 4);
  check("a_scale", *a_scale).shape({k_blocks, padded_m}).dtype({ScalarType::Float});
  check("a_scale", *a_scale).last_dim_contiguous().same_device("a", a);
  check("b", b).shape({n, k}).dtype({ScalarType::Float8_e4m3fn}).last_dim_contiguous();
  check("b", b).same_device("a", a);
  check("b_scale", b_scale).shape({ceil_div(n, 128), k_blocks}).dtype({ScalarType::Float});
  check("b_scale", b_scale).contiguous().same_device("a", a);
  check("out", out).shape({m, n}).dtype(kOutputs).last_dim_contiguous();
  check("out", out).same_device("a", a);
  check.require(k % 128 == 0 && k > 0,
                "expected k to be a positive multiple of 128, got " + k.describe());
  check.require(n % 8 == 0, "expected n to be a multiple of 8, got " + n.describe());
  check_aligned(check, "a", a, 1);
  check_aligned(check, "a_scale", *a_scale, 4);
  check_aligned(check, "b", b, 1);
  check_aligned(check, "out", out, out.scalar_type() == ScalarType::Float ? 4 : 2);
  if (m == 0 || n == 0) return;

  launch::Fp8Gemm problem;
  problem.output = output_of(out);
  problem.m = m, problem.n = n, problem.k = k;
  problem.a = address(a), problem.sfa = address(*a_scale);
  problem.b = address(b), problem.sfb = address(b_scale), problem.d = address(out);
  problem.a_stride_m = row_stride(a), problem.sfa_stride_k = row_stride(*a_scale);
  problem.b_stride_n = row_stride(b), problem.d_stride_m = row_stride(out);
  run(check, problem, a.get_device_index());
}

using heuristics::GemmOutput;
using heuristics::TileKind;

// Stride of a stack's matrices; that of a single one may be anything in torch.
int64_t matrix_stride(const Tensor& tensor) {
  return tensor.size(0) > 1 ? tensor.stride(0) : row_stride(tensor) * tensor.size(1);
}

// Weights [g, n, k] with scales [g, halves * ceil(n / halves / 128), k / 128].
void take_weights(const Checker& check, const Tensor& b, const Tensor& b_scale, const Tensor& a,
                  Dim& g, Dim& n, Dim& k, int64_t halves, launch::Fp8Gemm& problem) {
  check("b", b).shape({g, n, k}).dtype({ScalarType::Float8_e4m3fn}).last_dim_contiguous();
  check("b", b).same_device("a", a);
  check.require(k % 128 == 0 && k > 0,
                "expected k to be a positive multiple of 128, got " + k.describe());
  check.require(n % (8 * halves) == 0, "expected n to be a multiple of 8, got " + n.describe());
  const int64_t n_blocks = halves * ceil_div(n / halves, 128);
  check("b_scale", b_scale).shape({g, n_blocks, k / 128}).dtype({ScalarType::Float});
  check("b_scale", b_scale).same_device("a", a);
  const bool dense = b_scale.size(2) <= 1 || b_scale.stride(2) == 1;
  if (!dense || (n_blocks > 1 && b_scale.stride(1) != k / 128)) {
    check("b_scale", b_scale).fail("the scales of a matrix to lie together");
  }
  check_aligned(check, "b", b, 1);
  problem.n = n, problem.k = k, problem.num_groups = g;
  problem.b = address(b), problem.sfb = address(b_scale);
  problem.b_stride_n = row_stride(b), problem.b_stride_g = matrix_stride(b);
  problem.sfb_stride_g = g > 1 ? b_scale.stride(0) : n_blocks * (k / 128);
}

// Activations [m, k] with scales [k / 128, round_up(m, 4)], or stacks of them.
void take_activations(const Checker& check, const Tensor& a, const OptionalTensor& a_scale, Dim* g,
                      Dim& m, Dim& k, launch::Fp8Gemm& problem) {
  check.require(a_scale.has_value(), "a_scale: expected a tensor on CUDA, got None");
  Dim padded_m("round_up(m, 4)", ceil_div(m, 4) * 4);
  const auto activations = check("a", a), scales = check("a_scale", *a_scale);
  if (g != nullptr) {
    activations.shape({*g, m, k});
    scales.shape({*g, ceil_div(k, 128), padded_m});
  } else {
    activations.shape({m, k});
    scales.shape({ceil_div(k, 128), padded_m});
  }
  activations.dtype({ScalarType::Float8_e4m3fn}).last_dim_contiguous();
  scales.dtype({ScalarType::Float}).last_dim_contiguous().same_device("a", a);
  check_aligned(check, "a", a, 1);
  check_aligned(check, "a_scale", *a_scale, 4);
  problem.a = address(a), problem.sfa = address(*a_scale);
  problem.a_stride_m = row_stride(a);
  problem.sfa_stride_k = a_scale->size(a_scale->dim() - 2) > 1 ? a_scale->stride(a_scale->dim() - 2)
                                                               : ceil_div(m, 4) * 4;
  if (g != nullptr) {
    problem.a_stride_g = matrix_stride(a);
    problem.sfa_stride_g = *g > 1 ? a_scale->stride(0) : problem.sfa_stride_k * a_scale->size(1);
  }
}

void take_out(const Checker& check, const Tensor& out, const Tensor& a, launch::Fp8Gemm& problem) {
  check("out", out).dtype(kOutputs).last_dim_contiguous().same_device("a", a);
  check_aligned(check, "out", out, out.scalar_type() == ScalarType::Float ? 4 : 2);
  problem.output = output_of(out);
  problem.d = address(out), problem.d_stride_m = row_stride(out);
  if (out.dim() == 3) problem.d_stride_g = matrix_stride(out);
}

void fp8_bmm_nt(const Tensor& a, OptionalTensor a_scale, const Tensor& b, const Tensor& b_scale,
                const Tensor& out) {
  const Checker check("fp8_bmm_nt");
  Dim g("g", a.dim() == 3 ? a.size(0) : 0), m("m", a.dim() == 3 ? a.size(1) : 0), n("n"), k("k");
  launch::Fp8Gemm problem;
  problem.kind = TileKind::kBatched;
  take_activations(check, a, a_scale, &g, m, k, problem);
  take_weights(check, b, b_scale, a, g, n, k, 1, problem);
  check("out", out).shape({g, m, n}).dtype({ScalarType::BFloat16});
  take_out(check, out, a, problem);
  problem.m = m;
  if (m == 0 || n == 0 || g == 0) return;
  run(check, problem, a.get_device_index());
}

void take_tile_map(const Checker& check, const OptionalTensor& tile_map,
                   const OptionalTensor& num_tiles, const Tensor& a, launch::Fp8Gemm& problem) {
  check.require(tile_map.has_value() == num_tiles.has_value(),
                "expected tile_map and num_tiles, or neither, got one of them");
  if (!tile_map) return;
  Dim tiles("tiles");
  check("tile_map", *tile_map).shape({tiles, 4}).dtype({ScalarType::Int}).contiguous();
  check("tile_map", *tile_map).same_device("a", a);
  check_aligned(check, "tile_map", *tile_map, 4);
  check("num_tiles", *num_tiles).shape({1}).dtype({ScalarType::Int}).same_device("a", a);
  problem.kind = TileKind::kTileMap;
  problem.groups = address(*tile_map), problem.num_tiles = address(*num_tiles);
}

void take_offsets(const Checker& check, const Tensor& offsets, const Tensor& a, int64_t g,
                  launch::Fp8Gemm& problem) {
  check("offsets", offsets).shape({g + 1}).dtype({ScalarType::Int, ScalarType::Long}).contiguous();
  check("offsets", offsets).same_device("a", a);
  problem.kind = TileKind::kOffsets;
  problem.groups = address(offsets);
  problem.offset_bytes = offsets.scalar_type() == ScalarType::Long ? 8 : 4;
}

void fp8_grouped_gemm_nt(const Tensor& a, OptionalTensor a_scale, const Tensor& b,
                         const Tensor& b_scale, const Tensor& offsets, const Tensor& out,
                         std::string layout, OptionalTensor tile_map, OptionalTensor num_tiles,
                         OptionalTensor row_weight, int64_t expected_m) {
  const Checker check("fp8_grouped_gemm_nt");
  const bool masked = layout == "masked", by_row = layout == "contiguous";
  check.require(masked || by_row || layout == "offsets",
                "layout: expected 'offsets', 'contiguous' or 'masked', got '" + layout + "'");
  check.require(!tile_map || layout == "offsets",
                "tile_map: expected None unless layout is 'offsets', got a tensor");
  check.require(!row_weight || !masked, "row_weight: expected None where masked, got a tensor");
  const int64_t dims = masked ? 3 : 2;
  check.require(a.dim() == dims, "a: expected " + std::to_string(dims) + " dimensions, got " +
                                     std::to_string(a.dim()));
  check.require(b.dim() == 3, "b: expected 3 dimensions, got " + std::to_string(b.dim()));
  Dim g("g", b.size(0)), m(masked ? "m" : "rows", a.size(dims - 2)), n("n"), k("k");
  launch::Fp8Gemm problem;
  take_activations(check, a, a_scale, masked ? &g : nullptr, m, k, problem);
  take_weights(check, b, b_scale, a, g, n, k, 1, problem);
  if (masked) {
    check("out", out).shape({g, m, n});
  } else {
    check("out", out).shape({m, n});
  }
  take_out(check, out, a, problem);
  problem.m = m;
  problem.expected_m = expected_m > 0 ? expected_m
                       : masked       ? m.value()
                                      : ceil_div(m, std::max<int64_t>(g, 1));
  if (layout == "offsets") {
    take_offsets(check, offsets, a, g, problem);
    take_tile_map(check, tile_map, num_tiles, a, problem);
  } else {
    problem.kind = masked ? TileKind::kMasked : TileKind::kContiguous;
    problem.groups = address(offsets);
    check(masked ? "masked_m" : "m_indices", offsets)
        .shape({masked ? g : m})
        .dtype({ScalarType::Int})
        .contiguous()
        .same_device("a", a);
  }
  if (row_weight) {
    check("row_weight", *row_weight).shape({m}).dtype({ScalarType::Float}).contiguous();
    check("row_weight", *row_weight).same_device("a", a);
    problem.row_weight = address(*row_weight);
  }
  if (m == 0 || n == 0 || g == 0) return;
  run(check, problem, a.get_device_index());
}

void fp8_grouped_gemm_swiglu_nt(const Tensor& a, OptionalTensor a_scale, const Tensor& b,
                                const Tensor& b_scale, const Tensor& offsets,
                                OptionalTensor row_token, const Tensor& out,
                                OptionalTensor out_scale, OptionalTensor tile_map,
                                OptionalTensor num_tiles, int64_t expected_m) {
  const Checker check("fp8_grouped_gemm_swiglu_nt");
  check.require(b.dim() == 3 && out.dim() == 2 && a.dim() == 2,
                "expected a [m, k], b [g, 2 n, k], out [rows, n]");
  Dim g("g", b.size(0)), m("m", a.size(0)), rows("rows", out.size(0)), k("k");
  Dim two_n("2 n", 2 * out.size(1)), n("n", out.size(1));
  launch::Fp8Gemm problem;
  take_activations(check, a, a_scale, nullptr, m, k, problem);
  take_weights(check, b, b_scale, a, g, two_n, k, 2, problem);
  check.require(n % 128 == 0, "expected n to be a multiple of 128, got " + n.describe());
  check("out", out).dtype({ScalarType::Float8_e4m3fn}).last_dim_contiguous().same_device("a", a);
  check_aligned(check, "out", out, 1);
  check.require(out_scale.has_value(), "out_scale: expected a tensor as out is float8_e4m3fn");
  Dim padded("round_up(rows, 4)", ceil_div(rows, 4) * 4);
  check("out_scale", *out_scale).shape({n / 128, padded}).dtype({ScalarType::Float});
  check("out_scale", *out_scale).last_dim_contiguous().same_device("a", a);
  problem.output = GemmOutput::kSwigluFp8;
  problem.d = address(out), problem.d_stride_m = row_stride(out);
  problem.sfd = address(*out_scale);
  problem.sfd_stride_n = out_scale->size(0) > 1 ? out_scale->stride(0) : padded.value();
  problem.m = rows;
  problem.expected_m = expected_m > 0 ? expected_m : ceil_div(rows, std::max<int64_t>(g, 1));
  take_offsets(check, offsets, a, g, problem);
  take_tile_map(check, tile_map, num_tiles, a, problem);
  if (row_token) {
    check("row_token", *row_token).shape({rows}).dtype({ScalarType::Int}).contiguous();
    check("row_token", *row_token).same_device("a", a);
    problem.row_token = address(*row_token);
    problem.tokens = m;
  } else {
    check("a", a).shape({rows, k});
  }
  if (rows == 0 || n == 0 || g == 0) return;
  run(check, problem, a.get_device_index());
}

}  // namespace
}  // namespace seekernel::cuda

STABLE_TORCH_LIBRARY_IMPL(seekernel, CUDA, m) {
  m.impl("fp8_gemm_nt", TORCH_BOX(&seekernel::cuda::fp8_gemm_nt));
  m.impl("fp8_bmm_nt", TORCH_BOX(&seekernel::cuda::fp8_bmm_nt));
  m.impl("fp8_grouped_gemm_nt", TORCH_BOX(&seekernel::cuda::fp8_grouped_gemm_nt));
  m.impl("fp8_grouped_gemm_swiglu_nt", TORCH_BOX(&seekernel::cuda::fp8_grouped_gemm_swiglu_nt));
}
