// Every kernel family, compiled for one ISA: included by isa_baseline.cpp, isa_avx2.cpp, isa_avx512.cpp.
namespace seekernel::cpu::SEEKERNEL_ISA {

#include "cpu/kernels/vec.h"
//
#include "cpu/kernels/norm.inl"
//
#include "cpu/kernels/mla_prepare.inl"
//
#include "cpu/kernels/attention_panel.inl"
//
#include "cpu/kernels/attention.inl"

const KernelTable kTable = {
    .norm = {rms_norm, silu_mul},
    .mla_prepare = {mla_prepare, rope_interleaved, mla_gather_latent},
    .attention = {kRowsPerPanel, kPrefillQueries, partial_size, decode_scratch_size,
                  prefill_scratch_size, mla_decode_chunk, mla_decode_merge, mla_decode_finish,
                  mla_prefill_block},
};

}  // namespace seekernel::cpu::SEEKERNEL_ISA
