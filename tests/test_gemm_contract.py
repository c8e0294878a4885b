"""Contracts of the GEMM ops: opcheck, strided tensors, and the text of every rejection."""

from __future__ import annotations

import torch

from seekernel import ops, reference
from tests.gemm_testing import FP8, make_weights, opcheck_fp8, randn
from tests.op_testing import assert_rejects, opcheck

OFFSETS = torch.tensor([0, 2, 3], dtype=torch.int32)
ROW_TOKEN = torch.tensor([1, 0, 2, 9], dtype=torch.int32)


def test_opcheck() -> None:
    x, a = randn(3, 40), randn(2, 3, 40)
    w, e = make_weights(FP8, 6, 40), make_weights(FP8, 2, 6, 40)
    opcheck_fp8("fp8_gemm_nt", x, None, w.values, w.scale, torch.empty(3, 6))
    opcheck_fp8(
        "fp8_gemm_nt", *reference.quantize_fp8_1x128(x), w.values, w.scale, torch.empty(3, 6)
    )
    opcheck_fp8("fp8_bmm_nt", a, None, e.values, e.scale, torch.empty(2, 3, 6))
    opcheck_fp8("fp8_grouped_gemm_nt", x, None, e.values, e.scale, OFFSETS, torch.zeros(3, 6))
    pair = make_weights(FP8, 2, 6, 40, halves=2)
    opcheck_fp8(
        "fp8_grouped_gemm_swiglu_nt",
        *(x, None, pair.values, pair.scale, OFFSETS, ROW_TOKEN, torch.zeros(4, 3)),
    )
    opcheck("gemm_nt", x, randn(6, 40), torch.empty(3, 6))
    opcheck("bmm_nt", a, randn(2, 6, 40), torch.empty(2, 3, 6))
    opcheck("grouped_gemm_nt", x, randn(2, 6, 40), OFFSETS, torch.zeros(3, 6))
    opcheck("grouped_gemm_swiglu_nt", x, randn(2, 6, 40), OFFSETS, None, torch.zeros(3, 3))
    opcheck("router_gemm", x, randn(6, 40), torch.empty(3, 6))


def test_strided_rows_and_given_out() -> None:
    w = make_weights(FP8, 10, 64)
    assert w.scale is not None
    a = randn(5, 100)[:, 7:71]
    out = torch.full((5, 20), 7.0)
    result = ops.fp8_gemm_nt(a, None, w.values, w.scale, out[:, 4:14])
    assert result.data_ptr() == out[:, 4:14].data_ptr()
    assert torch.equal(result, ops.fp8_gemm_nt(a.contiguous(), None, w.values, w.scale))
    assert (out[:, :4] == 7).all()
    assert (out[:, 14:] == 7).all()
    wide = torch.zeros(10, 80, dtype=torch.uint8)
    wide[:, :64] = w.values.view(torch.uint8)
    assert torch.equal(ops.fp8_gemm_nt(a, None, wide.view(FP8)[:, :64], w.scale), result)


def test_rejects_dense() -> None:
    a, w = randn(3, 200), make_weights(FP8, 6, 200)
    b, scale = w.values, w.scale
    assert scale is not None
    fp8 = ops.fp8_gemm_nt
    assert_rejects(
        "fp8_gemm_nt: a: expected dtype float32 or bfloat16 or float8_e4m3fn, got shape [3, 200], "
        "strides [200, 1], dtype float16, cpu",
        *(fp8, a.half(), None, b, scale),
    )
    assert_rejects(
        "fp8_gemm_nt: a: expected shape [m, k], got shape [200]", fp8, a[0], None, b, scale, a
    )
    assert_rejects("a: expected stride 1 in the last dim", fp8, randn(200, 3).t(), None, b, scale)
    assert_rejects(
        "b: expected shape [6, k=200], got shape [6, 199]", fp8, a, None, b[:, :199], scale
    )
    assert_rejects("b: expected dtype float8_e4m3fn", fp8, a, None, b.float(), scale)
    assert_rejects(
        "b_scale: expected shape [1, 2], got shape [1, 1]", fp8, a, None, b, scale[:, :1]
    )
    assert_rejects("b_scale: expected dtype float32", fp8, a, None, b, scale.double())
    assert_rejects(
        "out: expected shape [m=3, n], got shape [2, 6]", fp8, a, None, b, scale, torch.empty(2, 6)
    )
    assert_rejects(
        "out: expected dtype float32 or bfloat16", fp8, a, None, b, scale, torch.empty(3, 6).half()
    )
    assert_rejects(
        "fp8_gemm_nt: a_scale: expected None as a is not float8_e4m3fn, got a tensor",
        *(fp8, a, torch.ones(2, 4), b, scale),
    )
    assert_rejects(
        "fp8_gemm_nt: a_scale: expected a tensor as a is float8_e4m3fn, got None",
        *(fp8, a.to(FP8), None, b, scale),
    )
    assert_rejects(
        "a_scale: expected shape [2, 4], got shape [2, 3]",
        fp8,
        a.to(FP8),
        torch.ones(2, 3),
        b,
        scale,
    )
    assert_rejects("gemm_nt: b: expected dtype float32 or bfloat16", ops.gemm_nt, a, b)
    assert_rejects("gemm_nt: a: expected dtype float32 or bfloat16", ops.gemm_nt, a.to(FP8), a)
    assert_rejects(
        "router_gemm: weight: expected shape [6, k=200]", ops.router_gemm, a, randn(6, 9)
    )
    assert_rejects("router_gemm: x: expected dtype float32", ops.router_gemm, a.double(), a)
    assert_rejects(
        "out: expected dtype float32,", ops.router_gemm, a, a, torch.empty(3, 3).bfloat16()
    )


