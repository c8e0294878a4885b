// The instances that the chooser takes for large problems, as the JIT names them.
#include <seekernel/gemm/sm90_fp8_gemm_nt.cuh>

template <auto kKernel>
struct emit_t {};
#define INSTANCE(...)     \
  template struct emit_t< \
      &seekernel::sm90_fp8_gemm_nt<seekernel::sm90_fp8_gemm_nt_config<0, 0, __VA_ARGS__>>>;
#if defined(DENSE)
INSTANCE(128, 128, 5, 0, 0, 0, 0)
INSTANCE(128, 128, 5, 0, 0, 1, 0)
INSTANCE(256, 128, 3, 0, 0, 2, 0)
INSTANCE(128, 128, 6, 0, 1, 0, 0)
INSTANCE(64, 128, 8, 1, 0, 0, 0)
INSTANCE(64, 128, 7, 0, 0, 2, 0, 1)
#elif defined(GROUPED)
INSTANCE(128, 128, 5, 2, 0, 0, 0)
INSTANCE(128, 128, 5, 3, 0, 0, 0)
INSTANCE(64, 128, 8, 4, 0, 0, 0)
INSTANCE(128, 128, 5, 5, 0, 1, 0)
#elif defined(SWIGLU)
INSTANCE(128, 128, 4, 5, 2, 1, 0)
INSTANCE(128, 128, 4, 5, 2, 0, 1)
INSTANCE(64, 128, 5, 2, 2, 0, 0)
#endif
