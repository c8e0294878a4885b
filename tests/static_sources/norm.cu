// The instances that DeepSeek-V3's shapes take.
#include <seekernel/fused/norm.cuh>

namespace seekernel {
template <auto kKernel>
struct emit_t {};
template struct emit_t<&rms_norm<bfloat16_t, bfloat16_t, 8>>;
template struct emit_t<&add_rms_norm<bfloat16_t, bfloat16_t, 8>>;
template struct emit_t<&silu_mul<bfloat16_t, 8>>;
}  // namespace seekernel
