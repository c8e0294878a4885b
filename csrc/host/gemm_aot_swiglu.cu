// Instances of sm90_fp8_gemm_nt: heuristics/aot_gemm_swiglu.inc.
#include "host/gemm_aot_entries.h"

namespace seekernel::cuda {

std::span<const AotKernel> aot_swiglu() {
  static const AotKernel kernels[] = {
#include "heuristics/aot_gemm_swiglu.inc"
  };
  return kernels;
}

}  // namespace seekernel::cuda
