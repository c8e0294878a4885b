// The instances that DeepSeek-V3's decode shapes take.
#include <seekernel/gemm/sm90_fp8_gemm_nt_swap_ab.cuh>

namespace seekernel {
template <typename Output, int kBlockN>
using config_t = sm90_fp8_gemm_nt_swap_ab_config<Output, kBlockN, 128>;
template <auto kKernel>
struct emit_t {};
template struct emit_t<&sm90_fp8_gemm_nt_swap_ab<config_t<bfloat16_t, 64>, tile_kind::dense>>;
template struct emit_t<&sm90_fp8_gemm_nt_swap_ab<config_t<bfloat16_t, 128>, tile_kind::dense>>;
template struct emit_t<&sm90_fp8_gemm_nt_swap_ab<config_t<bfloat16_t, 128>, tile_kind::offsets>>;
template struct emit_t<&sm90_fp8_gemm_nt_swap_ab<config_t<float, 128>, tile_kind::masked>>;
template struct emit_t<&sm90_fp8_gemm_nt_swap_ab<config_t<bfloat16_t, 64>, tile_kind::contiguous>>;
template struct emit_t<&sm90_fp8_gemm_nt_swap_ab<config_t<bfloat16_t, 64>, tile_kind::tile_map>>;
}  // namespace seekernel
