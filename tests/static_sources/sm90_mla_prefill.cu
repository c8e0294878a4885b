// Both output types.
#include <seekernel/attention/sm90_mla_prefill.cuh>

template <auto kKernel>
struct emit_t {};
template struct emit_t<&seekernel::sm90_mla_prefill<seekernel::bfloat16_t>>;
template struct emit_t<&seekernel::sm90_mla_prefill<float>>;
