"""Grouped FP8 GEMMs of DeepSeek-V3's experts: every layout, SwiGLU fused, against DeepGEMM's two layouts.

    python -m benchmarks.bench_grouped_gemm [--quick] [--device cpu] [--rows 16 128] [--experts 32] [--out FILE.csv]

Rows are per expert on average and fall to the experts at random; "1 hot" gives all of them to one. The baselines
pad: DeepGEMM's contiguous layout to 128 rows an expert, its masked one to the memory of the largest.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import gemm_baselines as base
from benchmarks.shapes import EXPERTS, Linear
from benchmarks.timing import Call, Table, describe_machine
from seekernel import ops, reference

NAMES = (
    "offsets",
    "masked",
    "contiguous",
    "swiglu",
    "W4A8",
    "DeepGEMM masked",
    "DeepGEMM contiguous",
)


def split(rows: int, experts: int, hot: bool) -> list[int]:
    """Rows of each expert: at random, or all to the last."""
    if hot:
        return [0] * (experts - 1) + [rows]
    owner = torch.randint(0, experts, (rows,))
    return torch.bincount(owner, minlength=experts).tolist()


def gpu_variants(
    linear: Linear, counts: Sequence[int], device: torch.device
) -> dict[str, list[Call]]:
    """One call per variant, checked where it is a plain product."""
    experts, total, most = len(counts), sum(counts), max(counts)
    n, k = linear.n, linear.k
    b, b_scale = base.make_weights((experts, n, k), device)
    x = torch.randn(total, k, device=device)
    a, a_scale = ops.quantize_fp8_1x128(x)
    offsets = torch.tensor([0, *counts]).cumsum(0).to(torch.int32).to(device)
    bounds = offsets.tolist()
    expected = max(1, total // experts)
    out = torch.empty(total, n, dtype=torch.bfloat16, device=device)
    want = torch.cat(
        [reference.fp8_gemm_nt(a[i:j], a_scale[:, i:j], b[e], b_scale[e], torch.float32)
         for e, (i, j) in enumerate(pairwise(bounds)) if i < j]
    )  # fmt: skip
    variants: dict[str, list[Call]] = {}

    def add(name: str, call: Call | None, result: Tensor, exact: Tensor | None) -> None:
        checked = base.keep_if_right(
            name, lambda: call, result, (result if exact is None else exact).double()
        )
        if checked is not None:
            variants[name] = [checked]

    add("offsets", lambda: ops.fp8_grouped_gemm_nt(
        a, a_scale, b, b_scale, offsets, out, expected_m=expected), out, want)  # fmt: skip

    size = -(-most // 64) * 64
    masked_x = torch.zeros(experts, size, k, device=device)
    exact = torch.zeros(experts, size, n, device=device)
    starts = [0]
    for count in counts:
        starts.append(starts[-1] + -(-count // 128) * 128)
    wide_x = torch.zeros(max(starts[-1], 128), k, device=device)
    wide_want = torch.zeros(wide_x.shape[0], n, device=device)
    m_indices = torch.full((wide_x.shape[0],), -1, dtype=torch.int32)
    for e, count in enumerate(counts):
        rows = slice(bounds[e], bounds[e] + count)
        masked_x[e, :count], exact[e, :count] = x[rows], want[rows]
        at = slice(starts[e], starts[e] + count)
        wide_x[at], wide_want[at], m_indices[at] = x[rows], want[rows], e
    m_indices = m_indices.to(device)
    pairs = [ops.quantize_fp8_1x128(part) for part in masked_x]
    masked_a = torch.stack([q.view(torch.uint8) for q, _ in pairs]).view(base.FP8)
    masked_scale = torch.stack([scale for _, scale in pairs])
    masked_m = torch.tensor(counts, dtype=torch.int32, device=device)
    masked_out = torch.zeros(experts, size, n, dtype=torch.bfloat16, device=device)
    add("masked", lambda: ops.fp8_grouped_gemm_nt(
        masked_a, masked_scale, b, b_scale, masked_m, masked_out, layout="masked",
        expected_m=expected), masked_out, exact)  # fmt: skip
    wide_a, wide_scale = ops.quantize_fp8_1x128(wide_x)
    wide_out = torch.zeros(wide_x.shape[0], n, dtype=torch.bfloat16, device=device)
    add("contiguous", lambda: ops.fp8_grouped_gemm_nt(
        wide_a, wide_scale, b, b_scale, m_indices, wide_out, layout="contiguous",
        expected_m=expected), wide_out, wide_want)  # fmt: skip
    if linear.name == "fc1":
        inner = torch.empty(total, n // 2, dtype=base.FP8, device=device)
        inner_scale = torch.empty(n // 256, -(-total // 4) * 4, device=device)
        add("swiglu", lambda: ops.fp8_grouped_gemm_swiglu_nt(
            a, a_scale, b, b_scale, offsets, None, inner, out_scale=inner_scale,
            expected_m=expected), inner, None)  # fmt: skip
    module = base.deep_gemm()
    if module is not None:
        theirs = torch.zeros_like(masked_out)
        add("DeepGEMM masked", lambda: module.m_grouped_fp8_gemm_nt_masked(
            (masked_a, masked_scale.mT[:, :size]), (b, b_scale), theirs, masked_m, expected),
            theirs, None)  # fmt: skip
        others = torch.zeros_like(wide_out)
        # Rows of nobody belong to the expert before them there.
        filled = m_indices.clone()
        for e in range(experts):
            filled[starts[e] : starts[e + 1]] = e
        add("DeepGEMM contiguous", lambda: module.m_grouped_fp8_gemm_nt_contiguous(
            (wide_a, wide_scale.t()[: wide_a.shape[0]]), (b, b_scale), others, filled),
            others, None)  # fmt: skip
    return variants


def cpu_variants(linear: Linear, counts: Sequence[int]) -> dict[str, list[Call]]:
    """FP8 and int4 weights with float32 activations."""
    experts, total = len(counts), sum(counts)
    cpu = torch.device("cpu")
    b, b_scale = base.make_weights((experts, linear.n, linear.k), cpu)
    pairs = [ops.quantize_int4_g128(torch.randn(linear.n, linear.k)) for _ in counts]
    b4, b4_scale = (torch.stack(parts) for parts in zip(*pairs, strict=True))
    a = torch.randn(total, linear.k)
    offsets = torch.tensor([0, *counts]).cumsum(0).to(torch.int32)
    out = torch.empty(total, linear.n)
    calls: dict[str, Call] = {
        "offsets": lambda: ops.fp8_grouped_gemm_nt(a, None, b, b_scale, offsets, out),
        "W4A8": lambda: ops.w4a8_grouped_gemm_nt(a, None, b4, b4_scale, offsets, out),
    }
    calls["W4A8"]()
    want = reference.w4a8_grouped_gemm_nt(a, None, b4, b4_scale, offsets, torch.float32)
    torch.testing.assert_close(out, want, rtol=1e-3, atol=1e-2)
    calls["offsets"]()
    want = reference.fp8_grouped_gemm_nt(a, None, b, b_scale, offsets, torch.float32)
    torch.testing.assert_close(out, want, rtol=1e-3, atol=1e-2)
    return {name: [call] for name, call in calls.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rows", nargs="*", type=int, default=[], help="per expert, on average")
    parser.add_argument("--experts", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    on_gpu = device.type == "cuda"
    torch.manual_seed(0)
    experts = options.experts or (32 if on_gpu else 4)
    every = [1, 4, 16, 32, 64, 128, 512] if on_gpu else [1, 4]
    rows_list = options.rows or ([4, 32, 128] if options.quick and on_gpu else every)
    print(f"# {describe_machine()}, {experts} experts")
    table = Table(base.columns(("shape", "rows per expert", "split"), NAMES))
    for linear in EXPERTS if on_gpu else EXPERTS[1:]:
        for rows in rows_list:
            for hot in (False, True) if on_gpu and not options.quick else (False,):
                counts = split(rows * experts, experts, hot)
                variants = (
                    gpu_variants(linear, counts, device) if on_gpu else cpu_variants(linear, counts)
                )
                times = base.time_all(variants, device, options.quick)
                total, used = sum(counts), sum(count > 0 for count in counts)
                num_bytes = used * linear.n * linear.k + total * (linear.k + 2 * linear.n)
                row = (linear.name, rows, "1 hot" if hot else "random")
                flops = 2.0 * total * linear.n * linear.k
                base.report(table, row, times, NAMES, num_bytes, flops, True, device)
    if options.out:
        table.write(options.out)


if __name__ == "__main__":
    main()
