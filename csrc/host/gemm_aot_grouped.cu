// Instances of sm90_fp8_gemm_nt: heuristics/aot_gemm_grouped.inc.
#include "host/gemm_aot_entries.h"

namespace seekernel::cuda {

std::span<const AotKernel> aot_grouped() {
  static const AotKernel kernels[] = {
#include "heuristics/aot_gemm_grouped.inc"
  };
  return kernels;
}

}  // namespace seekernel::cuda
