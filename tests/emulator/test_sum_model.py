"""The stated rule of Hopper's tensor-core sums gives every rounding probe's bits."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from tests.emulator.golden import probes_wgmma as wgmma
from tests.emulator.golden.probe import Array
from tests.emulator.golden.sum_model import wgmma_step
from tests.emulator.test_golden import NO_VECTORS, vectors

DTYPES = {
    "e4m3": ml_dtypes.float8_e4m3fn,
    "e5m2": ml_dtypes.float8_e5m2,
    "bf16": ml_dtypes.bfloat16,
    "f16": np.float16,
    "tf32": np.uint32,
}
FORMS = [form for form in wgmma.forms() if form.style not in ("integers", "special")]


def operand(image: Array, kind: str, rows: int, steps: int) -> Array:
    """Rows of a K-major, 128B-swizzled operand as float64."""
    size = np.dtype(DTYPES[kind]).itemsize
    row = np.arange(rows)[:, None]
    byte = np.arange(wgmma.K_SIZE[kind] * steps * size)[None, :]
    address = row // 8 * 1024 + row % 8 * 128 + byte
    raw = np.ascontiguousarray(image[address ^ (address >> 7 & 7) << 4])
    values = raw.view(DTYPES[kind])
    if kind == "tf32":
        values = (values & 0xFFFFE000).view(np.float32)
    return np.asarray(values, np.float64)


def fragments_to_rows(out: Array, n: int) -> Array:
    """[128 threads, n / 2] accumulator registers as a [64, n] matrix."""
    thread, index = np.arange(128)[:, None], np.arange(n // 2)[None, :]
    row = thread // 32 * 16 + thread % 32 // 4 + 8 * (index // 2 % 2)
    column = index // 4 * 8 + thread % 4 * 2 + index % 2
    matrix = np.empty((64, n))
    matrix[row, column] = out
    return matrix


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_rule_gives_the_chips_bits(form: wgmma.Form) -> None:
    """Every element of every probe, after 1 to 4 chained instructions."""
    golden = vectors("wgmma")
    if form.name not in golden:
        pytest.skip(NO_VECTORS)
    half = form.accumulator == "f16"
    out = golden[form.name].view(np.float16) if half else golden[form.name]
    image = wgmma.image_of(form)
    a = operand(image, form.kind_a, 64, form.steps)
    b = operand(image[wgmma.OFFSET_B :], form.kind_b, form.n, form.steps)
    acc = np.full((64, form.n), form.start_value or 0.0)
    k = wgmma.K_SIZE[form.kind_a]
    for step in range(form.steps):
        part = slice(step * k, (step + 1) * k)
        acc = wgmma_step(acc, a[:, part], b[:, part], form.kind_a, half)
    assert (acc == fragments_to_rows(out, form.n)).all()
