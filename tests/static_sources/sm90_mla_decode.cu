// Every decode kernel, in bfloat16.
#include <seekernel/attention/mla_combine.cuh>
#include <seekernel/attention/mla_decode_metadata.cuh>
#include <seekernel/attention/sm90_mla_decode.cuh>
#include <seekernel/attention/sm90_mla_decode_fp8.cuh>

namespace seekernel {
template <auto kKernel>
struct emit_t {};
template struct emit_t<&mla_combine<bfloat16_t>>;
template struct emit_t<&mla_decode_metadata<256>>;
template struct emit_t<&sm90_mla_decode<bfloat16_t>>;
template struct emit_t<&sm90_mla_decode_fp8<latent_format_t::kBlocks>>;
template struct emit_t<&sm90_mla_decode_fp8<latent_format_t::kFlat>>;
}  // namespace seekernel
