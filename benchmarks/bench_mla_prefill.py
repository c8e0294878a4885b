"""mla_prefill on a Hopper GPU, beside the roof and FlashInfer, FlashAttention-3 and torch where they import.

    python -m benchmarks.bench_mla_prefill [--quick] [--out prefill.csv] [--plot prefill.png]

A row is the attention of one layer over b sequences of s_q new tokens each behind `prefix` cached ones, causal.
Every variant is checked against float32 attention on sampled queries before anything is timed. Peers need keys
with the rope key copied to every head: the copy is made beforehand and not counted. `roof` is the larger of bytes
over copy bandwidth and FLOPs over the bf16 matrix rate, both measured here; FLOPs are those of visible keys.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.timing import Table, copies_beyond_cache, measure, roofs
from seekernel import ops

NOPE, ROPE, D_V = 128, 64, 128
SCALE = 192**-0.5 * (0.1 * math.log(40) + 1) ** 2
MAX_ERROR, MAX_LSE_ERROR = 2e-2, 2e-3


@dataclass(frozen=True)
class Shape:
    """One row; merge: with a previous float32 result, as every chunk of a long prefix but the first has it."""

    b: int
    s_q: int
    h: int = 128
    prefix: int = 0
    merge: bool = False

    @property
    def s_kv(self) -> int:
        """Keys of a sequence."""
        return self.prefix + self.s_q

    @property
    def flops(self) -> float:
        """Of the visible keys."""
        visible = self.s_q * self.prefix + self.s_q * (self.s_q + 1) / 2
        return 2.0 * (NOPE + ROPE + D_V) * self.b * self.h * visible

    @property
    def num_bytes(self) -> float:
        """Keys, values, queries and outputs once."""
        queries = self.s_q * self.h * (2.0 * (NOPE + ROPE + D_V) + 4 * D_V * self.merge)
        return self.b * (self.s_kv * 2.0 * (self.h * (NOPE + D_V) + ROPE) + queries)


QUICK = [
    Shape(1, 512, 128),
    Shape(1, 2048, 16),
    Shape(1, 4096, 16),
    Shape(1, 8192, 16),
    Shape(1, 16384, 16),
    Shape(1, 8192, 128),
    Shape(16, 1024, 16),
    Shape(4, 512, 128, 4096),
    Shape(1, 4096, 16, 28672),
    Shape(1, 4096, 16, merge=True),
]


def shapes() -> Iterator[Shape]:
    """The whole table."""
    for h in (16, 32, 64, 128):
        for s in (512, 1024, 2048, 4096, 8192, 16384, 32768):
            if s * h <= 2**21:
                yield Shape(1, s, h)
    for h in (16, 128):
        yield from (Shape(b, s, h) for b, s in ((32, 128), (16, 512), (8, 1024), (4, 2048)))
        yield from (Shape(1, s, h, 8192) for s in (128, 512, 2048))
        yield Shape(1, 4096, h, merge=True)
    yield Shape(1, 8192, 16, 122880)


@dataclass(frozen=True)
class Inputs:
    """Tensors of one layer."""

    q: Tensor
    kv: Tensor
    k_pe: Tensor
    previous: tuple[Tensor, Tensor] | None

    @staticmethod
    def of(shape: Shape) -> Inputs:
        """Random ones on the GPU."""

        def make(*sizes: int) -> Tensor:
            return torch.randn(*sizes, device="cuda", dtype=torch.bfloat16)

        queries = shape.b * shape.s_q
        keys = shape.b * shape.s_kv
        previous = None
        if shape.merge:
            previous = (
                torch.randn(queries, shape.h, D_V, device="cuda"),
                torch.randn(queries, shape.h, device="cuda") + math.log(shape.s_kv),
            )
        return Inputs(
            make(queries, shape.h, NOPE + ROPE), make(keys, shape.h, NOPE + D_V), make(keys, ROPE), previous
        )  # fmt: skip

    def keys(self) -> Tensor:
        """[s_kv, h, 192], the rope key in every head."""
        rope = self.k_pe[:, None].expand(-1, self.kv.shape[1], -1)
        return torch.cat([self.kv[..., :NOPE], rope], dim=-1)


Call = Callable[[], object]
Variant = tuple[Call, Callable[[], tuple[Tensor, Tensor | None]]]
"""What is timed, and its (out, lse)."""


def cu_seqlens(shape: Shape) -> tuple[Tensor, Tensor]:
    """Offsets of queries and keys."""
    index = torch.arange(shape.b + 1, dtype=torch.int32, device="cuda")
    return index * shape.s_q, index * shape.s_kv


def ours(shape: Shape, inputs: Inputs) -> Variant:
    """mla_prefill."""
    cu_q, cu_kv = cu_seqlens(shape)
    out = torch.empty(len(inputs.q), shape.h, D_V, dtype=torch.bfloat16, device="cuda")
    lse = torch.empty(len(inputs.q), shape.h, device="cuda")
    previous = inputs.previous or (None, None)
    call = lambda: ops.mla_prefill(
        inputs.q, inputs.kv, inputs.k_pe, cu_q, cu_kv, SCALE, True, out, lse,
        previous_out=previous[0], previous_lse=previous[1],
    )  # fmt: skip
    return call, call


def flashinfer(shape: Shape, inputs: Inputs) -> Variant | None:
    """FlashInfer's FA3 kernel over ragged keys, planned once."""
    try:
        from flashinfer import BatchPrefillWithRaggedKVCacheWrapper
    except ImportError:
        return None
    workspace = torch.empty(384 * 2**20, dtype=torch.uint8, device="cuda")
    wrapper = BatchPrefillWithRaggedKVCacheWrapper(workspace, "NHD", backend="fa3")
    cu_q, cu_kv = cu_seqlens(shape)
    wrapper.plan(
        cu_q, cu_kv, shape.h, shape.h, NOPE + ROPE, head_dim_vo=D_V, causal=True, sm_scale=SCALE,
        q_data_type=torch.bfloat16,
    )  # fmt: skip
    k, v = inputs.keys(), inputs.kv[..., NOPE:].contiguous()

    def call() -> Tensor:
        out: Tensor = wrapper.run(inputs.q, k, v)
        return out

    return call, lambda: (call(), None)


