"""Typed wrappers of torch.ops.seekernel: one function per op, with its fake beside it."""

from seekernel.ops.norm import add_rms_norm, rms_norm, silu_mul

__all__ = [
    "add_rms_norm",
    "rms_norm",
    "silu_mul",
]