def test_rejects_batched() -> None:
    a, e = randn(2, 3, 200), make_weights(FP8, 2, 6, 200)
    assert e.scale is not None
    assert_rejects(
        "fp8_bmm_nt: a_scale: expected None as a is not float8_e4m3fn, got a tensor",
        *(ops.fp8_bmm_nt, a, torch.ones(2, 4), e.values, e.scale),
    )
    assert_rejects("bmm_nt: b: expected shape [g=2, 6, k=200]", ops.bmm_nt, a, randn(3, 6, 200))
    assert_rejects("bmm_nt: out: expected shape [g=2, m=3, n]", ops.bmm_nt, a, a, randn(2, 4, 3))
    assert_rejects(
        "b_scale: expected shape [g=2, 1, 2]", ops.fp8_bmm_nt, a, None, e.values, e.scale[:1]
    )


def test_rejects_grouped() -> None:
    x, e = randn(3, 200), make_weights(FP8, 2, 2 * 130, 200, halves=2)
    assert e.scale is not None
    assert e.scale.shape == (2, 4, 2)
    plain, fused = ops.grouped_gemm_nt, ops.fp8_grouped_gemm_swiglu_nt
    b = randn(2, 6, 200)

    def offsets(*values: int) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int32)

    op = "grouped_gemm_nt: offsets: expected "
    assert_rejects(op + "shape [3], got shape [2]", plain, x, b, offsets(0, 1))
    assert_rejects(op + "dtype int32", plain, x, b, offsets(0, 1, 3).long())
    assert_rejects(op + "offsets[0] = 0, got 1", plain, x, b, offsets(1, 2, 3))
    assert_rejects(op + "ascending values, got 2 then 1 at 2", plain, x, b, offsets(0, 2, 1))
    assert_rejects(op + "ascending values, got 0 then -5 at 1", plain, x, b, offsets(0, -5, 3))
    assert_rejects(op + "at most rows=3, got 4", plain, x, b, offsets(0, 2, 4))
    assert_rejects(
        "fp8_grouped_gemm_swiglu_nt: row_token: expected values in [0, m=3), got 3 at 1",
        *(fused, x, None, e.values, e.scale, offsets(0, 1, 2), offsets(0, 3)),
    )
    assert_rejects(
        "row_token: expected values in [0, m=3), got -1 at 0",
        *(fused, x, None, e.values, e.scale, offsets(0, 1, 2), offsets(-1, 0)),
    )
    assert_rejects(
        "row_token: expected shape [4], got shape [3]",
        *(fused, x, None, e.values, e.scale, offsets(0, 1, 2), offsets(0, 1, 1), randn(4, 130)),
    )
    assert_rejects(
        "out: expected shape [rows=3, n]",
        *(fused, x, None, e.values, e.scale, offsets(0, 1, 2), None, randn(4, 130)),
    )
    assert_rejects(
        "b: expected shape [g=2, 260, k=200], got shape [2, 259, 200]",
        *(fused, x, None, e.values[:, :259], e.scale, offsets(0, 1, 2), None, randn(3, 130)),
    )
    assert_rejects(
        "b_scale: expected shape [g=2, 4, 2], got shape [2, 3, 2]",
        *(fused, x, None, e.values, e.scale[:, :3], offsets(0, 1, 2)),
    )