def flash_attention_3(shape: Shape, inputs: Inputs) -> Variant | None:
    """FlashAttention-3 over ragged keys."""
    try:
        from flash_attn_interface import flash_attn_varlen_func
    except ImportError:
        return None
    cu_q, cu_kv = cu_seqlens(shape)
    k, v = inputs.keys(), inputs.kv[..., NOPE:].contiguous()

    def call() -> Tensor:
        result = flash_attn_varlen_func(
            inputs.q, k, v, cu_q, cu_kv, shape.s_q, shape.s_kv, softmax_scale=SCALE, causal=True
        )
        out: Tensor = result[0] if isinstance(result, tuple) else result
        return out

    return call, lambda: (call(), None)


def torch_attention(shape: Shape, inputs: Inputs) -> Variant | None:
    """scaled_dot_product_attention, where every query sees the keys up to its own."""
    if shape.prefix or shape.s_q * shape.h > 2**20:
        return None

    def fold(x: Tensor) -> Tensor:
        return x.view(shape.b, -1, shape.h, x.shape[-1]).transpose(1, 2).contiguous()

    q, k, v = fold(inputs.q), fold(inputs.keys()), fold(inputs.kv[..., NOPE:])

    def call() -> Tensor:
        return scaled_dot_product_attention(q, k, v, is_causal=True, scale=SCALE)

    return call, lambda: (call().transpose(1, 2).flatten(0, 1), None)


PEERS: Mapping[str, Callable[[Shape, Inputs], Variant | None]] = {
    "flashinfer": flashinfer,
    "fa3": flash_attention_3,
    "torch": torch_attention,
}


