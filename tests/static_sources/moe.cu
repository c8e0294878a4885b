// The instances that DeepSeek-V3's shapes take, and the widest gate.
#include <seekernel/moe/route.cuh>

namespace seekernel {
template <auto kKernel>
struct emit_t {};
template struct emit_t<&moe_gate<8>>;
template struct emit_t<&moe_gate<32>>;
template struct emit_t<&moe_plan<1024>>;
template struct emit_t<&router_gemm<router_tile_8_t>>;
template struct emit_t<&router_gemm<router_tile_32_t>>;
template struct emit_t<&router_gemm<router_tile_64_t>>;
template struct emit_t<&router_gemm<router_tile_wide_t>>;
template struct emit_t<&moe_route<router_tile_8_t, 8>>;
template struct emit_t<&moe_route<router_tile_64_t, 8>>;
}  // namespace seekernel
