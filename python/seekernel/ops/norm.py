"""RMS norms and SwiGLU, alone or with the quantiser behind them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from seekernel import _extension as _extension
from seekernel.ops._fakes import register_fakes

_rms_norm = torch.ops.seekernel.rms_norm.default
_add_rms_norm = torch.ops.seekernel.add_rms_norm.default
_add_rms_norm_quantize = torch.ops.seekernel.add_rms_norm_quantize.default
_silu_mul = torch.ops.seekernel.silu_mul.default
_silu_mul_quantize = torch.ops.seekernel.silu_mul_quantize.default


class NormedRows(NamedTuple):
    """Rows after a norm: as they are, and as e4m3 with a scale per 128 columns where wanted.

    x [m, n]; q [m, n] float8_e4m3fn and scale [ceil(n/128), round_up(m, 4)] float32, or None.
    """

    x: Tensor
    q: Tensor | None = None
    scale: Tensor | None = None

    @property
    def quantized(self) -> tuple[Tensor, Tensor]:
        """(q, scale); ValueError where there are none."""
        if self.q is None or self.scale is None:
            raise ValueError("NormedRows: expected q and scale, got None")
        return self.q, self.scale

    @staticmethod
    def empty(like: Tensor, quantize: bool) -> NormedRows:
        """Allocate for rows like [m, n], with q and scale if `quantize`."""
        m, n = like.shape
        x = torch.empty_like(like, memory_format=torch.contiguous_format)
        if not quantize:
            return NormedRows(x)
        return NormedRows(
            x,
            like.new_empty(m, n, dtype=torch.float8_e4m3fn),
            like.new_empty(-(-n // 128), (m + 3) // 4 * 4, dtype=torch.float32),
        )


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


def add_rms_norm_quantize(
    x: Tensor | None,
    residual: Tensor,
    weight: Tensor,
    eps: float,
    quantize: bool = True,
    token_ids: Tensor | None = None,
    embedding: Tensor | None = None,
    out: NormedRows | None = None,
) -> NormedRows:
    """Residual add in place or embedding gather, the norm of the sum, and its quantisation.

        residual = embedding[token_ids] (given them);  residual += x (given x)
        y = rms_norm(residual, weight, eps);  q, scale = quantize_fp8_1x128(y)

    The bits are those of add_rms_norm followed by quantize_fp8_1x128.

    Args:
        x: [m, n] or None.  residual: [m, n] float32 or bfloat16.  weight: [n].  eps: as in rms_norm.
        quantize: whether q and scale are wanted, where out is not given.
        token_ids: [m] int64 and embedding: [vocabulary, n] float32 or bfloat16, or neither.
        out: q and scale may be None; allocated when not given.
        On a CUDA device all but weight are bfloat16, n is a multiple of 8 up to 32768 and rows
        start at multiples of 16 bytes.
    Returns: out.
    Errors: RuntimeError naming the tensor, expected and got. A token id outside the vocabulary is
        an error on the CPU and a row of NaN on a CUDA device.
    Writes: residual (given x or token_ids), out; the columns of scale beyond m are set to 0.
    """
    if out is None:
        out = NormedRows.empty(residual, quantize)
    _add_rms_norm_quantize(x, residual, weight, eps, *out, token_ids, embedding)
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


def silu_mul_quantize(
    x: Tensor, q: Tensor | None = None, scale: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """silu_mul, then quantize_fp8_1x128 of what it gives in the dtype of x: the same bits.

    Args:
        x: [m, 2 n] float32 or bfloat16, gate first (CUDA: bfloat16, n a multiple of 8).
        q: [m, n] float8_e4m3fn.  scale: [ceil(n/128), round_up(m, 4)] float32. Allocated when not given.
    Returns: (q, scale).
    Errors: RuntimeError naming the tensor, expected and got.
    Writes: q, scale; the columns of scale beyond m are set to 0.
    """
    m, n = x.shape[0], x.shape[1] // 2
    if q is None:
        q = x.new_empty(m, n, dtype=torch.float8_e4m3fn)
    if scale is None:
        scale = x.new_empty(-(-n // 128), (m + 3) // 4 * 4, dtype=torch.float32)
    _silu_mul_quantize(x, q, scale)
    return q, scale


register_fakes("rms_norm", "add_rms_norm", "add_rms_norm_quantize", "silu_mul", "silu_mul_quantize")
