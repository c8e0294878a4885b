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

}  // namespace
}  // namespace seekernel::cuda

STABLE_TORCH_LIBRARY_IMPL(seekernel, CUDA, m) {
  m.impl("fp8_gemm_nt", TORCH_BOX(&seekernel::cuda::fp8_gemm_nt));
}
