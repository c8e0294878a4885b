"""Plain-torch meaning of every op, on any device: the oracle of the tests, slow and obvious.

Each function takes the arguments of its namesake in seekernel.ops, and `dtype`, the arithmetic's
precision: float64 is the truth, bfloat16 the naive low-precision version that sets error budgets.
"""

from seekernel.reference.attention import (
    attention,
    latent_values,
    merge_attention_states,
    mla_decode,
    mla_gather_latent,
    mla_prefill,
    mla_prepare,
    quantize_latent,
    rope_interleaved,
)
from seekernel.reference.gemm import (
    bmm_nt,
    fp8_bmm_nt,
    fp8_gemm_nt,
    fp8_grouped_gemm_nt,
    fp8_grouped_gemm_swiglu_nt,
    gemm_nt,
    group_runs,
    grouped_gemm_nt,
    grouped_gemm_swiglu_nt,
    router_gemm,
    w4a8_grouped_gemm_nt,
)
from seekernel.reference.moe import (
    moe_choices,
    moe_finalize,
    moe_gate,
    moe_permute_fp8,
    moe_plan,
    physical_ids,
    tile_map,
)
from seekernel.reference.norm import (
    add_rms_norm,
    add_rms_norm_quantize,
    rms_norm,
    silu_mul,
    silu_mul_quantize,
)
from seekernel.reference.quantize import (
    dequantize_fp8_128x128,
    dequantize_int4_g128,
    quantize_fp8_1x128,
    quantize_fp8_128x128,
    quantize_int4_g128,
    to_e4m3,
)
from seekernel.reference.sampling import (
    add_token_counts,
    changed_logits,
    mtp_verify_relaxed,
    mtp_verify_strict,
    sample_probs,
    token_logprobs,
)

__all__ = [
    "add_rms_norm",
    "add_rms_norm_quantize",
    "add_token_counts",
    "attention",
    "bmm_nt",
    "changed_logits",
    "dequantize_fp8_128x128",
    "dequantize_int4_g128",
    "fp8_bmm_nt",
    "fp8_gemm_nt",
    "fp8_grouped_gemm_nt",
    "fp8_grouped_gemm_swiglu_nt",
    "gemm_nt",
    "group_runs",
    "grouped_gemm_nt",
    "grouped_gemm_swiglu_nt",
    "latent_values",
    "merge_attention_states",
    "mla_decode",
    "mla_gather_latent",
    "mla_prefill",
    "mla_prepare",
    "moe_choices",
    "moe_finalize",
    "moe_gate",
    "moe_permute_fp8",
    "moe_plan",
    "mtp_verify_relaxed",
    "mtp_verify_strict",
    "physical_ids",
    "quantize_fp8_1x128",
    "quantize_fp8_128x128",
    "quantize_int4_g128",
    "quantize_latent",
    "rms_norm",
    "rope_interleaved",
    "router_gemm",
    "sample_probs",
    "silu_mul",
    "silu_mul_quantize",
    "tile_map",
    "to_e4m3",
    "token_logprobs",
    "w4a8_grouped_gemm_nt",
]
