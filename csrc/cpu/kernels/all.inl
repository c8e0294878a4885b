// Every kernel family, compiled for one ISA: included by isa_baseline.cpp, isa_avx2.cpp,
// isa_avx512.cpp.
namespace seekernel::cpu::SEEKERNEL_ISA {

#include "cpu/kernels/vec.h"
//
#include "cpu/kernels/gemm_expand.inl"
#include "cpu/kernels/gemm_int4.inl"
#include "cpu/kernels/gemm_tile.inl"
#include "cpu/kernels/moe.inl"
//
#include "cpu/kernels/gemm.inl"
#include "cpu/kernels/norm.inl"
#include "cpu/kernels/quantize.inl"
//
#include "cpu/kernels/latent_fp8.inl"
//
#include "cpu/kernels/mla_prepare.inl"
//
#include "cpu/kernels/attention_panel.inl"
//
#include "cpu/kernels/attention.inl"
//
#include "cpu/kernels/sampling_weight.inl"
//
#include "cpu/kernels/mtp_verify.inl"
#include "cpu/kernels/sampling.inl"

const KernelTable kTable = {
    .norm = {rms_norm, silu_mul, embed, add},
    .quantize = {quantize_fp8_1x128, quantize_fp8_128x128, dequantize_fp8_128x128,
                 quantize_int4_g128},
    .moe = {moe_gate, moe_finalize},
    .gemm = {gemm_pack, gemm_run, kScratchFloats, kMaxRows},
    .mla_prepare = {mla_prepare, rope_interleaved, mla_gather_latent},
    .attention = {kRowsPerPanel, kPrefillQueries, partial_size, decode_scratch_size,
                  prefill_scratch_size, mla_decode_chunk, mla_decode_merge, mla_decode_finish,
                  mla_prefill_block, merge_attention_states},
    .sampling = {sampling_scratch_size, sample_rows, token_logprobs_rows, mtp_verify_relaxed,
                 mtp_verify_rejection},
};

}  // namespace seekernel::cpu::SEEKERNEL_ISA
