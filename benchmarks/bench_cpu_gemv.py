"""Matrix products of the CPU backend beside the machine's own roofs.

    python -m benchmarks.bench_cpu_gemv [--threads N] [--rounds N] [--clock wall|cpu] [--only NAME] [--csv FILE]

Decode rows: weights that no cache holds, GB/s of weight bytes against what torch.sum reads of 512 MiB
of floats. Prefill rows: GFLOP/s against torch's sgemm on the same shape with float32 weights. Every row
is checked against the reference first; a wrong result ends the run with status 1. Ours and the
baseline alternate, so that a busy machine hits both. With --clock cpu, seconds are CPU time of the one
thread that then works, which other processes lengthen less than they lengthen wall time.
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from seekernel import _extension, ops, reference

COLD_BYTES = 256 * 2**20  # of weights per decode row: several times any last-level cache here
PROBE_BYTES = 512 * 2**20
MAX_ERROR = 1e-5  # of float32 outputs, relative to the largest

# name, n, k: DeepSeek-V3's projections, then those of the `medium` config (hidden 1024).
DENSE = [
    ("v3 q_a_proj", 1536, 7168),
    ("v3 q_b_proj", 24576, 1536),
    ("v3 o_proj", 7168, 16384),
    ("v3 expert down_proj", 7168, 2048),
    ("medium qkv_a_proj", 672, 1024),
    ("medium q_b_proj", 1536, 384),
    ("medium o_proj", 1024, 1024),
    ("medium lm_head", 32768, 1024),
]
# name, experts, top_k, n, k: gate and up projections of the experts, with SwiGLU.
EXPERTS = [("v3 experts", 16, 8, 2048, 7168), ("medium experts", 32, 4, 320, 1024)]


@dataclass(frozen=True)
class Row:
    """One line of the table: `ours` and `baseline` run once each per round."""

    name: str
    shape: str
    work: float  # bytes of weights (decode) or FLOPs (prefill) per run of ours
    baseline_work: float
    ours: Callable[[], object]
    baseline: Callable[[], object]


def check(name: str, got: Tensor, want: Tensor) -> None:
    error = (got - want).abs().max().item() / want.abs().max().item()
    if not error <= MAX_ERROR:
        raise SystemExit(f"{name}: relative error {error:.2e}, expected at most {MAX_ERROR:.0e}")


def random_weights(*shape: int, halves: int = 1) -> tuple[Tensor, Tensor]:
    """Random e4m3 codes without the NaNs, and multipliers that keep values of order 1 / sqrt(k)."""
    codes = torch.randint(0, 254, shape, dtype=torch.uint8)
    codes[codes == 127] = 126
    n, k = shape[-2] // halves, shape[-1]
    blocks = (*shape[:-2], halves * -(-n // 128), -(-k // 128))
    scale = (torch.rand(blocks) + 0.5) / (128 * k**0.5)
    return codes.view(torch.float8_e4m3fn), scale


def decode_rows(probe: Tensor) -> Iterator[Row]:
    for m in (1, 8):
        for name, n, k in DENSE:
            a, out = torch.randn(m, k), torch.empty(m, n)
            b, scale = random_weights(n, k)
            copies = [b.clone() for _ in range(max(1, COLD_BYTES // (n * k)))]
            ops.fp8_gemm_nt(a, None, b, scale, out)
            check(name, out, reference.fp8_gemm_nt(a, None, b, scale, torch.float32))

            def dense(
                a: Tensor = a,
                copies: list[Tensor] = copies,
                scale: Tensor = scale,
                out: Tensor = out,
            ) -> None:
                for weights in copies:
                    ops.fp8_gemm_nt(a, None, weights, scale, out)

            work = len(copies) * n * k
            yield Row(name, f"m{m} n{n} k{k}", work, probe.nbytes, dense, probe.sum)
    for name, num_experts, top_k, n, k in EXPERTS:
        b, scale = random_weights(num_experts, 2 * n, k, halves=2)
        copies = [b.clone() for _ in range(max(1, COLD_BYTES // b.numel()))]
        a, out = torch.randn(1, k), torch.empty(top_k, n)
        chosen = torch.randperm(num_experts)[:top_k]
        offsets = torch.zeros(num_experts + 1, dtype=torch.int32)
        offsets[chosen + 1] = 1
        offsets = offsets.cumsum(0, dtype=torch.int32)
        token = torch.zeros(top_k, dtype=torch.int32)
        ops.fp8_grouped_gemm_swiglu_nt(a, None, b, scale, offsets, token, out)
        want = reference.fp8_grouped_gemm_swiglu_nt(
            a, None, b, scale, offsets, token, dtype=torch.float32
        )
        check(name, out, want)

        def experts(
            a: Tensor = a,
            copies: list[Tensor] = copies,
            scale: Tensor = scale,
            offsets: Tensor = offsets,
            token: Tensor = token,
            out: Tensor = out,
        ) -> None:
            for weights in copies:
                ops.fp8_grouped_gemm_swiglu_nt(a, None, weights, scale, offsets, token, out)

        work = len(copies) * top_k * 2 * n * k
        shape = f"m1 top {top_k} of {num_experts} n{n} k{k}"
        yield Row(name, shape, work, probe.nbytes, experts, probe.sum)


def prefill_rows() -> Iterator[Row]:
    for name, n, k in DENSE:
        m = 512
        if n * k > 2**25:
            continue  # the widest matrices would take a minute and say nothing new
        a, out, sgemm_out = torch.randn(m, k), torch.empty(m, n), torch.empty(m, n)
        b, scale = random_weights(n, k)
        wide = (reference.dequantize_fp8_128x128(b, scale, torch.float32)).t()
        ops.fp8_gemm_nt(a, None, b, scale, out)
        check(name, out, a @ wide)

        def ours(a: Tensor = a, b: Tensor = b, scale: Tensor = scale, out: Tensor = out) -> None:
            ops.fp8_gemm_nt(a, None, b, scale, out)

        def sgemm(a: Tensor = a, wide: Tensor = wide, out: Tensor = sgemm_out) -> None:
            torch.mm(a, wide, out=out)

        flops = 2 * m * n * k
        yield Row(name, f"m{m} n{n} k{k}", flops, flops, ours, sgemm)


def measure(row: Row, rounds: int, clock: Callable[[], float]) -> tuple[list[float], list[float]]:
    """Return sorted seconds of ours and of the baseline, timed in alternation after one warm run."""
    times: tuple[list[float], list[float]] = ([], [])
    for i in range(rounds + 1):
        for call, kept in zip((row.ours, row.baseline), times, strict=True):
            start = clock()
            call()
            if i > 0:
                kept.append(clock() - start)
    return sorted(times[0]), sorted(times[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--only", default="", help="rows whose name or shape contains this")
    parser.add_argument("--csv", help="write the table here too")
    options = parser.parse_args()
    if options.clock == "cpu" and options.threads != 1:
        raise SystemExit("--clock cpu: expected --threads 1, CPU time of several threads adds up")
    clock = time.thread_time if options.clock == "cpu" else time.perf_counter
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    print(
        f"{platform.processor() or platform.machine()}, {options.threads} threads, "
        f"isa {_extension.build_info()['cpu_isa']}, torch {torch.__version__}, "
        f"{options.clock} clock, load {os.getloadavg()[0]:.1f}"
    )
    header = ("op", "shape", "rate", "p20", "p80", "unit", "roof", "% of roof")
    layout = "{:<22}{:<32}{:>9}{:>9}{:>9}{:>9}{:>9}{:>11}"
    print(layout.format(*header))
    table = []
    probe = torch.rand(PROBE_BYTES // 4)
    for unit, rows in (("GB/s", decode_rows(probe)), ("GFLOP/s", prefill_rows())):
        for row in rows:
            if options.only not in f"{row.name} {row.shape}":
                continue
            ours, baseline = measure(row, options.rounds, clock)
            slow, fast = ours[-1 - len(ours) // 5], ours[len(ours) // 5]
            rates = [row.work / t / 1e9 for t in (statistics.median(ours), slow, fast)]
            roof = row.baseline_work / statistics.median(baseline) / 1e9
            numbers = [f"{rate:.1f}" for rate in rates]
            tail = [unit, f"{roof:.1f}", f"{100 * rates[0] / roof:.0f}"]
            table.append([row.name, row.shape, *numbers, *tail])
            print(layout.format(*table[-1]), flush=True)
    if options.csv:
        with open(options.csv, "w", newline="") as file:
            csv.writer(file).writerows([header, *table])


if __name__ == "__main__":
    main()
