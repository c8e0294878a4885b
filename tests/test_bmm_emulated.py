"""sm90_bf16_bmm_nt on the emulator in every schedule, or on a Hopper GPU: strided operands, every edge."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.emulator.launch import Device, ElementType, KernelFault, Swizzle, TensorMap
from tests.emulator.schedules import NINE_SCHEDULES
from tests.kernel_testing import BACKENDS, BuiltKernel, build, devices

Array = NDArray[Any]
BF16 = np.dtype(ml_dtypes.bfloat16)
HEADER = "seekernel/gemm/sm90_bf16_bmm_nt.cuh"
UNTOUCHED = 77.0


def kernel_of(
    block_m: int, stages: int, edits: dict[str, list[tuple[str, str]]] | None = None
) -> BuiltKernel:
    name = "sm90_bf16_bmm_nt"
    return build(HEADER, f"{name}<{name}_config<{block_m}, {stages}>>", edits=edits)


def run(
    device: Device, kernel: BuiltKernel, block_m: int, stages: int, g: int, m: int, n: int, k: int
) -> bytes:
    """Operands as [m, g, k + 8], NaN between the rows, as heads of a token lie; check and return D."""
    rng = np.random.default_rng(m + n + k)
    a = np.full((m, g, k + 8), np.nan, BF16)
    b = np.full((g, n, k + 16), np.nan, BF16)
    a[..., :k] = rng.standard_normal((m, g, k), np.float32).astype(BF16)
    b[..., :k] = rng.standard_normal((g, n, k), np.float32).astype(BF16)
    d = np.full((m + 1, g, n + 8), UNTOUCHED, BF16)
    d_d = device.buffer(d)
    bf16, b128 = ElementType.BFLOAT16, Swizzle.B128
    maps = (
        TensorMap(device.buffer(a), bf16, (k, m, g), (a[0].nbytes, a[0, 0].nbytes), (64, block_m, 1), swizzle=b128),
        TensorMap(device.buffer(b), bf16, (k, n, g), (b[0, 0].nbytes, b[0].nbytes), (64, 128, 1), swizzle=b128),
        TensorMap(d_d, bf16, (n, m, g), (d[0].nbytes, d[0, 0].nbytes), (64, 64, 1), swizzle=b128),
    )  # fmt: skip
    device.launch(
        kernel.on(device),
        grid=(-(-m // block_m), -(-n // 128), g),
        block=(128 * (block_m // 64) + 32,),
        args=(*maps, np.int32(k)),
        shared_bytes=stages * (block_m + 128) * 128 + block_m * 256 + 16 * stages,
        pdl=True,
    )
    raw = d_d.numpy()
    got = raw.astype(np.float64)
    assert (got[m] == UNTOUCHED).all(), "rows beyond m were written"
    assert (got[:, :, n:] == UNTOUCHED).all(), "columns beyond n were written"
    wide_a, wide_b = a[..., :k].astype(np.float64), b[..., :k].astype(np.float64)
    want = np.einsum("mgk,gnk->mgn", wide_a, wide_b)
    error = np.abs(got[:m, :, :n] - want)
    assert (error <= np.abs(want) * 2.0**-8 + np.abs(want).max() * 1e-5).all()
    return raw.tobytes()


# W_UK, W_UV; edges of m, n and k; K past one ring wrap.
SHAPES = [
    (2, 1, 512, 128),
    (1, 63, 128, 512),
    (1, 65, 136, 72),
    (2, 8, 8, 8),
    (1, 130, 64, 320),
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("g", "m", "n", "k"), SHAPES)
@pytest.mark.parametrize("block_m", [64, 128])
def test_products(backend: str, block_m: int, g: int, m: int, n: int, k: int) -> None:
    kernel = kernel_of(block_m, 4)
    schedules = NINE_SCHEDULES if (m, k) == (65, 72) else NINE_SCHEDULES[::4]
    results = {
        run(device, kernel, block_m, 4, g, m, n, k) for device in devices(backend, schedules)
    }
    assert len(results) == 1, "the bits depend on the schedule"


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_short_ring_wraps(backend: str) -> None:
    kernel = kernel_of(64, 2)
    for device in devices(backend):
        run(device, kernel, 64, 2, 1, 9, 72, 456)


PLANTED = {
    "stages never given back": ("ptx::wgmma_wait_group<1>();\n    if (block > 0 && lane == 0)", "ptx::wgmma_wait_group<1>();\n    if (block > 99 && lane == 0)"),
    "stage given back while it is read": ("ptx::wgmma_wait_group<1>();", ""),
    "no fence before the store": ("  ptx::fence_proxy_async_shared();\n", ""),
    "no meeting before the store": ("  ptx::bar_sync(1 + consumer, 128);\n", ""),
    "sums not started from zero": ("block != 0 || step != 0", "1"),
    "the wrong swizzle": ("(chunk ^ row % 8)", "(chunk ^ row % 4)"),
    "half of the barrier's bytes": ("P::kBytesA + P::kBytesB);", "P::kBytesB);"),
}  # fmt: skip


@pytest.mark.parametrize("bug", PLANTED)
def test_planted_bugs_are_seen(bug: str) -> None:
    kernel = kernel_of(64, 2, {HEADER: [PLANTED[bug]]})

    def run_all() -> None:
        for device in devices("emulator"):
            run(device, kernel, 64, 2, 1, 9, 72, 456)

    with pytest.raises((AssertionError, KernelFault)):
        run_all()
