"""What the JIT's tests share: a tiny kernel family that NVRTC compiles in a few hundredths of a second."""

from __future__ import annotations

from pathlib import Path

import pytest

from seekernel.jit import CompilerMissing, Jit, KernelCache, KernelSpec
from seekernel.jit.compiler import Compiler, Nvcc, Nvrtc, find_nvcc

TINY_HEADERS = {
    "seekernel/tiny.cuh": """
#pragma once
#include <seekernel/tiny_part.cuh>
namespace seekernel {
template <int kValue_, int kSpill_ = 0> struct tiny_config {
  static constexpr int kValue = kValue_, kSpill = kSpill_;
};
template <typename Config>
__global__ void tiny(float* x, int i) {
  if constexpr (Config::kSpill) {
    volatile float v[64];
    v[i] = 1.f;
    x[0] = v[2 * i];
  } else {
    x[threadIdx.x] = add_one(Config::kValue);
  }
}
}  // namespace seekernel
""",
    "seekernel/tiny_part.cuh": """
#pragma once
namespace seekernel {
__device__ inline float add_one(int value) { return value + 1; }
}
""",
    "seekernel/unreached.cuh": "#pragma once\n",
}


def tiny_spec(value: int, *more: tuple[str, int]) -> KernelSpec:
    """A kernel that stores value + 1."""
    return KernelSpec("tiny", "seekernel/tiny.cuh", (("kValue", value), *more))


def nvrtc_or_skip() -> Compiler:
    """NVRTC, or a skip where it is not installed."""
    compiler = Nvrtc()
    try:
        compiler.identity  # noqa: B018
    except CompilerMissing as error:
        pytest.skip(str(error))
    return compiler


def nvcc_or_skip() -> Compiler:
    """nvcc, or a skip where it is not installed."""
    try:
        return Nvcc(find_nvcc())
    except CompilerMissing as error:
        pytest.skip(str(error))


def tiny_jit(root: Path, **options: object) -> Jit:
    """A JIT of its own over `root` that sees only the tiny headers."""
    return Jit(KernelCache(root, **options), nvrtc_or_skip(), TINY_HEADERS)
