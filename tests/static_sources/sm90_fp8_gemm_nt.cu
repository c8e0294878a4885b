// The instance that the chooser takes for large problems, as the JIT names it.
#include <seekernel/gemm/sm90_fp8_gemm_nt.cuh>

template <auto kKernel>
struct emit_t {};
template struct emit_t<
    &seekernel::sm90_fp8_gemm_nt<seekernel::sm90_fp8_gemm_nt_config<0, 0, 128, 128, 5>>>;
