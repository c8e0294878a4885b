// ex2.approx, lg2.approx: powers and logarithms of two, relative error about 2^-22; subnormal
// results are zero.
#pragma once

#include <seekernel/ptx/types.cuh>

namespace seekernel::ptx {

SEEKERNEL_DEVICE float ex2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

SEEKERNEL_DEVICE float lg2(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

}  // namespace seekernel::ptx
