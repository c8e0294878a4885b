"""The block quantisers: the same bits as torch's e4m3, and as round and clamp for int4."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from seekernel import ops, reference
from tests.op_testing import (
    assert_error_within,
    assert_rejects,
    assert_repeatable,
)

E4M3 = torch.float8_e4m3fn
INF, NAN = float("inf"), float("nan")
SHAPES = [(1, 1), (1, 128), (3, 127), (4, 129), (5, 300), (128, 128), (129, 257), (300, 7168)]
DTYPES = [torch.float32, torch.bfloat16]


def make(m: int, k: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(m, k, generator=generator)
    # Groups of very different magnitude: a scale taken from a neighbour would show.
    return (x * torch.logspace(-6, 6, m * k).view(m, k)[torch.randperm(m, generator=generator)]).to(
        dtype
    )


def assert_same_bits(got: tuple[Tensor, Tensor], want: tuple[Tensor, Tensor]) -> None:
    assert torch.equal(got[1].view(torch.int32), want[1].view(torch.int32)), "scale"
    assert torch.equal(got[0].view(torch.uint8), want[0].view(torch.uint8)), "q"


def all_bfloat16() -> Tensor:
    return torch.arange(-(2**15), 2**15, dtype=torch.int16).view(torch.bfloat16)


def e4m3_corners() -> Tensor:
    """Every e4m3 value, every midpoint of two, and their float32 neighbours on both sides."""
    values = torch.arange(127, dtype=torch.uint8).view(E4M3).float()
    points = torch.cat([values, (values[1:] + values[:-1]) / 2])
    around = [points, torch.nextafter(points, points + 1), torch.nextafter(points, points - 1)]
    magnitudes = torch.cat(around).clamp(max=448)
    return torch.cat([magnitudes, -magnitudes])


def with_unit_scale(values: Tensor) -> Tensor:
    """Rows of 128 whose largest magnitude is 448, so that the group's scale is exactly 1."""
    rows = torch.nn.functional.pad(values, (0, -len(values) % 127)).view(-1, 127)
    return torch.cat([rows, torch.full_like(rows[:, :1], 448.0)], dim=1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("m", "k"), SHAPES)
def test_quantize_fp8_1x128(m: int, k: int, dtype: torch.dtype) -> None:
    x = make(m, k, dtype)
    assert_same_bits(ops.quantize_fp8_1x128(x), reference.quantize_fp8_1x128(x))
    assert_repeatable(lambda: ops.quantize_fp8_1x128(x))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_quantize_fp8_128x128(n: int, k: int, dtype: torch.dtype) -> None:
    w = make(n, k, dtype)
    assert_same_bits(ops.quantize_fp8_128x128(w), reference.quantize_fp8_128x128(w))
    assert_repeatable(lambda: ops.quantize_fp8_128x128(w))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_dequantize_fp8_128x128(n: int, k: int, dtype: torch.dtype) -> None:
    q, scale = reference.quantize_fp8_128x128(make(n, k, torch.float32))
    want = reference.dequantize_fp8_128x128(q, scale)
    got = ops.dequantize_fp8_128x128(q, scale, dtype)
    assert got.dtype == dtype
    assert torch.equal(got, want.float().to(dtype)), "one float32 product, rounded once"
    assert_repeatable(lambda: ops.dequantize_fp8_128x128(q, scale, dtype))


def test_quantisation_error_is_half_a_step() -> None:
    w = make(256, 384, torch.float32)
    q, scale = ops.quantize_fp8_128x128(w)
    error = (ops.dequantize_fp8_128x128(q, scale) - w).abs()
    step = scale.repeat_interleave(128, 0).repeat_interleave(128, 1)
    assert (error <= torch.maximum(w.abs() * 2.0**-4, step * 2.0**-10) * (1 + 1e-6)).all()


@pytest.mark.parametrize("quantize", ["quantize_fp8_1x128", "quantize_fp8_128x128"])
def test_every_bfloat16(quantize: str) -> None:
    patterns = all_bfloat16()
    rows = patterns.view(-1, 128)  # neighbours share an exponent: all values reach the top of e4m3
    assert_same_bits(getattr(ops, quantize)(rows), getattr(reference, quantize)(rows))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_conversion_of_every_bfloat16_is_torch_s(dtype: torch.dtype) -> None:
    patterns = all_bfloat16()
    x = with_unit_scale(patterns[(patterns.abs() <= 448) | patterns.isnan()]).to(dtype)
    q, scale = ops.quantize_fp8_1x128(x)
    assert (scale[0, : len(x)] == 1).all()
    assert torch.equal(q.view(torch.uint8), x.to(E4M3).view(torch.uint8))


