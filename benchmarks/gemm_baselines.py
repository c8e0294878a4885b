"""Operands and baselines that the GEMM benchmarks share; each baseline is checked before it is timed.

DeepGEMM (`deep_gemm`, the wheels sgl-deep-gemm and apache-tvm-ffi) and cuBLASLt through
torch.nn.functional.scaled_mm join where they can be imported; a baseline that fails is named and left out.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from benchmarks.timing import Call, Table, Times, copies_beyond_cache, measure, roofs
from seekernel import ops

FP8 = torch.float8_e4m3fn


@dataclass(frozen=True)
class Fp8Operands:
    """a [m, k] e4m3 with scales [k / 128, round_up(m, 4)]; b [..., n, k] with 128x128 scales; out."""

    a: Tensor
    a_scale: Tensor
    b: Tensor
    b_scale: Tensor
    out: Tensor

    @property
    def num_bytes(self) -> int:
        """Read and written once each."""
        return sum(x.numel() * x.element_size() for x in vars(self).values())


def make_weights(shape: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """[..., n, k] random normal weights in blocks of 128x128."""
    *groups, n, k = shape
    b = torch.empty(*groups, n, k, dtype=FP8, device=device)
    scale = torch.empty(*groups, -(-n // 128), -(-k // 128), device=device)
    flat_b, flat_scale = b.view(-1, n, k), scale.view(-1, *scale.shape[-2:])
    for i in range(flat_b.shape[0]):
        ops.quantize_fp8_128x128(torch.randn(n, k, device=device), flat_b[i], flat_scale[i])
    return b, scale


def make_operands(m: int, n: int, k: int, device: torch.device) -> Fp8Operands:
    """Random normal operands of one product."""
    a, a_scale = ops.quantize_fp8_1x128(torch.randn(m, k, device=device))
    out = torch.empty(m, n, dtype=torch.bfloat16, device=device)
    return Fp8Operands(a, a_scale, *make_weights((n, k), device), out)


def rows_of_scales(x: Fp8Operands) -> Tensor:
    """Scales as [m, k / 128] with the rows adjacent: ours, seen from the other side."""
    return x.a_scale[:, : x.a.shape[0]].t()


@lru_cache(maxsize=1)
def deep_gemm() -> Any:
    """The module, or None where it cannot be imported."""
    os.environ.setdefault("DG_JIT_CACHE_DIR", os.path.expanduser("~/.cache/deep_gemm"))
    try:
        return importlib.import_module("deep_gemm")
    except (ImportError, OSError, RuntimeError) as error:
        print(f"# no DeepGEMM: {str(error).splitlines()[0]}")
        return None


def deep_gemm_dense(x: Fp8Operands, out: Tensor) -> Call | None:
    """DeepGEMM's fp8_gemm_nt."""
    module = deep_gemm()
    if module is None:
        return None
    a, b = (x.a, rows_of_scales(x)), (x.b, x.b_scale)
    return lambda: module.fp8_gemm_nt(a, b, out)


def cublaslt_dense(x: Fp8Operands, out: Tensor) -> Call | None:
    """cuBLASLt by scaled_mm with 1x128 and 128x128 scales; m is padded to a multiple of 4."""
    functional = torch.nn.functional
    if not hasattr(functional, "scaled_mm") or x.a.shape[0] % 4:
        return None
    blocks, padded = x.b_scale.shape[1], -(-x.b_scale.shape[1] // 4) * 4
    b_scale = torch.zeros(x.b_scale.shape[0], padded, device=x.a.device)
    b_scale[:, :blocks] = x.b_scale
    kinds = functional.ScalingType
    target = [out]

    def call() -> None:
        target[0] = functional.scaled_mm(
            x.a, x.b.t(), rows_of_scales(x), kinds.BlockWise1x128, b_scale.t(),
            kinds.BlockWise128x128, output_dtype=torch.bfloat16,
        )  # fmt: skip

    call()
    out.copy_(target[0])
    return call


def keep_if_right(
    name: str, make: Callable[[], Call | None], out: Tensor, want: Tensor
) -> Call | None:
    """The call, if it can be made, run, and gives `want`; otherwise None, and a line that says why."""
    try:
        call = make()
        if call is None:
            return None
        call()
        if out.is_cuda:
            torch.cuda.synchronize()
        error = ((out.double() - want).abs().max() / want.abs().max()).item()
    except Exception as reason:
        print(f"# {name}: {type(reason).__name__}: {str(reason).splitlines()[0][:160]}")
        return None
    if not error < 0.02:
        print(f"# {name}: left out, wrong by {error:.2e} of the largest value")
        return None
    return call


def time_all(
    variants: Mapping[str, Sequence[Call]], device: torch.device, quick: bool
) -> dict[str, Times]:
    """Interleaved, in CUDA graphs on a GPU."""
    rounds, target = (5, 800.0) if quick else (15, 3000.0)
    return measure(variants, device, rounds=rounds, target_us=target)


def copies(num_bytes: int, device: torch.device, cold: bool, quick: bool) -> int:
    """How many sets of operands a variant turns through."""
    if not cold:
        return 1
    return min(copies_beyond_cache(num_bytes, device), 4 if quick and device.type == "cpu" else 64)


def report(
    table: Table,
    row: Sequence[object],
    times: Mapping[str, Times],
    names: Sequence[str],
    num_bytes: float,
    flops: float,
    fp8: bool,
    device: torch.device,
) -> None:
    """One row: ours first, then each baseline's time and how many times ours it takes."""
    ours = times[names[0]]
    floor = roofs(device.type).floor_us(num_bytes, flops, fp8)
    cells: list[object] = [
        *row, str(ours), flops / ours.median_us / 1e6, num_bytes / ours.median_us / 1e3,
        f"{100 * floor / ours.median_us:.0f}",
    ]  # fmt: skip
    for name in names[1:]:
        found = times.get(name)
        cells += (
            ["-", "-"] if found is None else [found.median_us, found.median_us / ours.median_us]
        )
    table.add(*cells)


def columns(row: Sequence[str], names: Sequence[str]) -> list[str]:
    """Headings of `report`."""
    heads = [*row, f"{names[0]} us", "TFLOPS", "GB/s", "% of roof"]
    for name in names[1:]:
        heads += [f"{name} us", "x ours"]
    return heads
