"""The GEMM family against its references, on every path of the engine, and its exactness claims."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from seekernel import ops, reference
from tests.gemm_testing import (
    FP8,
    Weights,
    bmm,
    gemm,
    grouped_gemm,
    make_weights,
    randn,
    reference_bmm,
    reference_gemm,
    reference_grouped_gemm,
    reference_swiglu,
    swiglu,
)
from tests.op_testing import assert_error_within, assert_repeatable

KINDS = [FP8, torch.bfloat16, torch.float32]
by_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: str(kind)[6:])
by_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])


@dataclass(frozen=True)
class Case:
    m: int
    n: int
    k: int

    def __str__(self) -> str:
        return f"m{self.m}-n{self.n}-k{self.k}"


CASES = [
    Case(1, 1, 1),
    Case(1, 7, 3),
    Case(1, 130, 129),
    Case(1, 256, 7168),
    Case(2, 33, 1024),
    Case(3, 17, 1500),
    Case(4, 48, 255),
    *(Case(m, 41, 640) for m in (5, 6, 7, 8)),
    Case(9, 300, 2048),
    Case(67, 19, 1100),
    Case(130, 50, 384),
    Case(300, 5, 64),
]


def budgets(call: object, *args: object, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    assert callable(call)
    return call(*args, torch.float64), call(*args, dtype)


@pytest.mark.parametrize("case", CASES, ids=str)
@by_kind
@by_dtype
def test_gemm(case: Case, kind: torch.dtype, dtype: torch.dtype) -> None:
    a, w = randn(case.m, case.k, dtype=dtype), make_weights(kind, case.n, case.k)
    want, naive = budgets(reference_gemm, a, w, dtype=dtype)
    assert_error_within(gemm(a, w), want, naive)
    assert_repeatable(lambda: gemm(a, w))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_fp8_activations(case: Case) -> None:
    a, a_scale = reference.quantize_fp8_1x128(randn(case.m, case.k))
    a_scale[:, case.m :] = float("nan")  # padding rows are nobody's
    w = make_weights(FP8, case.n, case.k)
    assert w.scale is not None
    want = reference.fp8_gemm_nt(a, a_scale, w.values, w.scale)
    naive = reference.fp8_gemm_nt(a, a_scale, w.values, w.scale, torch.float32)
    out = torch.empty(case.m, case.n)
    assert_error_within(ops.fp8_gemm_nt(a, a_scale, w.values, w.scale, out), want, naive)
    assert ops.fp8_gemm_nt(a, a_scale, w.values, w.scale).dtype == torch.bfloat16


@by_kind
@by_dtype
@pytest.mark.parametrize("s", [1, 5, 20])
def test_bmm_of_mla_views(kind: torch.dtype, dtype: torch.dtype, s: int) -> None:
    """Heads taken out of the middle of a row on both sides, weights out of kv_b_proj."""
    h, nope, rope, latent = 3, 128, 64, 96
    q = randn(s, h, nope + rope, dtype=dtype)
    a = q[:, :, :nope].transpose(0, 1)
    wide = make_weights(kind, h, nope + 128, nope)
    scale = None if wide.scale is None else wide.scale[:, 1:]
    w = Weights(wide.values[:, 128 : 128 + latent], scale)
    out = torch.full((s, h, latent + 8), 7.0, dtype=dtype)
    view = out[:, :, :latent].transpose(0, 1)
    want, naive = budgets(reference_bmm, a, w, dtype=dtype)
    bmm(a, w, view)
    assert_error_within(view, want, naive)
    assert (out[:, :, latent:] == 7).all(), "wrote beyond a row"
    assert torch.equal(bmm(a, w), view)


OFFSETS = [
    [0, 0, 0, 0],
    [0, 1, 1, 2],
    [0, 0, 5, 5],
    [0, 3, 20, 21],
    [0, 140, 140, 150],
]


@by_kind
@pytest.mark.parametrize("bounds", OFFSETS, ids=str)
def test_grouped_gemm(kind: torch.dtype, bounds: list[int]) -> None:
    n, k = 70, 300
    a, w = randn(bounds[-1] + 2, k), make_weights(kind, 3, n, k)
    offsets = torch.tensor(bounds, dtype=torch.int32)
    want, naive = budgets(reference_grouped_gemm, a, w, offsets, dtype=torch.float32)
    used = bounds[-1]
    poison(a[used:], w, bounds)
    out = torch.full((a.shape[0], n), 7.0)
    grouped_gemm(a, w, offsets, out)
    assert_error_within(out[:used], want[:used], naive[:used])
    assert (out[used:] == 7).all(), "wrote rows that belong to no expert"
    assert_repeatable(lambda: grouped_gemm(a, w, offsets, out))


@by_kind
@pytest.mark.parametrize("bounds", OFFSETS, ids=str)
@pytest.mark.parametrize("with_row_token", [True, False], ids=["gather", "direct"])
def test_grouped_swiglu(kind: torch.dtype, bounds: list[int], with_row_token: bool) -> None:
    """n = 160 is no multiple of 128: the up rows' block scales do not follow those of the gate."""
    n, k, used = 160, 300, bounds[-1]
    rows = used + 2
    tokens = 6 if with_row_token else rows
    a, w = randn(tokens, k), make_weights(kind, 3, 2 * n, k, halves=2)
    offsets = torch.tensor(bounds, dtype=torch.int32)
    row_token = None
    if with_row_token:
        row_token = torch.randint(5, (rows,), generator=torch.Generator().manual_seed(2)).int()
        row_token[used:] = 1_000_000_007
    want, naive = budgets(reference_swiglu, a, w, offsets, row_token, dtype=torch.float32)
    poison(a[5:] if with_row_token else a[used:], w, bounds)
    out = torch.full((rows, n), 7.0)
    swiglu(a, w, offsets, row_token, out)
    assert_error_within(out[:used], want[:used], naive[:used])
    assert (out[used:] == 7).all(), "wrote rows that belong to no expert"
    assert_repeatable(lambda: swiglu(a, w, offsets, row_token, out))


