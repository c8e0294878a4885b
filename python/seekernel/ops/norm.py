"""RMS norms and SwiGLU."""

from __future__ import annotations

import torch
from torch import Tensor

from seekernel import _extension as _extension
from seekernel.ops._fakes import register_fakes

_rms_norm = torch.ops.seekernel.rms_norm.default
_add_rms_norm = torch.ops.seekernel.add_rms_norm.default
_silu_mul = torch.ops.seekernel.silu_mul.default


def rms_norm(x: Tensor, weight: Tensor, eps: float, out: Tensor | None = None) -> Tensor:
    """Root-mean-square norm over the last dimension.

        out = x / sqrt(mean(x^2) + eps) * weight

    Args:
        x: [m, n] float32 or bfloat16, last dim contiguous.  weight: [n] float32 or bfloat16.
        eps: added to the mean square.  out: [m, n] in the dtype of x; allocated when not given.
    Returns: out. The sum and the product are float32, rounded once.
    Errors: RuntimeError naming the tensor, expected and got.  Writes: out.
    Source: Zhang and Sennrich 2019.
    """
    if out is None:
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
    _rms_norm(x, weight, eps, out)
    return out


def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, out: Tensor | None = None
) -> Tensor:
    """Residual add in place, then the root-mean-square norm of the sum.

        residual += x;  out = rms_norm(residual, weight, eps)

    Args:
        x, residual: [m, n] float32 or bfloat16, same dtype.  weight: [n].  out: as in rms_norm.
    Returns: out. The norm reads the sum as rounded to the dtype of residual.
    Errors: RuntimeError naming the tensor, expected and got.  Writes: residual, out.
    """
    if out is None:
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
    _add_rms_norm(x, residual, weight, eps, out)
    return out


def silu_mul(x: Tensor, out: Tensor | None = None) -> Tensor:
    """SwiGLU of a gate and an up half that lie side by side.

        out = silu(x[:, :n]) * x[:, n:],  silu(g) = g / (1 + exp(-g))

    Args:
        x: [m, 2 n] float32 or bfloat16, gate first.  out: [m, n] in the dtype of x.
    Returns: out.  Errors: RuntimeError naming the tensor, expected and got.  Writes: out.
    """
    if out is None:
        out = x.new_empty(x.shape[0], x.shape[1] // 2)
    _silu_mul(x, out)
    return out


register_fakes("rms_norm", "add_rms_norm", "silu_mul")
