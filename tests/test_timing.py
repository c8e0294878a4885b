"""The benchmarks' own arithmetic; nothing here is timed against a limit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.timing import Roofs, Table, Times, copies_beyond_cache, measure

CPU = torch.device("cpu")


def test_times_are_quantiles_of_the_samples() -> None:
    times = Times.of([float(x) for x in range(1, 11)])
    assert (times.median_us, times.p20_us, times.p80_us) == (5.5, 3.0, 9.0)


def test_every_call_of_every_variant_runs_equally_often() -> None:
    counts = {"a0": 0, "a1": 0, "b0": 0}

    def call(name: str) -> None:
        counts[name] += 1

    variants = {"a": [lambda: call("a0"), lambda: call("a1")], "b": [lambda: call("b0")]}
    times = measure(variants, CPU, rounds=3, target_us=1.0)
    assert set(times) == {"a", "b"}
    assert counts["a0"] == counts["a1"] > 3
    assert counts["b0"] > 3


def test_the_floor_is_the_larger_term() -> None:
    roofs = Roofs(bytes_per_us=10.0, bf16_flops_per_us=100.0, fp8_flops_per_us=200.0)
    assert roofs.floor_us(50, 100) == 5.0
    assert roofs.floor_us(50, 2000) == 20.0
    assert roofs.floor_us(50, 2000, fp8=True) == 10.0


def test_rotation_exceeds_the_cache() -> None:
    assert copies_beyond_cache(2**30, CPU) == 1
    assert copies_beyond_cache(2**20, CPU) == 64
    assert copies_beyond_cache(2**20, CPU, limit=8) == 8


def test_table_keeps_every_row(tmp_path: Path) -> None:
    table = Table(("shape", "us"))
    table.add("4x4", 1.234)
    with pytest.raises(ValueError, match="expected 2 cells, got 1"):
        table.add("4x4")
    table.write(tmp_path / "t.csv")
    assert (tmp_path / "t.csv").read_text().splitlines()[1:] == ["shape,us", "4x4,1.23"]
