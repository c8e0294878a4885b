"""The fused row kernels on the emulator: exact bits of their parts, nothing to report, planted bugs seen."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from seekernel import ops
from tests.emulator.launch import Device, KernelFault
from tests.emulator.schedules import NINE_SCHEDULES
from tests.kernel_testing import BACKENDS, BuiltKernel, build, devices
from tests.moe_testing import BF16, Array, Edits, Guarded

NORM, SILU = "seekernel/fused/norm_quantize.cuh", "seekernel/fused/silu_quantize.cuh"
GROUP = "seekernel/fused/quantize_group.cuh"
FINALIZE, PERMUTE = "seekernel/moe/finalize.cuh", "seekernel/moe/permute.cuh"
E4M3 = np.dtype(ml_dtypes.float8_e4m3fn)
EPS = 1e-6


def bf16(rng: Any, *shape: int) -> Array:
    return np.asarray((rng.standard_normal(shape) * 3).astype(BF16))


def tensor(array: Array) -> torch.Tensor:
    if array.dtype == BF16:
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def row_threads(n: int) -> int:
    """As the host launches a row."""
    vectors = (n + 7) // 8
    steps = (vectors + 1023) // 1024
    return ((vectors + steps - 1) // steps + 31) // 32 * 32


def check_quantized(x: Array, q: Array, scale: Array, m: int) -> None:
    """q and scale are the quantiser's bits of the rows x."""
    want_q, want_scale = ops.quantize_fp8_1x128(tensor(x))
    assert np.array_equal(q, want_q.view(torch.uint8).numpy())
    assert np.array_equal(scale[:, : want_scale.shape[1]].view(np.int32), want_scale.numpy().view(np.int32))  # fmt: skip
    assert (scale[:, want_scale.shape[1] :] == -5).all(), "wrote beyond a row of scales"
    assert want_scale.shape[1] == -(-m // 4) * 4


@dataclass(frozen=True)
class NormCase:
    m: int
    n: int
    add: bool = True
    embed: bool = False
    with_out: bool = True
    quantize: bool = True
    wide_weight: bool = False


class NormBuffers:
    """Outputs of the norm at the end of a kernel, and its norm_output_t."""

    def __init__(self, device: Device, case: NormCase, weight: Array) -> None:
        self.case, self.weight = case, device.buffer(weight)
        m, n = case.m, case.n
        self.stride = -(-m // 4) * 4 + 4
        self.out = Guarded(device, (m, n), BF16, BF16.type(-7))
        self.q = Guarded(device, (m, n), np.uint8, 0xEE)
        self.scale = Guarded(device, (-(-n // 128), self.stride), np.float32, np.float32(-5))

    def pack(self) -> bytes:
        case = self.case
        return struct.pack(
            "=4Q3qf4x", self.weight.address, self.out.address if case.with_out else 0,
            self.q.address if case.quantize else 0, self.scale.address if case.quantize else 0,
            case.n, case.n, self.stride, EPS,
        )  # fmt: skip

    def check(self, residual: Array, weight: Array) -> None:
        """Against float64, then the quantiser's exact bits of what was written."""
        wide = residual.astype(np.float64)
        want = wide / np.sqrt((wide**2).mean(1, keepdims=True) + EPS) * weight.astype(np.float64)
        got = self.out.numpy()
        if self.case.with_out:
            error = np.abs(got.astype(np.float64) - want)
            assert (error <= 2.0**-8 * np.abs(want) * 1.01 + 1e-30).all()
        if self.case.quantize and self.case.with_out:
            check_quantized(got, self.q.numpy(), self.scale.numpy(), self.case.m)


def run_norm(device: Device, kernel: BuiltKernel, case: NormCase) -> None:
    rng = np.random.default_rng(5)
    m, n = case.m, case.n
    x, start, table = bf16(rng, m, n), bf16(rng, m, n), bf16(rng, 9, n)
    ids = np.arange(m, dtype=np.int64) * 5 % 9
    weight = rng.standard_normal(n).astype(np.float32 if case.wide_weight else BF16)
    buffers = NormBuffers(device, case, weight)
    initial = np.full((m + 1) * n, np.nan, BF16)
    initial[: m * n] = start.reshape(-1)
    d_residual = device.buffer(initial)
    d_x, d_ids, d_table = device.buffer(x), device.buffer(ids), device.buffer(table)
    pack = struct.pack(
        "=4Q4q2i", d_x.address if case.add else 0, d_residual.address,
        d_ids.address if case.embed else 0, d_table.address if case.embed else 0,
        n, n, n, 9 if case.embed else 0, m, n,
    )  # fmt: skip
    device.launch(
        kernel.on(device), grid=(m,), block=(row_threads(n),), args=(pack, buffers.pack())
    )
    want = (table[ids] if case.embed else start).astype(np.float32)
    if case.add:
        want = want + x.astype(np.float32)
    total = want.astype(BF16)
    got = d_residual.numpy()
    assert got[: m * n].tobytes() == total.tobytes()
    assert np.isnan(got[m * n :].astype(np.float32)).all(), "wrote beyond residual"
    buffers.check(total, weight)


def norm_kernel(case: NormCase, edits: Edits | None = None) -> BuiltKernel:
    weight = "float" if case.wide_weight else "bfloat16_t"
    steps = 1 if case.n <= 8192 else 2
    return build(NORM, f"add_rms_norm_quantize<{weight}, {steps}>", edits=edits)


NORMS = [
    NormCase(3, 776),
    NormCase(5, 1040, add=False, embed=True),
    NormCase(2, 256, with_out=True, quantize=False, wide_weight=True),
    NormCase(4, 128, add=False),
    NormCase(2, 8712),
    NormCase(3, 520, with_out=False),
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", NORMS, ids=str)
def test_add_rms_norm_quantize(case: NormCase, backend: str) -> None:
    kernel = norm_kernel(case)
    for device in devices(backend):
        run_norm(device, kernel, case)


PLANTED_NORM = {
    "quantise before rounding": (NORM, "      round_to(v[s], to.out);\n", ""),
    "sum of x, not of residual as stored": (NORM, "  store(p, v);\n  round_to(v, p);", "  store(p, v);"),
    "padding scales left": (GROUP, "scale_of_group[row] = 0.0f;", "continue;"),
    "half a group": (GROUP, "kQuantizeLanes / 2; step > 0", "kQuantizeLanes / 4; step > 0"),
    "no barrier": ("seekernel/fused/vector.cuh", "__syncthreads();  // orders each warp's sum before the reads of all", ""),
}  # fmt: skip


@pytest.mark.parametrize("bug", PLANTED_NORM)
def test_planted_norm_bugs_are_seen(bug: str) -> None:
    header, *edit = PLANTED_NORM[bug]
    case = NORMS[0]
    kernel = norm_kernel(case, {header: [(edit[0], edit[1])]})
    for device in devices("emulator", NINE_SCHEDULES[:1]):
        with pytest.raises((AssertionError, KernelFault)):
            run_norm(device, kernel, case)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("m", "n", "rows"), [(1, 128, 1), (5, 264, 8), (33, 136, 16), (3, 2056, 4)]
)
def test_silu_mul_quantize(m: int, n: int, rows: int, backend: str) -> None:
    rng = np.random.default_rng(6)
    x = bf16(rng, m, 2 * n)
    stride = -(-m // 4) * 4 + 4
    kernel = build(SILU, "silu_mul_quantize<256>")
    wide = x.astype(np.float64)
    want = wide[:, :n] / (1 + np.exp(-wide[:, :n])) * wide[:, n:]
    for device in devices(backend, NINE_SCHEDULES[:3]):
        q = Guarded(device, (m, n), np.uint8, 0xEE)
        scale = Guarded(device, (-(-n // 128), stride), np.float32, np.float32(-5))
        groups = -(-n // 128)
        device.launch(
            kernel.on(device), grid=(-(-m // rows), -(-groups * rows // 16)), block=(256,),
            args=(device.buffer(x), q, scale, np.int32(m), np.int32(n), np.int32(rows),
                  np.int64(2 * n), np.int64(n), np.int64(stride)),
        )  # fmt: skip
        scales = scale.numpy()
        assert (scales[:, m : -(-m // 4) * 4] == 0).all()
        got = q.numpy().view(E4M3).astype(np.float64)
        steps = np.repeat(scales[:, :m], 128, 0)[:n].T
        # Half an e4m3 step of the value and one of bfloat16, or half the smallest step.
        assert (np.abs(got * steps - want) <= 0.07 * np.abs(want) + steps * 2.0**-10).all()
        amax = np.abs(np.pad(want, ((0, 0), (0, -n % 128))).reshape(m, -1, 128)).max(-1)
        np.testing.assert_allclose(scales[:, :m].T, np.maximum(amax, 1e-4) / 448, rtol=0.005)


def run_finalize(device: Device, kernel: BuiltKernel, m: int, n: int, top_k: int, norm: bool) -> None:  # fmt: skip
    rng = np.random.default_rng(8)
    num_rows = m * top_k + 2
    y, shared, start = bf16(rng, num_rows, n), bf16(rng, m, n), bf16(rng, m, n)
    token_row = rng.integers(-1, num_rows - 1, (m, top_k)).astype(np.int32)
    token_row[0, 0] = 1 << 30  # no row of y
    y[num_rows - 1] = np.nan  # nobody's
    weights = rng.random((m, top_k), np.float32)
    weight = rng.standard_normal(n).astype(BF16)
    buffers = NormBuffers(device, NormCase(m, n), weight)
    out = Guarded(device, (m, n), BF16, BF16.type(-7))
    residual = device.buffer(start)
    arrays = [device.buffer(a) for a in (y, token_row, weights, shared)]
    pack = struct.pack(
        "=6Q4q4i", *(a.address for a in arrays), out.address, residual.address,
        n, n, n, n, m, n, top_k, num_rows,
    )  # fmt: skip
    norm_bytes = buffers.pack() if norm else bytes(len(buffers.pack()))
    device.launch(kernel.on(device), grid=(m,), block=(row_threads(n),), args=(pack, norm_bytes))
    legal = np.where(token_row < num_rows, token_row, -1)
    want = ops.moe_finalize(*(tensor(a) for a in (y, legal, weights, shared)))
    got = out.numpy()
    # The same order of terms; the compilers may fuse different products with their sums.
    np.testing.assert_allclose(
        got.astype(np.float32), want.float().numpy(), rtol=2.0**-7, atol=0.02
    )
    total = (start.astype(np.float32) + got.astype(np.float32)).astype(BF16)
    assert residual.numpy().tobytes() == total.tobytes()
    if norm:
        buffers.check(total, weight)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("m", "n", "top_k", "norm"), [(3, 520, 9, True), (2, 256, 3, False), (2, 8200, 2, True)])  # fmt: skip
def test_moe_finalize(m: int, n: int, top_k: int, norm: bool, backend: str) -> None:
    kernel = build(FINALIZE, f"moe_finalize<bfloat16_t, {1 if n <= 8192 else 2}>")
    for device in devices(backend):
        run_finalize(device, kernel, m, n, top_k, norm)


PLANTED_FINALIZE = {
    "weights of the next term": ("weight[i] = weights[first + i];", "weight[i] = weights[(first + i + 1) % from.top_k];"),
    "rows beyond y": ("row >= 0 && row < from.num_rows", "row >= 0"),
    "sum not rounded before the add": ("      round_to(v[s], from.y);\n", ""),
    "shared left out": ("if (from.shared != nullptr) {", "if (false) {"),
    "only eight terms": ("first < from.top_k; first", "first < 8; first"),
}  # fmt: skip


@pytest.mark.parametrize("bug", PLANTED_FINALIZE)
def test_planted_finalize_bugs_are_seen(bug: str) -> None:
    edits = {FINALIZE: [PLANTED_FINALIZE[bug]]}
    kernel = build(FINALIZE, "moe_finalize<bfloat16_t, 1>", edits=edits)
    for device in devices("emulator", NINE_SCHEDULES[:1]):
        with pytest.raises((AssertionError, KernelFault)):
            run_finalize(device, kernel, 3, 520, 9, True)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("m", "rows", "n"), [(9, 40, 528), (3, 5, 16), (40, 64, 256)])
def test_moe_permute_fp8(m: int, rows: int, n: int, backend: str) -> None:
    rng = np.random.default_rng(9)
    groups, stride, stride_out = -(-n // 128), -(-m // 4) * 4, -(-rows // 4) * 4 + 4
    q = rng.integers(0, 255, (m, n)).astype(np.uint8)
    scale = rng.random((groups, stride), np.float32)
    row_token = rng.integers(-1, m, rows).astype(np.int32)
    row_token[-1] = m  # beyond: left alone
    kernel = build(PERMUTE, "moe_permute_fp8<256>")
    for device in devices(backend, NINE_SCHEDULES[:3]):
        q_out = Guarded(device, (rows, n), np.uint8, 0xEE)
        scale_out = Guarded(device, (groups, stride_out), np.float32, np.float32(-5))
        device.launch(
            kernel.on(device), grid=(-(-rows // 32),), block=(256,),
            args=(device.buffer(q), device.buffer(scale), device.buffer(row_token), q_out, scale_out,
                  np.int32(m), np.int32(rows), np.int32(n), np.int32(groups), np.int64(n),
                  np.int64(stride), np.int64(n), np.int64(stride_out)),
        )  # fmt: skip
        want_q, want_scale = np.full((rows, n), 0xEE), np.full((groups, stride_out), -5, np.float32)
        for row, token in enumerate(row_token):
            if 0 <= token < m:
                want_q[row], want_scale[:, row] = q[token], scale[:, token]
        assert np.array_equal(q_out.numpy(), want_q)
        assert np.array_equal(scale_out.numpy(), want_scale)
