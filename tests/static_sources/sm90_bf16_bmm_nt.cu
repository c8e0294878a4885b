// The instances for few and for many tokens.
#include <seekernel/gemm/sm90_bf16_bmm_nt.cuh>

template <auto kKernel>
struct emit_t {};
template struct emit_t<&seekernel::sm90_bf16_bmm_nt<seekernel::sm90_bf16_bmm_nt_config<64, 4>>>;
template struct emit_t<&seekernel::sm90_bf16_bmm_nt<seekernel::sm90_bf16_bmm_nt_config<128, 4>>>;
