// The instances that DeepSeek-V3's experts take with int4 weights.
#include <seekernel/gemm/sm90_w4a8_gemm_nt_swap_ab.cuh>

namespace seekernel {
template <auto kKernel>
struct emit_t {};
template struct emit_t<&sm90_w4a8_gemm_nt_swap_ab<
    sm90_w4a8_gemm_nt_swap_ab_config<bfloat16_t, 128, 64>, tile_kind::offsets>>;
template struct emit_t<&sm90_w4a8_gemm_nt_swap_ab<
    sm90_w4a8_gemm_nt_swap_ab_config<bfloat16_t, 64, 128>, tile_kind::offsets>>;
}  // namespace seekernel
