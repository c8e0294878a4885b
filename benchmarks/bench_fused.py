"""What stands between the matrix products of a layer: norms with the quantiser behind them, SwiGLU, the embedding.

    python -m benchmarks.bench_fused [--quick] [--device cpu] [--tokens 1 64] [--out fused.csv]

Every fused op is checked against its parts, bit by bit, before it is timed. `roof` is its bytes over copy
bandwidth, measured here. Baselines: our own ops one by one, and torch ops, eager and compiled.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import shapes
from benchmarks.timing import Call, Table, copies_beyond_cache, measure, roofs
from seekernel import ops
from seekernel.ops import NormedRows

EPS = 1e-6
TOKENS = (1, 16, 64, 128, 1024, 4096)
Variants = dict[str, list[Call]]


def eager_quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    groups = x.float().view(len(x), -1, 128)
    scale = groups.abs().amax(-1).clamp_min(1e-4) / 448
    return (groups / scale[..., None]).to(torch.float8_e4m3fn).view(x.shape), scale.t()


def eager_norm(x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    total = residual + x
    wide = total.float()
    y = (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPS) * weight.float()).bfloat16()
    return (y, *eager_quantize(y))


def eager_silu(x: Tensor) -> tuple[Tensor, Tensor]:
    gate, up = x.chunk(2, -1)
    return eager_quantize(torch.nn.functional.silu(gate) * up)


def expect_same(got: Sequence[Tensor], want: Sequence[Tensor]) -> None:
    """AssertionError unless all bits agree."""
    for index, (a, b) in enumerate(zip(got, want, strict=True)):
        if not torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8)):
            raise AssertionError(f"tensor {index} of the fused op: expected its parts' bits")


def norm_part(m: int, n: int, device: torch.device, compiled: bool) -> tuple[Variants, float]:
    num_bytes = m * n * (2 + 2 + 2 + 2 + 1.0)
    copies = copies_beyond_cache(int(num_bytes), device, 16)
    weight = torch.randn(n, device=device).bfloat16()
    xs = [torch.randn(m, n, device=device).bfloat16() for _ in range(copies)]
    residuals = [torch.randn_like(x) for x in xs]
    outs = [NormedRows.empty(x, quantize=True) for x in xs]
    first, second = residuals[0].clone(), residuals[0].clone()
    got = ops.add_rms_norm_quantize(xs[0], first, weight, EPS)
    want = ops.add_rms_norm(xs[0], second, weight, EPS)
    q, scale = ops.quantize_fp8_1x128(want)
    expect_same((first, got.x, *got.quantized), (second, want, q, scale))

    def unfused(i: int) -> None:
        ops.add_rms_norm(xs[i], residuals[i], weight, EPS, outs[i].x)
        ops.quantize_fp8_1x128(outs[i].x, outs[i].q, outs[i].scale)

    def fused(i: int) -> None:
        ops.add_rms_norm_quantize(xs[i], residuals[i], weight, EPS, out=outs[i])

    variants: Variants = {
        "fused": [partial(fused, i) for i in range(copies)],
        "two launches": [partial(unfused, i) for i in range(copies)],
        "torch eager": [partial(eager_norm, x, r, weight) for x, r in zip(xs, residuals, strict=True)],
    }  # fmt: skip
    if compiled:
        fast = torch.compile(eager_norm, dynamic=False)
        variants["torch.compile"] = [partial(fast, x, r, weight) for x, r in zip(xs, residuals, strict=True)]  # fmt: skip
    return variants, num_bytes


def embedding_part(m: int, n: int, device: torch.device) -> tuple[Variants, float]:
    vocabulary = shapes.VOCABULARY if device.type == "cuda" else 1000
    table = torch.randn(vocabulary, n, device=device).bfloat16()
    ids = torch.randint(0, vocabulary, (m,), device=device)
    weight = torch.randn(n, device=device).bfloat16()
    residual = torch.empty(m, n, dtype=torch.bfloat16, device=device)
    out = NormedRows.empty(residual, quantize=True)
    fused = partial(ops.add_rms_norm_quantize, None, residual, weight, EPS, True, ids, table, out)
    fused()
    expect_same((residual,), (table[ids],))

    def unfused() -> None:
        rows = table.index_select(0, ids)
        ops.quantize_fp8_1x128(ops.rms_norm(rows, weight, EPS))

    return {"fused": [fused], "three launches": [unfused]}, m * n * (2 + 2 + 2 + 1.0)


def silu_part(m: int, n: int, device: torch.device, compiled: bool) -> tuple[Variants, float]:
    num_bytes = m * n * 5.0
    copies = copies_beyond_cache(int(num_bytes), device, 16)
    xs = [torch.randn(m, 2 * n, device=device).bfloat16() for _ in range(copies)]
    q, scale = ops.silu_mul_quantize(xs[0])
    want_q, want_scale = ops.quantize_fp8_1x128(ops.silu_mul(xs[0]))
    expect_same((q, scale), (want_q, want_scale))

    def unfused(x: Tensor) -> None:
        ops.quantize_fp8_1x128(ops.silu_mul(x), q, scale)

    variants: Variants = {
        "fused": [partial(ops.silu_mul_quantize, x, q, scale) for x in xs],
        "two launches": [partial(unfused, x) for x in xs],
        "torch eager": [partial(eager_silu, x) for x in xs],
    }
    if compiled:
        fast = torch.compile(eager_silu, dynamic=False)
        variants["torch.compile"] = [partial(fast, x) for x in xs]
    return variants, num_bytes


def parts(m: int, device: torch.device, compiled: bool) -> Iterator[tuple[str, Variants, float]]:
    small = device.type == "cpu"
    hidden, width = (512, 256) if small else (shapes.HIDDEN, shapes.MOE_INTERMEDIATE)
    yield ("add_rms_norm_quantize", *norm_part(m, hidden, device, compiled))
    yield ("embedding + norm", *embedding_part(m, hidden, device))
    yield ("silu_mul_quantize", *silu_part(m, width, device, compiled))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="Few sizes, no torch.compile.")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tokens", type=int, nargs="+")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    device = torch.device(args.device)
    quick = args.quick or device.type == "cpu"
    torch.manual_seed(0)
    roof = roofs(device.type)
    table = Table(("op", "tokens", "variant", "us (p20-p80)", "MB", "GB/s", "roof us", "of roof"))
    for m in args.tokens or ((1, 64, 1024) if quick else TOKENS):
        for name, variants, num_bytes in parts(m, device, not quick):
            floor = roof.floor_us(num_bytes, 0.0)
            for variant, took in measure(variants, device, rounds=7).items():
                table.add(
                    name, m, variant, took, num_bytes / 1e6, num_bytes / took.median_us / 1e3, floor,
                    f"{100 * floor / took.median_us:.0f}%",
                )  # fmt: skip
    if args.out:
        table.write(args.out)


if __name__ == "__main__":
    main()
