"""The CUDA quantisers on the emulator in every schedule, or on a Hopper GPU: the reference's bits."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from seekernel import reference
from tests.emulator.launch import Device, KernelFault
from tests.emulator.schedules import NINE_SCHEDULES
from tests.kernel_testing import BACKENDS, BuiltKernel, build, devices

Array = NDArray[Any]
HEADER = "seekernel/fused/quantize.cuh"
DTYPES = {"float": torch.float32, "bfloat16_t": torch.bfloat16}
NUMPY = {"float": np.dtype(np.float32), "bfloat16_t": np.dtype(ml_dtypes.bfloat16)}
POISON, PAD = 0xA5, 8
# (rows, columns): one group; partial groups; odd sizes; blocks that end early both ways.
SHAPES = [(1, 128), (3, 392), (5, 200), (4, 2176), (21, 264), (130, 136)]
ODD_SHAPES = [(1, 2), (3, 130), (6, 301), (129, 131)]


def ties() -> Tensor:
    """128 values of a group whose quotients lie so near to halfway between two codes that products with
    the scale's reciprocal round to the other one."""
    values = np.arange(127, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    halfway = (values[1:] + values[:-1]) / 2
    for amax in np.arange(300, 448, dtype=np.float32):
        scale = amax / np.float32(448)
        x = (halfway * scale).astype(np.float32)
        quotient, product = x / scale, x * (np.float32(1) / scale)
        found = x[
            quotient.astype(ml_dtypes.float8_e4m3fn) != product.astype(ml_dtypes.float8_e4m3fn)
        ]
        if len(found) >= 8:
            return torch.from_numpy(np.resize(np.append(found[:8], amax), 128))
    raise AssertionError("no such group")


def make(m: int, k: int, dtype: str) -> Tensor:
    """Groups of many magnitudes, zeros, subnormals, a NaN and an infinity where there is room."""
    generator = torch.Generator().manual_seed(m * 1000 + k)
    x = torch.randn(m, k, generator=generator) * torch.logspace(-6, 4, m * k).view(m, k)
    x[-1, -1] = 0.0
    if m > 2:
        x[1] = 0.0
        x[2, :2] = torch.tensor([float("nan"), 1e-39])
    if m > 3 and k >= 128:
        x[3, :128] = ties()
    if m > 4:
        x[4, 0] = float("inf")
    return x.to(DTYPES[dtype])


def padded(x: Tensor, dtype: str) -> Array:
    """Rows PAD values further apart than they are long, NaN between them."""
    wide = torch.full((x.shape[0], x.shape[1] + PAD), float("nan"), dtype=x.dtype)
    wide[:, : x.shape[1]] = x
    raw: Array = wide.view(torch.int32 if dtype == "float" else torch.int16).numpy()
    return raw.view(NUMPY[dtype])


def codes(q: Tensor) -> Array:
    """Bytes of e4m3 or packed int4; NaN of either sign is one code."""
    raw: Array = q.contiguous().view(torch.uint8).numpy().copy()
    if q.dtype is torch.float8_e4m3fn:
        raw[raw & 0x7F == 0x7F] = 0x7F
    return raw


def quantize(
    device: Device, kernel: BuiltKernel, op: str, x: Tensor, dtype: str
) -> tuple[Array, Array]:
    """Launch; return codes and scales after a look at what must stay untouched."""
    m, k = x.shape
    bytes_per_row = k // 2 if op == "quantize_int4_g128" else k
    groups = -(-k // 128)
    scale_shape = {
        "quantize_fp8_1x128": (groups, -(-m // 4) * 4),
        "quantize_fp8_128x128": (-(-m // 128), groups),
        "quantize_int4_g128": (m, groups),
    }[op]
    source = padded(x, dtype)
    q = np.full((m + 1, bytes_per_row + PAD), POISON, np.uint8)
    scale = np.full((scale_shape[0] + 1, scale_shape[1] + 1), -1.0, np.float32)
    d_x, d_q, d_scale = device.buffer(source), device.buffer(q), device.buffer(scale)
    strides = (np.int64(source.shape[1]), np.int64(q.shape[1]), np.int64(scale.shape[1]))
    if op == "quantize_fp8_128x128":
        grid, sizes = (groups, -(-m // 128)), (np.int32(m), np.int32(k))
        args = (d_x, d_q, d_scale, *sizes, *strides)
    else:
        rows = 4 if m > 2 else 1
        grid = (-(-scale_shape[1 if op == "quantize_fp8_1x128" else 0] // rows), -(-groups * rows // 16))  # fmt: skip
        args = (d_x, d_q, d_scale, np.int32(m), np.int32(k), np.int32(rows), *strides)
    device.launch(kernel.on(device), grid=grid, block=(256,), args=args)
    got_q, got_scale = d_q.numpy(), d_scale.numpy()
    assert (got_q[m:] == POISON).all(), "rows of q beyond m were written"
    assert (got_q[:, bytes_per_row:] == POISON).all(), "columns of q beyond k were written"
    assert (got_scale[scale_shape[0] :] == -1).all(), "scales beyond the last row were written"
    assert (got_scale[:, scale_shape[1] :] == -1).all(), "scales beyond the last column"
    result = got_q[:m, :bytes_per_row].copy()
    if op != "quantize_int4_g128":
        result[result & 0x7F == 0x7F] = 0x7F
    return result, got_scale[: scale_shape[0], : scale_shape[1]]


def check(backend: str, op: str, dtype: str, shape: tuple[int, int], kernel: BuiltKernel) -> None:
    x = make(*shape, dtype)
    want_q, want_scale = getattr(reference, op)(x)
    for device in devices(backend, NINE_SCHEDULES[::4]):
        q, scale = quantize(device, kernel, op, x, dtype)
        assert np.array_equal(scale.view(np.int32), want_scale.numpy().view(np.int32)), "scale"
        assert np.array_equal(q, codes(want_q)), "codes"


OPS = ("quantize_fp8_1x128", "quantize_fp8_128x128", "quantize_int4_g128")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", OPS)
def test_vectors(backend: str, op: str, dtype: str) -> None:
    kernel = build(HEADER, f"{op}<{dtype}, true>")
    for shape in SHAPES:
        check(backend, op, dtype, shape, kernel)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("op", OPS)
def test_single_values(backend: str, op: str) -> None:
    dtype = "bfloat16_t"
    kernel = build(HEADER, f"{op}<{dtype}, false>")
    for m, k in ODD_SHAPES:
        check(backend, op, dtype, (m, k - k % 2 if op == "quantize_int4_g128" else k), kernel)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("dtype", "aligned"), [("float", True), ("bfloat16_t", True), ("bfloat16_t", False)])  # fmt: skip
def test_dequantize(backend: str, dtype: str, aligned: bool) -> None:
    kernel = build(HEADER, f"dequantize_fp8_128x128<{dtype}, {str(aligned).lower()}>")
    n, k = (131, 392) if aligned else (130, 131)
    rng = np.random.default_rng(3)
    q = rng.integers(0, 256, (n, k + PAD), dtype=np.uint8)
    scale = rng.uniform(1e-3, 1e3, (-(-n // 128), -(-k // 128))).astype(np.float32)
    values = torch.from_numpy(q[:, :k].copy()).view(torch.float8_e4m3fn)
    want = reference.dequantize_fp8_128x128(values, torch.from_numpy(scale))
    expected = want.float().to(DTYPES[dtype]).float().numpy()
    for device in devices(backend, NINE_SCHEDULES[::4]):
        out = np.full((n + 1, k + PAD), 77.0, NUMPY[dtype])
        d_out = device.buffer(out)
        device.launch(
            kernel.on(device),
            grid=(n, -(-k // 2048)),
            block=(256,),
            args=(device.buffer(q), device.buffer(scale), d_out, np.int32(k), np.int64(q.shape[1]),
                  np.int64(scale.shape[1]), np.int64(out.shape[1])),
        )  # fmt: skip
        got = d_out.numpy().astype(np.float32)
        assert np.array_equal(got[:n, :k], expected, equal_nan=True)
        assert (got[n:] == 77).all()
        assert (got[:, k:] == 77).all()


PLANTED = {
    "a multiplication for the division": (
        "ptx::pack_e4m3x2(x[0] / scale, x[1] / scale)",
        "ptx::pack_e4m3x2(x[0] * (1.0f / scale), x[1] * (1.0f / scale))",
    ),
    "half of the group": ("step = kThreadsPerGroup / 2;", "step = kThreadsPerGroup / 4;"),
    "no floor": ("fmaxf(amax, 1e-4f)", "amax"),
    "padding left alone": ("at.row < (m + 3) / 4 * 4", "at.row < m"),
}  # fmt: skip


@pytest.mark.parametrize("bug", PLANTED)
def test_planted_bugs_are_seen(bug: str) -> None:
    kernel = build(HEADER, "quantize_fp8_1x128<float, true>", edits={HEADER: [PLANTED[bug]]})

    def check_all() -> None:
        for shape in SHAPES:
            check("emulator", "quantize_fp8_1x128", "float", shape, kernel)

    with pytest.raises((AssertionError, KernelFault)):
        check_all()


def test_a_missing_barrier_is_seen() -> None:
    edits = {HEADER: [("__syncthreads();\n", "\n")]}
    kernel = build(HEADER, "quantize_fp8_128x128<float, true>", edits=edits)
    with pytest.raises((AssertionError, KernelFault)):
        check("emulator", "quantize_fp8_128x128", "float", (130, 136), kernel)
