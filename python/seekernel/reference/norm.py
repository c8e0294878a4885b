"""References of rms_norm, add_rms_norm, silu_mul and of what quantises behind them."""

from __future__ import annotations

import torch
from torch import Tensor

from seekernel.reference.quantize import quantize_fp8_1x128


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


def add_rms_norm_quantize(
    x: Tensor | None,
    residual: Tensor,
    weight: Tensor,
    eps: float,
    token_ids: Tensor | None = None,
    embedding: Tensor | None = None,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return (normed in the dtype of residual, q, scale, new residual); nothing is written."""
    total = residual
    if token_ids is not None and embedding is not None:
        total = embedding[token_ids].to(residual.dtype)
    if x is not None:
        total = (total.to(dtype) + x.to(dtype)).to(residual.dtype)
    normed = rms_norm(total, weight, eps, dtype).to(residual.dtype)
    return (normed, *quantize_fp8_1x128(normed), total)


def silu_mul_quantize(x: Tensor, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Return (q, scale) of silu_mul rounded to the dtype of x."""
    return quantize_fp8_1x128(silu_mul(x, dtype).to(x.dtype))
