"""Kernels that nobody here wrote: right numbers and no report in nine schedules.

They are the second opinion on the emulator: a model error that our own kernels share shows up here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.emulator.compile import compile_ptx
from tests.emulator.foreign import build, hosts
from tests.emulator.foreign.wheels import WheelUnavailable
from tests.emulator.kernels.cases import FOLDER
from tests.emulator.kernels.run_gemm import fp8_gemm
from tests.emulator.launch import Array, Device, KernelFault, open_device
from tests.emulator.schedules import NINE_SCHEDULES, Schedule

pytestmark = pytest.mark.slow

Run = Callable[[Device, Path, Path | None], object]


def _cutlass(fp8: bool) -> Run:
    def run(device: Device, ptx: Path, host: Path | None) -> object:
        assert host is not None
        return hosts.cutlass_gemm(device, ptx, host, fp8=fp8)

    return run


def _attention(device: Device, ptx: Path, host: Path | None) -> object:
    assert host is not None
    return hosts.flashinfer_attention(device, ptx, host)


KERNELS: dict[str, tuple[build.Foreign, Run]] = {
    "cutlass_fp8_cooperative": (build.CUTLASS_FP8, _cutlass(fp8=True)),
    "cutlass_bf16_pingpong": (build.CUTLASS_BF16, _cutlass(fp8=False)),
    "deep_gemm_fp8": (build.DEEP_GEMM_FP8, lambda d, ptx, _: hosts.deep_gemm(d, ptx)),
    "deep_gemm_fp8_multicast": (
        build.DEEP_GEMM_MULTICAST,
        lambda d, ptx, _: hosts.deep_gemm(d, ptx, stages=3, cluster=2),
    ),
    "flashinfer_attention": (build.FLASHINFER_ATTENTION, _attention),
}


def built(name: str) -> tuple[Path, Path | None]:
    """PTX and host library of one of KERNELS."""
    return _build(KERNELS[name][0])


@functools.cache
def _build(foreign: build.Foreign) -> tuple[Path, Path | None]:
    """PTX and host library; skips where wheel or compiler cannot be had."""
    try:
        return foreign.build()
    except (WheelUnavailable, build.CompilerUnavailable) as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("schedule", NINE_SCHEDULES, ids=str)
@pytest.mark.parametrize("name", KERNELS)
def test_foreign_kernel_is_right_and_clean(name: str, schedule: Schedule) -> None:
    """The run compares with float64 and raises when the checker has anything to say."""
    ptx, host = built(name)
    KERNELS[name][1](open_device("emulator", schedule=schedule), ptx, host)


def test_a_race_that_was_shipped_is_found() -> None:
    """FlashInfer 0.6.4's epilogue barrier opens early (see build.FLASHINFER_ATTENTION).

    It takes a schedule in which some warps are half a tile ahead; the numbers are right on an H100.
    """
    ptx, host = _build(build.FLASHINFER_ATTENTION_AS_SHIPPED)
    assert host is not None
    found: list[str] = []
    for schedule in NINE_SCHEDULES:
        try:
            hosts.flashinfer_attention(open_device("emulator", schedule=schedule), ptx, host)
        except KernelFault as fault:
            found += fault.reports
    assert found
    assert all(report.startswith("RACE") and "stmatrix" in report for report in found)


@pytest.mark.gpu
@pytest.mark.parametrize("name", KERNELS)
def test_foreign_kernel_is_right_on_the_chip(name: str) -> None:
    """The host side that the emulator is fed with is right: the same call works on a GPU."""
    ptx, host = built(name)
    KERNELS[name][1](open_device("gpu"), ptx, host)


def _three_gemms(device: Device) -> list[Array]:
    """The same product by our sample kernel, CUTLASS and DeepGEMM."""
    shape: dict[str, Any] = {"m": 256, "n": 256, "k": 1024}
    outputs: list[Array] = []
    fp8_gemm(device, compile_ptx(FOLDER / "fp8_gemm.cu"), **shape, outputs=outputs)
    ptx, host = built("cutlass_fp8_cooperative")
    assert host is not None
    hosts.cutlass_gemm(device, ptx, host, fp8=True, **shape, alpha=1.0, beta=0.0, outputs=outputs)
    ptx, _ = built("deep_gemm_fp8")
    hosts.deep_gemm(device, ptx, **shape, unit_scales=True, outputs=outputs)
    return outputs


def test_three_gemms_agree_bit_for_bit() -> None:
    """All three promote every 128 of k in the same order, so they are second opinions on each other."""
    ours, cutlass, deep = (x.view(np.uint16) for x in _three_gemms(open_device("emulator")))
    assert (ours == cutlass).all()
    assert (ours == deep).all()


@pytest.mark.gpu
def test_emulator_and_chip_agree_bit_for_bit() -> None:
    """The whole product, not only one instruction, has the chip's bits."""
    emulated = _three_gemms(open_device("emulator", hopper_accumulate=True))
    real = _three_gemms(open_device("gpu"))
    assert all(
        (a.view(np.uint16) == b.view(np.uint16)).all() for a, b in zip(emulated, real, strict=True)
    )