def poison(dead_rows: Tensor, w: Weights, bounds: list[int]) -> None:
    """NaN into rows and experts that nothing refers to."""
    dead_rows.fill_(float("nan"))
    for i in range(len(bounds) - 1):
        if bounds[i] == bounds[i + 1]:
            if w.scale is None:
                w.values[i] = float("nan")
            else:
                w.values[i].view(torch.uint8).fill_(0x7F)
                w.scale[i] = float("nan")


def test_grouped_fp8_activations_gathered() -> None:
    a, a_scale = reference.quantize_fp8_1x128(randn(5, 300))
    w = make_weights(FP8, 2, 2 * 130, 300, halves=2)
    assert w.scale is not None
    offsets = torch.tensor([0, 3, 12], dtype=torch.int32)
    row_token = torch.tensor([4, 0, 1, 2, 2, 3, 0, 1, 4, 4, 0, 3], dtype=torch.int32)
    args = (a, a_scale, w.values, w.scale, offsets, row_token)
    want = reference.fp8_grouped_gemm_swiglu_nt(*args)
    naive = reference.fp8_grouped_gemm_swiglu_nt(*args, torch.float32)
    got = ops.fp8_grouped_gemm_swiglu_nt(*args, torch.empty(12, 130))
    assert_error_within(got, want, naive)


@by_dtype
@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("m", [1, 3, 50])
def test_router_gemm(m: int, dtype: torch.dtype, weight_dtype: torch.dtype) -> None:
    x, weight = randn(m, 700, dtype=dtype), randn(37, 700, seed=1, dtype=weight_dtype)
    want, naive = budgets(reference.router_gemm, x, weight, dtype=torch.float32)
    got = ops.router_gemm(x, weight)
    assert got.dtype == torch.float32
    assert_error_within(got, want, naive)


