// The instances that DeepSeek-V3's shapes take.
#include <seekernel/sampling/mtp_verify.cuh>
#include <seekernel/sampling/sample.cuh>
#include <seekernel/sampling/token_counts.cuh>
#include <seekernel/sampling/token_logprobs.cuh>

namespace seekernel {
template <auto kKernel>
struct emit_t {};
template struct emit_t<&sample<float, true>>;
template struct emit_t<&sample<uint16_t, false>>;
template struct emit_t<&token_logprobs<float, true>>;
template struct emit_t<&add_token_counts<2>>;
template struct emit_t<&mtp_verify_strict<128>>;
template struct emit_t<&mtp_verify_relaxed<128>>;
template struct emit_t<&mtp_verify_rejection<512>>;
}  // namespace seekernel
