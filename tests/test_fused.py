"""The fused row ops on the CPU: the bits of the ops that they are made of, and the references' values."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from seekernel import ops, reference
from seekernel.ops import NormedRows
from tests.op_testing import assert_error_within, assert_rejects, assert_repeatable, opcheck

EPS = 1e-6
DTYPES = [torch.float32, torch.bfloat16]
SHAPES = [(1, 8), (3, 128), (5, 301), (4, 1040), (130, 264)]


def rows(m: int, n: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(m, n, generator=generator) * 3).to(dtype)


def same_bits(got: Tensor, want: Tensor) -> bool:
    return torch.equal(got.contiguous().view(torch.uint8), want.contiguous().view(torch.uint8))


def assert_same_rows(got: NormedRows, x: Tensor) -> None:
    q, scale = ops.quantize_fp8_1x128(x)
    assert same_bits(got.x, x)
    assert got.q is not None
    assert got.scale is not None
    assert same_bits(got.q, q)
    assert same_bits(got.scale, scale)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_add_rms_norm_quantize(m: int, n: int, dtype: torch.dtype) -> None:
    x, residual, weight = rows(m, n, dtype), rows(m, n, dtype, 1), rows(1, n, dtype, 2)[0]
    fused, unfused = residual.clone(), residual.clone()
    got = ops.add_rms_norm_quantize(x, fused, weight, EPS)
    assert_same_rows(got, ops.add_rms_norm(x, unfused, weight, EPS))
    assert same_bits(fused, unfused)
    want = reference.add_rms_norm_quantize(x, residual, weight, EPS)
    naive = reference.add_rms_norm_quantize(x, residual, weight, EPS, dtype=dtype)
    assert_error_within(got.x, want[0].double(), naive[0])
    assert_repeatable(lambda: ops.add_rms_norm_quantize(x, residual.clone(), weight, EPS))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("table_dtype", DTYPES, ids=str)
def test_embedding_norm(dtype: torch.dtype, table_dtype: torch.dtype) -> None:
    table, weight = rows(50, 264, table_dtype), rows(1, 264, torch.float32)[0]
    ids = torch.tensor([49, 0, 7, 7, 3])
    residual = torch.full((5, 264), float("nan"), dtype=dtype)
    got = ops.add_rms_norm_quantize(None, residual, weight, EPS, True, ids, table)
    assert same_bits(residual, table[ids].to(dtype))
    assert_same_rows(got, ops.rms_norm(residual, weight, EPS))
    bad = torch.tensor([49, 0, -1, 7, 50])
    f = ops.add_rms_norm_quantize
    assert_rejects("token_ids: expected 0 to 49, got -1", f, None, residual, weight, EPS, True, bad, table)  # fmt: skip


def test_plain_norm_leaves_residual_alone_and_quantised_rows_need_no_out() -> None:
    residual, weight = rows(6, 300, torch.bfloat16), rows(1, 300, torch.bfloat16, 1)[0]
    before = residual.clone()
    want = ops.add_rms_norm_quantize(None, residual, weight, EPS)
    assert same_bits(residual, before)
    assert want.q is not None
    assert want.scale is not None
    q, scale = torch.empty_like(want.q), torch.full_like(want.scale, float("nan"))
    raw = torch.ops.seekernel.add_rms_norm_quantize
    raw(None, residual, weight, EPS, None, q, scale)
    assert same_bits(q, want.q)
    assert same_bits(scale, want.scale)
    only = ops.add_rms_norm_quantize(None, residual, weight, EPS, quantize=False)
    assert only.q is None
    assert same_bits(only.x, want.x)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_silu_mul_quantize(m: int, n: int, dtype: torch.dtype) -> None:
    x = rows(m, 2 * n, dtype)
    for got, want in zip(ops.silu_mul_quantize(x), ops.quantize_fp8_1x128(ops.silu_mul(x)), strict=True):  # fmt: skip
        assert same_bits(got, want)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("with_shared", [False, True])
@pytest.mark.parametrize(("m", "n", "top_k"), [(1, 264, 8), (5, 301, 3), (66, 128, 9)])
def test_moe_finalize_norm(m: int, n: int, top_k: int, with_shared: bool, dtype: torch.dtype) -> None:  # fmt: skip
    generator = torch.Generator().manual_seed(m)
    token_row = torch.randint(-1, 40, (m, top_k), generator=generator, dtype=torch.int32)
    y, residual = rows(40, n, dtype), rows(m, n, dtype, 1)
    weights, weight = torch.rand(m, top_k, generator=generator), rows(1, n, dtype, 2)[0]
    shared = rows(m, n, dtype, 3) if with_shared else None
    fused, unfused = residual.clone(), residual.clone()
    got = ops.moe_finalize_norm(y, token_row, weights, fused, weight, EPS, shared, quantize=True)
    total = ops.moe_finalize(y, token_row, weights, shared)
    assert_same_rows(got, ops.add_rms_norm(total, unfused, weight, EPS))
    assert same_bits(fused, unfused)
    added, out = residual.clone(), torch.empty_like(residual)
    torch.ops.seekernel.moe_finalize(y, token_row, weights, shared, out, added)
    assert same_bits(out, total)
    assert same_bits(added, unfused)


def test_moe_permute_fp8() -> None:
    q, scale = ops.quantize_fp8_1x128(rows(30, 300, torch.float32))
    row_token = torch.randint(-1, 30, (50,), generator=torch.Generator().manual_seed(0)).int()
    q_out = torch.zeros(50, 300).to(q.dtype)
    scale_out = torch.full((3, 52), 7.0)
    want = reference.moe_permute_fp8(q, scale, row_token, q_out, scale_out)
    got = ops.moe_permute_fp8(q, scale, row_token, q_out, scale_out)
    assert all(same_bits(a, b) for a, b in zip(got, want, strict=True))
    assert_rejects("row_token: expected -1 or a token below m=30, got 30", ops.moe_permute_fp8, q, scale, row_token.clamp(30, 30))  # fmt: skip


def test_empty() -> None:
    x, weight = torch.empty(0, 256), torch.ones(256)
    assert ops.add_rms_norm_quantize(x, x.clone(), weight, EPS).x.shape == (0, 256)
    assert ops.silu_mul_quantize(x)[0].shape == (0, 128)
    q, scale = ops.quantize_fp8_1x128(torch.ones(4, 256))
    assert ops.moe_permute_fp8(q, scale, torch.empty(0, dtype=torch.int32))[0].shape == (0, 256)


def test_rejects() -> None:
    x, weight = torch.randn(3, 16), torch.randn(16)
    q, scale = ops.quantize_fp8_1x128(x)
    raw = torch.ops.seekernel
    f = raw.add_rms_norm_quantize
    assert_rejects("q and scale: expected both or neither", f, x, x, weight, EPS, None, q, None)
    assert_rejects("out, q: expected at least one", f, x, x, weight, EPS, None, None, None)
    assert_rejects("x: expected dtype float32 as residual", f, x.bfloat16(), x, weight, EPS, x, None, None)  # fmt: skip
    assert_rejects("scale: expected shape [ceil(n/128)=1, round_up(m, 4)=4]", f, x, x, weight, EPS, None, q, scale[:, :3])  # fmt: skip
    assert_rejects("token_ids and embedding: expected both", f, x, x, weight, EPS, x, None, None, None, x)  # fmt: skip
    rows_, weights = torch.zeros(3, 2, dtype=torch.int32), torch.rand(3, 2)
    g = raw.moe_finalize
    assert_rejects("out, residual: expected at least one", g, x, rows_, weights, None, None)
    assert_rejects("residual: expected with norm_weight", g, x, rows_, weights, None, x, None, weight, EPS, x)  # fmt: skip
    assert_rejects("expected with norm_weight only", g, x, rows_, weights, None, x, None, None, EPS, x)  # fmt: skip


def test_opcheck() -> None:
    # Its schema test cannot compare e4m3 tensors: without those.
    x, weight = torch.randn(5, 264), torch.randn(264)
    out = torch.empty_like(x)
    opcheck("add_rms_norm_quantize", x, x.clone(), weight, EPS, out, None, None)
    token_row, weights = torch.zeros(5, 2, dtype=torch.int32), torch.rand(5, 2)
    opcheck("moe_finalize", x, token_row, weights, None, None, x.clone(), weight, EPS, out)
