"""A DeepSeek-V3 MoE layer on a Hopper GPU, part by part and whole: routing, permute, experts, finalize.

    python -m benchmarks.bench_moe [--quick] [--device cpu] [--tokens 1 64] [--out moe.csv]

`full`: 256 experts and the shared one on one GPU; `ep8`: the 32 experts of one of eight ranks, with the tokens of
all of them, of whose choices this rank keeps its own. Random routing by the gate itself. On a CPU (--device cpu)
the sizes are small: it shows that the script runs. Every variant is checked before it is timed. `roof` is the
larger of bytes over copy bandwidth and FLOPs over the fp8 matrix rate (route: bf16), measured here; bytes count
the weights of experts that have tokens, activations once in and once out. Baselines: torch ops, eager and compiled.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import shapes
from benchmarks.timing import Call, Roofs, Table, copies_beyond_cache, measure, roofs
from seekernel import ops
from seekernel.ops import NormedRows, Routing

EPS, MAP_ROWS = 1e-6, 64


@dataclass(frozen=True)
class Sizes:
    """One row's layer: `m` tokens choose from all experts, of which this GPU holds num_local."""

    name: str
    m: int
    hidden: int = shapes.HIDDEN
    width: int = shapes.MOE_INTERMEDIATE
    experts: int = shapes.NUM_EXPERTS
    top_k: int = shapes.TOP_K
    groups: int = shapes.NUM_GROUPS
    kept: int = shapes.TOPK_GROUPS
    num_local: int = shapes.NUM_EXPERTS + 1
    num_shared: int = 1


def rows_of(device: str, tokens: list[int]) -> Iterator[Sizes]:
    """The table's rows; the slice's tokens are those of eight GPUs with `m` each."""
    if device == "cpu":
        for m in tokens:
            yield Sizes("small", m, 256, 128, 16, 4, 4, 2, 17)
        return
    for m in tokens:
        yield Sizes("full", m)
    for m in tokens:
        if 8 * m <= 32768:
            yield Sizes("ep8", 8 * m, num_local=32, num_shared=0)


def eager_route(x: Tensor, weight: Tensor, bias: Tensor, s: Sizes) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The gate and the sort of its choices in torch ops: weights, ids, order of rows, counts."""
    scores = torch.mm(x, weight.t()).float().sigmoid()
    choices = (scores + bias).view(len(x), s.groups, -1)
    best = choices.topk(2, -1).values.sum(-1).topk(s.kept, -1).indices
    lost = torch.ones(len(x), s.groups, dtype=torch.bool, device=x.device).scatter(1, best, False)
    ids = choices.masked_fill(lost[..., None], -torch.inf).flatten(1).topk(s.top_k, -1).indices
    weights = scores.gather(1, ids)
    weights = weights / weights.sum(-1, keepdim=True) * 2.5
    flat = ids.flatten()
    order = flat.sort(stable=True).indices
    counts = torch.zeros(s.experts, dtype=torch.int64, device=x.device)
    counts.scatter_add_(0, flat, torch.ones_like(flat))
    return weights, ids, order, counts.cumsum(0)


def eager_finalize(y: Tensor, token_row: Tensor, weights: Tensor, residual: Tensor, norm: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Sum, add, norm and quantise in torch ops."""
    total = residual + (y[token_row.long()].float() * weights[..., None]).sum(1).bfloat16()
    wide = total.float()
    x = (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPS) * norm.float()).bfloat16()
    groups = x.float().view(len(x), -1, 128)
    scale = groups.abs().amax(-1).clamp_min(1e-4) / 448
    return x, (groups / scale[..., None]).to(torch.float8_e4m3fn), scale


