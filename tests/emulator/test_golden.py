"""The emulator answers every probe as the chip did; the vectors were dumped by dump_golden.py."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from tests.emulator.compile import CompilerMissing
from tests.emulator.golden.compare import difference
from tests.emulator.golden.dump_golden import VECTORS, all_probes
from tests.emulator.golden.probe import Array, Probe
from tests.emulator.launch import open_device

NO_VECTORS = "no golden vectors yet: run python -m tests.emulator.golden.dump_golden on a GPU"


@functools.cache
def vectors(family: str) -> dict[str, Array]:
    """The stored answers of one family, by probe name; empty where there is no file."""
    path = VECTORS / f"{family}.npz"
    if not path.exists():
        return {}
    with np.load(path) as stored:
        return {name: stored[name] for name in stored.files}


@pytest.mark.parametrize("probe", all_probes(), ids=lambda probe: probe.name)
def test_emulator_answers_like_the_chip(probe: Probe) -> None:
    """Same bits, or within the tolerance that the probe states."""
    golden = vectors(probe.family)
    if probe.name not in golden:
        pytest.skip(NO_VECTORS)
    try:
        got = probe.run(open_device("emulator", hopper_accumulate=True))
    except CompilerMissing as missing:
        pytest.skip(str(missing))
    assert difference(probe, got, golden[probe.name]) == ""


def test_every_stored_vector_has_a_probe() -> None:
    """A renamed probe must not leave its vector behind, unused."""
    names = {probe.name for probe in all_probes()}
    stored = {name for path in VECTORS.glob("*.npz") for name in vectors(path.stem)}
    if not stored:
        pytest.skip(NO_VECTORS)
    assert stored - names == set()


def test_difference_sees_a_flipped_bit_a_moved_nan_and_a_large_error() -> None:
    """The comparison itself can fail."""
    exact = Probe("x/exact", lambda device: np.empty(0))
    loose = Probe("x/loose", lambda device: np.empty(0), limit=1e-3)
    near = Probe("x/near", lambda device: np.empty(0), ulps=1)
    want = np.array([1.0, 2.0, np.nan, np.inf], np.float32)
    flipped = want.copy()
    flipped.view(np.uint32)[0] ^= 1
    assert difference(exact, want.copy(), want) == ""
    assert "1 of 4 values differ" in difference(exact, flipped, want)
    assert difference(near, flipped, want) == ""
    assert difference(loose, flipped, want) == ""
    flipped.view(np.uint32)[0] ^= 2
    assert "ulps" in difference(near, flipped, want)
    moved = want[[2, 1, 0, 3]]
    assert "other places" in difference(loose, moved, want)
    wrong = np.array([1.0, 2.5, np.nan, np.inf], np.float32)
    assert "relative error" in difference(loose, wrong, want)
