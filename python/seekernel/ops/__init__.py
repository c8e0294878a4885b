"""Typed wrappers of torch.ops.seekernel: one function per op, with its fake beside it."""

from seekernel.ops.attention import (
    MlaDecodePlan,
    merge_attention_states,
    mla_decode,
    mla_decode_metadata,
    mla_decode_plan,
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
)
from seekernel.ops.moe import MoePlan, Routing, moe_finalize, moe_gate, moe_plan, moe_route
from seekernel.ops.mtp import mtp_verify_rejection, mtp_verify_relaxed, mtp_verify_strict
from seekernel.ops.norm import add_rms_norm, rms_norm, silu_mul
from seekernel.ops.quantize import (
    dequantize_fp8_128x128,
    quantize_fp8_1x128,
    quantize_fp8_128x128,
    quantize_int4_g128,
)

__all__ = [
    "MlaDecodePlan",
from seekernel.ops.quantize import dequantize_fp8_128x128, quantize_fp8_1x128, quantize_fp8_128x128
from seekernel.ops.sampling import (
    STATUS_NOT_FINITE,
    STATUS_NOTHING_ALLOWED,
    STATUS_OK,
    LogitBias,
    Logprobs,
    Penalties,
    add_token_counts,
    reset_token_counts,
    sample,
    token_logprobs,
)

__all__ = [
    "STATUS_NOTHING_ALLOWED",
    "STATUS_NOT_FINITE",
    "STATUS_OK",
    "LogitBias",
    "Logprobs",
    "MoePlan",
    "Penalties",
    "Routing",
    "add_rms_norm",
    "add_token_counts",
    "bmm_nt",
    "dequantize_fp8_128x128",
    "fp8_bmm_nt",
    "fp8_gemm_nt",
    "fp8_grouped_gemm_nt",
    "fp8_grouped_gemm_swiglu_nt",
    "gemm_nt",
    "grouped_gemm_nt",
    "grouped_gemm_swiglu_nt",
    "merge_attention_states",
    "mla_decode",
    "mla_decode_metadata",
    "mla_decode_plan",
    "mla_gather_latent",
    "mla_prefill",
    "mla_prepare",
    "moe_finalize",
    "moe_gate",
    "moe_plan",
    "moe_route",
    "mtp_verify_rejection",
    "mtp_verify_relaxed",
    "mtp_verify_strict",
    "quantize_fp8_1x128",
    "quantize_fp8_128x128",
    "quantize_int4_g128",
    "reset_token_counts",
    "rms_norm",
    "rope_interleaved",
    "router_gemm",
    "sample",
    "silu_mul",
    "token_logprobs",
]