@dataclass
class Layer:
    """Inputs of one row; weights are shared by all rows of a kind."""

    s: Sizes
    device: torch.device
    weights: tuple[Tensor, Tensor, Tensor, Tensor]
    copies: int = field(init=False)

    def __post_init__(self) -> None:
        s, device = self.s, self.device
        generator = torch.Generator(device).manual_seed(s.m)
        randn = partial(torch.randn, generator=generator, device=device)
        self.copies = copies_beyond_cache(2 * s.hidden * (s.experts + s.m), device, 16)
        self.norm = torch.ones(s.hidden, device=device).bfloat16()
        self.gates = [(randn(s.experts, s.hidden) / s.hidden**0.5).bfloat16() for _ in range(self.copies)]  # fmt: skip
        self.bias = randn(s.experts) * 0.01
        self.tokens = [self._tokens(randn) for _ in range(self.copies)]
        self.counter = torch.zeros(1, dtype=torch.int32, device=device)
        self.routings = [self.route(i) for i in range(self.copies)]
        self.num_rows = int(self.routings[0].plan.offsets[-1])
        sizes = self.routings[0].plan.offsets.diff()
        self.active = int((sizes > 0).sum())
        rows = s.m * (s.top_k + s.num_shared)
        self.inner = torch.empty(rows, s.width, dtype=torch.float8_e4m3fn, device=device)
        self.inner_scale = torch.zeros(-(-s.width // 128), -(-rows // 4) * 4, device=device)
        self.y = torch.zeros(rows, s.hidden, dtype=torch.bfloat16, device=device)
        self.residual = randn(s.m, s.hidden).bfloat16()
        self.out = NormedRows.empty(self.residual, quantize=True)

    def _tokens(self, randn: Callable[..., Tensor]) -> NormedRows:
        x = randn(self.s.m, self.s.hidden).bfloat16()
        return ops.add_rms_norm_quantize(None, x, self.norm, EPS)

    def route(self, i: int, out: Routing | None = None, fused: bool = True) -> Routing:
        s = self.s
        return ops.moe_route(
            self.tokens[i].x, self.gates[i], self.bias, s.top_k, s.groups, s.kept,
            routed_scaling_factor=2.5, num_shared=s.num_shared, num_local=s.num_local,
            block_rows=MAP_ROWS, counter=self.counter if fused else None, out=out,
        )  # fmt: skip

    def fc1(self, i: int) -> None:
        w, w_scale = self.weights[:2]
        plan, (q, scale) = self.routings[i].plan, self.tokens[i].quantized
        ops.fp8_grouped_gemm_swiglu_nt(
            q, scale, w, w_scale, plan.offsets, plan.row_token, self.inner,
            out_scale=self.inner_scale, tile_map=plan.tile_map,
        )  # fmt: skip

    def fc2(self, i: int) -> None:
        w, w_scale = self.weights[2:]
        plan = self.routings[i].plan
        ops.fp8_grouped_gemm_nt(
            self.inner, self.inner_scale, w, w_scale, plan.offsets, self.y, tile_map=plan.tile_map
        )

    def finalize(self, i: int) -> None:
        routing = self.routings[i]
        ops.moe_finalize_norm(
            self.y, routing.plan.token_row, routing.weights, self.residual, self.norm, EPS,
            out=self.out,
        )  # fmt: skip

    def block(self, i: int) -> None:
        """Four launches at decode sizes."""
        self.route(i, self.routings[i])
        self.fc1(i)
        self.fc2(i)
        self.finalize(i)


def check(layer: Layer) -> None:
    """The whole block against float32 of the dequantised operands, for a few tokens."""
    s, routing = layer.s, layer.routings[0]
    w13, s13, w2, s2 = layer.weights
    start = layer.residual.clone()
    layer.block(0)
    q, scale = layer.tokens[0].quantized
    wide = q.float() * scale.repeat_interleave(128, 0)[: s.hidden, : s.m].t()
    half = s13.shape[1] // 2
    for token in sorted({0, s.m // 2, s.m - 1}):
        total = torch.zeros(s.hidden, device=layer.device)
        for chosen, weight in zip(routing.ids[token].tolist(), routing.weights[token], strict=True):
            if chosen >= s.num_local:
                continue
            gate, up = (
                ops.dequantize_fp8_128x128(w13[chosen, i * s.width : (i + 1) * s.width],
                                           s13[chosen, i * half : (i + 1) * half])
                for i in (0, 1)
            )  # fmt: skip
            down = ops.dequantize_fp8_128x128(w2[chosen], s2[chosen])
            row = wide[token]
            total += weight * (down @ (torch.nn.functional.silu(gate @ row) * (up @ row)))
        got = layer.residual[token].float() - start[token].float()
        # Inner rows and the sum are rounded to e4m3 and bfloat16, the residual's sum too.
        error = (got - total).norm() / total.norm().clamp_min(1.0)
        if not error < 0.06:
            raise AssertionError(f"{s}: token {token}: relative error {error:.3f}")
    layer.residual.copy_(start)


@dataclass(frozen=True)
class Part:
    """What is timed under one name, with its bytes and FLOPs."""

    name: str
    variants: dict[str, list[Call]]
    num_bytes: float
    flops: float
    fp8: bool = True


def parts(layer: Layer, compiled: bool) -> Iterator[Part]:
    s, n = layer.s, layer.copies
    each = range(n)
    h, r = s.hidden, layer.num_rows
    route_bytes = 2.0 * h * (s.experts + s.m) + 16.0 * s.m * s.top_k
    eager = partial(eager_route, s=s)
    route: dict[str, list[Call]] = {
        "fused": [partial(layer.route, i, layer.routings[i]) for i in each],
        "three launches": [partial(layer.route, i, layer.routings[i], False) for i in each],
        "torch eager": [
            partial(eager, layer.tokens[i].x, layer.gates[i], layer.bias) for i in each
        ],
    }
    if compiled:
        fast = torch.compile(eager, dynamic=False)
        route["torch.compile"] = [partial(fast, layer.tokens[i].x, layer.gates[i], layer.bias) for i in each]  # fmt: skip
    yield Part("route", route, route_bytes, 2.0 * s.m * s.experts * h, fp8=False)

    q, scale = layer.tokens[0].quantized
    row_token = layer.routings[0].plan.row_token
    to = ops.moe_permute_fp8(q, scale, row_token)
    permute = partial(ops.moe_permute_fp8, q, scale, row_token, *to)
    row_bytes = h + 4.0 * h / 128
    yield Part("permute", {"ours": [permute]}, row_bytes * (r + min(r, s.m)), 0.0)

    w13, w2 = (2.0 * s.width * h, 1.0 * s.width * h)
    inner_bytes = r * (s.width + 4.0 * s.width / 128)
    fc1_bytes = layer.active * w13 + s.m * row_bytes + inner_bytes
    yield Part("fc1", {"ours": [partial(layer.fc1, i) for i in each]}, fc1_bytes, 2.0 * r * w13)
    fc2_bytes = layer.active * w2 + inner_bytes + 2.0 * r * h
    yield Part("fc2", {"ours": [partial(layer.fc2, i) for i in each]}, fc2_bytes, 2.0 * r * w2)

    def unfused(i: int) -> None:
        routing = layer.routings[i]
        total = ops.moe_finalize(layer.y, routing.plan.token_row, routing.weights)
        ops.quantize_fp8_1x128(ops.add_rms_norm(total, layer.residual, layer.norm, EPS))

    plan, weights = layer.routings[0].plan, layer.routings[0].weights
    legal = plan.token_row.clamp_min(0)
    plain = partial(eager_finalize, layer.y, legal, weights, layer.residual, layer.norm)
    finalize: dict[str, list[Call]] = {
        "fused": [partial(layer.finalize, i) for i in each],
        "three launches": [partial(unfused, i) for i in each],
        "torch eager": [plain],
    }
    if compiled:
        fast_finalize = torch.compile(eager_finalize, dynamic=False)
        finalize["torch.compile"] = [partial(fast_finalize, layer.y, legal, weights, layer.residual, layer.norm)]  # fmt: skip
    finalize_bytes = 2.0 * r * h + s.m * h * (2 + 2 + 2 + 1.0)
    yield Part("finalize", finalize, finalize_bytes, 0.0)

    block_bytes = route_bytes + fc1_bytes + fc2_bytes + finalize_bytes
    yield Part("block", {"ours": [partial(layer.block, i) for i in each]}, block_bytes, 2.0 * r * (w13 + w2))  # fmt: skip


def make_weights(s: Sizes, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """FC1 [g, 2 width, hidden] and FC2 [g, hidden, width] with scales that keep outputs near 1."""

    def codes(*shape: int) -> Tensor:
        raw = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
        return raw.bitwise_and_(0xBF).view(torch.float8_e4m3fn)  # below 2 in magnitude, never NaN

    def scales(n: int, k: int) -> Tensor:
        shape = (s.num_local, -(-n // 128), -(-k // 128))
        return (torch.rand(shape, device=device) + 0.5) * (2.0 / k**0.5)

    fc1 = codes(s.num_local, 2 * s.width, s.hidden)
    fc2 = codes(s.num_local, s.hidden, s.width)
    return fc1, scales(2 * s.width, s.hidden), fc2, scales(s.hidden, s.width)


def report(table: Table, layer: Layer, roof: Roofs, compiled: bool) -> None:
    for part in parts(layer, compiled):
        times = measure(part.variants, layer.device, rounds=7)
        floor = roof.floor_us(part.num_bytes, part.flops, part.fp8)
        for name, took in times.items():
            table.add(
                layer.s.name, layer.s.m, part.name, name, took, part.num_bytes / 1e6,
                part.num_bytes / took.median_us / 1e3, floor, f"{100 * floor / took.median_us:.0f}%",
            )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="Few sizes, no torch.compile.")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tokens", type=int, nargs="+")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    on_cpu = args.device == "cpu"
    default = (1, 16) if on_cpu else (1, 64, 1024) if args.quick else shapes.MOE_TOKENS
    device = torch.device(args.device)
    torch.manual_seed(0)
    table = Table(("layer", "tokens", "part", "variant", "us (p20-p80)", "MB", "GB/s", "roof us", "of roof"))  # fmt: skip
    roof = roofs(device.type)
    weights: dict[str, tuple[Tensor, Tensor, Tensor, Tensor]] = {}
    for s in rows_of(device.type, list(args.tokens or default)):
        if s.name not in weights:
            weights.clear()
            weights[s.name] = make_weights(s, device)
        layer = Layer(s, device, weights[s.name])
        check(layer)
        report(table, layer, roof, compiled=not (args.quick or on_cpu))
    if args.out:
        table.write(args.out)


if __name__ == "__main__":
    main()
