// CUDA boundary of rms_norm, add_rms_norm, silu_mul: checks, vector width, grid, launch.
#include <algorithm>
#include <climits>

// The host's headers come first: seekernel/ptx/types.cuh gives the integer names of NVRTC.
#include "host/check.h"
#include "host/cuda.h"
//
#include <seekernel/fused/norm.cuh>

namespace seekernel::cuda {
namespace {

constexpr auto kActivations = {ScalarType::Float, ScalarType::BFloat16};
constexpr int kVector = 8;
constexpr int kMaxThreads = 1024;

bool is_wide(const Tensor& tensor) { return tensor.scalar_type() == ScalarType::Float; }

// Whether every row of every tensor starts at a multiple of 16 bytes.
bool rows_aligned(std::initializer_list<const Tensor*> tensors) {
  return std::all_of(tensors.begin(), tensors.end(), [](const Tensor* tensor) {
    const bool one_row = tensor->dim() < 2 || tensor->size(0) == 1;
    const int64_t stride_bytes = one_row ? 0 : tensor->stride(0) * (is_wide(*tensor) ? 4 : 2);
    return stride_bytes % 16 == 0 &&
           reinterpret_cast<uintptr_t>(tensor->const_data_ptr()) % 16 == 0;
  });
}

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Whole warps that take n columns in as few equal steps as kMaxThreads threads allow.
int num_threads(int64_t n, int vector) {
  const int64_t vectors = divide_up(n, vector);
  const int64_t steps = divide_up(vectors, kMaxThreads);
  return static_cast<int>(divide_up(divide_up(vectors, steps), 32) * 32);
}

void require_launchable(const Checker& check, int64_t m, int64_t n) {
  check.require(
      m <= INT_MAX && n <= INT_MAX / 2,
      "expected m < 2^31 and n < 2^30, got m=" + std::to_string(m) + ", n=" + std::to_string(n));
}

// Calls f with a null pointer of the tensor's element type.
template <class F>
void with_type(const Tensor& tensor, const F& f) {
  if (is_wide(tensor)) return f(static_cast<float*>(nullptr));
  f(static_cast<bfloat16_t*>(nullptr));
}

// `residual` is null for the plain norm.
template <class T, class W, int kWidth>
void launch_norm(const Tensor& x, const Tensor* residual, const Tensor& weight, float eps,
                 const Tensor& out, cudaStream_t stream) {
  const unsigned m = static_cast<unsigned>(x.size(0));
  const int n = static_cast<int>(x.size(1));
  const int threads = num_threads(n, kWidth);
  const T* x_data = static_cast<const T*>(x.const_data_ptr());
  const W* weight_data = static_cast<const W*>(weight.const_data_ptr());
  T* out_data = static_cast<T*>(out.mutable_data_ptr());
  if (residual == nullptr) {
    seekernel::rms_norm<T, W, kWidth><<<m, threads, 0, stream>>>(x_data, weight_data, out_data, n,
                                                                 x.stride(0), out.stride(0), eps);
  } else {
    seekernel::add_rms_norm<T, W, kWidth><<<m, threads, 0, stream>>>(
        x_data, static_cast<T*>(residual->mutable_data_ptr()), weight_data, out_data, n,
        x.stride(0), residual->stride(0), out.stride(0), eps);
  }
}

void run_norm(const char* op, const Tensor& x, const Tensor* residual, const Tensor& weight,
              double eps, const Tensor& out) {
  Checker check(op);
  Dim m("m"), n("n");
  check("x", x).shape({m, n}).dtype(kActivations).last_dim_contiguous();
  if (residual != nullptr) {
    check("residual", *residual).shape({m, n}).same_dtype("x", x).same_device("x", x);
    check("residual", *residual).last_dim_contiguous();
  }
  check("weight", weight).shape({n}).dtype(kActivations).same_device("x", x).contiguous();
  check("out", out).shape({m, n}).same_dtype("x", x).same_device("x", x).last_dim_contiguous();
  require_launchable(check, m, n);
  if (m == 0 || n == 0) return;
  const bool vectors =
      n % kVector == 0 && rows_aligned({&x, residual != nullptr ? residual : &x, &weight, &out});
  const DeviceGuard guard(x.get_device_index());
  const cudaStream_t stream = current_stream(x.get_device_index());
  with_type(x, [&]<class T>(T*) {
    with_type(weight, [&]<class W>(W*) {
      (vectors ? launch_norm<T, W, kVector>
               : launch_norm<T, W, 1>)(x, residual, weight, static_cast<float>(eps), out, stream);
    });
  });
  check_launch(op);
}

void rms_norm(const Tensor& x, const Tensor& weight, double eps, const Tensor& out) {
  run_norm("rms_norm", x, nullptr, weight, eps, out);
}

void add_rms_norm(const Tensor& x, const Tensor& residual, const Tensor& weight, double eps,
                  const Tensor& out) {
  run_norm("add_rms_norm", x, &residual, weight, eps, out);
}

template <class T, int kWidth>
void launch_silu_mul(const Tensor& x, const Tensor& out, cudaStream_t stream) {
  const int n = static_cast<int>(out.size(1));
  const int threads = std::min(num_threads(n, kWidth), 256);
  const dim3 grid(static_cast<unsigned>(out.size(0)),
                  static_cast<unsigned>(divide_up(n, threads * kWidth)));
  seekernel::silu_mul<T, kWidth><<<grid, threads, 0, stream>>>(
      static_cast<const T*>(x.const_data_ptr()), static_cast<T*>(out.mutable_data_ptr()), n,
      x.stride(0), out.stride(0));
}

void silu_mul(const Tensor& x, const Tensor& out) {
  Checker check("silu_mul");
  Dim m("m"), n("n");
  check("out", out).shape({m, n}).dtype(kActivations).last_dim_contiguous();
  check("x", x).shape({m, 2 * n.value()}).same_dtype("out", out).same_device("out", out);
  check("x", x).last_dim_contiguous();
  require_launchable(check, m, n);
  check.require(n <= 65535 * 256, "expected n <= 65535 * 256, got n=" + std::to_string(n.value()));
  if (m == 0 || n == 0) return;
  const bool vectors = n % kVector == 0 && rows_aligned({&x, &out});
  const DeviceGuard guard(x.get_device_index());
  const cudaStream_t stream = current_stream(x.get_device_index());
  with_type(x, [&]<class T>(T*) {
    (vectors ? launch_silu_mul<T, kVector> : launch_silu_mul<T, 1>)(x, out, stream);
  });
  check_launch("silu_mul");
}

}  // namespace
}  // namespace seekernel::cuda

STABLE_TORCH_LIBRARY_IMPL(seekernel, CUDA, m) {
  m.impl("rms_norm", TORCH_BOX(&seekernel::cuda::rms_norm));
  m.impl("add_rms_norm", TORCH_BOX(&seekernel::cuda::add_rms_norm));
  m.impl("silu_mul", TORCH_BOX(&seekernel::cuda::silu_mul));
}
