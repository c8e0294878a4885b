"""Speed of the small CPU ops (norms, quantisers, routing) beside plain torch, interleaved.

    python -m benchmarks.bench_cpu_ops [--only NAME] [--rounds N] [--csv FILE]

Every row is checked against the reference first. GB/s counts each tensor read or written once; the
roof is a copy of 256 MiB by torch on the same threads, so rows that fit the caches may pass 100%.
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
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from seekernel import _extension, ops, reference

EPS = 1e-6
TARGET_SECONDS = 0.002  # of one timed batch of calls

Result = Tensor | tuple[Tensor, ...]


@dataclass(frozen=True)
class Row:
    name: str
    shape: str
    moved_bytes: int
    ours: Callable[[], Result]
    torch: Callable[[], Result]
    want: Result
    tolerance: float  # 0: the same values


def num_bytes(*tensors: Tensor) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def norm_rows(m: int, dtype: torch.dtype) -> Iterator[Row]:
    n, ffn = 7168, 2048
    x, residual = torch.randn(m, n).to(dtype), torch.randn(m, n).to(dtype)
    weight, out = torch.randn(n).to(dtype), torch.empty(m, n, dtype=dtype)
    limit = 1e-5 if dtype == torch.float32 else 2e-2
    shape = f"{m}x{n} {dtype_name(x)}"
    yield Row(
        "rms_norm",
        shape,
        num_bytes(x, out, weight),
        lambda: ops.rms_norm(x, weight, EPS, out),
        lambda: functional.rms_norm(x, (n,), weight, EPS),
        reference.rms_norm(x, weight, EPS),
        limit,
    )
    zero = torch.zeros_like(x)  # leaves the residual as it is, however often the call is repeated
    yield Row(
        "add_rms_norm",
        shape,
        num_bytes(zero, residual, residual, out, weight),
        lambda: ops.add_rms_norm(zero, residual, weight, EPS, out),
        lambda: functional.rms_norm(residual.add_(zero), (n,), weight, EPS),
        reference.rms_norm(residual, weight, EPS),
        limit,
    )
    both, small = torch.randn(m, 2 * ffn).to(dtype), torch.empty(m, ffn, dtype=dtype)
    yield Row(
        "silu_mul",
        f"{m}x{ffn} {dtype_name(x)}",
        num_bytes(both, small),
        lambda: ops.silu_mul(both, small),
        lambda: functional.silu(both[:, :ffn]) * both[:, ffn:],
        reference.silu_mul(both),
        limit,
    )


def activation_quantize_rows(m: int, dtype: torch.dtype) -> Iterator[Row]:
    x = torch.randn(m, 7168).to(dtype)
    q, scale = ops.quantize_fp8_1x128(x)
    yield Row(
        "quantize_fp8_1x128",
        f"{m}x7168 {dtype_name(x)}",
        num_bytes(x, q, scale),
        lambda: ops.quantize_fp8_1x128(x, q, scale),
        lambda: reference.quantize_fp8_1x128(x),
        reference.quantize_fp8_1x128(x),
        0.0,
    )


def weight_quantize_rows(dtype: torch.dtype) -> Iterator[Row]:
    w = torch.randn(2048, 7168).to(dtype)
    q, scale = ops.quantize_fp8_128x128(w)
    out = torch.empty_like(w)
    shape = f"2048x7168 {dtype_name(w)}"
    yield Row(
        "quantize_fp8_128x128",
        shape,
        num_bytes(w, q, scale),
        lambda: ops.quantize_fp8_128x128(w, q, scale),
        lambda: reference.quantize_fp8_128x128(w),
        reference.quantize_fp8_128x128(w),
        0.0,
    )
    yield Row(
        "dequantize_fp8_128x128",
        shape,
        num_bytes(q, scale, out),
        lambda: ops.dequantize_fp8_128x128(q, scale, out=out),
        lambda: reference.dequantize_fp8_128x128(q, scale, torch.float32).to(dtype),
        reference.dequantize_fp8_128x128(q, scale, torch.float32).to(dtype),
        0.0,
    )


def moe_rows(m: int) -> Iterator[Row]:
    num_experts, top_k, n = 256, 8, 7168
    gate: dict[str, Any] = {"top_k": top_k, "n_group": 8, "topk_group": 4}
    gate["routed_scaling_factor"] = 2.5
    logits, bias = torch.randn(m, num_experts), torch.randn(num_experts) * 0.1
    weights, ids = ops.moe_gate(logits, bias, **gate)
    yield Row(
        "moe_gate",
        f"{m}x{num_experts} top {top_k}, 4 of 8 groups",
        num_bytes(logits, bias, weights, ids),
        lambda: ops.moe_gate(logits, bias, **gate, weights=weights, ids=ids),
        lambda: reference.moe_gate(logits, bias, **gate, dtype=torch.float32),
        reference.moe_gate(logits, bias, **gate, dtype=torch.float32),
        1e-5,
    )
    plan = ops.moe_plan(ids, num_experts)

    def torch_plan() -> tuple[Tensor, ...]:
        order = ids.flatten().argsort(stable=True)
        counts = ids.flatten().bincount(minlength=num_experts)
        offsets = functional.pad(counts.cumsum(0), (1, 0)).int()
        token_row = torch.empty_like(ids).flatten()
        token_row[order] = torch.arange(len(order), dtype=torch.int32)
        return offsets, (order // top_k).int(), token_row.view_as(ids)

    yield Row(
        "moe_plan",
        f"{m}x{top_k} of {num_experts}",
        num_bytes(ids, *plan[:3]),
        lambda: ops.moe_plan(ids, num_experts, plan=plan)[:3],
        torch_plan,
        torch_plan(),
        0.0,
    )
    y, shared, out = torch.randn(m * top_k, n), torch.randn(m, n), torch.empty(m, n)
    rows = plan.token_row
    yield Row(
        "moe_finalize",
        f"{m}x{n} top {top_k}",
        num_bytes(y, shared, out, rows, weights),
        lambda: ops.moe_finalize(y, rows, weights, shared, out),
        lambda: torch.baddbmm(shared[:, None], weights[:, None], y[rows.long()])[:, 0],
        reference.moe_finalize(y, rows, weights, shared),
        1e-5,
    )


def product_rows(m: int) -> Iterator[Row]:
    """Products that bench_cpu_gemv leaves out: V3's router, absorbed heads, bfloat16 weights."""
    x, gate = torch.randn(m, 7168), torch.randn(256, 7168).bfloat16()
    yield Row(
        "router_gemm",
        f"{m}x256x7168 bf16 weights",
        num_bytes(x, gate),
        lambda: ops.router_gemm(x, gate),
        lambda: x @ gate.float().t(),
        reference.router_gemm(x, gate),
        1e-5,
    )
    yield Row(
        "gemm_nt",
        f"{m}x256x7168 bf16 weights",
        num_bytes(x, gate),
        lambda: ops.gemm_nt(x, gate),
        lambda: x @ gate.float().t(),
        reference.gemm_nt(x, gate),
        1e-5,
    )
    heads = 16
    q, w_uk = torch.randn(heads, m, 128), torch.randn(heads, 512, 128)
    yield Row(
        "bmm_nt",
        f"{heads} heads {m}x512x128",
        num_bytes(q, w_uk),
        lambda: ops.bmm_nt(q, w_uk),
        lambda: torch.bmm(q, w_uk.transpose(1, 2)),
        reference.bmm_nt(q, w_uk),
        1e-5,
    )
    pairs = [ops.quantize_fp8_128x128(head) for head in w_uk]
    codes = torch.stack([pair[0].view(torch.uint8) for pair in pairs]).view(torch.float8_e4m3fn)
    scales = torch.stack([pair[1] for pair in pairs])
    wide = codes.float() * scales.repeat_interleave(128, 1)[:, :512]
    yield Row(
        "fp8_bmm_nt",
        f"{heads} heads {m}x512x128",
        num_bytes(q, codes, scales),
        lambda: ops.fp8_bmm_nt(q, None, codes, scales),
        lambda: torch.bmm(q, wide.transpose(1, 2)),
        reference.fp8_bmm_nt(q, None, codes, scales),
        1e-5,
    )
    experts = torch.randn(4, 512, 512)
    rows, offsets = torch.randn(4 * m, 512), torch.arange(5, dtype=torch.int32) * m
    yield Row(
        "grouped_gemm_nt",
        f"4 experts {m}x512x512 f32",
        num_bytes(rows, experts),
        lambda: ops.grouped_gemm_nt(rows, experts, offsets),
        lambda: torch.bmm(rows.view(4, m, 512), experts.transpose(1, 2)).view(4 * m, 512),
        reference.grouped_gemm_nt(rows, experts, offsets),
        1e-5,
    )
    angles = torch.rand(m, 32)
    cos_sin, positions = torch.cat([angles.cos(), angles.sin()], 1), torch.arange(m).int()
    heads_pe = torch.randn(m, 128, 64)

    def torch_rope() -> Tensor:
        pairs_ = torch.view_as_complex(heads_pe.clone().view(m, 128, 32, 2))
        turned = pairs_ * torch.polar(torch.ones_like(angles), angles)[:, None]
        return torch.view_as_real(turned).flatten(2)

    yield Row(
        "rope_interleaved",
        f"{m}x128x64 f32, copy included",
        2 * num_bytes(heads_pe),
        lambda: ops.rope_interleaved(heads_pe.clone(), positions, cos_sin),
        torch_rope,
        reference.rope_interleaved(heads_pe, positions, cos_sin),
        1e-5,
    )


