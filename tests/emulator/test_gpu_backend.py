"""The GPU back end: the controls on a chip, and plain words where there is none."""

from __future__ import annotations

import ctypes

import pytest

from tests.emulator import cuda_driver
from tests.emulator.compile import compile_ptx
from tests.emulator.kernels.cases import CONTROLS, Case
from tests.emulator.launch import open_device


@pytest.mark.gpu
@pytest.mark.parametrize("case", CONTROLS, ids=str)
def test_control_is_right_on_the_chip(case: Case) -> None:
    """The same host side, PTX and comparison as in the emulator."""
    case.run(open_device("gpu"), compile_ptx(case.source, defines=case.defines))


def test_no_driver_is_said_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that cannot be loaded is named, not a traceback from ctypes."""
    monkeypatch.setattr(cuda_driver, "LIBRARY", "libcuda-that-is-not-there.so.1")
    with pytest.raises(cuda_driver.DriverMissing, match="expected libcuda-that-is-not-there"):
        open_device("gpu")


def test_launch_structures_have_the_drivers_layout() -> None:
    """CUlaunchAttribute is 72 bytes and CUlaunchConfig 56: a wrong pad would pass garbage."""
    assert ctypes.sizeof(cuda_driver.LaunchAttribute) == 72
    assert cuda_driver.LaunchAttribute.value.offset == 8
    assert ctypes.sizeof(cuda_driver.LaunchConfig) == 56
    assert cuda_driver.LaunchConfig.stream.offset == 32
