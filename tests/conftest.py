"""Tests marked `gpu` skip, with the reason, where there is no Hopper GPU."""

from __future__ import annotations

import ctypes
from functools import cache

import pytest


@cache
def missing_gpu() -> str:
    """Return why no Hopper GPU can be used, or nothing. Asks the driver, so that it needs no torch."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "no CUDA driver"
    device, major = ctypes.c_int(), ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), 0):
        return "no CUDA device"
    compute_capability_major = 75
    driver.cuDeviceGetAttribute(ctypes.byref(major), compute_capability_major, device)
    return "" if major.value == 9 else f"no Hopper GPU: compute capability {major.value}.x"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("gpu") is not None and missing_gpu():
            item.add_marker(pytest.mark.skip(reason=missing_gpu()))
