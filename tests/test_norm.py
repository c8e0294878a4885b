"""rms_norm, add_rms_norm, silu_mul against their references."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from seekernel import ops, reference
from tests.op_testing import assert_error_within, assert_rejects, assert_repeatable, opcheck


@dataclass(frozen=True)
class Case:
    m: int
    n: int
    dtype: torch.dtype

    def __str__(self) -> str:
        return f"m{self.m}-n{self.n}-{str(self.dtype)[6:]}"


CASES = [
    Case(m, n, dtype)
    for dtype in (torch.float32, torch.bfloat16)
    for m, n in ((1, 1), (1, 7), (3, 33), (2, 512), (5, 7168), (300, 129))
]
EPS = 1e-6


def make(case: Case, columns: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(case.m, columns, generator=generator) * 3).to(case.dtype)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16])
def test_rms_norm(case: Case, weight_dtype: torch.dtype) -> None:
    x, weight = make(case, case.n), make(case, case.n, 1)[0].to(weight_dtype)
    want, naive = (reference.rms_norm(x, weight, EPS, dtype) for dtype in (torch.float64, x.dtype))
    assert_error_within(ops.rms_norm(x, weight, EPS), want, naive)
    assert_repeatable(lambda: ops.rms_norm(x, weight, EPS))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_add_rms_norm(case: Case) -> None:
    x, residual, weight = make(case, case.n), make(case, case.n, 1), make(case, case.n, 2)[0]
    want, total = reference.add_rms_norm(x, residual, weight, EPS)
    naive, _ = reference.add_rms_norm(x, residual, weight, EPS, x.dtype)
    got = ops.add_rms_norm(x, residual, weight, EPS)
    assert torch.equal(residual, total)
    assert_error_within(got, want, naive)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_silu_mul(case: Case) -> None:
    x = make(case, 2 * case.n)
    want, naive = (reference.silu_mul(x, dtype) for dtype in (torch.float64, x.dtype))
    assert_error_within(ops.silu_mul(x), want, naive)
    assert_repeatable(lambda: ops.silu_mul(x))


def test_silu_mul_extremes() -> None:
    inf = float("inf")
    gate = torch.tensor([[0.0, -0.0, 1e4, -1e4, 88.0, -88.0, inf, float("nan"), 1e-30]])
    x = torch.cat([gate, torch.ones_like(gate)], dim=1)
    want = reference.silu_mul(x)
    assert_error_within(ops.silu_mul(x), want, want.float())


def test_strided_rows_and_given_out() -> None:
    wide = torch.randn(4, 100)
    x, weight = wide[:, 10:74], torch.randn(64)
    out = torch.full((4, 80), float("nan"))
    result = ops.rms_norm(x, weight, EPS, out=out[:, :64])
    assert result.data_ptr() == out.data_ptr()
    assert torch.equal(out[:, :64], ops.rms_norm(x.contiguous(), weight, EPS))
    assert out[:, 64:].isnan().all(), "wrote beyond the row"


def test_empty() -> None:
    assert ops.rms_norm(torch.empty(0, 8), torch.ones(8), EPS).shape == (0, 8)
    assert ops.silu_mul(torch.empty(0, 8)).shape == (0, 4)
    residual = torch.empty(0, 8)
    assert ops.add_rms_norm(torch.empty(0, 8), residual, torch.ones(8), EPS).shape == (0, 8)


def test_opcheck() -> None:
    x, weight = torch.randn(3, 16), torch.randn(16)
    opcheck("rms_norm", x, weight, EPS, torch.empty(3, 16))
    opcheck("add_rms_norm", x, torch.randn(3, 16), weight, EPS, torch.empty(3, 16))
    opcheck("silu_mul", x, torch.empty(3, 8))


def test_rejects() -> None:
    x, weight = torch.randn(3, 16), torch.randn(16)
    assert_rejects(
        "rms_norm: weight: expected shape [n=16], got shape [15]", ops.rms_norm, x, weight[:15], EPS
    )
    assert_rejects(
        "rms_norm: x: expected dtype float32 or bfloat16", ops.rms_norm, x.half(), weight, EPS
    )
    assert_rejects(
        "x: expected stride 1 in the last dim", ops.rms_norm, torch.randn(16, 3).t(), weight, EPS
    )
    assert_rejects("out: expected dtype float32 as x", ops.rms_norm, x, weight, EPS, x.bfloat16())
    assert_rejects(
        "add_rms_norm: residual: expected shape [m=3, n=16]",
        ops.add_rms_norm,
        x,
        x[:2],
        weight,
        EPS,
    )
    assert_rejects(
        "silu_mul: x: expected shape [m=3, 16]", ops.silu_mul, x[:, :15], torch.empty(3, 8)
    )
