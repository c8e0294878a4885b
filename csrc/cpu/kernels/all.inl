// Every kernel family, compiled for one ISA: included by isa_baseline.cpp, isa_avx2.cpp,
// isa_avx512.cpp.
namespace seekernel::cpu::SEEKERNEL_ISA {

#include "cpu/kernels/vec.h"
//
#include "cpu/kernels/gemm_expand.inl"
#include "cpu/kernels/gemm_tile.inl"
#include "cpu/kernels/moe.inl"
//
#include "cpu/kernels/gemm.inl"
#include "cpu/kernels/norm.inl"
#include "cpu/kernels/quantize.inl"

const KernelTable kTable = {
    .norm = {rms_norm, silu_mul},
    .quantize = {quantize_fp8_1x128, quantize_fp8_128x128, dequantize_fp8_128x128},
    .moe = {moe_gate, moe_finalize},
    .gemm = {gemm_pack, gemm_run, kScratchFloats, kMaxRows},
};

}  // namespace seekernel::cpu::SEEKERNEL_ISA
