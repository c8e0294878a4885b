"""What the JIT costs: cold compile, warm lookup, host time of a launch.

    python benchmarks/bench_jit.py [--out FILE.json]

The host time is measured without a GPU: the driver's functions are replaced by ones that do nothing, so
it holds all of ours (shape checks, config choice, kernel lookup, four tensor maps) and none of CUDA's.
Each figure is checked against its limit; exit status 1 if one is over.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from seekernel import _jit
from seekernel.jit import CompilerMissing, Jit, KernelCache, native
from seekernel.jit.compiler import Compiler, Nvcc, Nvrtc, find_nvcc
from seekernel.jit.families import kernel_spec

SPEC = kernel_spec("sm90_fp8_gemm_nt", (0, 0, 128, 128, 5))
LIMITS = {"nvrtc cold compile": 1.5, "warm lookup": 5e-3, "host cost of a launch": 5e-6}

_COLD = """
import sys, time
from pathlib import Path
from seekernel.jit import Jit, KernelCache
from seekernel.jit.families import kernel_spec
from benchmarks.bench_jit import SPEC, compilers
jit = Jit(KernelCache(Path(sys.argv[1])), compilers()[sys.argv[2]])
start = time.perf_counter()
jit.artifact(SPEC)
print(time.perf_counter() - start, jit.num_compiled)
"""


def compilers() -> dict[str, Compiler]:
    """The compilers that this machine has."""
    found: dict[str, Compiler] = {"nvrtc": Nvrtc()}
    try:
        found["nvcc"] = Nvcc(find_nvcc())
    except CompilerMissing:
        pass
    return found


def in_a_process(root: str, compiler: str, compiled: int) -> float:
    """Seconds from a spec to its artifact in a fresh process, loading of the library included."""
    done = subprocess.run(
        [sys.executable, "-c", _COLD, root, compiler],
        cwd=Path(__file__).resolve().parent.parent,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    seconds, count = done.stdout.split()
    if int(count) != compiled:
        raise RuntimeError(f"expected {compiled} compilations, got {count}")
    return float(seconds)


def repeat(measure: Callable[[], float], times: int) -> list[float]:
    return [measure() for _ in range(times)]


def host_cost() -> Callable[[], float]:
    """Seconds per launch of an FP8 GEMM from tensors, steady state, driver replaced by nothing."""
    m, n, k = 64, 4096, 7168
    fp8 = torch.float8_e4m3fn
    a, b = torch.empty(m, k, dtype=fp8), torch.empty(n, k, dtype=fp8)
    sfa, sfb = torch.empty(k // 128, m), torch.empty(n // 128, k // 128)
    d = torch.empty(m, n, dtype=torch.bfloat16)

    def launch(a: torch.Tensor, sfa: torch.Tensor, b: torch.Tensor, sfb: torch.Tensor) -> None:
        m, k = a.shape
        _jit.fp8_gemm_nt(
            a.data_ptr(), sfa.data_ptr(), b.data_ptr(), sfb.data_ptr(), d.data_ptr(), m, b.shape[0],
            k, a.stride(0), sfa.stride(0), b.stride(0), d.stride(0), 132, 0,
        )  # fmt: skip

    def measure() -> float:
        count = 2000
        start = time.perf_counter()
        for _ in range(count):
            launch(a, sfa, b, sfb)
        return (time.perf_counter() - start) / count

    return measure


def main() -> int:
    """Measure, print, and compare with the limits."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    samples: dict[str, list[float]] = {}
    for name, compiler in compilers().items():

        def cold(name: str = name) -> float:
            with tempfile.TemporaryDirectory() as root:
                return in_a_process(root, name, compiled=1)

        samples[f"{name} cold compile"] = repeat(cold, 5)
        with tempfile.TemporaryDirectory() as root:
            Jit(KernelCache(Path(root)), compiler).artifact(SPEC)
            if name != "nvrtc":
                continue
            samples["first lookup of a process"] = repeat(
                lambda root=root: in_a_process(root, "nvrtc", compiled=0), 5
            )

            def lookup(root: str = root, compiler: Compiler = compiler) -> float:
                jit = Jit(KernelCache(Path(root)), compiler)
                start = time.perf_counter()
                jit.artifact(SPEC)
                return time.perf_counter() - start

            samples["warm lookup"] = repeat(lookup, 200)
    with tempfile.TemporaryDirectory() as root:
        _jit.use_null_driver(True)
        native.install(Jit(KernelCache(Path(root)), compilers()["nvrtc"]))
        measure = host_cost()
        measure()
        samples["host cost of a launch"] = repeat(measure, 50)
        _jit.set_resolver(None)
        _jit.clear()
        _jit.use_null_driver(False)

    load = os.getloadavg()[0]
    print(f"{platform.machine()}, {os.cpu_count()} cores, load {load:.1f}, torch {torch.__version__}")
    over = False
    rows = {}
    for name, values in samples.items():
        median = statistics.median(values)
        rows[name] = {"median_s": median, "min_s": min(values), "max_s": max(values)}
        limit = LIMITS.get(name)
        verdict = "" if limit is None else f"limit {limit:g} s: {'ok' if median <= limit else 'OVER'}"
        over |= limit is not None and median > limit
        print(f"{name:<26} median {median:.3g} s  ({min(values):.3g} .. {max(values):.3g})  {verdict}")
    if options.out:
        options.out.write_text(json.dumps({"load": load, "rows": rows}, indent=1) + "\n")
    return int(over)


if __name__ == "__main__":
    sys.exit(main())
