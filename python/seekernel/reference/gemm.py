"""References of the GEMM family: dequantise, then multiply, one group after the other."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from seekernel.reference.quantize import dequantize_int4_g128


def _activations(a: Tensor, a_scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    if a_scale is None:
        return a.to(dtype)
    m, k = a.shape[-2:]
    per_row = a_scale[..., :m].mT.to(dtype).repeat_interleave(128, -1)[..., :k]
    return a.to(dtype) * per_row


def _weights(b: Tensor, b_scale: Tensor, dtype: torch.dtype) -> Tensor:
    n, k = b.shape[-2:]
    scale = b_scale.to(dtype).repeat_interleave(128, -2)[..., :n, :]
    return b.to(dtype) * scale.repeat_interleave(128, -1)[..., :k]


def _gate_up_weights(b: Tensor, b_scale: Tensor, dtype: torch.dtype) -> Tensor:
    gate, up = b.chunk(2, dim=1)
    gate_scale, up_scale = b_scale.chunk(2, dim=1)
    return torch.cat([_weights(gate, gate_scale, dtype), _weights(up, up_scale, dtype)], dim=1)


def group_runs(groups: Tensor, layout: str) -> list[tuple[int, int, int, int]]:
    """Return (group, matrix of a, first row, end) of every run of rows that one group owns.

    Args: groups: offsets [g + 1], m_indices [rows] or masked_m [g], by `layout`.
    """
    values = groups.tolist()
    if layout == "offsets":
        return [(i, 0, a, b) for i, (a, b) in enumerate(pairwise(values)) if a < b]
    if layout == "masked":
        return [(i, i, 0, count) for i, count in enumerate(values) if count > 0]
    runs: list[tuple[int, int, int, int]] = []
    for row, group in enumerate(values):
        if group < 0:
            continue
        if runs and runs[-1][0] == group and runs[-1][3] == row:
            runs[-1] = (group, 0, runs[-1][2], row + 1)
        else:
            runs.append((group, 0, row, row + 1))
    return runs


def _grouped(a: Tensor, b: Tensor, groups: Tensor, layout: str = "offsets") -> Tensor:
    out = a.new_zeros(*a.shape[:-1], b.shape[1])
    for group, matrix, begin, end in group_runs(groups, layout):
        rows, target = (a[matrix], out[matrix]) if layout == "masked" else (a, out)
        target[begin:end] = rows[begin:end] @ b[group].t()
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
    a_scale: Tensor | None,
    b: Tensor,
    b_scale: Tensor,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Return (a[i] * a_scale[i]) @ (b[i] * b_scale[i]).T for every i, in `dtype`."""
    return _activations(a, a_scale, dtype) @ _weights(b, b_scale, dtype).transpose(1, 2)


def fp8_grouped_gemm_nt(
    a: Tensor,
    a_scale: Tensor | None,
    b: Tensor,
    b_scale: Tensor,
    offsets: Tensor,
    dtype: torch.dtype = torch.float64,
    layout: str = "offsets",
    row_weight: Tensor | None = None,
) -> Tensor:
    """Return every group's product, in `dtype`; rows of no group are zero."""
    rows = _activations(a, a_scale, dtype)
    out = _grouped(rows, _weights(b, b_scale, dtype), offsets, layout)
    if row_weight is None:
        return out
    weighted = out * row_weight.to(dtype)[:, None]
    return torch.where(out == 0, out, weighted)


def w4a8_grouped_gemm_nt(
    a: Tensor,
    a_scale: Tensor | None,
    b: Tensor,
    b_scale: Tensor,
    offsets: Tensor,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Return every group's product with int4 weights, in `dtype`; rows of no group are zero."""
    out = _grouped(a.to(dtype), dequantize_int4_g128(b, b_scale, dtype), offsets)
    return out if a_scale is None else out * a_scale.to(dtype)


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
