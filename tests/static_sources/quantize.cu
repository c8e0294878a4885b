// The instances that aligned bfloat16 and float32 matrices take.
#include <seekernel/fused/quantize.cuh>

namespace seekernel {
template <auto kKernel>
struct emit_t {};
template struct emit_t<&quantize_fp8_1x128<bfloat16_t, true>>;
template struct emit_t<&quantize_fp8_128x128<float, true>>;
template struct emit_t<&dequantize_fp8_128x128<bfloat16_t, true>>;
template struct emit_t<&quantize_int4_g128<float, true>>;
}  // namespace seekernel
