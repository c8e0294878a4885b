"""Four-bit weight formats in plain torch: what the bytes of a checkpoint mean.

int4 (W4AFP8): per row and 128 of K,  s = absmax / 7,  q = round_half_even(w / s) in -7..7.
NVFP4: per row and 16 of K,  w = e2m1 * e4m3 scale * global scale,  global = absmax(W) / (6 * 448).
Both pack two values along K in a byte, the even one in the low nibble.
Source: NVIDIA Model Optimizer's W4A8_AWQ and NVFP4 exports; OCP MX 1.0 for e2m1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from seekernel.model.errors import WeightError

INT4_GROUP, NVFP4_GROUP = 128, 16
INT4_MAX, E2M1_MAX, E4M3_MAX = 7.0, 6.0, 448.0
E2M1_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def _require_groups(w: Tensor, group: int) -> None:
    if w.dim() != 2 or w.shape[1] % group:
        raise WeightError(
            f"weight: expected [n, k] with k a multiple of {group}, got {list(w.shape)}"
        )
    if not bool(torch.isfinite(w).all()):
        raise WeightError("weight: expected finite values, got NaN or infinity")


def _pack(codes: Tensor) -> Tensor:
    """[n, k] uint8 below 16 -> [n, k / 2] uint8."""
    return codes[:, 0::2] | (codes[:, 1::2] << 4)


def _unpack(packed: Tensor) -> Tensor:
    """[n, k / 2] -> [n, k] uint8 below 16."""
    raw = packed.view(torch.uint8)
    return torch.stack((raw & 15, raw >> 4), dim=-1).flatten(1)


def quantize_int4_g128(w: Tensor) -> tuple[Tensor, Tensor]:
    """w [n, k] float32 -> int8 [n, k / 2], float32 scales [n, k / 128]. A group of zeros has scale 1."""
    _require_groups(w, INT4_GROUP)
    groups = w.float().view(w.shape[0], -1, INT4_GROUP)
    absmax = groups.abs().amax(dim=-1)
    scale = torch.where(absmax > 0, absmax / INT4_MAX, torch.ones_like(absmax))
    q = torch.round(groups / scale[..., None]).clamp(-INT4_MAX, INT4_MAX).to(torch.int8)
    codes = q.view(w.shape).view(torch.uint8) & 15
    return _pack(codes).view(torch.int8), scale


def dequantize_int4_g128(packed: Tensor, scale: Tensor) -> Tensor:
    """int8 [n, k / 2], float32 [n, k / 128] -> float32 [n, k]."""
    codes = _unpack(packed).to(torch.int16)
    values = torch.where(codes > 7, codes - 16, codes).float()
    return values * scale.float().repeat_interleave(INT4_GROUP, dim=1)


def quantize_nvfp4(w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """w [n, k] float32 -> uint8 [n, k / 2], e4m3 scales [n, k / 16], float32 global scale []."""
    _require_groups(w, NVFP4_GROUP)
    wide = w.float()
    absmax = wide.abs().amax() if wide.numel() else wide.new_zeros(())
    global_scale = torch.where(absmax > 0, absmax / (E2M1_MAX * E4M3_MAX), torch.ones_like(absmax))
    groups = wide.view(w.shape[0], -1, NVFP4_GROUP)
    wanted = groups.abs().amax(dim=-1) / E2M1_MAX / global_scale
    scale = wanted.clamp(max=E4M3_MAX).to(torch.float8_e4m3fn)
    step = scale.float() * global_scale
    scaled = groups / torch.where(step > 0, step, torch.ones_like(step))[..., None]
    codes = _round_e2m1(torch.where(step[..., None] > 0, scaled, torch.zeros_like(scaled)))
    return _pack(codes.view(w.shape)), scale, global_scale


def _round_e2m1(x: Tensor) -> Tensor:
    """Nearest e2m1 code, ties to the even code; sign in bit 3."""
    values = x.new_tensor(E2M1_VALUES)
    middles = (values[1:] + values[:-1]) / 2
    magnitude = x.abs()
    up, down = torch.bucketize(magnitude, middles, right=True), torch.bucketize(magnitude, middles)
    code = torch.where(up % 2 == 0, up, down).to(torch.uint8)
    return code | (torch.signbit(x).to(torch.uint8) << 3)


def dequantize_nvfp4(packed: Tensor, scale: Tensor, global_scale: Tensor) -> Tensor:
    """uint8 [n, k / 2], e4m3 [n, k / 16], float32 [] -> float32 [n, k]."""
    codes = _unpack(packed)
    table = torch.tensor((*E2M1_VALUES, *(-v for v in E2M1_VALUES)))
    values = table[codes.int()]
    return values * (scale.float() * global_scale.float()).repeat_interleave(NVFP4_GROUP, dim=1)
