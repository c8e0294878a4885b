"""Layouts of the grouped GEMMs, int4 weights, batched FP8 activations, FP8 outputs: the CPU ops against the reference."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from seekernel import ops, reference
from tests.gemm_testing import make_weights, opcheck_fp8, randn
from tests.op_testing import assert_error_within, assert_rejects, assert_repeatable

FP8 = torch.float8_e4m3fn
NAN = float("nan")


def int32(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def quantized(a: Tensor) -> tuple[Tensor, Tensor]:
    """[..., m, k] with scales, NaN in the scales of rows that do not exist."""
    pairs = [reference.quantize_fp8_1x128(x) for x in a.reshape(-1, *a.shape[-2:])]
    q = torch.stack([x.view(torch.uint8) for x, _ in pairs]).view(FP8)
    scale = torch.stack([s for _, s in pairs])
    scale[..., a.shape[-2] :] = NAN
    return q.view(a.shape), scale.view(*a.shape[:-2], *scale.shape[-2:])


# (layout, groups argument, rows): groups without rows, rows of nobody, one group with all.
LAYOUTS = [
    ("offsets", int32(0, 3, 3, 9), 12),
    ("contiguous", int32(0, 0, -1, 2, 2, 2, -1, 0, 1, 1), 10),
    ("contiguous", int32(-1, -1), 2),
    ("masked", int32(4, 0, 1), 5),
    ("masked", int32(0, 0, 0), 3),
]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("fp8", [False, True])
@pytest.mark.parametrize(("layout", "groups", "rows"), LAYOUTS)
def test_layouts(layout: str, groups: Tensor, rows: int, fp8: bool, weighted: bool) -> None:
    if weighted and layout == "masked":
        pytest.skip("no row weights there")
    n, k = 136, 384
    weights = make_weights(FP8, 3, n, k)
    assert weights.scale is not None
    shape = (3, rows, k) if layout == "masked" else (rows, k)
    a = randn(*shape)
    runs = reference.group_runs(groups, layout)
    live = torch.zeros(shape[:-1], dtype=torch.bool)
    for _, matrix, begin, end in runs:
        (live[matrix] if layout == "masked" else live)[begin:end] = True
    x, scale = quantized(a) if fp8 else (a.clone(), None)
    if fp8:
        x.view(torch.uint8)[~live] = 0x7F  # NaN in rows of nobody
    else:
        x[~live] = NAN
    row_weight = torch.rand(rows) if weighted else None
    if row_weight is not None:
        row_weight[~live] = NAN
    out = torch.full((*shape[:-1], n), 77.0)
    call = lambda: ops.fp8_grouped_gemm_nt(
        x, scale, weights.values, weights.scale, groups, out, layout=layout, row_weight=row_weight
    )
    call()
    arguments = (x, scale, weights.values, weights.scale, groups)
    want, naive = (
        reference.fp8_grouped_gemm_nt(*arguments, dtype, layout, row_weight)
        for dtype in (torch.float64, torch.float32)
    )
    assert_error_within(out[live], want[live], naive[live])
    assert (out[~live] == 77).all(), "wrote rows of nobody"
    assert_repeatable(call)


@pytest.mark.parametrize(
    ("g", "m", "n", "k"), [(3, 5, 40, 200), (2, 130, 136, 256), (1, 1, 8, 128)]
)
def test_fp8_bmm_with_scaled_activations(g: int, m: int, n: int, k: int) -> None:
    weights = make_weights(FP8, g, n, k)
    assert weights.scale is not None
    arguments = (*quantized(randn(g, m, k)), weights.values, weights.scale)
    got = ops.fp8_bmm_nt(*arguments, out=torch.empty(g, m, n))
    want, naive = (reference.fp8_bmm_nt(*arguments, d) for d in (torch.float64, torch.float32))
    assert_error_within(got, want, naive)


def test_swiglu_to_fp8() -> None:
    weights = make_weights(FP8, 3, 512, 256, halves=2)
    assert weights.scale is not None
    a, offsets, token = randn(4, 256), int32(0, 2, 2, 7), int32(3, 1, 0, 2, 2, 1, 0, 9, 9)
    wide = ops.fp8_grouped_gemm_swiglu_nt(
        a, None, weights.values, weights.scale, offsets, token, torch.zeros(9, 256)
    )
    out = torch.full((9, 256), 0x55, dtype=torch.uint8).view(FP8)
    scale = torch.full((2, 12), 5.0)
    ops.fp8_grouped_gemm_swiglu_nt(
        a, None, weights.values, weights.scale, offsets, token, out, out_scale=scale
    )
    want_q, want_scale = reference.quantize_fp8_1x128(wide[:7])
    assert torch.equal(out[:7].view(torch.uint8), want_q.view(torch.uint8))
    assert torch.equal(scale[:, :7], want_scale[:, :7])
    assert (out[7:].view(torch.uint8) == 0x55).all()
    assert (scale[:, 7:] == 5).all()


# ---- w4a8 ----


def int4_weights(g: int, n: int, k: int) -> tuple[Tensor, Tensor]:
    pairs = [reference.quantize_int4_g128(w) for w in randn(g, n, k, seed=3)]
    q, scale = (torch.stack(parts) for parts in zip(*pairs, strict=True))
    return q, scale


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, FP8], ids=str)
@pytest.mark.parametrize(
    ("rows", "g", "n", "k"),
    [(7, 3, 130, 300), (1, 1, 64, 128), (200, 2, 40, 1024), (5, 2, 33, 130), (3, 1, 8, 2)],
)
def test_w4a8(rows: int, g: int, n: int, k: int, dtype: torch.dtype) -> None:
    b, b_scale = int4_weights(g, n, k)
    offsets = torch.linspace(0, rows, g + 1).to(torch.int32)
    a, alpha = randn(rows, k).to(dtype), torch.tensor([0.37]) if dtype == FP8 else None
    out = torch.empty(rows, n)
    call = lambda: ops.w4a8_grouped_gemm_nt(a, alpha, b, b_scale, offsets, out)
    call()
    want, naive = (
        reference.w4a8_grouped_gemm_nt(a, alpha, b, b_scale, offsets, d)
        for d in (torch.float64, torch.float32)
    )
    assert_error_within(out, want, naive)
    assert_repeatable(call)


def test_w4a8_reads_all_sixteen_codes() -> None:
    b = torch.arange(256, dtype=torch.uint8).view(1, 4, 64)
    eye = torch.eye(128)
    got = ops.w4a8_grouped_gemm_nt(eye, None, b, torch.ones(1, 4, 1), int32(0, 128))
    want = reference.dequantize_int4_g128(b, torch.ones(1, 4, 1))[0].t()
    assert torch.equal(got.double(), want)
    assert set(want.flatten().tolist()) == set(range(-8, 8))


def test_w4a8_bits_do_not_depend_on_the_batch() -> None:
    b, b_scale = int4_weights(1, 24, 640)
    a = randn(9, 640)
    whole = ops.w4a8_grouped_gemm_nt(a, None, b, b_scale, int32(0, 9))
    for rows in (1, 2, 3, 5):
        part = ops.w4a8_grouped_gemm_nt(a[:rows], None, b, b_scale, int32(0, rows))
        assert torch.equal(part, whole[:rows])


def test_opcheck_and_rejects() -> None:
    b, b_scale = int4_weights(2, 24, 256)
    a, offsets = randn(3, 256), int32(0, 1, 3)
    opcheck_fp8("w4a8_grouped_gemm_nt", a, None, b, b_scale, offsets, torch.zeros(3, 24))
    op = ops.w4a8_grouped_gemm_nt
    assert_rejects("b: expected shape", op, a[:, :128], None, b, b_scale, offsets)
    assert_rejects("b: expected dtype uint8", op, a, None, b.to(torch.int8), b_scale, offsets)
    assert_rejects("a_scale: expected None", op, a, torch.ones(1), b, b_scale, offsets)
    assert_rejects("a_scale: expected a tensor", op, a.to(FP8), None, b, b_scale, offsets)
    weights = make_weights(FP8, 2, 24, 256)
    assert weights.scale is not None
    grouped = (a, None, weights.values, weights.scale)
    op = ops.fp8_grouped_gemm_nt
    assert_rejects("layout: expected 'offsets'", lambda: op(*grouped, offsets, layout="padded"))
    assert_rejects(
        "m_indices: expected values in [-1, g=2), got 2 at 1",
        lambda: op(*grouped, int32(0, 2, -1), layout="contiguous"),
    )
    stack = (randn(2, 3, 256), *grouped[1:])
    assert_rejects(
        "masked_m: expected values in [0, m=3], got 4 at 1",
        lambda: op(*stack, int32(0, 4), layout="masked"),
    )
