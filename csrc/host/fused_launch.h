// What the CUDA boundaries of the fused row ops share: alignment, threads of a row, the norm at the
// end.
#pragma once

#include <climits>
#include <string>

#include "host/fused_check.h"
//
#include <seekernel/fused/norm_quantize.cuh>

namespace seekernel::cuda {

constexpr int kRowVector = 8;
constexpr int kRowThreads = 1024;

template <class T>
T* writable_data(const OptionalTensor& tensor) {
  return tensor ? static_cast<T*>(tensor->mutable_data_ptr()) : nullptr;
}

inline int64_t row_stride_of(const OptionalTensor& tensor) {
  return tensor ? tensor->stride(0) : 0;
}

// Rows of 8 columns at a time: n % 8 == 0 and, of each tensor, rows that start at multiples of
// `bytes`.
inline void require_rows_at(const Checker& check, const char* name, const Tensor& tensor,
                            int64_t element_bytes, int64_t bytes) {
  const int64_t stride_bytes = tensor.size(0) <= 1 ? 0 : tensor.stride(0) * element_bytes;
  if (stride_bytes % bytes != 0 ||
      reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % bytes != 0) {
    check(name, tensor).fail("rows that start at multiples of " + std::to_string(bytes) + " bytes");
  }
}

inline void require_row_size(const Checker& check, int64_t m, int64_t n, int64_t most) {
  check.require(m <= INT_MAX && n % kRowVector == 0 && n <= most,
                "expected m < 2^31 and n a multiple of 8 up to " + std::to_string(most) +
                    " on a CUDA device, got m=" + std::to_string(m) + ", n=" + std::to_string(n));
}

inline void require_norm_rows(const Checker& check, const char* out_name, const NormOutputs& to) {
  if (to.out) require_rows_at(check, out_name, *to.out, 2, 16);
  if (to.q) require_rows_at(check, "q", *to.q, 1, 8);
}

// The threads that rms_norm takes for the row: the fused kernels' sums have its order.
inline unsigned row_threads(int64_t n) {
  const int64_t vectors = (n + kRowVector - 1) / kRowVector;
  const int64_t steps = (vectors + kRowThreads - 1) / kRowThreads;
  return static_cast<unsigned>(((vectors + steps - 1) / steps + 31) / 32 * 32);
}

template <class W>
norm_output_t<W> norm_output(const OptionalTensor& weight, double eps, const NormOutputs& to) {
  return {.weight = weight ? static_cast<const W*>(weight->const_data_ptr()) : nullptr,
          .out = writable_data<bfloat16_t>(to.out),
          .q = writable_data<uint8_t>(to.q),
          .scale = writable_data<float>(to.scale),
          .stride_out_m = row_stride_of(to.out),
          .stride_q_m = row_stride_of(to.q),
          .stride_scale = row_stride_of(to.scale),
          .eps = static_cast<float>(eps),
          .reserved = 0};
}

}  // namespace seekernel::cuda
