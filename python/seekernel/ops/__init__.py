"""Typed wrappers of torch.ops.seekernel: one function per op, with its fake beside it."""

from seekernel.ops.attention import (
    mla_decode,
    mla_gather_latent,
    mla_prefill,
    mla_prepare,
    rope_interleaved,
)
from seekernel.ops.gemm import (
    bmm_nt,
    fp8_bmm_nt,
    fp8_gemm_nt,
    fp8_grouped_gemm_nt,
    fp8_grouped_gemm_swiglu_nt,
    gemm_nt,
    grouped_gemm_nt,
    grouped_gemm_swiglu_nt,
    router_gemm,
    w4a8_grouped_gemm_nt,
)
from seekernel.ops.moe import MoePlan, moe_finalize, moe_gate, moe_plan
from seekernel.ops.norm import add_rms_norm, rms_norm, silu_mul
from seekernel.ops.quantize import (
    dequantize_fp8_128x128,
    quantize_fp8_1x128,
    quantize_fp8_128x128,
    quantize_int4_g128,
)

__all__ = [
    "MoePlan",
    "add_rms_norm",
    "bmm_nt",
    "dequantize_fp8_128x128",
    "fp8_bmm_nt",
    "fp8_gemm_nt",
    "fp8_grouped_gemm_nt",
    "fp8_grouped_gemm_swiglu_nt",
    "gemm_nt",
    "grouped_gemm_nt",
    "grouped_gemm_swiglu_nt",
    "mla_decode",
    "mla_gather_latent",
    "mla_prefill",
    "mla_prepare",
    "moe_finalize",
    "moe_gate",
    "moe_plan",
    "quantize_fp8_1x128",
    "quantize_fp8_128x128",
    "quantize_int4_g128",
    "rms_norm",
    "rope_interleaved",
    "router_gemm",
    "silu_mul",
    "w4a8_grouped_gemm_nt",
]
