"""The small kernels around MLA's attention on a Hopper GPU, beside the same work in plain torch.

    python -m benchmarks.bench_mla_fused [--quick] [--out fused.csv]

Rows: mla_prepare into every cache format, rope_interleaved, mla_gather_latent, merge_attention_states, with V3's
sizes. Ours is checked against torch before anything is timed. `roof` is bytes read and written once over the copy
bandwidth measured here; calls rotate through inputs that together exceed L2.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.shapes import KV_LORA_RANK, NUM_HEADS, Q_LORA_RANK, QK_ROPE_HEAD_DIM, V_HEAD_DIM
from benchmarks.timing import Table, copies_beyond_cache, measure, roofs
from seekernel import ops, reference

PAGE_SIZE, MAX_POS, EPS = 64, 8192, 1e-6
ROW = KV_LORA_RANK + QK_ROPE_HEAD_DIM
CACHES = {
    "bf16": (torch.bfloat16, ROW, 2 * ROW),
    "blocks": (torch.uint8, 656, 656),
    "flat": (torch.float8_e4m3fn, ROW, ROW),
}
Call = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """One input set of one row: the calls and what they give, as float32."""

    ours: Call
    torch: Call
    results: Callable[[], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Row:
    name: str
    tokens: int
    num_bytes: float
    make: Callable[[], Case]
    tolerance: float


def make_cache(kind: str, num_pages: int) -> tuple[Tensor, Tensor | None]:
    dtype, row, _ = CACHES[kind]
    raw = torch.zeros(
        num_pages,
        PAGE_SIZE,
        row,
        dtype=torch.uint8 if dtype != torch.bfloat16 else dtype,
        device="cuda",
    )
    scale = torch.full((1,), 1 / 64, device="cuda") if kind == "flat" else None
    return raw.view(dtype), scale


def rope_table() -> Tensor:
    angle = torch.arange(MAX_POS, device="cuda")[:, None] * 1e4 ** -(
        torch.arange(0, 64, 2, device="cuda") / 64
    )
    return torch.cat([angle.cos(), angle.sin()], -1)


def prepare(kind: str, s: int) -> Row:
    table, weights = (
        rope_table(),
        [torch.randn(n, device="cuda") for n in (Q_LORA_RANK, KV_LORA_RANK)],
    )

    def make() -> Case:
        qkv_a = torch.randn(s, Q_LORA_RANK + ROW, device="cuda").bfloat16()
        num_pages = -(-s // PAGE_SIZE)
        slots = torch.randperm(num_pages * PAGE_SIZE, device="cuda")[:s]
        positions = torch.randint(0, MAX_POS, (s,), device="cuda", dtype=torch.int32)
        cache, scale = make_cache(kind, num_pages)
        q_latent = torch.empty(s, Q_LORA_RANK, dtype=torch.bfloat16, device="cuda")
        ours: Call = lambda: ops.mla_prepare(
            qkv_a, weights[0], weights[1], positions, table, slots, EPS, q_latent, cache, scale
        )
        sizes = [Q_LORA_RANK, KV_LORA_RANK, QK_ROPE_HEAD_DIM]

        def eager() -> Tensor:
            q, latent, k_pe = qkv_a.split_with_sizes(sizes, -1)
            torch.nn.functional.rms_norm(q.float(), (Q_LORA_RANK,), weights[0], EPS).bfloat16()
            normed = torch.nn.functional.rms_norm(latent.float(), (KV_LORA_RANK,), weights[1], EPS)
            cos, sin = table[positions].chunk(2, -1)
            even, odd = k_pe.float().reshape(s, -1, 2).unbind(-1)
            rotated = torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)
            rows = torch.cat([normed, rotated], -1)
            if kind == "bf16":
                stored = rows.bfloat16()
            else:
                stored = reference.quantize_latent(rows, KV_LORA_RANK, scale).view(torch.uint8)
            cache.view(stored.dtype).view(-1, stored.shape[-1])[slots] = stored
            return cache

        def results() -> tuple[Tensor, Tensor]:
            def value() -> Tensor:
                rows = reference.latent_values(cache, KV_LORA_RANK, scale, torch.float32)
                return rows.flatten(0, 1)[slots].clone()

            eager()
            want = value()
            cache.view(torch.uint8).zero_()
            ours()
            return value(), want

        return Case(ours, eager, results)

    num_bytes = s * (2.0 * (Q_LORA_RANK + ROW) + 2 * Q_LORA_RANK + CACHES[kind][2])
    return Row(f"mla_prepare {kind}", s, num_bytes, make, 0.13 if kind != "bf16" else 2**-7)


def rope(s: int) -> Row:
    table = rope_table()

    def make() -> Case:
        q = torch.randn(s, NUM_HEADS, 192, device="cuda").bfloat16()
        positions = torch.randint(0, MAX_POS, (s,), device="cuda", dtype=torch.int32)
        part = q[..., 128:]

        def eager() -> Tensor:
            cos, sin = table[positions][:, None].chunk(2, -1)
            even, odd = part.float().reshape(s, NUM_HEADS, -1, 2).unbind(-1)
            return part.copy_(
                torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)
            )

        def results() -> tuple[Tensor, Tensor]:
            before = part.clone()
            want = eager().float()
            part.copy_(before)
            return ops.rope_interleaved(part, positions, table).float(), want

        return Case(lambda: ops.rope_interleaved(part, positions, table), eager, results)

    return Row("rope_interleaved", s, s * NUM_HEADS * 64 * 4.0, make, 2**-7)


def gather(kind: str, s: int) -> Row:
    def make() -> Case:
        num_pages = s // PAGE_SIZE
        cache, scale = make_cache(kind, num_pages)
        values = torch.randn(num_pages, PAGE_SIZE, ROW, device="cuda")
        if kind == "bf16":
            cache.copy_(values)
        else:
            cache.view(torch.uint8).copy_(
                reference.quantize_latent(values, KV_LORA_RANK, scale).view(torch.uint8)
            )
        table = torch.randperm(num_pages, device="cuda").int()[None]
        cu = torch.tensor([0, s], dtype=torch.int32, device="cuda")
        latent = torch.empty(s, KV_LORA_RANK, dtype=torch.bfloat16, device="cuda")
        k_pe = torch.empty(s, QK_ROPE_HEAD_DIM, dtype=torch.bfloat16, device="cuda")
        ours: Call = lambda: ops.mla_gather_latent(
            cache, table, cu, s, latent=latent, k_pe=k_pe, kv_scale=scale
        )

        def eager() -> Tensor:
            rows = cache.view(torch.uint8)[table[0].long()].view(cache.dtype)
            return (
                reference.latent_values(rows, KV_LORA_RANK, scale, torch.float32)
                .bfloat16()
                .flatten(0, 1)
            )

        def results() -> tuple[Tensor, Tensor]:
            ours()
            return torch.cat([latent, k_pe], -1).float(), eager().float()

        return Case(ours, eager, results)

    return Row(f"mla_gather_latent {kind}", s, s * (CACHES[kind][2] + 2.0 * ROW), make, 0.0)


def merge(s: int) -> Row:
    def make() -> Case:
        states = [
            (
                torch.randn(s, NUM_HEADS, V_HEAD_DIM, device="cuda"),
                torch.randn(s, NUM_HEADS, device="cuda"),
            )
            for _ in range(2)
        ]
        out = torch.empty(s, NUM_HEADS, V_HEAD_DIM, dtype=torch.bfloat16, device="cuda")
        lse = torch.empty(s, NUM_HEADS, device="cuda")
        ours: Call = lambda: ops.merge_attention_states(*states[0], *states[1], out, lse)

        def eager() -> Tensor:
            total = torch.logaddexp(states[0][1], states[1][1])
            parts = [part * torch.exp(part_lse - total)[..., None] for part, part_lse in states]
            return (parts[0] + parts[1]).bfloat16()

        def results() -> tuple[Tensor, Tensor]:
            ours()
            return out.float(), eager().float()

        return Case(ours, eager, results)

    return Row("merge_attention_states", s, s * NUM_HEADS * V_HEAD_DIM * 10.0, make, 2**-7)


def rows(quick: bool) -> Iterator[Row]:
    """The table."""
    for s in (1, 128, 4096) if quick else (1, 16, 64, 128, 256, 1024, 4096, 16384):
        yield from (prepare(kind, s) for kind in CACHES)
        yield rope(s)
    for s in (4096,) if quick else (1024, 8192, 65536):
        yield from (gather(kind, s) for kind in CACHES)
        if s <= 8192:
            yield merge(s)


def run(row: Row, table: Table) -> None:
    """Check and time one row; exits with status 1 when wrong."""
    copies = copies_beyond_cache(int(row.num_bytes), torch.device("cuda"), limit=32)
    cases: Sequence[Case] = [row.make() for _ in range(copies)]
    got, want = cases[0].results()
    error = float((got - want).abs().max() / want.abs().max())
    if not error <= row.tolerance:
        sys.exit(
            f"{row.name} {row.tokens}: expected an error within {row.tolerance}, got {error:.2e}"
        )
    times = measure(
        {"ours": [c.ours for c in cases], "torch": [c.torch for c in cases]}, torch.device("cuda")
    )
    mine = times["ours"].median_us
    floor = row.num_bytes / roofs("cuda").bytes_per_us
    table.add(
        row.name, row.tokens, times["ours"], row.num_bytes / mine / 1e3, 100 * floor / mine,
        f"{times['torch'].median_us / mine:.1f}",
    )  # fmt: skip


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="three sizes")
    parser.add_argument("--out", type=Path, help="CSV file")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("bench_mla_fused: expected a CUDA device, got none")
    table = Table(["op", "tokens", "us (p20-p80)", "GB/s", "% of roof", "torch/ours"])
    for row in rows(options.quick):
        run(row, table)
    if options.out:
        table.write(options.out)


if __name__ == "__main__":
    main()
