"""rms_norm, add_rms_norm, silu_mul on a Hopper GPU, by the CPU tests' budgets."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from seekernel import _extension, ops, reference
from tests.op_testing import assert_error_within, assert_rejects, assert_repeatable

HAS_HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability()[0] == 9
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not HAS_HOPPER, reason="no Hopper GPU"),
    pytest.mark.skipif(not _extension.build_info()["cuda_version"], reason="built without CUDA"),
]
EPS = 1e-6
DTYPES = [torch.float32, torch.bfloat16]
# One thread; less than a warp's vectors; odd sizes (no vectors); V3's; more columns than a CTA's threads.
SHAPES = [(1, 1), (3, 33), (2, 64), (5, 512), (4, 1536), (129, 7168), (2, 8200), (1, 40000)]


def make(m: int, n: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(m, n, generator=generator) * 3).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("weight_dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_rms_norm(m: int, n: int, dtype: torch.dtype, weight_dtype: torch.dtype) -> None:
    x, weight = make(m, n, dtype), make(1, n, weight_dtype, 1)[0]
    want, naive = (reference.rms_norm(x, weight, EPS, d) for d in (torch.float64, dtype))
    x, weight = x.cuda(), weight.cuda()
    assert_error_within(ops.rms_norm(x, weight, EPS).cpu(), want, naive)
    assert_repeatable(lambda: ops.rms_norm(x, weight, EPS))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_add_rms_norm(m: int, n: int, dtype: torch.dtype) -> None:
    x, residual, weight = make(m, n, dtype), make(m, n, dtype, 1), make(1, n, dtype, 2)[0]
    want, total = reference.add_rms_norm(x, residual, weight, EPS)
    naive, _ = reference.add_rms_norm(x, residual, weight, EPS, dtype)
    updated = residual.cuda()
    got = ops.add_rms_norm(x.cuda(), updated, weight.cuda(), EPS)
    assert torch.equal(updated.cpu(), total)
    assert_error_within(got.cpu(), want, naive)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_silu_mul(m: int, n: int, dtype: torch.dtype) -> None:
    x = make(m, 2 * n, dtype)
    want, naive = (reference.silu_mul(x, d) for d in (torch.float64, dtype))
    assert_error_within(ops.silu_mul(x.cuda()).cpu(), want, naive)
    assert_repeatable(lambda: ops.silu_mul(x.cuda()))


def test_unaligned_rows_and_given_out() -> None:
    wide = torch.randn(4, 100).cuda()
    x, weight = wide[:, 3:67], torch.randn(64).cuda()
    out = torch.full((4, 81), float("nan")).cuda()
    ops.rms_norm(x, weight, EPS, out=out[:, :64])
    aligned = ops.rms_norm(x.contiguous(), weight, EPS)
    torch.testing.assert_close(out[:, :64], aligned, rtol=1e-6, atol=1e-6)
    assert out[:, 64:].isnan().all(), "wrote beyond the row"


def test_empty() -> None:
    weight = torch.ones(8).cuda()
    assert ops.rms_norm(torch.empty(0, 8).cuda(), weight, EPS).shape == (0, 8)
    assert ops.silu_mul(torch.empty(0, 8).cuda()).shape == (0, 4)


def test_rejects() -> None:
    x, weight = torch.randn(3, 16).cuda(), torch.randn(16)
    assert_rejects("weight: expected the device of x", ops.rms_norm, x, weight, EPS)
    assert_rejects("rms_norm: weight: expected shape [n=16]", ops.rms_norm, x, weight[:15], EPS)


def test_current_stream_and_graph() -> None:
    x, weight = torch.randn(3, 7168).cuda(), torch.randn(7168).cuda()
    out = torch.empty_like(x)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        ops.rms_norm(x, weight, EPS, out)
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        ops.rms_norm(x, weight, EPS, out)
    x.copy_(torch.randn(3, 7168))
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(out, ops.rms_norm(x, weight, EPS))
