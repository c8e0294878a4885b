// torch's dtypes as the CPU kernels name them.
#pragma once

#include "cpu/kernels/dtype.h"
#include "host/torch.h"

namespace seekernel::cpu {

// Only for tensors whose dtype was checked: any other type is a bug in the caller.
inline Dtype dtype_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::BFloat16:
      return Dtype::kBFloat16;
    case ScalarType::Float8_e4m3fn:
      return Dtype::kFloat8E4M3;
    default:
      return Dtype::kFloat32;
  }
}

}  // namespace seekernel::cpu
