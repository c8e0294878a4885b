"""References of rms_norm, add_rms_norm, silu_mul."""

from __future__ import annotations

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return x / sqrt(mean(x^2) + eps) * weight, in `dtype`."""
    x, weight = x.to(dtype), weight.to(dtype)
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    """Return (normed, residual + x rounded to the dtype of residual); nothing is written."""
    total = (residual.to(dtype) + x.to(dtype)).to(residual.dtype)
    return rms_norm(total, weight, eps, dtype), total


def silu_mul(x: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return silu(gate) * up, in `dtype`."""
    gate, up = x.to(dtype).chunk(2, dim=-1)
    return gate * torch.sigmoid(gate) * up
