// Every kernel family, compiled for one ISA: included by isa_baseline.cpp, isa_avx2.cpp, isa_avx512.cpp.
namespace seekernel::cpu::SEEKERNEL_ISA {

#include "cpu/kernels/vec.h"
//
#include "cpu/kernels/gemm_expand.inl"
#include "cpu/kernels/gemm_tile.inl"
//
#include "cpu/kernels/gemm.inl"
#include "cpu/kernels/norm.inl"

const KernelTable kTable = {
    .norm = {rms_norm, silu_mul},
    .gemm = {gemm_pack, gemm_run, kScratchFloats, kMaxRows},
};

}  // namespace seekernel::cpu::SEEKERNEL_ISA
