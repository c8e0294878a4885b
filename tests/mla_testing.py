"""Inputs and error bounds that the tests of the MLA ops share."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from seekernel import reference
from tests.op_testing import UNIT_ROUNDOFF

F32, BF16 = torch.float32, torch.bfloat16
HUGE = 2**31 - 1


def int32(values: Sequence[int]) -> Tensor:
    return torch.tensor(list(values), dtype=torch.int32)


def offsets(lengths: Sequence[int]) -> Tensor:
    return int32([sum(lengths[:i]) for i in range(len(lengths) + 1)])


def cos_sin(max_pos: int, rope: int) -> Tensor:
    angle = torch.arange(max_pos).double()[:, None] * 10000.0 ** -(torch.arange(0, rope, 2) / rope)
    return torch.cat([angle.cos(), angle.sin()], dim=-1).float()


def paged(
    rows: Sequence[Tensor], page_size: int, row_size: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return (kv_cache, block_table) that hold `rows` of every request on shuffled pages.

    Everything that must not be read is poison: NaN in dead rows and pages, huge indices in dead slots.
    """
    counts = [-(-len(row) // page_size) for row in rows]
    pages = torch.randperm(sum(counts) + 3).int()
    cache = torch.full((len(pages), page_size, row_size), math.nan)
    table = torch.full((len(rows), max(counts, default=0) + 2), HUGE, dtype=torch.int32)
    used = 0
    for request, (row, count) in enumerate(zip(rows, counts, strict=True)):
        table[request, :count] = pages[used : used + count]
        used += count
        token = torch.arange(len(row))
        cache[table[request, token // page_size].long(), token % page_size] = row.float()
    return cache.to(dtype), table


def paged_fp8(rows: Sequence[Tensor], page_size: int) -> tuple[Tensor, Tensor]:
    """As `paged`, of rows that an FP8 cache holds; dead bytes are 0xff: NaN as a code, multiplier or rope."""
    dtype, row_size = rows[0].dtype, rows[0].shape[-1]
    counts = [-(-len(row) // page_size) for row in rows]
    pages = torch.randperm(sum(counts) + 3).int()
    cache = torch.full((len(pages), page_size, row_size), 0xFF, dtype=torch.uint8)
    table = torch.full((len(rows), max(counts) + 2), HUGE, dtype=torch.int32)
    used = 0
    for request, (row, count) in enumerate(zip(rows, counts, strict=True)):
        table[request, :count] = pages[used : used + count]
        used += count
        token = torch.arange(len(row))
        page = table[request, token // page_size].long()
        cache[page, token % page_size] = row.view(torch.uint8)
    return cache.view(dtype), table


@dataclass(frozen=True)
class Bounds:
    """How far a float32 kernel may be from the truth: out [s_q, h, d_v], lse [s_q, h]."""

    out: Tensor
    lse: Tensor


def attention_bounds(
    q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool, out_dtype: torch.dtype
) -> Bounds:
    """Bound the error of attention whose inputs are exact and whose arithmetic is float32.

    A sum of n terms in float32 is off by at most 4 sqrt(n) u sum|terms| (the probabilistic form of
    the classical n u bound, four standard deviations). A score that is off by e changes its weight
    by the factor 1 + e, so out by 2 e sum p|v| and lse by e; sums over keys add their own share.
    """
    q, k, v = q.double(), k.double(), v.double()
    unit = UNIT_ROUNDOFF[F32]
    mass, lse = reference.attention(q, k, v.abs(), scale, causal)
    magnitude = torch.einsum("qhd,khd->hqk", q.abs(), k.abs())
    magnitude = magnitude.amax(-1).T if len(k) else torch.zeros_like(lse)
    score = (4 * math.sqrt(q.shape[-1]) + 8) * unit * abs(scale) * magnitude
    keys = (4 * math.sqrt(max(len(k), 1)) + 16) * unit
    rounding = (1 + 2.0**-7) * UNIT_ROUNDOFF[out_dtype]
    return Bounds(
        out=mass * (2 * score + keys).unsqueeze(-1) + rounding * mass + 1e-37,
        lse=score + keys + 4 * unit * lse.abs().nan_to_num(0.0, posinf=0.0, neginf=0.0),
    )


def assert_within(got: Tensor, want: Tensor, bound: Tensor) -> None:
    """Fail unless |got - want| <= bound element by element, infinities and NaNs being equal."""
    assert got.shape == want.shape, f"shape: expected {tuple(want.shape)}, got {tuple(got.shape)}"
    finite = torch.isfinite(want)
    assert torch.equal(finite, torch.isfinite(got)), "finite values in other places than the truth"
    special = ~finite
    assert torch.equal(
        got[special].double().nan_to_num(7.0), want[special].double().nan_to_num(7.0)
    )
    excess = ((got.double() - want.double()).abs() - bound)[finite]
    if excess.numel():
        worst = int(excess.argmax())
        assert excess[worst] <= 0, (
            f"error {(got.double() - want).abs()[finite][worst]:.3e} over bound "
            f"{bound[finite][worst]:.3e} where the truth is {want[finite][worst]:.3e}"
        )


def assert_same_bits(got: Sequence[Tensor], want: Sequence[Tensor]) -> None:
    for a, b in zip(got, want, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


def for_each_thread_count(call: Callable[[], tuple[Tensor, ...]]) -> list[tuple[Tensor, ...]]:
    """Return the results of `call` with 1, 2, 3 and 7 threads."""
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            results.append(call())
    finally:
        torch.set_num_threads(before)
    return results
