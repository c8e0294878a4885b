"""Inputs of the GEMM tests: weights of every kind, activations, and both families under one call."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from seekernel import ops, reference

FP8 = torch.float8_e4m3fn


@dataclass(frozen=True)
class Weights:
    """[..., n, k] weights: float32, bfloat16, or float8 with block multipliers."""

    values: Tensor
    scale: Tensor | None


def quantize_blocks(w: Tensor) -> Weights:
    """Block quantisation of the last two dimensions, by the reference."""
    pairs = [reference.quantize_fp8_128x128(x) for x in w.reshape(-1, *w.shape[-2:])]
    values = torch.stack([q.view(torch.uint8) for q, _ in pairs]).view(FP8)
    scale = torch.stack([scale for _, scale in pairs])
    return Weights(values.view(w.shape), scale.view(*w.shape[:-2], *scale.shape[-2:]))


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def make_weights(kind: torch.dtype, *shape: int, seed: int = 1, halves: int = 1) -> Weights:
    """Random weights; `halves` = 2 quantises gate and up rows apart, each on its own block grid."""
    generator = torch.Generator().manual_seed(seed)
    w = randn(*shape, seed=seed) * torch.rand(shape[-1], generator=generator).add(0.1)
    if kind != FP8:
        return Weights(w.to(kind), None)
    parts = [quantize_blocks(part) for part in w.chunk(halves, dim=-2)]
    scales = [part.scale for part in parts if part.scale is not None]
    return Weights(
        torch.cat([p.values.view(torch.uint8) for p in parts], -2).view(FP8), torch.cat(scales, -2)
    )


def opcheck_fp8(name: str, *args: Tensor | None) -> None:
    """opcheck less its schema test, which cannot compare float8 tensors; that is done here by bits:
    the last argument is the one that is written."""
    op = getattr(torch.ops.seekernel, name).default
    parts = ("test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(op, args, test_utils=parts)
    before = [x if x is None else x.clone() for x in args]
    op(*args)
    for x, old in zip(args[:-1], before, strict=False):
        if x is not None and old is not None:
            assert torch.equal(x.view(torch.uint8), old.view(torch.uint8)), "wrote into an input"


def gemm(a: Tensor, w: Weights, out: Tensor | None = None) -> Tensor:
    if w.scale is None:
        return ops.gemm_nt(a, w.values, out)
    return ops.fp8_gemm_nt(a, None, w.values, w.scale, out)


def reference_gemm(a: Tensor, w: Weights, dtype: torch.dtype) -> Tensor:
    if w.scale is None:
        return reference.gemm_nt(a, w.values, dtype)
    return reference.fp8_gemm_nt(a, None, w.values, w.scale, dtype)


def bmm(a: Tensor, w: Weights, out: Tensor | None = None) -> Tensor:
    if w.scale is None:
        return ops.bmm_nt(a, w.values, out)
    return ops.fp8_bmm_nt(a, None, w.values, w.scale, out)


def reference_bmm(a: Tensor, w: Weights, dtype: torch.dtype) -> Tensor:
    if w.scale is None:
        return reference.bmm_nt(a, w.values, dtype)
    return reference.fp8_bmm_nt(a, None, w.values, w.scale, dtype)


def grouped_gemm(a: Tensor, w: Weights, offsets: Tensor, out: Tensor | None = None) -> Tensor:
    if w.scale is None:
        return ops.grouped_gemm_nt(a, w.values, offsets, out)
    return ops.fp8_grouped_gemm_nt(a, None, w.values, w.scale, offsets, out)


def reference_grouped_gemm(a: Tensor, w: Weights, offsets: Tensor, dtype: torch.dtype) -> Tensor:
    if w.scale is None:
        return reference.grouped_gemm_nt(a, w.values, offsets, dtype)
    return reference.fp8_grouped_gemm_nt(a, None, w.values, w.scale, offsets, dtype)


def swiglu(
    a: Tensor, w: Weights, offsets: Tensor, row_token: Tensor | None, out: Tensor | None = None
) -> Tensor:
    if w.scale is None:
        return ops.grouped_gemm_swiglu_nt(a, w.values, offsets, row_token, out)
    return ops.fp8_grouped_gemm_swiglu_nt(a, None, w.values, w.scale, offsets, row_token, out)


def reference_swiglu(
    a: Tensor, w: Weights, offsets: Tensor, row_token: Tensor | None, dtype: torch.dtype
) -> Tensor:
    if w.scale is None:
        return reference.grouped_gemm_swiglu_nt(a, w.values, offsets, row_token, dtype)
    return reference.fp8_grouped_gemm_swiglu_nt(
        a, None, w.values, w.scale, offsets, row_token, dtype
    )
