// Packed bfloat16 arithmetic.
#pragma once

#include <seekernel/ptx/types.cuh>

namespace seekernel::ptx {

// Both halves, rounded to nearest even; subnormals are kept.
SEEKERNEL_DEVICE uint32_t mul_bf16x2(uint32_t a, uint32_t b) {
  uint32_t product;
  asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(product) : "r"(a), "r"(b));
  return product;
}

}  // namespace seekernel::ptx