def test_conversion_at_ties_and_their_neighbours() -> None:
    x = with_unit_scale(e4m3_corners())
    q, _ = ops.quantize_fp8_1x128(x)
    assert torch.equal(q.view(torch.uint8), x.to(E4M3).view(torch.uint8))


def test_conversion_saturates() -> None:
    # A block whose scale is the smallest float32: its larger values are beyond 448 scales.
    w = torch.tensor([[600.0, -600.0, 448.0, 447.0, 1.0]]).double() * 2.0**-149
    q, scale = ops.quantize_fp8_128x128(w.float())
    assert scale.item() == 2.0**-149
    assert q.float().tolist() == [[448.0, -448.0, 448.0, 448.0, 1.0]]


def test_every_code_dequantizes_as_torch_does() -> None:
    codes = torch.arange(256, dtype=torch.uint8).view(1, 256).repeat(3, 1)[:, :251].view(E4M3)
    scale = torch.ones(1, 2)
    for flush in (False, True):
        torch.set_flush_denormal(flush)
        try:
            got = ops.dequantize_fp8_128x128(codes, scale)
        finally:
            torch.set_flush_denormal(False)
        want = codes.to(torch.float64)
        assert_error_within(got, want, want.float(), factor=0.0)
        assert torch.equal(torch.nan_to_num(got), torch.nan_to_num(want.float()))


def test_scale_floors() -> None:
    tiny = torch.tensor([[1e-5, -1e-6, 0.0]])
    q, scale = ops.quantize_fp8_1x128(tiny)
    assert scale[0, 0] == torch.tensor(1e-4) / 448
    assert q.float()[0, 2] == 0
    q, scale = ops.quantize_fp8_128x128(torch.zeros(2, 3))
    assert scale.item() == 1.0
    assert (q.float() == 0).all()
    _, scale = ops.quantize_fp8_128x128(tiny)
    assert scale.item() == (torch.tensor(1e-5) / 448).item(), "weights have no floor but zero"


def test_nan_and_infinity_stay_where_they_are() -> None:
    x = torch.ones(2, 256)
    x[0, 3], x[0, 200], x[1, 0] = NAN, -INF, 2.0
    q, scale = ops.quantize_fp8_1x128(x)
    values = q.float()
    assert values[0, 3].isnan()
    assert values[0, 200].isnan()
    assert scale[0, 0] == torch.tensor(1.0) / 448, "a NaN does not count in amax"
    assert scale[1, 0].isinf()
    assert values[0].isnan().sum() == 2
    assert values[1].isfinite().all()
    assert_same_bits((q, scale), reference.quantize_fp8_1x128(x))


def test_strided_rows_and_given_out() -> None:
    wide = make(6, 400, torch.bfloat16)
    x = wide[:, 10:310]
    want = ops.quantize_fp8_1x128(x.contiguous())
    q = torch.full((6, 320), 1.0).to(E4M3)
    scale = torch.full((3, 10), NAN)
    got = ops.quantize_fp8_1x128(x, q[:, :300], scale[:, :8])
    assert got[0].data_ptr() == q.data_ptr()
    assert_same_bits((got[0].contiguous(), got[1].contiguous()), want)
    assert (q[:, 300:].float() == 1).all(), "wrote beyond the row"
    assert scale[:, 8:].isnan().all(), "wrote beyond round_up(m, 4)"
    assert (scale[:, 6:8] == 0).all(), "padding columns are zero"
    out = torch.full((6, 310), NAN)
    block_scale = torch.rand(1, 5)[:, :3]
    ops.dequantize_fp8_128x128(q[:, :300], block_scale, out=out[:, :300])
    assert torch.equal(out[:, :300], ops.dequantize_fp8_128x128(want[0], block_scale.contiguous()))
    assert out[:, 300:].isnan().all()


