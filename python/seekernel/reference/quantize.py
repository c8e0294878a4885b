"""References of the block quantisers.

The quantisers' arithmetic is float32 by definition, so their results are exact bits to compare with.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

_GROUP = 128
_E4M3_MAX = 448.0


def to_e4m3(x: Tensor) -> Tensor:
    """Return x rounded to the nearest even e4m3, saturating at 448; NaN stays NaN."""
    return x.float().clamp(-_E4M3_MAX, _E4M3_MAX).to(torch.float8_e4m3fn)


def quantize_fp8_1x128(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return (q [m, k], scale [ceil(k/128), round_up(m, 4)]); the padding columns are 0."""
    m, k = x.shape
    groups = pad(x.float(), (0, -k % _GROUP)).view(m, -(-k // _GROUP), _GROUP)
    amax = groups.abs().nan_to_num(nan=0.0, posinf=float("inf")).amax(-1)
    scale = amax.clamp_min(1e-4) / _E4M3_MAX
    q = to_e4m3(groups / scale[..., None]).flatten(1)[:, :k]
    return q.contiguous(), pad(scale, (0, 0, 0, -m % 4)).t().contiguous()


def quantize_fp8_128x128(w: Tensor) -> tuple[Tensor, Tensor]:
    """Return (q [n, k], scale [ceil(n/128), ceil(k/128)])."""
    n, k = w.shape
    padded = pad(w.float(), (0, -k % _GROUP, 0, -n % _GROUP))
    blocks = padded.view(-(-n // _GROUP), _GROUP, -(-k // _GROUP), _GROUP)
    amax = blocks.abs().nan_to_num(nan=0.0, posinf=float("inf")).amax((1, 3))
    scale = amax / _E4M3_MAX
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    q = to_e4m3(blocks / scale[:, None, :, None]).view(padded.shape)[:n, :k]
    return q.contiguous(), scale


def dequantize_fp8_128x128(q: Tensor, scale: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return q * scale, in `dtype`."""
    n, k = q.shape
    wide = scale.to(dtype).repeat_interleave(_GROUP, 0).repeat_interleave(_GROUP, 1)
    return q.to(dtype) * wide[:n, :k]


def quantize_int4_g128(w: Tensor) -> tuple[Tensor, Tensor]:
    """Return (q [n, k/2] uint8, even column in the low nibble; scale [n, ceil(k/128)])."""
    n, k = w.shape
    groups = pad(w.float(), (0, -k % _GROUP)).view(n, -(-k // _GROUP), _GROUP)
    amax = groups.abs().nan_to_num(nan=0.0, posinf=float("inf")).amax(-1)
    scale = amax / 7
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    codes = (groups / scale[..., None]).nan_to_num(nan=0.0).clamp(-7, 7).round()
    nibbles = codes.to(torch.int8).view(torch.uint8).flatten(1)[:, :k] & 15
    return nibbles[:, ::2] | nibbles[:, 1::2] << 4, scale


def dequantize_int4_g128(q: Tensor, scale: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return [..., n, k] values of q [..., n, k/2] times scale [..., n, ceil(k/128)], in `dtype`."""
    nibbles = torch.stack([q & 15, q >> 4], dim=-1).flatten(-2).to(torch.int8)
    values = torch.where(nibbles > 7, nibbles - 16, nibbles).to(dtype)
    return values * scale.to(dtype).repeat_interleave(_GROUP, -1)[..., : values.shape[-1]]
