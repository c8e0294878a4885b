"""A real kernel all the way: spec -> compiler -> PTX -> emulator gives the right numbers."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from seekernel import _jit
from seekernel.jit import StaticCheckError
from seekernel.jit.compiler import CompiledKernel, Compiler, compile_kernel
from seekernel.jit.families import kernel_spec
from seekernel.jit.headers import installed_headers, reached_headers
from tests.emulator.launch import (
    Device,
    ElementType,
    KernelFault,
    Swizzle,
    TensorMap,
    open_device,
)
from tests.jit_testing import nvcc_or_skip, nvrtc_or_skip

Array = NDArray[Any]
E4M3, BF16 = np.dtype(ml_dtypes.float8_e4m3fn), np.dtype(ml_dtypes.bfloat16)


@lru_cache(maxsize=32)
def _kernel(
    name: str, config: tuple[int, int, int], edit: tuple[str, str] | None = None
) -> CompiledKernel:
    """The kernel by one of the compilers, with a text of its header replaced to plant a bug."""
    compiler: Compiler = nvrtc_or_skip() if name == "nvrtc" else nvcc_or_skip()
    spec = kernel_spec("sm90_fp8_gemm_nt", (0, 0, *config))
    headers = reached_headers(spec.source(), installed_headers())
    if edit is not None:
        assert edit[0] in headers[spec.header]
        headers[spec.header] = headers[spec.header].replace(*edit)
    return compile_kernel(spec, compiler, headers)


def _quantize(x: Array, rows: int) -> tuple[Array, Array, Array]:
    """e4m3 values, fp32 scales of blocks of rows x 128, and what they stand for in float64."""
    m, k = x.shape
    padded = np.zeros((-(-m // rows) * rows, k), np.float32)
    padded[:m] = x
    blocks = padded.reshape(-1, rows, k // 128, 128)
    scales = np.maximum(np.abs(blocks).max(axis=(1, 3)), 1e-4).astype(np.float32) / np.float32(448)
    values = (blocks / scales[:, None, :, None]).reshape(-1, k)[:m].astype(E4M3)
    per_row = np.repeat(scales, rows, axis=0)[:m]
    real = values.astype(np.float64) * np.repeat(per_row.astype(np.float64), 128, axis=1)
    return values, scales, real


def _run(device: Device, kernel: CompiledKernel, config: tuple[int, int, int], m: int, n: int,
         k: int) -> tuple[Array, Array]:  # fmt: skip
    """The kernel's D, and the truth in float64; scales differ by powers of ten between blocks."""
    block_m, block_n, _ = config
    rng = np.random.default_rng(m * n + k)
    spread = 10.0 ** rng.integers(-2, 3, size=(1, k // 128)).repeat(128, axis=1)
    a, scale_a, real_a = _quantize(rng.standard_normal((m, k)) * spread, 1)
    b, sfb, real_b = _quantize(rng.standard_normal((n, k)) / spread, 128)
    m_stride = -(-m // 4) * 4
    sfa = np.full((k // 128, m_stride), np.nan, np.float32)
    sfa[:, :m] = scale_a.T
    guard = 3
    d = np.full((m + guard, n), np.nan, BF16)

    on_device = [device.buffer(x) for x in (a, b, sfa, sfb, d)]
    slab = min(block_n, 64)
    swizzle_d = {64: Swizzle.B128, 32: Swizzle.B64, 16: Swizzle.B32}[slab]
    maps = (
        TensorMap(
            on_device[0], ElementType.UINT8, (k, m), (k,), (128, block_m), swizzle=Swizzle.B128
        ),
        TensorMap(
            on_device[1], ElementType.UINT8, (k, n), (k,), (128, block_n), swizzle=Swizzle.B128
        ),
        TensorMap(on_device[2], ElementType.FLOAT32, (m, k // 128), (m_stride * 4,), (block_m, 1)),
        TensorMap(
            on_device[4], ElementType.BFLOAT16, (n, m), (n * 2,), (slab, 64), swizzle=swizzle_d
        ),
    )
    threads, shared_bytes, _, _ = _jit.gemm_resources(_jit.GemmConfig(False, *config), k)
    device.launch(
        device.load(kernel.ptx).function(kernel.symbol),
        grid=(-(-n // block_n), -(-m // block_m)),
        block=(threads,),
        args=(*maps, on_device[3], np.int32(k)),
        shared_bytes=shared_bytes,
        pdl=True,
    )
    got = on_device[4].numpy()
    assert np.isnan(got[m:].astype(np.float32)).all(), "rows beyond m were written"
    return got[:m], real_a @ real_b.T


def _assert_right(got: Array, want: Array) -> None:
    error = np.abs(got.astype(np.float64) - want).max() / np.abs(want).max()
    # bf16 rounds by at most 2^-8 of the largest; the tensor core's 14 bits add less than a tenth of that.
    assert error < 2.0**-8 * 1.1, f"relative error {error:.2e}"


CASES = [
    ((64, 16, 3), 1, 8, 128),
    ((64, 16, 3), 5, 40, 512),
    ((64, 32, 4), 67, 72, 640),
    ((64, 64, 4), 64, 136, 384),
    ((64, 128, 4), 65, 264, 256),
    ((128, 32, 3), 129, 40, 896),
    ((128, 128, 5), 130, 200, 768),
]


@pytest.mark.parametrize(("config", "m", "n", "k"), CASES, ids=str)
def test_fp8_gemm_on_the_emulator(config: tuple[int, int, int], m: int, n: int, k: int) -> None:
    _assert_right(*_run(open_device("emulator"), _kernel("nvrtc", config), config, m, n, k))


def test_fp8_gemm_with_the_sums_of_the_tensor_core() -> None:
    config = (64, 64, 3)
    device = open_device("emulator", hopper_accumulate=True)
    _assert_right(*_run(device, _kernel("nvrtc", config), config, 70, 72, 384))


WRONG, FAULT = AssertionError, KernelFault
PLANTED: dict[str, tuple[str, str, type[Exception]]] = {
    "one scale for two rows": ("(i & 2 ? high : low)", "low", WRONG),
    "weight scale of block 0": ("P::kScaleB + 4 * block", "P::kScaleB", WRONG),
    "step along K": ("a + 2 * step, b + 2 * step", "a + 2 * step, b", WRONG),
    "output not swizzled": ("(offset ^ mask << 4)", "offset", WRONG),
    "no wait for an empty slot": ("    ptx::mbarrier_wait_parity(smem + P::kEmpty + 8 * slot.stage, slot.parity ^ 1);\n",
                                  "", FAULT),
    "no wait for the product": ("ptx::wgmma_wait_group<1>();\n      promote(total, even, block);",
                                "promote(total, even, block);", StaticCheckError),
    "slot given back early": ("    ptx::wgmma_commit_group();\n",
                              "    ptx::wgmma_commit_group();\n    if (lane == 0) "
                              "ptx::mbarrier_arrive(smem + P::kEmpty + 8 * slot.stage);\n", FAULT),
    "bytes miscounted": ("expect_tx(full, P::kBytesStage)", "expect_tx(full, P::kBytesA)", FAULT),
    "no fence before the store": ("    ptx::fence_proxy_async_shared();\n", "", FAULT),
    "no barrier before the store": ("    ptx::bar_sync(1 + consumer, 128);\n", "", FAULT),
    "barriers not announced": ("scales_b[i] = sfb_row[i];\n  __syncthreads();\n", "scales_b[i] = sfb_row[i];\n", FAULT),
}  # fmt: skip


@pytest.mark.parametrize("bug", PLANTED)
def test_planted_bugs_are_seen(bug: str) -> None:
    old, new, expected = PLANTED[bug]
    config = (64, 32, 3)
    with pytest.raises(expected):
        _assert_right(
            *_run(
                open_device("emulator"), _kernel("nvrtc", config, (old, new)), config, 67, 40, 1024
            )
        )


def test_nvrtc_and_nvcc_give_the_same_bits() -> None:
    config, shape = (64, 32, 3), (70, 40, 640)
    results = [
        _run(open_device("emulator"), _kernel(name, config), config, *shape)[0]
        for name in ("nvrtc", "nvcc")
    ]
    assert np.array_equal(results[0].view(np.uint16), results[1].view(np.uint16))


def test_two_runs_give_the_same_bits() -> None:
    config, shape = (128, 32, 3), (100, 40, 512)
    results = [
        _run(open_device("emulator"), _kernel("nvrtc", config), config, *shape)[0] for _ in range(2)
    ]
    assert np.array_equal(results[0].view(np.uint16), results[1].view(np.uint16))
