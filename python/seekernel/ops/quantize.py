"""Block quantisation: e4m3 in DeepSeek-V3's two scale layouts, 1x128 and 128x128; int4 by 1x128."""

from __future__ import annotations

import torch
from torch import Tensor

from seekernel import _extension as _extension
from seekernel.ops._fakes import register_fakes

_quantize_fp8_1x128 = torch.ops.seekernel.quantize_fp8_1x128.default
_quantize_fp8_128x128 = torch.ops.seekernel.quantize_fp8_128x128.default
_dequantize_fp8_128x128 = torch.ops.seekernel.dequantize_fp8_128x128.default
_quantize_int4_g128 = torch.ops.seekernel.quantize_int4_g128.default

_GROUP = 128


def _num_groups(size: int) -> int:
    return (size + _GROUP - 1) // _GROUP


def quantize_fp8_1x128(
    x: Tensor, q: Tensor | None = None, scale: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Quantise activations to e4m3 with one scale per row and 128 columns.

        s = max(amax(|group|), 1e-4) / 448;  q = e4m3(x / s)

    Args:
        x: [m, k] float32 or bfloat16, last dim contiguous; the last group may be partial.
        q: [m, k] float8_e4m3fn.  scale: [ceil(k/128), round_up(m, 4)] float32, one column per row
            of x ("M-major", as tensor-core kernels load it).  Both allocated when not given.
    Returns: (q, scale). Rounding is to nearest even, saturating at 448. A NaN does not count in
        amax and stays NaN; an infinity makes its group's scale infinite.
    Errors: RuntimeError naming the tensor, expected and got.
    Writes: q, scale; the columns of scale beyond m are set to 0.
    Source: DeepSeek-V3 technical report, section 3.3.
    """
    m, k = x.shape
    if q is None:
        q = x.new_empty(m, k, dtype=torch.float8_e4m3fn)
    if scale is None:
        scale = x.new_empty(_num_groups(k), (m + 3) // 4 * 4, dtype=torch.float32)
    _quantize_fp8_1x128(x, q, scale)
    return q, scale


def quantize_fp8_128x128(
    w: Tensor, q: Tensor | None = None, scale: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Quantise weights to e4m3 with one scale per 128x128 block.

        s = amax(|block|) / 448, or 1 where that is 0;  q = e4m3(w / s)

    Args:
        w: [n, k] float32 or bfloat16, last dim contiguous; edge blocks may be partial.
        q: [n, k] float8_e4m3fn.  scale: [ceil(n/128), ceil(k/128)] float32, the multiplier that
            checkpoints call `weight_scale_inv`.  Both allocated when not given.
    Returns: (q, scale). Rounding, NaN and infinity as in quantize_fp8_1x128.
    Errors: RuntimeError naming the tensor, expected and got.  Writes: q, scale.
    """
    n, k = w.shape
    if q is None:
        q = w.new_empty(n, k, dtype=torch.float8_e4m3fn)
    if scale is None:
        scale = w.new_empty(_num_groups(n), _num_groups(k), dtype=torch.float32)
    _quantize_fp8_128x128(w, q, scale)
    return q, scale


def dequantize_fp8_128x128(
    q: Tensor, scale: Tensor, dtype: torch.dtype = torch.float32, out: Tensor | None = None
) -> Tensor:
    """Expand e4m3 weights with one scale per 128x128 block.

        out[i, j] = q[i, j] * scale[i // 128, j // 128]

    Args:
        q: [n, k] float8_e4m3fn, last dim contiguous.  scale: [ceil(n/128), ceil(k/128)] float32.
        dtype: of out when it is not given.  out: [n, k] float32 or bfloat16.
    Returns: out. The product is float32, rounded once.
    Errors: RuntimeError naming the tensor, expected and got.  Writes: out.
    """
    if out is None:
        out = torch.empty(q.shape, dtype=dtype, device=q.device)
    _dequantize_fp8_128x128(q, scale, out)
    return out


def quantize_int4_g128(
    w: Tensor, q: Tensor | None = None, scale: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Quantise weights to int4 with one scale per row and 128 columns.

        s = amax(|group|) / 7, or 1 where that is 0;  q = round(w / s), in [-7, 7]

    Args:
        w: [n, k] float32 or bfloat16, last dim contiguous, k even; the last group may be partial.
        q: [n, k / 2] uint8, two values a byte in two's complement, the even column in the low nibble.
        scale: [n, ceil(k/128)] float32.  Both allocated when not given.
    Returns: (q, scale). Rounding is to nearest even. A NaN does not count in amax and becomes 0; an
        infinity makes its group's scale infinite and its values 0.
    Errors: RuntimeError naming the tensor, expected and got.  Writes: q, scale.
    Source: the W4AFP8 checkpoints of DeepSeek-R1 (int4 experts).
    """
    n, k = w.shape
    if q is None:
        q = w.new_empty(n, k // 2, dtype=torch.uint8)
    if scale is None:
        scale = w.new_empty(n, _num_groups(k), dtype=torch.float32)
    _quantize_int4_g128(w, q, scale)
    return q, scale


register_fakes(
    "quantize_fp8_1x128", "quantize_fp8_128x128", "dequantize_fp8_128x128", "quantize_int4_g128"
)
