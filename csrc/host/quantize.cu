// CUDA boundary of the block quantisers: checks, vector width, grid, launch.
#include <algorithm>
#include <climits>

// The host's headers come first: seekernel/ptx/types.cuh gives the integer names of NVRTC.
#include "host/check.h"
#include "host/launch.h"
//
#include <seekernel/fused/quantize.cuh>

namespace seekernel::cuda {
namespace {

constexpr auto kActivations = {ScalarType::Float, ScalarType::BFloat16};
constexpr int kThreads = quantize_detail::kThreads;
constexpr int kGroupsPerCta = kThreads / quantize_detail::kThreadsPerGroup;

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Whether every row starts at a multiple of `bytes`.
bool rows_at(const Tensor& tensor, int64_t element_bytes, int64_t bytes) {
  const int64_t stride_bytes = tensor.size(0) == 1 ? 0 : tensor.stride(0) * element_bytes;
  return stride_bytes % bytes == 0 &&
         reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % bytes == 0;
}

bool is_wide(const Tensor& tensor) { return tensor.scalar_type() == ScalarType::Float; }

bool aligned(const Tensor& wide, const Tensor& q, int64_t k, int64_t q_bytes) {
  return k % 8 == 0 && rows_at(wide, is_wide(wide) ? 4 : 2, 16) && rows_at(q, 1, q_bytes);
}

// Calls f with a null pointer of the tensor's element type.
template <class F>
void with_type(const Tensor& tensor, const F& f) {
  if (is_wide(tensor)) return f(static_cast<float*>(nullptr));
  f(static_cast<bfloat16_t*>(nullptr));
}

template <class T>
T* data(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

void require_int(const Checker& check, int64_t m, int64_t k) {
  constexpr int64_t kMaxColumns = 65535 * int64_t{128};
  check.require(m <= INT_MAX - 128 && k <= kMaxColumns,
                "expected m < 2^31 - 128 and k <= 65535 * 128, got m=" + std::to_string(m) +
                    ", k=" + std::to_string(k));
}

// Rows that a CTA takes: as many as there are, so that its 16 groups write scales side by side.
int rows_per_cta(int64_t m) {
  int rows = 1;
  while (rows < kGroupsPerCta && rows < m) rows *= 2;
  return rows;
}

void quantize_fp8_1x128(const Tensor& x, const Tensor& q, const Tensor& scale) {
  const Checker check("quantize_fp8_1x128");
  Dim m("m"), k("k");
  check("x", x).shape({m, k}).dtype(kActivations).last_dim_contiguous();
  check("q", q).shape({m, k}).dtype({ScalarType::Float8_e4m3fn}).last_dim_contiguous();
  check("q", q).same_device("x", x);
  Dim groups("ceil(k/128)", divide_up(k, 128)), padded_m("round_up(m, 4)", divide_up(m, 4) * 4);
  check("scale", scale).shape({groups, padded_m}).dtype({ScalarType::Float}).last_dim_contiguous();
  check("scale", scale).same_device("x", x);
  require_int(check, m, k);
  if (m == 0 || k == 0) return;
  const int32_t device = x.get_device_index();
  const DeviceGuard guard(device);
  const int rows = rows_per_cta(padded_m);
  const LaunchShape shape{.grid = {static_cast<unsigned>(divide_up(padded_m, rows)),
                                   static_cast<unsigned>(divide_up(groups * rows, kGroupsPerCta))},
                          .block = {kThreads},
                          .pdl = true};
  with_type(x, [&]<class T>(T*) {
    launch(shape, current_stream(device), "quantize_fp8_1x128",
           aligned(x, q, k, 8) ? seekernel::quantize_fp8_1x128<T, true>
                               : seekernel::quantize_fp8_1x128<T, false>,
           data<T>(x), data<uint8_t>(q), data<float>(scale), m.value(), k.value(), rows,
           x.stride(0), q.stride(0), scale.stride(0));
  });
}

void quantize_fp8_128x128(const Tensor& w, const Tensor& q, const Tensor& scale) {
  const Checker check("quantize_fp8_128x128");
  Dim n("n"), k("k");
  check("w", w).shape({n, k}).dtype(kActivations).last_dim_contiguous();
  check("q", q).shape({n, k}).dtype({ScalarType::Float8_e4m3fn}).last_dim_contiguous();
  check("q", q).same_device("w", w);
  Dim blocks_n("ceil(n/128)", divide_up(n, 128)), blocks_k("ceil(k/128)", divide_up(k, 128));
  check("scale", scale)
      .shape({blocks_n, blocks_k})
      .dtype({ScalarType::Float})
      .last_dim_contiguous()
      .same_device("w", w);
  require_int(check, n, k);
  check.require(blocks_n <= 65535, "expected n <= 65535 * 128, got " + n.describe());
  if (n == 0 || k == 0) return;
  const int32_t device = w.get_device_index();
  const DeviceGuard guard(device);
  const LaunchShape shape{
      .grid = {static_cast<unsigned>(blocks_k.value()), static_cast<unsigned>(blocks_n.value())},
      .block = {kThreads},
      .pdl = true};
  with_type(w, [&]<class T>(T*) {
    launch(shape, current_stream(device), "quantize_fp8_128x128",
           aligned(w, q, k, 8) ? seekernel::quantize_fp8_128x128<T, true>
                               : seekernel::quantize_fp8_128x128<T, false>,
           data<T>(w), data<uint8_t>(q), data<float>(scale), n.value(), k.value(), w.stride(0),
           q.stride(0), scale.stride(0));
  });
}

void dequantize_fp8_128x128(const Tensor& q, const Tensor& scale, const Tensor& out) {
  const Checker check("dequantize_fp8_128x128");
  Dim n("n"), k("k");
  check("q", q).shape({n, k}).dtype({ScalarType::Float8_e4m3fn}).last_dim_contiguous();
  Dim blocks_n("ceil(n/128)", divide_up(n, 128)), blocks_k("ceil(k/128)", divide_up(k, 128));
  check("scale", scale)
      .shape({blocks_n, blocks_k})
      .dtype({ScalarType::Float})
      .last_dim_contiguous()
      .same_device("q", q);
  check("out", out).shape({n, k}).dtype(kActivations).last_dim_contiguous().same_device("q", q);
  require_int(check, n, k);
  if (n == 0 || k == 0) return;
  const int32_t device = q.get_device_index();
  const DeviceGuard guard(device);
  const LaunchShape shape{
      .grid = {static_cast<unsigned>(n.value()), static_cast<unsigned>(divide_up(k, kThreads * 8))},
      .block = {kThreads},
      .pdl = true};
  with_type(out, [&]<class T>(T*) {
    launch(shape, current_stream(device), "dequantize_fp8_128x128",
           aligned(out, q, k, 8) ? seekernel::dequantize_fp8_128x128<T, true>
                                 : seekernel::dequantize_fp8_128x128<T, false>,
           data<uint8_t>(q), data<float>(scale), data<T>(out), k.value(), q.stride(0),
           scale.stride(0), out.stride(0));
  });
}

void quantize_int4_g128(const Tensor& w, const Tensor& q, const Tensor& scale) {
  const Checker check("quantize_int4_g128");
  Dim n("n"), k("k");
  check("w", w).shape({n, k}).dtype(kActivations).last_dim_contiguous();
  check.require(k % 2 == 0, "expected k to be even, got " + k.describe());
  Dim half_k("k/2", k / 2), groups("ceil(k/128)", divide_up(k, 128));
  check("q", q).shape({n, half_k}).dtype({ScalarType::Byte}).last_dim_contiguous();
  check("q", q).same_device("w", w);
  check("scale", scale).shape({n, groups}).dtype({ScalarType::Float}).last_dim_contiguous();
  check("scale", scale).same_device("w", w);
  require_int(check, n, k);
  if (n == 0 || k == 0) return;
  const int32_t device = w.get_device_index();
  const DeviceGuard guard(device);
  const int rows = rows_per_cta(n);
  const LaunchShape shape{.grid = {static_cast<unsigned>(divide_up(n, rows)),
                                   static_cast<unsigned>(divide_up(groups * rows, kGroupsPerCta))},
                          .block = {kThreads},
                          .pdl = true};
  with_type(w, [&]<class T>(T*) {
    launch(shape, current_stream(device), "quantize_int4_g128",
           aligned(w, q, k, 4) ? seekernel::quantize_int4_g128<T, true>
                               : seekernel::quantize_int4_g128<T, false>,
           data<T>(w), data<uint8_t>(q), data<float>(scale), n.value(), k.value(), rows,
           w.stride(0), q.stride(0), scale.stride(0));
  });
}

}  // namespace
}  // namespace seekernel::cuda

STABLE_TORCH_LIBRARY_IMPL(seekernel, CUDA, m) {
  m.impl("quantize_fp8_1x128", TORCH_BOX(&seekernel::cuda::quantize_fp8_1x128));
  m.impl("quantize_fp8_128x128", TORCH_BOX(&seekernel::cuda::quantize_fp8_128x128));
  m.impl("dequantize_fp8_128x128", TORCH_BOX(&seekernel::cuda::dequantize_fp8_128x128));
  m.impl("quantize_int4_g128", TORCH_BOX(&seekernel::cuda::quantize_int4_g128));
}
