// Two kernels joined by programmatic dependent launch: `pdl_first` fills y, `pdl_second` doubles
// it.
//
//   y = x + 1;  z = 2 * y
//
// Shapes: x, y, z [128 * blocks] fp32. The second kernel may start before the first has finished,
// so it reads y only behind griddepcontrol.wait; what it does before that must not touch y.
#include "ptx.cuh"

extern "C" __global__ void __launch_bounds__(128) pdl_first(const float* x, float* y) {
  const int i = blockIdx.x * 128 + threadIdx.x;
  griddepcontrol_launch_dependents();
  y[i] = x[i] + 1.f;
}

extern "C" __global__ void __launch_bounds__(128) pdl_second(const float* y, float* z) {
  const int i = blockIdx.x * 128 + threadIdx.x;
#if defined(BUG_READ_BEFORE_WAIT)
  const float value = *const_cast<const volatile float*>(y + i);
  griddepcontrol_wait();
#else
#ifndef BUG_NO_WAIT
  griddepcontrol_wait();
#endif
  const float value = y[i];
#endif
  z[i] = 2.f * value;
}
