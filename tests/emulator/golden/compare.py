"""How a probe's answer is held against the chip's."""

from __future__ import annotations

import numpy as np

from tests.emulator.golden.probe import Array, Probe


def _as_float(values: Array, kind: str) -> Array:
    """Floating-point view of an output: fp32, or packed f16 pairs."""
    flat = np.ascontiguousarray(values)
    return flat.view(np.float16 if kind == "f16" else np.float32)


def _ordered(values: Array) -> Array:
    """fp32 bits as integers that count representable values, so that differences are ulps."""
    bits = values.view(np.int32).astype(np.int64)
    return np.where(bits < 0, -(bits & 0x7FFFFFFF), bits)


def difference(probe: Probe, got: Array, want: Array) -> str:
    """What is wrong with `got`, or an empty string.

    NaN and infinity positions must match exactly before any tolerance applies.
    """
    if got.shape != want.shape or got.dtype != want.dtype:
        return f"{got.dtype}{got.shape} instead of {want.dtype}{want.shape}"
    same = np.ascontiguousarray(got).view(np.uint8) == np.ascontiguousarray(want).view(np.uint8)
    if same.all():
        return ""
    if probe.ulps == 0 and probe.limit == 0.0:
        words = got.reshape(-1).view(np.uint8).reshape(got.size, -1)
        other = (words != want.reshape(-1).view(np.uint8).reshape(got.size, -1)).any(axis=1)
        first = int(np.argmax(other))
        return (
            f"{int(other.sum())} of {got.size} values differ, first at {first}: "
            f"{got.reshape(-1)[first]} instead of {want.reshape(-1)[first]}"
        )
    g, w = _as_float(got, probe.output), _as_float(want, probe.output)
    if (np.isfinite(g) != np.isfinite(w)).any() or (np.isnan(g) != np.isnan(w)).any():
        return "infinities or NaNs at other places"
    finite = np.isfinite(w)
    g, w = g[finite], w[finite]
    if probe.ulps:
        worst = int(np.abs(_ordered(g) - _ordered(w)).max())
        return f"{worst} ulps, {probe.ulps} allowed" if worst > probe.ulps else ""
    error = float(np.abs(g.astype(np.float64) - w).max() / np.abs(w.astype(np.float64)).max())
    return f"relative error {error:.3g}, {probe.limit:g} allowed" if error > probe.limit else ""
