"""The rule by which Hopper's wgmma adds, found from the golden vectors and exact on all of them.

One instruction adds all its K products and the accumulator at once, in fixed point:

    e = max(floor(log2|a_k|) + floor(log2|b_k|) over k,  floor(log2|acc|))      zeros do not count
    sum = trunc(acc, 2^(e - F)) + sum_k trunc(a_k * b_k, 2^(e - F))             exactly
    fp32 result: sum cut, not rounded, to G mantissa bits behind the leading one
    f16 result: sum rounded to the nearest f16

`trunc` goes towards zero. F = G = 13 for fp8 inputs, which is the "14 bits" that promotion to fp32
registers is about; F = 25, G = 23 for bf16, f16 and tf32 (inputs cut to 10 mantissa bits). mma.sync on
bf16 and f16 follows the second rule with its own K; on fp8 it is computed like f16, not like wgmma.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

ALIGN_BITS = {"e4m3": 13, "e5m2": 13, "bf16": 25, "f16": 25, "tf32": 25}
RESULT_BITS = {"e4m3": 13, "e5m2": 13, "bf16": 23, "f16": 23, "tf32": 23}
BELOW_ALL = -10_000
"""Exponent of a zero."""


def _exponent(values: Array) -> Array:
    """floor(log2|x|)."""
    return np.where(values == 0, BELOW_ALL, np.frexp(np.abs(values))[1] - 1)


def _cut(values: Array, exponent: Array, bits: int) -> Array:
    """Values as whole multiples of 2^(exponent - bits), towards zero, still scaled."""
    scaled: Array = np.ldexp(values, bits - np.maximum(exponent, -2000))
    return np.trunc(scaled)


def wgmma_step(acc: Array, a: Array, b: Array, kind: str, to_f16: bool = False) -> Array:
    """One instruction's sum: acc [m, n] + a [m, k] @ b [n, k]^T, all float64 of exact values."""
    bits = ALIGN_BITS[kind]
    products = a[:, None, :] * b[None, :, :]
    exponents = _exponent(a)[:, None, :] + _exponent(b)[None, :, :]
    exponents = np.where(products == 0, BELOW_ALL, exponents)
    top = np.maximum(exponents.max(axis=2), _exponent(acc))
    total = _cut(products, top[:, :, None], bits).sum(axis=2) + _cut(acc, top, bits)
    total = np.ldexp(total, np.maximum(top, -2000) - bits)
    if to_f16:
        return np.asarray(total.astype(np.float16), np.float64)
    top = _exponent(total)
    kept = np.ldexp(_cut(total, top, RESULT_BITS[kind]), np.maximum(top, -2000) - RESULT_BITS[kind])
    return np.where(total == 0, 0.0, kept)
