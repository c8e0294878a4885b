"""fp8_gemm_nt on DeepSeek-V3's dense shapes: ours (JIT, AOT) against DeepGEMM and cuBLASLt, cold and warm.

    python -m benchmarks.bench_fp8_gemm [--quick] [--device cpu] [--shapes o kv_b] [--m 1 64] [--out FILE.csv]

On the CPU activations are float32, and the baseline is torch.mm on float32 weights.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from benchmarks import gemm_baselines as base
from benchmarks.shapes import DECODE_M, DENSE, DENSE_TP8, Linear
from benchmarks.timing import Call, Table, describe_machine
from seekernel import ops, reference

GPU_NAMES = ("seekernel", "seekernel AOT", "DeepGEMM", "cuBLASLt")
CPU_NAMES = ("seekernel", "torch float32")


def gpu_makers(x: base.Fp8Operands) -> dict[str, Callable[[], Call | None]]:
    """What makes each variant's call on one set of operands."""
    aot = torch.ops.seekernel.fp8_gemm_nt.default
    arguments = (x.a, x.a_scale, x.b, x.b_scale, x.out)
    return {
        "seekernel": lambda: partial(ops.fp8_gemm_nt, *arguments),
        "seekernel AOT": lambda: partial(aot, *arguments),
        "DeepGEMM": lambda: base.deep_gemm_dense(x, x.out),
        "cuBLASLt": lambda: base.cublaslt_dense(x, x.out),
    }


def gpu_variants(sets: Sequence[base.Fp8Operands]) -> dict[str, list[Call]]:
    """Name to calls, one per set of operands; the first of each checked against the reference."""
    variants: dict[str, list[Call]] = {}
    x = sets[0]
    want = reference.fp8_gemm_nt(x.a, x.a_scale, x.b, x.b_scale, torch.float32).double()
    for name, make in gpu_makers(x).items():
        x.out.fill_(float("nan"))
        first = base.keep_if_right(name, make, x.out, want)
        if first is None:
            continue
        rest = [gpu_makers(other)[name]() for other in sets[1:]]
        variants[name] = [first, *(call for call in rest if call is not None)]
    return variants


def cpu_variants(sets: Sequence[base.Fp8Operands]) -> dict[str, list[Call]]:
    """Weight-only ours, and float32 weights in torch."""
    variants: dict[str, list[Call]] = {name: [] for name in CPU_NAMES}
    for x in sets:
        a = torch.randn(x.a.shape)
        wide = ops.dequantize_fp8_128x128(x.b, x.b_scale)
        got = ops.fp8_gemm_nt(a, None, x.b, x.b_scale)
        torch.testing.assert_close(got, a @ wide.t(), rtol=1e-3, atol=1e-2)
        variants["seekernel"].append(partial(ops.fp8_gemm_nt, a, None, x.b, x.b_scale, x.out))
        variants["torch float32"].append(partial(torch.mm, a, wide.t()))
    return variants


def run(linears: Sequence[Linear], ms: Sequence[int], device: torch.device, quick: bool) -> Table:
    """Measure every shape and m, cold and warm."""
    on_gpu = device.type == "cuda"
    names = GPU_NAMES if on_gpu else CPU_NAMES
    table = Table(base.columns(("shape", "n", "k", "m", "L2"), names))
    for linear in linears:
        for m in ms:
            for cold in (True, False):
                first = base.make_operands(m, linear.n, linear.k, device)
                count = base.copies(first.num_bytes, device, cold, quick)
                rest = [base.make_operands(m, linear.n, linear.k, device) for _ in range(count - 1)]
                variants = (gpu_variants if on_gpu else cpu_variants)([first, *rest])
                times = base.time_all(variants, device, quick)
                row = (linear.name, linear.n, linear.k, m, "cold" if cold else "warm")
                flops = 2.0 * m * linear.n * linear.k
                base.report(table, row, times, names, first.num_bytes, flops, True, device)
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="few shapes, short samples")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--shapes", nargs="*", default=[], help="names of benchmarks/shapes.py")
    parser.add_argument("--m", nargs="*", type=int, default=[])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    torch.manual_seed(0)
    known = [*DENSE, *DENSE_TP8]
    names = options.shapes or (
        ["qkv_a", "kv_b", "shared_down"] if options.quick else [x.name for x in DENSE]
    )
    linears = [x for x in known if x.name in names]
    if len(linears) != len(set(names)):
        raise SystemExit(f"--shapes: expected names among {[x.name for x in known]}, got {names}")
    on_gpu = device.type == "cuda"
    few = [1, 16, 64, 4096] if on_gpu else [1]
    ms = options.m or (few if options.quick else [*DECODE_M, 4096] if on_gpu else [1, 8])
    print(f"# {describe_machine()}")
    table = run(linears, ms, device, options.quick)
    if options.out:
        table.write(options.out)


if __name__ == "__main__":
    main()
