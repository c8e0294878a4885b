"""Inputs and comparisons that the sample kernels' host sides share."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

BF16 = np.dtype(ml_dtypes.bfloat16)
E4M3 = np.dtype(ml_dtypes.float8_e4m3fn)


class WrongResult(AssertionError):
    """A kernel's output that differs from its numpy reference."""

    def __init__(self, name: str, expected: str, got: str) -> None:
        super().__init__(f"{name}: expected {expected}, got {got}")


def random_array(shape: tuple[int, ...], dtype: Any, seed: int) -> NDArray[Any]:
    """Normal values rounded to `dtype`; the same for the same seed."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32).astype(dtype)


def require_equal(name: str, got: NDArray[Any], want: NDArray[Any]) -> None:
    """WrongResult unless both arrays hold the same bits."""
    same = got.view(np.uint8) == want.astype(got.dtype).view(np.uint8)
    if not same.all():
        raise WrongResult(name, "the reference's bits", f"{int((~same).sum())} other bytes")


def require_close(name: str, got: NDArray[Any], want: NDArray[Any], limit: float) -> None:
    """WrongResult unless max |got - want| is finite and within `limit` times max |want|."""
    difference = np.abs(got.astype(np.float64) - want.astype(np.float64))
    error = (
        float(difference.max() / np.abs(want).max()) if np.isfinite(difference).all() else np.inf
    )
    if not error <= limit:
        raise WrongResult(name, f"a relative error within {limit:g}", f"{error:g}")
