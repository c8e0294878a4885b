"""bmm_nt and fp8_bmm_nt for MLA's absorbed products W_UK and W_UV, in place on [m, h, d] tokens.

    python -m benchmarks.bench_bmm [--quick] [--device cpu] [--heads 16] [--m 1 64] [--out FILE.csv]

The baseline is torch.bmm on the same strided views, its output copied to where ours writes.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from benchmarks import gemm_baselines as base
from benchmarks.shapes import DECODE_M, KV_LORA_RANK, NUM_HEADS, QK_NOPE_HEAD_DIM, V_HEAD_DIM
from benchmarks.timing import Call, Table, describe_machine
from seekernel import ops, reference

PRODUCTS = (("W_UK", KV_LORA_RANK, QK_NOPE_HEAD_DIM), ("W_UV", V_HEAD_DIM, KV_LORA_RANK))
NAMES = ("bf16", "fp8", "torch.bmm")


def _same(call: Call) -> Call:
    return call


def make_calls(h: int, m: int, n: int, k: int, device: torch.device) -> dict[str, Call]:
    """One call per variant on operands of its own, checked."""
    a = torch.randn(m, h, k, device=device).bfloat16().transpose(0, 1)
    b = torch.randn(h, n, k, device=device).bfloat16()
    out = torch.empty(m, h, n, dtype=torch.bfloat16, device=device).transpose(0, 1)
    want = reference.bmm_nt(a, b, torch.float32).double()
    theirs = torch.empty_like(out)
    calls: dict[str, Call] = {}

    def torch_bmm() -> None:
        theirs.copy_(torch.bmm(a, b.transpose(1, 2)))

    ours = partial(ops.bmm_nt, a, b, out)
    named: tuple[tuple[str, Call, torch.Tensor], ...] = (
        ("bf16", ours, out),
        ("torch.bmm", torch_bmm, theirs),
    )
    for name, call, result in named:
        checked = base.keep_if_right(name, partial(_same, call), result, want)
        if checked is not None:
            calls[name] = checked
    b8, b_scale = base.make_weights((h, n, k), device)
    out8 = torch.empty_like(out)
    if device.type == "cuda":
        pairs = [ops.quantize_fp8_1x128(x.contiguous()) for x in a]
        a8 = torch.stack([q.view(torch.uint8) for q, _ in pairs]).view(base.FP8)
        a_scale = torch.stack([scale for _, scale in pairs])
        want8 = reference.fp8_bmm_nt(a8, a_scale, b8, b_scale, torch.float32).double()
        fp8: Call = lambda: ops.fp8_bmm_nt(a8, a_scale, b8, b_scale, out8)
    else:
        want8 = reference.fp8_bmm_nt(a, None, b8, b_scale, torch.float32).double()
        fp8 = lambda: ops.fp8_bmm_nt(a, None, b8, b_scale, out8)
    checked = base.keep_if_right("fp8", lambda: fp8, out8, want8)
    if checked is not None:
        calls["fp8"] = checked
    return calls


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--heads", type=int, default=0)
    parser.add_argument("--m", nargs="*", type=int, default=[])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    on_gpu = device.type == "cuda"
    torch.manual_seed(0)
    heads = options.heads or (NUM_HEADS if on_gpu else 16)
    every = [*DECODE_M, 4096] if on_gpu else [1, 8]
    ms = options.m or ([1, 16, 128] if options.quick and on_gpu else every)
    print(f"# {describe_machine()}, {heads} heads")
    table = Table(base.columns(("product", "n", "k", "m", "L2"), NAMES))
    for name, n, k in PRODUCTS:
        for m in ms:
            num_bytes = 2 * heads * (m * k + n * k + m * n)
            for cold in (True, False):
                count = base.copies(num_bytes, device, cold, options.quick)
                sets = [make_calls(heads, m, n, k, device) for _ in range(count)]
                variants = {key: [calls[key] for calls in sets] for key in sets[0]}
                times = base.time_all(variants, device, options.quick)
                row = (name, n, k, m, "cold" if cold else "warm")
                flops = 2.0 * heads * m * n * k
                base.report(table, row, times, NAMES, num_bytes, flops, False, device)
    if options.out:
        table.write(options.out)


if __name__ == "__main__":
    main()