def all_rows() -> Iterator[Row]:
    for m in (1, 8, 512):
        yield from product_rows(m)
        for dtype in (torch.float32, torch.bfloat16):
            yield from norm_rows(m, dtype)
            yield from activation_quantize_rows(m, dtype)
        yield from moe_rows(m)
    for dtype in (torch.float32, torch.bfloat16):
        yield from weight_quantize_rows(dtype)


def check(row: Row) -> None:
    """Stop the program unless ours and torch's are the reference's values within the tolerance."""
    want = row.want if isinstance(row.want, tuple) else (row.want,)
    for side, call in (("ours", row.ours), ("torch", row.torch)):
        got = call()
        got = got if isinstance(got, tuple) else (got,)
        for a, b in zip(got, want, strict=True):
            a, b = a.double(), b.double()
            error = (a - b).abs().max().item()
            if not error <= row.tolerance * b.abs().max().item():
                raise SystemExit(f"{row.name} {row.shape}: {side} is off by {error:.3e}")


def seconds_per_call(call: Callable[[], Any], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def measure(row: Row, rounds: int) -> tuple[list[float], list[float]]:
    """Return sorted seconds per call of ours and of torch, timed in alternation."""
    times: tuple[list[float], list[float]] = ([], [])
    calls = (row.ours, row.torch)
    repeats = [max(1, int(TARGET_SECONDS / seconds_per_call(call, 2))) for call in calls]
    for _ in range(rounds):
        for call, count, kept in zip(calls, repeats, times, strict=True):
            kept.append(seconds_per_call(call, count))
    return sorted(times[0]), sorted(times[1])


def copy_bandwidth() -> float:
    source = torch.empty(2**26)
    target = torch.zeros_like(source)
    source.fill_(1.0)
    times = [seconds_per_call(lambda: target.copy_(source), 1) for _ in range(9)]
    return 2 * num_bytes(source) / statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", help="rows whose name contains this")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--csv", help="write the table here too")
    options = parser.parse_args()
    torch.manual_seed(0)
    roof = copy_bandwidth()
    print(
        f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, "
        f"isa {_extension.build_info()['cpu_isa']}, torch {torch.__version__}, "
        f"load {os.getloadavg()[0]:.1f}, copy {roof / 1e9:.1f} GB/s"
    )
    header = ("op", "shape", "us", "p20", "p80", "GB/s", "% of copy", "torch us", "x torch")
    print(("{:<23}{:<30}" + "{:>10}" * 7).format(*header))
    table = []
    for row in all_rows():
        if options.only and options.only not in row.name:
            continue
        check(row)
        ours, theirs = measure(row, options.rounds)
        median, other = statistics.median(ours), statistics.median(theirs)
        rate = row.moved_bytes / median
        low, high = ours[len(ours) // 5], ours[-1 - len(ours) // 5]
        numbers = [median * 1e6, low * 1e6, high * 1e6, rate / 1e9, 100 * rate / roof]
        numbers += [other * 1e6, other / median]
        table.append([row.name, row.shape, *(f"{number:.2f}" for number in numbers)])
        print(("{:<23}{:<30}" + "{:>10}" * 7).format(*table[-1]), flush=True)
    if options.csv:
        with open(options.csv, "w", newline="") as file:
            csv.writer(file).writerows([header, *table])


if __name__ == "__main__":
    main()
