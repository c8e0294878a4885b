// The instances that FC1 of DeepSeek-V3's experts takes.
#include <seekernel/gemm/sm90_fp8_gemm_swiglu_nt_swap_ab.cuh>

namespace seekernel {
template <auto kKernel>
struct emit_t {};
template struct emit_t<&sm90_fp8_gemm_swiglu_nt_swap_ab<
    sm90_fp8_gemm_swiglu_nt_swap_ab_config<64, true>, tile_kind::offsets>>;
template struct emit_t<&sm90_fp8_gemm_swiglu_nt_swap_ab<
    sm90_fp8_gemm_swiglu_nt_swap_ab_config<64, false>, tile_kind::masked>>;
}  // namespace seekernel
