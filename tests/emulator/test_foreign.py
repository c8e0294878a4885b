"""Kernels that nobody here wrote: right numbers and no report in nine schedules.

They are the second opinion on the emulator: a model error that our own kernels share shows up here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.emulator.foreign import build, hosts
from tests.emulator.foreign.wheels import WheelUnavailable
from tests.emulator.launch import Device, open_device
from tests.emulator.schedules import NINE_SCHEDULES

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


@functools.cache
def built(name: str) -> tuple[Path, Path | None]:
    """PTX and host library of a kernel; skips where wheel or compiler cannot be had."""
    try:
        return KERNELS[name][0].build()
    except (WheelUnavailable, build.CompilerUnavailable) as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("schedule", NINE_SCHEDULES, ids=str)
@pytest.mark.parametrize("name", KERNELS)
def test_foreign_kernel_is_right_and_clean(name: str, schedule: object) -> None:
    """The run compares with float64 and raises when the checker has anything to say."""
    ptx, host = built(name)
    KERNELS[name][1](open_device("emulator", schedule=schedule), ptx, host)


@pytest.mark.gpu
@pytest.mark.parametrize("name", KERNELS)
def test_foreign_kernel_is_right_on_the_chip(name: str) -> None:
    """The host side that the emulator is fed with is right: the same call works on a GPU."""
    ptx, host = built(name)
    KERNELS[name][1](open_device("gpu"), ptx, host)