def check(name: str, shape: Shape, inputs: Inputs, variant: Variant) -> None:
    """Compare sampled queries of the first and last head; exits with status 1 when wrong."""
    out, lse = variant[1]()
    for request in {0, shape.b - 1}:
        cached = slice(request * shape.s_kv, (request + 1) * shape.s_kv)
        sample = torch.linspace(0, shape.s_q - 1, min(shape.s_q, 9), device="cuda").long()
        for head in {0, shape.h - 1}:
            k = torch.cat([inputs.kv[cached, head, :NOPE], inputs.k_pe[cached]], -1).float()
            rows = request * shape.s_q + sample
            scores = inputs.q[rows, head].float() @ k.T * SCALE
            seen = torch.arange(shape.s_kv, device="cuda") <= (sample + shape.prefix)[:, None]
            scores = scores.masked_fill(~seen, -math.inf)
            want, want_lse = (
                scores.softmax(-1) @ inputs.kv[cached, head, NOPE:].float(),
                scores.logsumexp(-1),
            )
            if inputs.previous is not None and name == "ours":
                before, before_lse = (t[rows, head] for t in inputs.previous)
                merged = torch.logaddexp(want_lse, before_lse)
                weights = [torch.exp(part - merged)[:, None] for part in (want_lse, before_lse)]
                want, want_lse = want * weights[0] + before * weights[1], merged
            error = float((out[rows, head].float() - want).abs().max() / want.abs().max())
            lse_error = 0.0 if lse is None else float((lse[rows, head] - want_lse).abs().max())
            if not (error <= MAX_ERROR and lse_error <= MAX_LSE_ERROR):
                sys.exit(
                    f"{name} {shape}: expected errors within {MAX_ERROR} and {MAX_LSE_ERROR}, "
                    f"got out {error:.2e}, lse {lse_error:.2e}"
                )


def run(shape: Shape, table: Table, peers: Sequence[str]) -> float:
    """Check and time one shape; returns ours in microseconds."""
    copies = copies_beyond_cache(int(shape.num_bytes), torch.device("cuda"), limit=8)
    sets = [Inputs.of(shape) for _ in range(copies)]
    variants: dict[str, list[Call]] = {}
    for name, make in {"ours": ours, **{name: PEERS[name] for name in peers}}.items():
        try:
            made = [make(shape, inputs) for inputs in sets]
            calls = [variant for variant in made if variant is not None]
            if len(calls) != len(sets):
                continue
            check(name, shape, sets[0], calls[0])
        except (RuntimeError, TypeError, ValueError) as error:
            if name == "ours":
                raise
            print(f"left out: {name} {shape}: {str(error).splitlines()[0]}")
            continue
        variants[name] = [variant[0] for variant in calls]
    times = measure(variants, torch.device("cuda"))
    mine = times["ours"]
    floor = roofs("cuda").floor_us(shape.num_bytes, shape.flops)

    def ratio(name: str) -> str:
        return f"{times[name].median_us / mine.median_us:.2f}" if name in times else "-"

    table.add(
        shape.b, shape.s_q, shape.prefix, shape.h, "yes" if shape.merge else "no", mine,
        shape.flops / mine.median_us / 1e6, 100 * floor / mine.median_us, *(ratio(name) for name in PEERS),
    )  # fmt: skip
    return mine.median_us


def plot(points: Sequence[tuple[Shape, float]], path: Path) -> None:
    """TFLOPS against new tokens, a line per batch, heads and prefix."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    lines: dict[str, list[tuple[int, float]]] = {}
    for shape, mine in points:
        label = f"b{shape.b} h{shape.h} prefix {shape.prefix}{' merge' * shape.merge}"
        lines.setdefault(label, []).append((shape.s_q, shape.flops / mine / 1e6))
    figure, axes = pyplot.subplots(figsize=(10, 6))
    for label, line in lines.items():
        axes.plot(*zip(*sorted(line), strict=True), marker="o", label=label)
    axes.axhline(roofs("cuda").bf16_flops_per_us / 1e6, linestyle="--", color="grey")
    axes.set(xscale="log", xlabel="new tokens a sequence", ylabel="TFLOPS")
    axes.legend(fontsize=6, ncol=2)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="ten rows")
    parser.add_argument("--heads", type=int, help="only rows of this many heads")
    parser.add_argument(
        "--budget", type=float, default=1e9, help="seconds after which no row starts"
    )
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS))
    parser.add_argument("--out", type=Path, help="CSV file")
    parser.add_argument("--plot", type=Path, help="PNG file")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("bench_mla_prefill: expected a CUDA device, got none")
    table = Table(
        ["b", "s_q", "prefix", "h", "merge", "us (p20-p80)", "TFLOPS", "% of roof"]
        + [f"{name}/ours" for name in PEERS]
    )
    began = time.monotonic()
    points: list[tuple[Shape, float]] = []
    for shape in QUICK if options.quick else shapes():
        if options.heads not in (None, shape.h):
            continue
        if time.monotonic() - began > options.budget:
            print(f"stopped after {len(points)} rows: --budget {options.budget:.0f}")
            break
        points.append((shape, run(shape, table, options.peers)))
    if options.out:
        table.write(options.out)
    if options.plot and points:
        plot(points, options.plot)


if __name__ == "__main__":
    main()
