"""mla_decode and mla_prefill on the CPU, beside torch's attention and the machine's own roofs.

    python -m benchmarks.bench_cpu_mla [--threads 2] [--rounds 15] [--only prefill]

Every row is checked against the float64 reference first; a wrong result ends the run with status 1.
Ours, torch's scaled_dot_product_attention (heads as queries of one shared key for decode; what it
needs is gathered beforehand), a 1024^3 sgemm and a read of 256 MiB take turns in every round, so that
a busy machine hits all of them; a row gives medians over the rounds, p20 and p80. With --clock cpu,
seconds are those of CPU time, which other processes do not lengthen: for one thread.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from seekernel import _extension, ops, reference

LATENT, ROPE, NOPE, D_V, PAGE_SIZE = 512, 64, 128, 128, 64
SCALE = 0.1352338
MAX_ERROR = 2e-5  # of values of order 1, float32 outputs
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Row:
    name: str
    flops: float
    bytes_read: float
    ours: Callable[[], object]
    torch: Callable[[], object]


def offsets(lengths: list[int]) -> Tensor:
    return torch.tensor([sum(lengths[:i]) for i in range(len(lengths) + 1)], dtype=torch.int32)


def check(name: str, got: Tensor, want: Tensor) -> None:
    error = float((got.double() - want).abs().max())
    if not error <= MAX_ERROR:
        sys.exit(f"{name}: error {error:.2e} against the reference, expected at most {MAX_ERROR}")


def decode(b: int, s_kv: int, h_q: int, dtype: str) -> Row:
    """One new token for each of b requests of s_kv cached tokens."""
    name = f"decode b{b} s_kv{s_kv} h{h_q} cache {dtype}"
    num_pages = b * s_kv // PAGE_SIZE
    cache = torch.randn(num_pages, PAGE_SIZE, LATENT + ROPE).to(DTYPES[dtype])
    table = torch.randperm(num_pages).int().view(b, -1)
    q = torch.randn(b, h_q, LATENT + ROPE) / 8
    lengths = torch.full((b,), s_kv, dtype=torch.int32)
    arguments = (q, cache, table, lengths, offsets([1] * b), SCALE)
    out, lse = ops.mla_decode(*arguments)
    want, _ = reference.mla_decode(*arguments)
    check(name, out, want)
    keys = cache[table.long()].view(b, 1, s_kv, LATENT + ROPE)  # torch has no paged cache
    values = keys[..., :LATENT]
    query = q.view(b, 1, h_q, LATENT + ROPE).to(
        cache.dtype
    )  # heads as queries: no copy of the keys
    return Row(
        name,
        flops=2.0 * b * h_q * s_kv * (LATENT + ROPE + LATENT),
        bytes_read=float(b * s_kv * (LATENT + ROPE) * cache.element_size()),
        ours=lambda: ops.mla_decode(*arguments, out=out, lse=lse),
        torch=lambda: scaled_dot_product_attention(query, keys, values, scale=SCALE),
    )


def prefill(s: int, h: int, dtype: str) -> Row:
    """One causal sequence of s tokens, nothing cached before."""
    name = f"prefill s{s} h{h} kv {dtype}"
    q = torch.randn(s, h, NOPE + ROPE) / 2
    kv = torch.randn(s, h, NOPE + D_V).to(DTYPES[dtype])
    k_pe = torch.randn(s, ROPE).to(DTYPES[dtype])
    cu_seqlens = offsets([s])
    out, lse = ops.mla_prefill(q, kv, k_pe, cu_seqlens, cu_seqlens, SCALE)
    want, _ = reference.mla_prefill(q[:, :1], kv[:, :1], k_pe, cu_seqlens, cu_seqlens, SCALE)
    check(name, out[:, :1], want)
    k_pe_per_head = k_pe.unsqueeze(1).expand(-1, h, -1)
    keys = torch.cat([kv[..., :NOPE], k_pe_per_head], dim=-1).transpose(0, 1)[None]
    values = kv[..., NOPE:].transpose(0, 1)[None]
    query = q.transpose(0, 1)[None].to(kv.dtype)
    return Row(
        name,
        flops=2.0 * h * (s * (s + 1) / 2) * (NOPE + ROPE + D_V),
        bytes_read=float(kv.nbytes + k_pe.nbytes + q.nbytes + out.nbytes),
        ours=lambda: ops.mla_prefill(q, kv, k_pe, cu_seqlens, cu_seqlens, SCALE, out=out, lse=lse),
        torch=lambda: scaled_dot_product_attention(
            query, keys, values, scale=SCALE, is_causal=True
        ),
    )


def rows(only: str) -> Iterator[Row]:
    shapes: list[tuple[str, Callable[[], Row]]] = [
        (
            f"decode b{b} s_kv{s} h{h} {dtype}",
            lambda b=b, s=s, h=h, dtype=dtype: decode(b, s, h, dtype),
        )  # type: ignore[misc]
        for b in (1, 8)
        for s in (512, 4096)
        for h in (16, 128)
        for dtype in DTYPES
    ]
    shapes += [
        (f"prefill s{s} {dtype}", lambda s=s, dtype=dtype: prefill(s, 16, dtype))  # type: ignore[misc]
        for s in (512, 2048)
        for dtype in DTYPES
    ]
    for name, make in shapes:
        if only in name:
            yield make()


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def measure(
    calls: list[Callable[[], object]], rounds: int, clock: Callable[[], float]
) -> list[list[float]]:
    def seconds(call: Callable[[], object]) -> float:
        begin = clock()
        call()
        return clock() - begin

    for call in calls:
        call()
    taken = [[seconds(call) for call in calls] for _ in range(rounds)]
    return [sorted(times) for times in zip(*taken, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", default="", help="rows whose name holds this text")
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    n = 1024
    a, b, c = torch.randn(n, n), torch.randn(n, n), torch.empty(n, n)
    wide = torch.ones(1 << 26)
    print(
        f"torch {torch.__version__}, {_extension.build_info()['cpu_isa']}, {options.threads} threads, "
        f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores, {options.rounds} rounds, "
        f"{options.clock} clock"
    )
    print(
        f"{'row':34} {'us':>9} {'p20':>9} {'p80':>9} {'GFLOP/s':>8} {'of sgemm':>8} "
        f"{'GB/s':>6} {'of read':>8} {'torch us':>9} {'ratio':>6}"
    )
    for row in rows(options.only):
        calls = [row.ours, row.torch, lambda: torch.mm(a, b, out=c), wide.sum]
        ours, baseline, gemm, read = measure(calls, options.rounds, CLOCKS[options.clock])
        median = statistics.median
        rate, bandwidth = row.flops / median(ours) / 1e9, row.bytes_read / median(ours) / 1e9
        sgemm, roof = 2e-9 * n**3 / median(gemm), wide.nbytes / median(read) / 1e9
        p20, p80 = (ours[int(f * (len(ours) - 1))] * 1e6 for f in (0.2, 0.8))
        print(
            f"{row.name:34} {median(ours) * 1e6:9.0f} {p20:9.0f} {p80:9.0f} {rate:8.1f} "
            f"{rate / sgemm:8.0%} {bandwidth:6.2f} {bandwidth / roof:8.0%} "
            f"{median(baseline) * 1e6:9.0f} {median(baseline) / median(ours):6.2f}",
            flush=True,
        )
    print(f"load at the end {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
