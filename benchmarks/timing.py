"""Times variants of one operation, interleaved, on a CUDA device (in CUDA graphs) or on the CPU.

    times = measure({"ours": calls, "baseline": calls}, torch.device("cuda"))
    times["ours"].median_us

A variant is a sequence of calls that do the same work on different inputs. They run in turn, so that with
inputs that together exceed the caches (`copies_beyond_cache`) every call reads from memory, as in a model
whose layers follow each other. One call alone measures warm caches. Check results before timing: nothing here does.
"""

from __future__ import annotations

import csv
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

Call = Callable[[], Any]


@dataclass(frozen=True)
class Times:
    """Microseconds of one call."""

    median_us: float
    p20_us: float
    p80_us: float

    @staticmethod
    def of(samples_us: Sequence[float]) -> Times:
        """Of samples of one call each; ValueError if there are none."""
        ordered = sorted(samples_us)
        low, high = (ordered[min(len(ordered) - 1, int(q * len(ordered)))] for q in (0.2, 0.8))
        return Times(statistics.median(ordered), low, high)

    def __str__(self) -> str:
        return f"{self.median_us:.1f} ({self.p20_us:.1f}-{self.p80_us:.1f})"


def measure(
    variants: Mapping[str, Sequence[Call]],
    device: torch.device,
    *,
    rounds: int = 15,
    target_us: float = 3000.0,
    graph: bool = True,
) -> dict[str, Times]:
    """Time all variants in alternation.

    Args:
        variants: name to calls, run in turn; each must only launch, into buffers that stay.
        rounds: samples per variant.
        target_us: how long one sample lasts about; it holds each call equally often.
        graph: capture a sample as one CUDA graph; False for calls that synchronise (host time included).
    """
    samplers = {
        name: (_cuda_sampler if device.type == "cuda" else _cpu_sampler)(calls, target_us, graph)
        for name, calls in variants.items()
    }
    samples: dict[str, list[float]] = {name: [] for name in variants}
    for round_index in range(rounds + 1):
        for name, sample in samplers.items():
            value = sample()
            if round_index > 0:  # the first warms up
                samples[name].append(value)
    return {name: Times.of(values) for name, values in samples.items()}


def _cpu_sampler(calls: Sequence[Call], target_us: float, graph: bool) -> Callable[[], float]:
    for call in calls:
        call()
    start = time.perf_counter()
    for call in calls:
        call()
    one_pass_us = (time.perf_counter() - start) * 1e6
    passes = max(1, round(target_us / max(one_pass_us, 1e-3)))

    def sample() -> float:
        begin = time.perf_counter()
        for _ in range(passes):
            for call in calls:
                call()
        return (time.perf_counter() - begin) * 1e6 / (passes * len(calls))

    return sample


def _cuda_sampler(calls: Sequence[Call], target_us: float, graph: bool) -> Callable[[], float]:
    begin = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]

    def timed(work: Call) -> float:
        torch.cuda.synchronize()
        begin.record()
        work()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) * 1e3

    def one_pass() -> None:
        for call in calls:
            call()

    one_pass()
    timed(one_pass)
    passes = max(1, min(200, round(target_us / max(timed(one_pass), 1.0))))

    def work() -> None:
        for _ in range(passes):
            one_pass()

    if graph:
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured):
            work()
        run: Call = captured.replay
        run()
    else:
        run = work
    return lambda: timed(run) / (passes * len(calls))


def copies_beyond_cache(bytes_per_call: int, device: torch.device, limit: int = 64) -> int:
    """How many input sets a variant should rotate through so that none is still cached when it comes again."""
    cache_bytes = 50 * 2**20 if device.type == "cuda" else 32 * 2**20
    return max(1, min(limit, -(-3 * cache_bytes // max(bytes_per_call, 1))))


@dataclass(frozen=True)
class Roofs:
    """What the device was measured to reach.

    Args:
        bytes_per_us: large copy, bytes read plus bytes written.
        bf16_flops_per_us, fp8_flops_per_us: large matrix products; 0 where the device has no such unit.
    """

    bytes_per_us: float
    bf16_flops_per_us: float
    fp8_flops_per_us: float

    def floor_us(self, num_bytes: float, flops: float, fp8: bool = False) -> float:
        """The time below which no implementation can be: the larger of the two terms."""
        rate = self.fp8_flops_per_us if fp8 else self.bf16_flops_per_us
        return max(num_bytes / self.bytes_per_us, flops / rate if rate else 0.0)


@lru_cache(maxsize=2)
def roofs(device_type: str) -> Roofs:
    """Measured once a process."""
    device = torch.device(device_type)
    on_gpu = device_type == "cuda"
    size = (2**31 if on_gpu else 2**28) // 4
    source, target = torch.ones(size, device=device), torch.empty(size, device=device)
    copy = measure({"copy": [lambda: target.copy_(source)]}, device, rounds=7, target_us=2e4)
    bytes_per_us = 8 * size / copy["copy"].median_us
    n = 8192 if on_gpu else 1024
    dtype = torch.bfloat16 if on_gpu else torch.float32
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    product = measure({"mm": [lambda: torch.mm(a, b.T)]}, device, rounds=7, target_us=2e4)
    matrix_rate = 2 * n**3 / product["mm"].median_us
    fp8_rate = 0.0
    if on_gpu:
        qa, qb = (x.to(torch.float8_e4m3fn) for x in (a, b))
        one = torch.ones((), device=device)
        scaled = lambda: torch._scaled_mm(
            qa, qb.T, one, one, out_dtype=torch.bfloat16, use_fast_accum=True
        )
        fp8_rate = 2 * n**3 / measure({"mm": [scaled]}, device, rounds=7)["mm"].median_us
    return Roofs(bytes_per_us, matrix_rate, fp8_rate)


class Table:
    """Rows of text, printed as they come, kept for a CSV file."""

    def __init__(self, columns: Sequence[str]) -> None:
        self.columns = tuple(columns)
        self.rows: list[tuple[str, ...]] = []
        print(" | ".join(self.columns), flush=True)

    def add(self, *cells: object) -> None:
        """One row; ValueError if the count is wrong."""
        row = tuple(f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in cells)
        if len(row) != len(self.columns):
            raise ValueError(f"Table.add: expected {len(self.columns)} cells, got {len(row)}")
        self.rows.append(row)
        print(" | ".join(row), flush=True)

    def write(self, path: Path) -> None:
        """As CSV, with what made it in the first lines, behind '#'."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="") as file:
            file.write(f"# {describe_machine()}; {' '.join(sys.argv)}\n")
            writer = csv.writer(file)
            writer.writerow(self.columns)
            writer.writerows(self.rows)


def describe_machine() -> str:
    """GPU or CPU, and the versions that decide speed."""
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        name = f"{properties.name}, {properties.multi_processor_count} SMs"
    else:
        text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
        models = [line.split(":")[1].strip() for line in text.splitlines() if "model name" in line]
        name = f"{models[0] if models else 'CPU'}, {torch.get_num_threads()} threads"
    return f"{name}, torch {torch.__version__}, CUDA {torch.version.cuda}"
