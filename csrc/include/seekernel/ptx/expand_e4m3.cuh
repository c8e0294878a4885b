// cvt from e4m3, exact.
#pragma once

#include <seekernel/ptx/types.cuh>

namespace seekernel::ptx {

// Two e4m3 values as two float16 ones; the lower byte gives the lower half.
SEEKERNEL_DEVICE uint32_t unpack_e4m3x2(uint16_t packed) {
  uint32_t halves;
  asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(halves) : "h"(packed));
  return halves;
}

SEEKERNEL_DEVICE float half_to_float(uint16_t bits) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
  return value;
}

}  // namespace seekernel::ptx
