// cvt to e4m3.
#pragma once

#include <seekernel/ptx/types.cuh>

namespace seekernel::ptx {

// Round to nearest even, saturating at 448, NaN stays NaN; `low` goes to the lower byte.
SEEKERNEL_DEVICE uint16_t pack_e4m3x2(float low, float high) {
  uint16_t packed;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(packed) : "f"(high), "f"(low));
  return packed;
}

}  // namespace seekernel::ptx
