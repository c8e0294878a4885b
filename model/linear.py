"""Linear layers over FP8 block-scaled, bfloat16 or float32 weights, single or stacked by expert."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from seekernel import ops
from seekernel.model.errors import WeightError
from seekernel.model.weights import FP8, SCALE_SUFFIX, WeightSource, num_blocks
from seekernel.ops import NormedRows


class Linear:
    """y = x W^T: W [n, k], FP8 with 128x128 scales or plain."""

    def __init__(self, weight: Tensor, scale: Tensor | None) -> None:
        self.weight, self.scale = weight, scale

    @classmethod
    def load(cls, source: WeightSource, prefix: str, n: int, k: int) -> Linear:
        """Read `prefix`.weight and, where it is FP8, its scales."""
        weight, scale = stack(source, [[prefix]], n, k)
        return cls(weight[0], None if scale is None else scale[0])

    def __call__(self, x: Tensor | NormedRows, out: Tensor | None = None) -> Tensor:
        """Rows that come with e4m3 ones are taken as those where the weight is FP8."""
        rows = NormedRows(x) if isinstance(x, Tensor) else x
        if self.scale is None:
            return ops.gemm_nt(rows.x, self.weight, out=out)
        if rows.q is None and rows.x.device.type == "cuda":
            rows = NormedRows(rows.x, *ops.quantize_fp8_1x128(rows.x))
        a = rows.x if rows.q is None else rows.q
        return ops.fp8_gemm_nt(a, rows.scale, self.weight, self.scale, out=out)

    def dequantized(self) -> Tensor:
        """Return W in float32."""
        if self.scale is None:
            return self.weight.float()
        return ops.dequantize_fp8_128x128(self.weight, self.scale, torch.float32)


def stack(
    source: WeightSource, prefixes: Sequence[Sequence[str]], n: int, k: int
) -> tuple[Tensor, Tensor | None]:
    """Read weights of equal shape [n, k] into one tensor [g, parts * n, k].

    prefixes: for each of g groups the parts that stand below each other (an expert's gate and up).
    Returns: weights, and for FP8 their scales [g, parts * ceil(n/128), ceil(k/128)] float32: every
    part starts a block row of its own.
    """
    names = [f"{prefix}.weight" for group in prefixes for prefix in group]
    dtype = source.dtype(names[0])
    parts = len(prefixes[0])
    for name in names:
        source.check_shape(name, (n, k))
    weight = torch.empty(len(prefixes), parts * n, k, dtype=dtype, device=source.device)
    scale = None
    if dtype == FP8:
        shape = (len(prefixes), parts * num_blocks(n), num_blocks(k))
        scale = torch.empty(shape, dtype=torch.float32, device=source.device)
    for g, group in enumerate(prefixes):
        for part, prefix in enumerate(group):
            name = f"{prefix}.weight"
            source.read_into(name, weight[g, part * n : (part + 1) * n])
            has_scale = name + SCALE_SUFFIX in source
            if has_scale and scale is None:
                raise WeightError(f"{name}: expected dtype F8_E4M3 beside its scales, got {dtype}")
            if scale is not None:
                rows = slice(part * num_blocks(n), (part + 1) * num_blocks(n))
                source.read_scale_into(name + SCALE_SUFFIX, scale[g, rows])
                check_codes(name, weight[g, part * n : (part + 1) * n])
    return weight, scale


def check_codes(name: str, weight: Tensor) -> None:
    """Errors: WeightError if an FP8 weight holds a NaN code, which kernels need not look for."""
    if bool(((weight.view(torch.uint8) & 0x7F) == 0x7F).any()):
        raise WeightError(f"{name}: expected finite weights, got NaN")
