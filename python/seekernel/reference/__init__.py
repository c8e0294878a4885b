"""Plain-torch meaning of every op, on any device: the oracle of the tests, slow and obvious.

Each function takes the arguments of its namesake in seekernel.ops, and `dtype`, the arithmetic's
precision: float64 is the truth, bfloat16 the naive low-precision version that sets error budgets.
"""

from seekernel.reference.attention import (
    attention,
    mla_decode,
    mla_gather_latent,
    mla_prefill,
    mla_prepare,
    rope_interleaved,
)
from seekernel.reference.norm import add_rms_norm, rms_norm, silu_mul

__all__ = [
    "add_rms_norm",
    "attention",
    "mla_decode",
    "mla_gather_latent",
    "mla_prefill",
    "mla_prepare",
    "rms_norm",
    "rope_interleaved",
    "silu_mul",
]
