"""Typed wrappers of torch.ops.seekernel: one function per op, with its fake beside it."""

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
from seekernel.ops.norm import add_rms_norm, rms_norm, silu_mul

__all__ = [
    "add_rms_norm",
    "bmm_nt",
    "fp8_bmm_nt",
    "fp8_gemm_nt",
    "fp8_grouped_gemm_nt",
    "fp8_grouped_gemm_swiglu_nt",
    "gemm_nt",
    "grouped_gemm_nt",
    "grouped_gemm_swiglu_nt",
    "rms_norm",
    "router_gemm",
    "silu_mul",
]
