// Every decode kernel, in bfloat16.
#include <seekernel/attention/mla_decode_metadata.cuh>
#include <seekernel/attention/sm90_mla_decode.cuh>

namespace seekernel {
template <auto kKernel>
struct emit_t {};
template struct emit_t<&mla_decode_metadata<256>>;
template struct emit_t<&sm90_mla_decode<bfloat16_t>>;
}  // namespace seekernel
