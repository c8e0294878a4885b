// What feeds and reads the latent cache, on V3's activations.
#include <seekernel/attention/merge_attention_states.cuh>
#include <seekernel/attention/mla_gather_latent.cuh>
#include <seekernel/attention/mla_prepare.cuh>
#include <seekernel/fused/rope.cuh>

template <auto kKernel>
struct emit_t {};
template struct emit_t<&seekernel::mla_prepare<seekernel::bfloat16_t>>;
template struct emit_t<&seekernel::rope_interleaved<seekernel::bfloat16_t>>;
template struct emit_t<&seekernel::mla_gather_latent<seekernel::bfloat16_t>>;
template struct emit_t<&seekernel::merge_attention_states<256>>;
