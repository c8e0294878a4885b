// The norm at the end of a fused op: rows as they are, as e4m3 with scales, or both.
#pragma once

#include "cpu/dtype.h"
#include "cpu/isa.h"
#include "cpu/scratch.h"
#include "host/fused_check.h"

namespace seekernel::cpu {

class NormQuantize {
 public:
  // `residual` [m, n] is what is normalised; everything was checked.
  NormQuantize(const Tensor& residual, const Tensor& weight, double eps, const NormOutputs& to)
      : norm_{.dtype = dtype_of(residual),
              .weight_dtype = dtype_of(weight),
              .n = residual.size(1),
              .stride_x_m = residual.stride(0),
              .stride_residual_m = 0,
              .stride_out_m = to.out ? to.out->stride(0) : 0,
              .x = residual.const_data_ptr(),
              .residual = nullptr,
              .weight = weight.const_data_ptr(),
              .eps = static_cast<float>(eps),
              .out = to.out ? to.out->mutable_data_ptr() : nullptr},
        quantize_{} {
    if (!to.q) return;
    quantize_ = {.dtype = norm_.dtype,
                 .m = residual.size(0),
                 .k = norm_.n,
                 .stride_x_m = norm_.stride_out_m,
                 .stride_q_m = to.q->stride(0),
                 .stride_scale = to.scale->stride(0),
                 .x = norm_.out,
                 .q = static_cast<float8_e4m3*>(to.q->mutable_data_ptr()),
                 .scale = static_cast<float*>(to.scale->mutable_data_ptr())};
    clear_padding();
  }

  void run(int64_t begin, int64_t end) const {
    if (norm_.out != nullptr) {
      kernels().norm.rms_norm(norm_, begin, end);
      if (quantize_.q != nullptr) kernels().quantize.fp8_1x128(quantize_, begin, end);
      return;
    }
    // Nobody wants the row itself: it lives in scratch, one at a time.
    const int64_t element_bytes = norm_.dtype == Dtype::kFloat32 ? 4 : 2;
    for (int64_t row = begin; row < end; ++row) {
      RmsNormArgs norm = norm_;
      norm.x = static_cast<const char*>(norm.x) + row * norm.stride_x_m * element_bytes;
      norm.out = thread_scratch(norm.n);
      kernels().norm.rms_norm(norm, 0, 1);
      QuantizeFp8Args quantize = quantize_;
      quantize.x = norm.out;
      quantize.q += row * quantize.stride_q_m;
      quantize.scale += row;
      kernels().quantize.fp8_1x128(quantize, 0, 1);
    }
  }

 private:
  void clear_padding() const {
    for (int64_t group = 0; group < (quantize_.k + 127) / 128; ++group) {
      for (int64_t row = quantize_.m; row < (quantize_.m + 3) / 4 * 4; ++row) {
        quantize_.scale[group * quantize_.stride_scale + row] = 0.0f;
      }
    }
  }

  RmsNormArgs norm_;
  QuantizeFp8Args quantize_;
};

}  // namespace seekernel::cpu
