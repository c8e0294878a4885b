"""What the JIT costs: cold compile, warm lookup, host time of a launch.

    python benchmarks/bench_jit.py [--out FILE.json]

The host time is measured without a GPU: the driver's functions are replaced by ones that do nothing, so
it holds all of ours (shape checks, config choice, kernel lookup, four tensor maps) and none of CUDA's.
Each figure comes as wall time and as processor time (own and children's), which a loaded machine does
not stretch as much. A figure is over its limit if both are; exit status 1 then.
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
from contextlib import suppress
from functools import partial
from pathlib import Path

import torch

from seekernel import _jit, ops
from seekernel.jit import CompilerMissing, Jit, KernelCache, native
from seekernel.jit.compiler import Compiler, Nvcc, Nvrtc, find_nvcc
from seekernel.jit.families import kernel_spec
from seekernel.ops import _gemm_cuda, _gemm_shared, paths

SPEC = kernel_spec("sm90_fp8_gemm_nt", (0, 0, 128, 128, 5, 0, 0, 0, 0, 0))
LIMITS = {
    "nvrtc cold compile": 1.5,
    "warm lookup": 5e-3,
    "host cost of a launch": 5e-6,
    "host cost of an op": 5e-6,
}

_COLD = """
import os, sys, time
from pathlib import Path
from seekernel.jit import Jit, KernelCache
from seekernel.jit.families import kernel_spec
from benchmarks.bench_jit import SPEC, compilers
jit = Jit(KernelCache(Path(sys.argv[1])), compilers()[sys.argv[2]])
start, before = time.perf_counter(), sum(os.times()[:4])
jit.artifact(SPEC)
print(time.perf_counter() - start, sum(os.times()[:4]) - before, jit.num_compiled)
"""

Sample = tuple[float, float]
"""Wall and processor seconds."""


def compilers() -> dict[str, Compiler]:
    """The compilers that this machine has."""
    found: dict[str, Compiler] = {"nvrtc": Nvrtc()}
    with suppress(CompilerMissing):
        found["nvcc"] = Nvcc(find_nvcc())
    return found


def in_a_process(root: str, compiler: str, compiled: int) -> Sample:
    """From a spec to its artifact in a fresh process, loading of the library included."""
    done = subprocess.run(
        [sys.executable, "-c", _COLD, root, compiler],
        cwd=Path(__file__).resolve().parent.parent,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    wall, processor, count = done.stdout.split()
    if int(count) != compiled:
        raise RuntimeError(f"expected {compiled} compilations, got {count}")
    return float(wall), float(processor)


def repeat(measure: Callable[[], Sample], times: int) -> list[Sample]:
    """Samples of a measurement."""
    return [measure() for _ in range(times)]


def host_cost() -> Callable[[], Sample]:
    """Time per launch of an FP8 GEMM from tensors, steady state, driver replaced by nothing."""
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

    def measure() -> Sample:
        count = 2000
        start, before = time.perf_counter(), time.process_time()
        for _ in range(count):
            launch(a, sfa, b, sfb)
        processor = time.process_time() - before
        return (time.perf_counter() - start) / count, processor / count

    return measure


def op_host_cost() -> Callable[[], Sample]:
    """Time per call of ops.fp8_gemm_nt's way on a GPU: checks in Python, choice of the path, and all of the above."""
    m, n, k = 64, 4096, 7168
    a, a_scale = ops.quantize_fp8_1x128(torch.randn(m, k))
    b, b_scale = ops.quantize_fp8_128x128(torch.randn(n, k))
    out = torch.empty(m, n, dtype=torch.bfloat16)
    # What asks torch's CUDA half, which is not here: the current device and its stream.
    stand_ins = {
        (_gemm_shared, "is_current"): True,
        (_gemm_shared, "stream"): (132, 0),
        (paths, "capability"): (9, 0),
    }
    for (module, name), value in stand_ins.items():
        setattr(module, name, partial(lambda value, device: value, value))

    def measure() -> Sample:
        count = 2000
        start, before = time.perf_counter(), time.process_time()
        for _ in range(count):
            _gemm_cuda.fp8_gemm_nt(a.get_device(), b.shape, a, a_scale, b, b_scale, out)
        processor = time.process_time() - before
        return (time.perf_counter() - start) / count, processor / count

    return measure


def main() -> int:
    """Measure, print, and compare with the limits."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    samples: dict[str, list[Sample]] = {}
    for name, compiler in compilers().items():

        def cold(name: str = name) -> Sample:
            with tempfile.TemporaryDirectory() as root:
                return in_a_process(root, name, compiled=1)

        samples[f"{name} cold compile"] = repeat(cold, 5)
        with tempfile.TemporaryDirectory() as root:
            Jit(KernelCache(Path(root)), compiler).artifact(SPEC)
            if name != "nvrtc":
                continue

            def first(root: str = root) -> Sample:
                return in_a_process(root, "nvrtc", compiled=0)

            def lookup(root: str = root, compiler: Compiler = compiler) -> Sample:
                jit = Jit(KernelCache(Path(root)), compiler)
                start, before = time.perf_counter(), time.process_time()
                jit.artifact(SPEC)
                processor = time.process_time() - before
                return time.perf_counter() - start, processor

            samples["first lookup of a process"] = repeat(first, 5)
            samples["warm lookup"] = repeat(lookup, 200)
    with tempfile.TemporaryDirectory() as root:
        _jit.use_null_driver(True)
        native.install(Jit(KernelCache(Path(root)), compilers()["nvrtc"]))
        measure = host_cost()
        measure()
        samples["host cost of a launch"] = repeat(measure, 50)
        measure = op_host_cost()
        measure()
        samples["host cost of an op"] = repeat(measure, 50)
        _jit.set_resolver(None)
        _jit.clear()
        _jit.use_null_driver(False)

    load = os.getloadavg()[0]
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, load {load:.1f}, torch {torch.__version__}"
    )
    over = False
    rows = {}
    for name, values in samples.items():
        wall, processor = (statistics.median(column) for column in zip(*values, strict=True))
        low, high = min(values)[0], max(values)[0]
        rows[name] = {"wall_s": wall, "processor_s": processor, "low_s": low, "high_s": high}
        limit = LIMITS.get(name)
        too_long = limit is not None and min(wall, processor) > limit
        verdict = "" if limit is None else f"limit {limit:g}: {'OVER' if too_long else 'ok'}"
        over |= too_long
        spread = f"({low:.3g} .. {high:.3g})"
        print(f"{name:<26} wall {wall:.3g} s {spread}, processor {processor:.3g} s  {verdict}")
    if options.out:
        options.out.write_text(json.dumps({"load": load, "rows": rows}, indent=1) + "\n")
    return int(over)


if __name__ == "__main__":
    sys.exit(main())
