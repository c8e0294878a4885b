"""A real kernel all the way: spec -> compiler -> PTX -> emulator gives the right numbers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import pytest

from seekernel import _jit
from seekernel.jit.compiler import CompiledKernel, Compiler, compile_kernel
from seekernel.jit.families import kernel_spec
from seekernel.jit.headers import installed_headers, reached_headers
from tests.emulator.launch import Device, Function, open_device
from tests.fp8_gemm_testing import Config, Problem, Result, check, launch, make_operands
from tests.jit_testing import nvcc_or_skip, nvrtc_or_skip
from tests.kernel_testing import BuiltKernel
from tests.tile_testing import Source


@dataclass(frozen=True)
class JitKernel(BuiltKernel):
    """A kernel that one of the JIT's compilers made."""

    compiled: CompiledKernel

    def on(self, device: Device) -> Function:
        """Load its PTX by the symbol that the JIT found."""
        return device.load(self.compiled.ptx).function(self.compiled.symbol)


@lru_cache(maxsize=32)
def _kernel(name: str, block_m: int, block_n: int, stages: int) -> CompiledKernel:
    compiler: Compiler = nvrtc_or_skip() if name == "nvrtc" else nvcc_or_skip()
    config = _jit.GemmConfig(False, block_m, block_n, stages)
    spec = kernel_spec("sm90_fp8_gemm_nt", config.parameters)
    return compile_kernel(spec, compiler, reached_headers(spec.source(), installed_headers()))


def _run(device: Device, name: str, problem: Problem, short_sums: bool = False) -> Result:
    c = problem.config
    config = _jit.GemmConfig(False, c.block_m, c.block_n, c.stages)
    threads, shared_bytes, _, _ = _jit.gemm_resources(config, problem.k)
    assert (threads, shared_bytes) == (c.threads, c.shared_bytes)
    kernel = _kernel(name, c.block_m, c.block_n, c.stages)
    x = make_operands(problem)
    result = launch(device, problem, JitKernel(kernel.ptx, kernel), x)
    check(problem, x, result, short_sums)
    return result


def _dense(block_m: int, block_n: int, stages: int, m: int, n: int, k: int) -> Problem:
    return Problem(Source("dense", m=m), n, k, Config(block_m, block_n, stages))


CASES = [
    _dense(64, 16, 3, 1, 8, 128),
    _dense(64, 16, 3, 5, 40, 512),
    _dense(64, 128, 4, 65, 264, 256),
    _dense(128, 128, 5, 130, 200, 768),
]


@pytest.mark.parametrize("problem", CASES, ids=str)
def test_fp8_gemm_on_the_emulator(problem: Problem) -> None:
    _run(open_device("emulator"), "nvrtc", problem)


def test_fp8_gemm_with_the_sums_of_the_tensor_core() -> None:
    device = open_device("emulator", hopper_accumulate=True)
    problem = replace(CASES[1], source=Source("dense", m=70))
    _run(device, "nvrtc", problem, short_sums=True)


def test_nvrtc_and_nvcc_give_the_same_bits() -> None:
    results = [_run(open_device("emulator"), name, CASES[1]) for name in ("nvrtc", "nvcc")]
    assert np.array_equal(results[0].raw_d, results[1].raw_d)
