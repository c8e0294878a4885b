"""References of the GEMM family: dequantise, then multiply, one group after the other."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor


def _activations(a: Tensor, a_scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    if a_scale is None:
        return a.to(dtype)
    m, k = a.shape
    per_row = a_scale[:, :m].t().to(dtype).repeat_interleave(128, 1)[:, :k]
    return a.to(dtype) * per_row


def _weights(b: Tensor, b_scale: Tensor, dtype: torch.dtype) -> Tensor:
    n, k = b.shape[-2:]
    scale = b_scale.to(dtype).repeat_interleave(128, -2)[..., :n, :]
    return b.to(dtype) * scale.repeat_interleave(128, -1)[..., :k]


def _gate_up_weights(b: Tensor, b_scale: Tensor, dtype: torch.dtype) -> Tensor:
    gate, up = b.chunk(2, dim=1)
    gate_scale, up_scale = b_scale.chunk(2, dim=1)
    return torch.cat([_weights(gate, gate_scale, dtype), _weights(up, up_scale, dtype)], dim=1)


def _grouped(a: Tensor, b: Tensor, offsets: Tensor) -> Tensor:
    out = a.new_zeros(a.shape[0], b.shape[1])
    bounds = offsets.tolist()
    for i, (begin, end) in enumerate(pairwise(bounds)):
        if begin < end:
            out[begin:end] = a[begin:end] @ b[i].t()
    return out


def _gather(a: Tensor, offsets: Tensor, row_token: Tensor | None) -> Tensor:
    if row_token is None:
        return a
    used = int(offsets[-1])
    rows = a.new_zeros(row_token.shape[0], a.shape[1])
    rows[:used] = a[row_token[:used].long()]
    return rows


def _swiglu(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return gate * torch.sigmoid(gate) * up


def fp8_gemm_nt(
    a: Tensor,
    a_scale: Tensor | None,
    b: Tensor,
    b_scale: Tensor,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Return (a * a_scale) @ (b * b_scale).T, in `dtype`."""
    return _activations(a, a_scale, dtype) @ _weights(b, b_scale, dtype).t()


def fp8_bmm_nt(
    a: Tensor,
    a_scale: None,
    b: Tensor,
    b_scale: Tensor,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Return a[i] @ (b[i] * b_scale[i]).T for every i, in `dtype`."""
    return a.to(dtype) @ _weights(b, b_scale, dtype).transpose(1, 2)


def fp8_grouped_gemm_nt(
    a: Tensor,
    a_scale: Tensor | None,
    b: Tensor,
    b_scale: Tensor,
    offsets: Tensor,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Return every group's product, in `dtype`; rows from offsets[g] on are zero."""
    return _grouped(_activations(a, a_scale, dtype), _weights(b, b_scale, dtype), offsets)


def fp8_grouped_gemm_swiglu_nt(
    a: Tensor,
    a_scale: Tensor | None,
    b: Tensor,
    b_scale: Tensor,
    offsets: Tensor,
    row_token: Tensor | None = None,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Return silu(gate) * up of every group, in `dtype`; rows from offsets[g] on are zero."""
    rows = _gather(_activations(a, a_scale, dtype), offsets, row_token)
    return _swiglu(_grouped(rows, _gate_up_weights(b, b_scale, dtype), offsets))


def gemm_nt(a: Tensor, b: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return a @ b.T, in `dtype`."""
    return a.to(dtype) @ b.to(dtype).t()


def bmm_nt(a: Tensor, b: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return a[i] @ b[i].T for every i, in `dtype`."""
    return a.to(dtype) @ b.to(dtype).transpose(1, 2)


def grouped_gemm_nt(
    a: Tensor, b: Tensor, offsets: Tensor, dtype: torch.dtype = torch.float64
) -> Tensor:
    """Return every group's product, in `dtype`; rows from offsets[g] on are zero."""
    return _grouped(a.to(dtype), b.to(dtype), offsets)


def grouped_gemm_swiglu_nt(
    a: Tensor,
    b: Tensor,
    offsets: Tensor,
    row_token: Tensor | None = None,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Return silu(gate) * up of every group, in `dtype`; rows from offsets[g] on are zero."""
    return _swiglu(_grouped(_gather(a.to(dtype), offsets, row_token), b.to(dtype), offsets))


def router_gemm(x: Tensor, weight: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return x @ weight.T, in `dtype`."""
    return gemm_nt(x, weight, dtype)
