// What the boundaries of the fused row ops check alike on the CPU and on CUDA devices.
#pragma once

#include "host/check.h"

namespace seekernel {

// Where a normalised row goes: as it is, as e4m3 with scales, or both.
struct NormOutputs {
  const OptionalTensor& out;
  const OptionalTensor& q;
  const OptionalTensor& scale;
};

// q [m, n] e4m3 and scale [ceil(n / 128), round_up(m, 4)] of `like`'s device.
void check_quantized(const Checker& check, const char* q_name, const Tensor& q,
                     const char* scale_name, const Tensor& scale, Dim& m, Dim& n,
                     const char* like_name, const Tensor& like);

// `out_name` names out in messages; out is of `like`'s dtype and device, like q and scale.
void check_norm_outputs(const Checker& check, const char* out_name, const NormOutputs& outputs,
                        Dim& m, Dim& n, const char* like_name, const Tensor& like);

}  // namespace seekernel