@pytest.mark.parametrize(("m", "k"), [(0, 8), (8, 0), (0, 0)])
def test_empty(m: int, k: int) -> None:
    x = torch.empty(m, k)
    q, scale = ops.quantize_fp8_1x128(x)
    assert q.shape == (m, k)
    assert scale.shape == (-(-k // 128), -(-m // 4) * 4)
    q, scale = ops.quantize_fp8_128x128(x)
    assert scale.shape == (-(-m // 128), -(-k // 128))
    assert ops.dequantize_fp8_128x128(q, scale).shape == (m, k)


def opcheck_fp8(name: str, *args: Tensor) -> None:
    """opcheck without test_schema, whose comparison multiplies tensors: torch has no e4m3 product."""
    op = getattr(torch.ops.seekernel, name).default
    tests = ("test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(op, args, test_utils=tests)
    before = [arg.clone() for arg in args]
    op(*args)
    for argument, old, new in zip(op._schema.arguments, before, args, strict=True):
        written = argument.alias_info is not None and argument.alias_info.is_write
        same = torch.equal(old.view(torch.uint8), new.view(torch.uint8))
        assert same != written, f"{argument.name}: the schema's alias mark is wrong"


def test_opcheck() -> None:
    x = torch.randn(5, 130)
    q, nan = torch.zeros(5, 130).to(E4M3), torch.full((2, 8), NAN)
    opcheck_fp8("quantize_fp8_1x128", x, q.clone(), nan.clone())
    opcheck_fp8("quantize_fp8_128x128", x, q.clone(), nan[:1, :2].clone())
    filled, scale = ops.quantize_fp8_128x128(x)
    opcheck_fp8("dequantize_fp8_128x128", filled, scale, torch.full((5, 130), NAN))


def test_rejects() -> None:
    x = torch.randn(5, 130)
    q, scale = ops.quantize_fp8_1x128(x)
    f = ops.quantize_fp8_1x128
    assert_rejects("quantize_fp8_1x128: x: expected dtype float32 or bfloat16", f, x.half())
    assert_rejects("x: expected stride 1 in the last dim", f, x.t())
    assert_rejects("q: expected dtype float8_e4m3fn", f, x, torch.empty(5, 130))
    assert_rejects("q: expected shape [m=5, k=130], got shape [4, 130]", f, x, q[:4])
    assert_rejects(
        "scale: expected shape [ceil(k/128)=2, round_up(m, 4)=8], got shape [2, 5]",
        f,
        x,
        q,
        scale[:, :5],
    )
    assert_rejects("scale: expected dtype float32", f, x, q, scale.double())
    g = ops.quantize_fp8_128x128
    assert_rejects("quantize_fp8_128x128: w: expected dtype", g, x.double())
    assert_rejects(
        "scale: expected shape [ceil(n/128)=1, ceil(k/128)=2]", g, x, q, torch.empty(2, 2)
    )
    h = ops.dequantize_fp8_128x128
    assert_rejects(
        "dequantize_fp8_128x128: q: expected dtype float8_e4m3fn", h, x, torch.ones(1, 2)
    )
    assert_rejects("scale: expected shape [ceil(n/128)=1, ceil(k/128)=2]", h, q, torch.ones(2, 1))
    assert_rejects("out: expected dtype float32 or bfloat16", h, q, torch.ones(1, 2), torch.float16)


# ---- int4 ----


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n", "k"), [(1, 2), (3, 128), (5, 130), (129, 256), (64, 7168)])
def test_quantize_int4_g128(n: int, k: int, dtype: torch.dtype) -> None:
    w = make(n, k, dtype)
    assert_same_bits(ops.quantize_int4_g128(w), reference.quantize_int4_g128(w))
    assert_repeatable(lambda: ops.quantize_int4_g128(w))


def test_int4_codes_ties_and_packing() -> None:
    w = torch.zeros(2, 128)
    w[0, :8] = torch.tensor([7.0, -7.0, 0.5, 1.5, -2.5, 6.5, -6.5, 3.0])
    w[1, :4] = torch.tensor([NAN, 14.0, -0.0, 1e-30])
    q, scale = ops.quantize_int4_g128(w)
    assert scale[:, 0].tolist() == [1.0, 2.0]
    values = reference.dequantize_int4_g128(q, torch.ones_like(scale))
    assert values[0, :8].tolist() == [7, -7, 0, 2, -2, 6, -6, 3]
    assert values[1, :4].tolist() == [0, 7, 0, 0]
    assert q[0, 0].item() == 7 | 9 << 4, "even column in the low nibble"
    assert_same_bits((q, scale), reference.quantize_int4_g128(w))
    zeros = ops.quantize_int4_g128(torch.zeros(1, 128))
    assert zeros[1].item() == 1.0
    assert not zeros[0].any()
    infinite = torch.ones(1, 128)
    infinite[0, 5] = INF
    assert not ops.quantize_int4_g128(infinite)[0].any()


def test_int4_rejects_and_empty() -> None:
    w = torch.randn(3, 256)
    assert_rejects("expected k to be even, got k=3", ops.quantize_int4_g128, torch.randn(2, 3))
    assert_rejects("w: expected dtype float32 or bfloat16", ops.quantize_int4_g128, w.double())
    short = torch.empty(3, 127, dtype=torch.uint8)
    assert_rejects("q: expected shape [n=3, k/2=128]", ops.quantize_int4_g128, w, short)
    q, scale = ops.quantize_int4_g128(torch.empty(0, 128))
    assert q.shape == (0, 64)
    assert scale.shape == (0, 1)


def test_int4_error_is_half_a_step() -> None:
    w = make(64, 1024, torch.float32)
    q, scale = ops.quantize_int4_g128(w)
    error = (reference.dequantize_int4_g128(q, scale) - w.double()).abs()
    assert (error <= scale.double().repeat_interleave(128, 1) * 0.5000001).all()
