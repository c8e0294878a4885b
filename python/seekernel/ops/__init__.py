"""Typed wrappers of torch.ops.seekernel: one function per op, with its fake beside it."""

from seekernel.ops.attention import (
    mla_decode,
    mla_gather_latent,
    mla_prefill,
    mla_prepare,
    rope_interleaved,
)
from seekernel.ops.norm import add_rms_norm, rms_norm, silu_mul

__all__ = [
    "add_rms_norm",
    "mla_decode",
    "mla_gather_latent",
    "mla_prefill",
    "mla_prepare",
    "rms_norm",
    "rope_interleaved",
    "silu_mul",
]
