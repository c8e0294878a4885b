"""mla_decode on a Hopper GPU, end to end, beside the roof and FlashMLA and FlashInfer where they import.

    python -m benchmarks.bench_mla_decode [--quick | --full] [--out decode.csv] [--plot decode.png]

A row is one decode step's attention of one layer: attention and combine kernels, and 1/61 of the metadata
kernel, which a model of 61 layers launches once. Two requests of every row are checked against float32
attention before anything is timed. Calls rotate through caches that together exceed L2. Varied lengths are
uniform between half and one and a half times the mean. `roof` is the larger of bytes over copy bandwidth
and FLOPs over the bf16 matrix rate, both measured here; bytes count keys once, queries and outputs.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from inspect import signature
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.shapes import D_QK, D_V, MLA_BATCHES, MLA_HEADS, MLA_LENGTHS, MLA_S_Q, NUM_LAYERS
from benchmarks.timing import Table, Times, copies_beyond_cache, measure, roofs
from seekernel import ops

SCALE = 192**-0.5 * (0.1 * math.log(40) + 1) ** 2
PAGE_SIZE = 64
TOKEN_BYTES = {"bf16": 2 * D_QK, "blocks": 656, "flat": D_QK}
MAX_ERROR, MAX_LSE_ERROR = 2e-2, 2e-3


@dataclass(frozen=True)
class Shape:
    """One row: b requests of `length` cached tokens (mean, where varied), s_q new ones, h heads."""

    b: int
    length: int
    h: int = 128
    s_q: int = 1
    cache: str = "bf16"
    varied: bool = False

    def lengths(self) -> list[int]:
        """Cached tokens by request."""
        if not self.varied:
            return [self.length] * self.b
        generator = torch.Generator().manual_seed(self.b)
        spread = torch.rand(self.b, generator=generator) + 0.5
        return [max(self.s_q, int(self.length * x)) for x in spread.tolist()]

    @property
    def num_bytes(self) -> float:
        """Keys once, queries and outputs."""
        rows = self.b * self.s_q * self.h
        return sum(self.lengths()) * TOKEN_BYTES[self.cache] + rows * 2.0 * (D_QK + D_V)

    @property
    def flops(self) -> float:
        """Of the visible keys."""
        visible = sum(n - (self.s_q - 1) / 2 for n in self.lengths())
        return 2.0 * (D_QK + D_V) * self.s_q * self.h * visible


QUICK = [
    Shape(1, 8192),
    Shape(1, 131072),
    Shape(16, 1024, h=16),
    Shape(128, 1024),
    Shape(128, 4096),
    Shape(128, 8192),
    Shape(128, 4096, h=16),
    Shape(128, 4096, s_q=2),
    Shape(128, 4096, varied=True),
    Shape(64, 4096, h=64),
]


def shapes(full: bool) -> Iterator[Shape]:
    """The default table, or every combination."""
    if full:
        for cache, varied, s_q, h, length, b in itertools.product(
            TOKEN_BYTES, (False, True), MLA_S_Q, MLA_HEADS, MLA_LENGTHS, MLA_BATCHES
        ):
            yield Shape(b, length, h, s_q, cache, varied)
        return
    for h, length, b in itertools.product((16, 128), MLA_LENGTHS, MLA_BATCHES):
        yield Shape(b, length, h)
    for length in MLA_LENGTHS[:5]:
        yield Shape(128, length, 32)
        yield Shape(128, length, 64)
        yield Shape(128, length, 128, 2)
        yield Shape(128, length, 128, 1, "bf16", True)
    for cache, h, length, b in itertools.product(
        ("blocks", "flat"), (16, 128), (1024, 4096, 32768), (1, 16, 128)
    ):
        yield Shape(b, length, h, 1, cache)


@dataclass
class Inputs:
    """Tensors of one layer; layers share queries, tables and lengths, not caches."""

    shape: Shape
    q: Tensor = field(init=False)
    seq_lens: Tensor = field(init=False)
    cu_seqlens_q: Tensor = field(init=False)
    block_table: Tensor = field(init=False)
    caches: list[Tensor] = field(init=False)
    kv_scale: Tensor | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        shape, device = self.shape, "cuda"
        lengths = shape.lengths()
        pages = [-(-n // PAGE_SIZE) for n in lengths]
        self.q = torch.randn(shape.b * shape.s_q, shape.h, D_QK, device=device).bfloat16()
        self.seq_lens = torch.tensor(lengths, dtype=torch.int32, device=device)
        self.cu_seqlens_q = torch.arange(shape.b + 1, device=device, dtype=torch.int32) * shape.s_q
        order = torch.randperm(sum(pages)).int()
        ends = torch.tensor(pages).cumsum(0).tolist()
        table = torch.zeros(shape.b, max(pages), dtype=torch.int32)
        for row, end, count in zip(table, ends, pages, strict=True):
            row[:count] = order[end - count : end]
        self.block_table = table.to(device)
        copies = copies_beyond_cache(int(shape.num_bytes), torch.device(device))
        self.caches = [self._cache(sum(pages)) for _ in range(copies)]

    def _cache(self, num_pages: int) -> Tensor:
        if self.shape.cache == "bf16":
            cache = torch.empty(num_pages, PAGE_SIZE, D_QK, dtype=torch.bfloat16, device="cuda")
            return cache.normal_()
        codes = torch.empty(num_pages, PAGE_SIZE, D_QK, dtype=torch.float8_e4m3fn, device="cuda")
        for first in range(0, num_pages, 4096):
            part = codes[first : first + 4096]
            part.copy_(torch.randn(part.shape, device="cuda") * 64)
        if self.shape.cache == "flat":
            self.kv_scale = torch.tensor([1 / 64], device="cuda")
            return codes
        rows = torch.empty(num_pages, PAGE_SIZE, 656, dtype=torch.uint8, device="cuda")
        rows[..., :D_V] = codes[..., :D_V].view(torch.uint8)
        rows[..., D_V : D_V + 16] = torch.full((4,), 1 / 64, device="cuda").view(torch.uint8)
        rope = torch.randn(num_pages, PAGE_SIZE, 64, device="cuda").bfloat16()
        rows[..., D_V + 16 :] = rope.view(torch.uint8)
        return rows

    def keys(self, request: int) -> Tensor:
        """The first cache's keys of a request in float32."""
        length = int(self.seq_lens[request])
        pages = self.block_table[request, : -(-length // PAGE_SIZE)].long()
        rows = self.caches[0][pages].flatten(0, 1)[:length]
        if self.shape.cache == "bf16":
            return rows.float()
        if self.shape.cache == "flat":
            return rows.float() / 64
        latent = rows[:, :D_V].contiguous().view(torch.float8_e4m3fn).float() / 64
        rope = rows[:, D_V + 16 :].contiguous().view(torch.bfloat16).float()
        return torch.cat([latent, rope], dim=-1)


Step = Callable[[Tensor], tuple[Tensor, Tensor]]


def ours(inputs: Inputs) -> tuple[Step, Callable[[], object]]:
    """Return (step on a cache, planning)."""
    shape = inputs.shape
    plan = ops.mla_decode_plan(len(inputs.q), shape.h, "cuda")
    out = torch.empty(len(inputs.q), shape.h, D_V, dtype=torch.bfloat16, device="cuda")
    lse = torch.empty(len(inputs.q), shape.h, device="cuda")

    def planning() -> object:
        return ops.mla_decode_metadata(inputs.seq_lens, inputs.cu_seqlens_q, shape.h, plan)

    def step(cache: Tensor) -> tuple[Tensor, Tensor]:
        return ops.mla_decode(
            inputs.q, cache, inputs.block_table, inputs.seq_lens, inputs.cu_seqlens_q, SCALE,
            out=out, lse=lse, kv_scale=inputs.kv_scale, plan=plan,
        )  # fmt: skip

    planning()
    return step, planning


def flash_mla(inputs: Inputs) -> Step | None:
    """FlashMLA's call, planned once; None where it is missing or does not take the cache."""
    if inputs.shape.cache != "bf16":
        return None
    try:
        from flash_mla import flash_mla_with_kvcache, get_mla_metadata
    except ImportError:
        return None
    shape = inputs.shape
    metadata, num_splits = get_mla_metadata(inputs.seq_lens, shape.s_q * shape.h, 1)
    q = inputs.q.view(shape.b, shape.s_q, shape.h, D_QK)
    # Forks that keep the Hopper kernels beside newer ones reach them by this name.
    parameters = signature(flash_mla_with_kvcache).parameters
    options = {"use_legacy": True} if "use_legacy" in parameters else {}

    def step(cache: Tensor) -> tuple[Tensor, Tensor]:
        out, lse = flash_mla_with_kvcache(
            q, cache.unsqueeze(2), inputs.block_table, inputs.seq_lens, D_V, metadata, num_splits,
            softmax_scale=SCALE, causal=True, **options,
        )  # fmt: skip
        return out.flatten(0, 1), lse.transpose(1, 2).flatten(0, 1)

    return step


def flashinfer(inputs: Inputs) -> Step | None:
    """FlashInfer's FA3 kernel, planned once; None where it is missing or does not take the cache."""
    if inputs.shape.cache != "bf16":
        return None
    try:
        from flashinfer.mla import BatchMLAPagedAttentionWrapper
    except ImportError:
        return None
    shape = inputs.shape
    workspace = torch.empty(256 * 2**20, dtype=torch.uint8, device="cuda")
    wrapper = BatchMLAPagedAttentionWrapper(workspace, backend="fa3")
    pages = (inputs.seq_lens + PAGE_SIZE - 1) // PAGE_SIZE
    indptr = torch.zeros(shape.b + 1, dtype=torch.int32, device="cuda")
    indptr[1:] = pages.cumsum(0)
    width = torch.arange(inputs.block_table.shape[1], device="cuda")
    indices = inputs.block_table[width[None] < pages[:, None]]
    wrapper.plan(
        inputs.cu_seqlens_q, indptr, indices, inputs.seq_lens, shape.h, D_V, D_QK - D_V, PAGE_SIZE,
        True, SCALE, torch.bfloat16, torch.bfloat16,
    )  # fmt: skip
    q_nope, q_pe = inputs.q[..., :D_V].contiguous(), inputs.q[..., D_V:].contiguous()

    def step(cache: Tensor) -> tuple[Tensor, Tensor]:
        out, lse = wrapper.run(q_nope, q_pe, cache[..., :D_V], cache[..., D_V:], return_lse=True)
        return out, lse * math.log(2)

    return step


def wrong(inputs: Inputs, step: Step) -> str:
    """Compare the first and last request with float32 attention: what is wrong, empty when right."""
    shape = inputs.shape
    out, lse = step(inputs.caches[0])
    for request in {0, shape.b - 1}:
        keys = inputs.keys(request)
        rows = slice(request * shape.s_q, (request + 1) * shape.s_q)
        q = inputs.q[rows].float()
        scores = torch.einsum("shd,kd->shk", q, keys) * SCALE
        seen = torch.ones(shape.s_q, len(keys), dtype=torch.bool, device="cuda")
        seen = seen.tril(len(keys) - shape.s_q)
        scores = scores.masked_fill(~seen[:, None], -math.inf)
        want = scores.softmax(-1) @ keys[:, :D_V]
        error = float((out[rows].float() - want).abs().max() / want.abs().max())
        lse_error = float((lse[rows] - scores.logsumexp(-1)).abs().max())
        if not (error <= MAX_ERROR and lse_error <= MAX_LSE_ERROR):
            return (
                f"expected errors within {MAX_ERROR} and {MAX_LSE_ERROR}, "
                f"got out {error:.2e}, lse {lse_error:.2e}"
            )
    return ""


def peers(inputs: Inputs) -> Iterator[tuple[str, Step]]:
    """Those that are there, take this shape and get it right; why others do not is printed."""
    for name, make in (("flash_mla", flash_mla), ("flashinfer", flashinfer)):
        try:
            step = make(inputs)
            reason = wrong(inputs, step) if step is not None else ""
        except Exception as error:  # a peer refuses in its own ways
            step, reason = None, str(error).splitlines()[0] if str(error) else repr(error)
        if reason:
            print(f"{name} left out of {inputs.shape}: {reason}")
        elif step is not None:
            yield name, step


def bind(step: Step, caches: Sequence[Tensor]) -> list[Callable[[], object]]:
    """A call per cache."""
    return [partial(step, cache) for cache in caches]


def run(shape: Shape, table: Table) -> float:
    """Check and time one shape; returns ours in microseconds."""
    inputs = Inputs(shape)
    step, planning = ours(inputs)
    failure = wrong(inputs, step)
    if failure:
        sys.exit(f"mla_decode {shape}: {failure}")
    variants = {"ours": bind(step, inputs.caches)}
    variants |= {name: bind(peer, inputs.caches) for name, peer in peers(inputs)}
    variants["plan"] = [planning]
    times = measure(variants, torch.device("cuda"))
    share = times["plan"].median_us / NUM_LAYERS
    mine = times["ours"].median_us + share
    floor = roofs("cuda").floor_us(shape.num_bytes, shape.flops)

    def ratio(name: str) -> str:
        return f"{times[name].median_us / mine:.2f}" if name in times else "-"

    spread = Times(mine, times["ours"].p20_us + share, times["ours"].p80_us + share)
    table.add(
        shape.b, f"{shape.length}{'~' if shape.varied else ''}", shape.h, shape.s_q, shape.cache,
        spread, shape.num_bytes / mine / 1e3, shape.flops / mine / 1e6, 100 * floor / mine,
        ratio("flash_mla"), ratio("flashinfer"), times["plan"].median_us,
    )  # fmt: skip
    return mine


def plot(points: Sequence[tuple[Shape, float]], path: Path) -> None:
    """Share of the roof against length, a line per batch, heads and cache."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    lines: dict[str, list[tuple[int, float]]] = {}
    for shape, mine in points:
        label = f"b{shape.b} h{shape.h} s_q{shape.s_q} {shape.cache}{' varied' * shape.varied}"
        share = 100 * roofs("cuda").floor_us(shape.num_bytes, shape.flops) / mine
        lines.setdefault(label, []).append((shape.length, share))
    figure, axes = pyplot.subplots(figsize=(10, 6))
    for label, line in lines.items():
        axes.plot(*zip(*sorted(line), strict=True), marker="o", label=label)
    axes.set(xscale="log", xlabel="cached tokens a request", ylabel="% of the roof", ylim=(0, 100))
    axes.legend(fontsize=6, ncol=2)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="ten rows")
    parser.add_argument("--full", action="store_true", help="every combination")
    parser.add_argument("--cache", choices=TOKEN_BYTES, help="only rows of this cache")
    parser.add_argument("--heads", type=int, help="only rows of this many heads")
    parser.add_argument(
        "--budget", type=float, default=1e9, help="seconds after which no row starts"
    )
    parser.add_argument("--out", type=Path, help="CSV file")
    parser.add_argument("--plot", type=Path, help="PNG file")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("bench_mla_decode: expected a CUDA device, got none")
    table = Table(
        [
            "b",
            "length",
            "h",
            "s_q",
            "cache",
            "us (p20-p80)",
            "GB/s",
            "TFLOPS",
            "% of roof",
            "FlashMLA/ours",
            "FlashInfer/ours",
            "plan us",
        ]
    )
    began = time.monotonic()
    points: list[tuple[Shape, float]] = []
    for shape in QUICK if options.quick else shapes(options.full):
        if options.cache not in (None, shape.cache) or options.heads not in (None, shape.h):
            continue
        if time.monotonic() - began > options.budget:
            print(f"stopped after {len(points)} rows: --budget {options.budget:.0f}")
            break
        free, _ = torch.cuda.mem_get_info()
        if shape.num_bytes * 1.6 > free + torch.cuda.memory_reserved():
            print(f"left out, not enough memory: {shape}")
            continue
        points.append((shape, run(shape, table)))
    if options.out:
        table.write(options.out)
    if options.plot and points:
        plot(points, options.plot)


if __name__ == "__main__":
    main()
