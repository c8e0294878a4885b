// What stands between a layer's matrix products, at DeepSeek-V3's width.
#include <seekernel/fused/norm_quantize.cuh>
#include <seekernel/fused/silu_quantize.cuh>
#include <seekernel/moe/finalize.cuh>
#include <seekernel/moe/permute.cuh>

namespace seekernel {
template <auto kKernel>
struct emit_t {};
template struct emit_t<&add_rms_norm_quantize<bfloat16_t, 1>>;
template struct emit_t<&silu_mul_quantize<kSiluThreads>>;
template struct emit_t<&moe_finalize<bfloat16_t, 1>>;
template struct emit_t<&moe_permute_fp8<kPermuteThreads>>;
}  // namespace seekernel
