"""add_rms_norm_quantize, silu_mul_quantize, moe_finalize, moe_permute_fp8 on a Hopper GPU: the bits of their parts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from seekernel import _extension, ops, reference
from seekernel.ops import NormedRows
from tests.op_testing import assert_error_within, assert_rejects, assert_repeatable

HAS_HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability()[0] == 9
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not HAS_HOPPER, reason="no Hopper GPU"),
    pytest.mark.skipif(not _extension.build_info()["cuda_version"], reason="built without CUDA"),
]
EPS = 1e-6
SHAPES = [(1, 8), (3, 136), (5, 512), (4, 1536), (129, 7168), (2, 8200), (1, 32768)]


def rows(m: int, n: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(m, n, generator=generator) * 3).bfloat16().cuda()


def same_bits(got: Tensor, want: Tensor) -> bool:
    return torch.equal(got.contiguous().view(torch.uint8), want.contiguous().view(torch.uint8))


def assert_same_rows(got: NormedRows, x: Tensor) -> None:
    q, scale = ops.quantize_fp8_1x128(x)
    for a, b in zip((got.x, *got.quantized), (x, q, scale), strict=True):
        assert same_bits(a, b)


@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_add_rms_norm_quantize(m: int, n: int, weight_dtype: torch.dtype) -> None:
    x, residual, weight = rows(m, n), rows(m, n, 1), rows(1, n, 2)[0].to(weight_dtype)
    fused, unfused = residual.clone(), residual.clone()
    got = ops.add_rms_norm_quantize(x, fused, weight, EPS)
    assert_same_rows(got, ops.add_rms_norm(x, unfused, weight, EPS))
    assert same_bits(fused, unfused)
    assert_repeatable(lambda: ops.add_rms_norm_quantize(x, residual.clone(), weight, EPS))


def test_embedding_norm() -> None:
    table, weight = rows(1000, 7168), rows(1, 7168, 1)[0]
    ids = torch.tensor([999, 0, 7, -1, 1000, 7]).cuda()
    residual = torch.empty(6, 7168, dtype=torch.bfloat16, device="cuda")
    got = ops.add_rms_norm_quantize(None, residual, weight, EPS, True, ids, table)
    legal = [0, 1, 2, 5]
    assert same_bits(residual[legal], table[ids[legal]])
    assert residual[[3, 4]].isnan().all(), "ids beyond the table are visible"
    assert same_bits(got.x[legal], ops.rms_norm(residual[legal], weight, EPS))


@pytest.mark.parametrize(("m", "n"), [(1, 128), (5, 264), (33, 2048), (1000, 2048), (3, 18432)])
def test_silu_mul_quantize(m: int, n: int) -> None:
    x = rows(m, 2 * n)
    want = ops.quantize_fp8_1x128(ops.silu_mul(x))
    for a, b in zip(ops.silu_mul_quantize(x), want, strict=True):
        assert same_bits(a, b)


@pytest.mark.parametrize("with_shared", [False, True])
@pytest.mark.parametrize(("m", "n", "top_k"), [(1, 7168, 9), (5, 264, 3), (130, 7168, 8), (2, 16384, 2), (3, 64, 17)])  # fmt: skip
def test_moe_finalize(m: int, n: int, top_k: int, with_shared: bool) -> None:
    generator = torch.Generator().manual_seed(m)
    num_rows = 2 * m * top_k
    token_row = torch.randint(-1, num_rows, (m, top_k), generator=generator, dtype=torch.int32)
    weights = torch.rand(m, top_k, generator=generator)
    y, residual, weight = rows(num_rows, n), rows(m, n, 1), rows(1, n, 2)[0]
    shared = rows(m, n, 3) if with_shared else None
    on_cpu = (y.cpu(), token_row, weights, None if shared is None else shared.cpu())
    want, naive = (
        reference.moe_finalize(*on_cpu, dtype=d) for d in (torch.float64, torch.bfloat16)
    )
    args = (y, token_row.cuda(), weights.cuda())
    total = ops.moe_finalize(*args, shared)
    assert_error_within(total.cpu(), want, naive)
    fused, unfused = residual.clone(), residual.clone()
    got = ops.moe_finalize_norm(*args, fused, weight, EPS, shared, quantize=True)
    assert_same_rows(got, ops.add_rms_norm(total, unfused, weight, EPS))
    assert same_bits(fused, unfused)
    assert_repeatable(lambda: ops.moe_finalize(*args, shared))


@pytest.mark.parametrize(("m", "count", "n"), [(64, 512, 7168), (9, 33, 144), (1000, 8000, 2048)])
def test_moe_permute_fp8(m: int, count: int, n: int) -> None:
    q, scale = ops.quantize_fp8_1x128(rows(m, n))
    generator = torch.Generator().manual_seed(m)
    row_token = torch.randint(-1, m, (count,), generator=generator, dtype=torch.int32)
    q_out = torch.zeros(count, n, device="cuda").to(q.dtype)
    scale_out = torch.full((scale.shape[0], (count + 3) // 4 * 4), 7.0, device="cuda")
    want = reference.moe_permute_fp8(q, scale, row_token.cuda(), q_out, scale_out)
    got = ops.moe_permute_fp8(q, scale, row_token.cuda(), q_out, scale_out)
    for a, b in zip(got, want, strict=True):
        assert same_bits(a, b)


def test_empty_and_rejects() -> None:
    weight = rows(1, 256)[0]
    assert ops.add_rms_norm_quantize(None, rows(0, 256), weight, EPS).x.shape == (0, 256)
    x = rows(3, 256)
    f = ops.add_rms_norm_quantize
    assert_rejects("residual: expected dtype bfloat16", f, None, x.float(), weight, EPS)
    assert_rejects("n a multiple of 8", f, None, x[:, :252].contiguous(), weight[:252].contiguous(), EPS)  # fmt: skip
    assert_rejects("rows that start at multiples of 16 bytes", f, None, x[:, 4:132], weight[:128], EPS)  # fmt: skip
    assert_rejects("weight: expected the device of residual", f, None, x, weight.cpu(), EPS)