@pytest.mark.parametrize("m", [1, 2, 3, 4, 5, 6, 7, 8, 16, 256])
@pytest.mark.parametrize("flush", [False, True], ids=["ieee", "flush-denormals"])
def test_every_e4m3_code_is_exact(m: int, flush: bool) -> None:
    """Unit activations pick single weights: each of the 256 codes comes out as it is, whatever the
    caller's flush mode; the NaN codes read as 480."""
    codes = torch.arange(256, dtype=torch.uint8)
    b = codes.roll(31).view(1, 256).view(FP8)  # roll: every code in another lane than its value
    want = b.float().nan_to_num(480.0)[0]
    want[want.eq(480) & (codes.roll(31) == 0xFF)] = -480.0
    scale = torch.tensor([[2.0**-7, 2.0**9]])
    want = want * scale.repeat_interleave(128, 1)[0]
    torch.set_flush_denormal(flush)
    try:
        for begin in range(0, 256, m):
            a = torch.eye(256)[begin : begin + m].contiguous()
            got = ops.fp8_gemm_nt(a, None, b, scale)
            assert torch.equal(got[:, 0], want[begin : begin + m])
    finally:
        torch.set_flush_denormal(False)


@by_kind
def test_rows_do_not_depend_on_batch_or_threads(kind: torch.dtype) -> None:
    """One order of summation for GEMV, small and large batches, one thread or more."""
    a, w = randn(150, 2100), make_weights(kind, 70, 2100)
    whole = gemm(a, w)
    for m in range(1, 12):
        assert torch.equal(gemm(a[:m], w), whole[:m]), f"m={m} gave other bits than m=150"
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        assert torch.equal(gemm(a, w), whole)
        assert torch.equal(gemm(a[:3], w), whole[:3])
    finally:
        torch.set_num_threads(threads)
    offsets = torch.tensor([0, 1, 9, 150], dtype=torch.int32)
    same = Weights(
        torch.stack([w.values.view(torch.uint8)] * 3).view(kind)
        if kind == FP8
        else torch.stack([w.values] * 3),
        None if w.scale is None else torch.stack([w.scale] * 3),
    )
    assert torch.equal(grouped_gemm(a, same, offsets), whole)


def test_rows_beyond_one_pass() -> None:
    """More activations than are packed at a time: groups straddle the passes."""
    k, rows = 8192, 2500
    a = torch.randint(-8, 9, (rows, k), generator=torch.Generator().manual_seed(0)).float()
    b = torch.stack([torch.full((3, k), value) for value in (1.0, 2.0, 4.0)])
    offsets = torch.tensor([0, 900, 1100, rows], dtype=torch.int32)
    want = reference.grouped_gemm_nt(a, b, offsets, torch.float32)  # small integers: exact
    assert torch.equal(ops.grouped_gemm_nt(a, b, offsets), want)


@by_kind
def test_bad_rows_stay_alone(kind: torch.dtype) -> None:
    """NaN and infinity in a row of activations reach that row's results and no other."""
    clean, w = randn(11, 200), make_weights(kind, 9, 200)
    a = clean.clone()
    a[4, 199], a[7, 0] = float("nan"), float("inf")
    got, want = gemm(a, w), gemm(clean, w)
    assert got[4].isnan().all()
    assert not got[7].isfinite().any()
    keep = [i for i in range(11) if i not in (4, 7)]
    assert torch.equal(got[keep], want[keep])


@pytest.mark.parametrize("factor", [2.0**-40, 2.0**-20, 2.0**20, 2.0**50])
def test_magnitudes(factor: float) -> None:
    """Scaling activations by a power of two scales the result exactly: nothing under- or overflows."""
    a, w = randn(3, 300), make_weights(FP8, 20, 300)
    assert torch.equal(gemm(a * factor, w), gemm(a, w) * factor)


@by_kind
def test_empty(kind: torch.dtype) -> None:
    w, groups = make_weights(kind, 9, 200), make_weights(kind, 2, 10, 200)
    pairs = make_weights(kind, 2, 10, 200, halves=2)
    assert gemm(torch.empty(0, 200), w).shape == (0, 9)
    assert bmm(torch.empty(2, 0, 200), groups).shape == (2, 0, 10)
    nothing = torch.zeros(3, dtype=torch.int32)
    assert grouped_gemm(torch.empty(0, 200), groups, nothing).shape == (0, 10)
    assert swiglu(torch.empty(0, 200), pairs, nothing, None).shape == (0, 5)
    no_k = Weights(w.values[:, :0], None if w.scale is None else w.scale[:, :0])
    assert torch.equal(gemm(torch.empty(3, 0), no_k), torch.zeros(3, 9))
    no_n = Weights(w.values[:0], None if w.scale is None else w.scale[:0])
    assert gemm(torch.empty(3, 200), no_n).shape == (3, 0)
