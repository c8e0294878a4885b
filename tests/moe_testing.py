"""What the tests of the routing kernels share: their parameter structs, launches, and inputs."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from tests.emulator.launch import Buffer, Device
from tests.kernel_testing import BuiltKernel, build

Array = NDArray[Any]
Edits = Mapping[str, Sequence[tuple[str, str]]]
BF16 = np.dtype(ml_dtypes.bfloat16)
GUARD = 7
"""Elements around every output, which must stay as they were."""

SPLITS, TILE_ROW_PAD = 8, 4


def per_lane(num_experts: int) -> int:
    """Registers a lane that the host picks for so many experts."""
    return next(n for n in (2, 8, 16, 32) if 32 * n >= num_experts)


@dataclass(frozen=True)
class Tile:
    """A router_tile_t of router_gemm.cuh: experts and tokens of a CTA, warps that share k, CTAs a cluster."""

    name: str
    experts: int
    tokens: int
    warps_k: int = 8
    splits: int = 8

    @property
    def shared_floats(self) -> int:
        """Dynamic shared memory of router_gemm."""
        if self.warps_k * self.splits == 1:
            return 0
        quads = self.tokens * self.experts // 4
        partial = self.warps_k * self.tokens * (self.experts + TILE_ROW_PAD)
        return partial + self.splits * -(-quads // self.splits) * 4

    def grid(self, num_experts: int, m: int) -> tuple[int, int, int]:
        """CTAs of a launch."""
        return self.splits, -(-num_experts // self.experts), -(-m // self.tokens)


TILES = {
    8: Tile("router_tile_8_t", 16, 8),
    32: Tile("router_tile_32_t", 16, 32),
    64: Tile("router_tile_64_t", 32, 64),
    "wide": Tile("router_tile_wide_t", 128, 64, 1, 1),
}


@dataclass(frozen=True)
class Gate:
    """A gate_config_t."""

    num_experts: int
    top_k: int
    n_group: int = 1
    topk_group: int = 1
    softmax: bool = False
    norm_topk_prob: bool = True
    factor: float = 1.0
    num_shared: int = 0

    def __str__(self) -> str:
        kind = "softmax" if self.softmax else "sigmoid"
        return f"e{self.num_experts}-k{self.top_k}-g{self.topk_group}of{self.n_group}-{kind}"

    def pack(self) -> bytes:
        """As the kernel takes it."""
        return struct.pack(
            "=7if", self.num_experts, self.n_group, self.topk_group, self.top_k, self.num_shared,
            self.softmax, self.norm_topk_prob, self.factor,
        )  # fmt: skip

    def options(self) -> tuple[int, int, int, str, bool, float]:
        """The arguments of ops.moe_gate and reference.moe_gate after the bias."""
        kind = "softmax" if self.softmax else "sigmoid"
        return (
            self.top_k, self.n_group, self.topk_group, kind, self.norm_topk_prob, self.factor,
        )  # fmt: skip


class Guarded:
    """A device output between guard elements."""

    def __init__(self, device: Device, shape: tuple[int, ...], dtype: Any, fill: Any) -> None:
        self.shape, self.fill, self.size = shape, fill, int(np.prod(shape))
        pad = 64  # keeps 16-byte alignment
        self.pad = pad
        self.buffer = device.buffer(np.full(self.size + 2 * pad, fill, dtype))
        self.itemsize = np.dtype(dtype).itemsize

    @property
    def address(self) -> int:
        return int(self.buffer.address + self.pad * self.itemsize)

    def numpy(self) -> Array:
        """Contents; AssertionError if a guard was written."""
        everything = self.buffer.numpy()
        guards = np.concatenate([everything[: self.pad], everything[self.pad + self.size :]])
        fill = np.full_like(guards, self.fill)
        assert guards.tobytes() == fill.tobytes(), "wrote beyond an output"
        return everything[self.pad : self.pad + self.size].reshape(self.shape)


@dataclass(frozen=True)
class Plan:
    """A moe_plan call without its ids."""

    num_local: int
    first_expert: int = 0
    block_rows: int = 0  # 0: no tile map
    replicas: Array | None = None
    num_logical: int = 0  # 0: no loads


class PlanBuffers:
    """Device outputs of a plan, and its plan_config_t."""

    def __init__(self, device: Device, plan: Plan, m: int, columns: int) -> None:
        self.plan, self.m, self.columns = plan, m, columns
        rows = m * columns
        self.offsets = Guarded(device, (plan.num_local + 1,), np.int32, -99)
        self.row_token = Guarded(device, (rows,), np.int32, -99)
        self.token_row = Guarded(device, (m, columns), np.int32, -99)
        self.tiles = self.num_tiles = self.loads = None
        self.replicas: Buffer | None = None
        if plan.block_rows:
            bound = -(-rows // plan.block_rows) + min(plan.num_local, rows)
            self.tiles = Guarded(device, (bound, 4), np.int32, -99)
            self.num_tiles = Guarded(device, (1,), np.int32, -99)
        if plan.num_logical:
            self.loads = Guarded(device, (plan.num_logical,), np.int64, 1000)
        if plan.replicas is not None:
            self.replicas = device.buffer(plan.replicas)

    def pack(self, ids_address: int) -> bytes:
        """The plan_config_t."""
        address = lambda buffer: 0 if buffer is None else buffer.address
        plan = self.plan
        width = 0 if plan.replicas is None else plan.replicas.shape[1]
        logical = plan.num_logical if plan.replicas is None else plan.replicas.shape[0]
        return struct.pack(
            "=8Q8i", ids_address, address(self.replicas), self.offsets.address,
            self.row_token.address, self.token_row.address, address(self.tiles),
            address(self.num_tiles), address(self.loads), self.m, self.columns, plan.first_expert,
            plan.num_local, logical, width, plan.block_rows, 0,
        )  # fmt: skip

    def check(self, ids: Array) -> None:
        """Compare everything with what a few lines of Python make of `ids`."""
        plan = self.plan
        local = np.full(ids.shape, -1)
        for token, row in enumerate(ids):
            for column, chosen in enumerate(row):
                physical = int(chosen)
                if plan.replicas is not None:
                    legal = 0 <= physical < len(plan.replicas)
                    copies = [int(r) for r in plan.replicas[physical] if r >= 0] if legal else []
                    physical = copies[(token + column) % len(copies)] if copies else -1
                if 0 <= physical - plan.first_expert < plan.num_local and physical >= 0:
                    local[token, column] = physical - plan.first_expert
        flat = local.reshape(-1)
        order = [i for e in range(plan.num_local) for i in np.flatnonzero(flat == e)]
        counts = [int((flat == e).sum()) for e in range(plan.num_local)]
        offsets = np.concatenate([[0], np.cumsum(counts, dtype=int)])
        token_row = np.full(flat.shape, -1)
        token_row[order] = np.arange(len(order))
        row_token = np.full(flat.shape, -1)
        row_token[: len(order)] = np.asarray(order, int) // max(self.columns, 1)
        assert np.array_equal(self.offsets.numpy(), offsets)
        assert np.array_equal(self.token_row.numpy().reshape(-1), token_row)
        assert np.array_equal(self.row_token.numpy(), row_token)
        if self.tiles is not None and self.num_tiles is not None:
            step = plan.block_rows
            want = [
                (e, row, min(step, offsets[e + 1] - row), 0)
                for e in range(plan.num_local)
                for row in range(offsets[e], offsets[e + 1], step)
            ]
            got = self.tiles.numpy()
            assert self.num_tiles.numpy()[0] == len(want)
            assert np.array_equal(got[: len(want)], np.asarray(want, np.int32).reshape(-1, 4))
            assert (got[len(want) :] == -99).all()
        if self.loads is not None:
            seen = [int((ids == e).sum()) for e in range(len(self.loads.numpy()))]
            assert np.array_equal(self.loads.numpy(), 1000 + np.asarray(seen, np.int64))


def plan_shared_bytes(num_warps: int, num_local: int) -> int:
    """plan_shared_words of plan.cuh, in bytes."""
    return 4 * (num_warps * num_local + 4 * (num_local + 1))


def run_plan(
    device: Device, kernel: BuiltKernel, plan: Plan, ids: Array, *, ranks: int, threads: int
) -> PlanBuffers:
    """Launch moe_plan and check all it wrote."""
    buffers = PlanBuffers(device, plan, *ids.shape)
    d_ids = device.buffer(ids if ids.size else np.zeros(1, np.int32))
    device.launch(
        kernel.on(device), grid=(ranks,), block=(threads,), cluster=(ranks,),
        shared_bytes=plan_shared_bytes(threads // 32, plan.num_local),
        args=(buffers.pack(d_ids.address),),
    )  # fmt: skip
    buffers.check(ids)
    return buffers


@dataclass(frozen=True)
class Router:
    """Inputs of a router GEMM. Rows of x and w beyond their sizes do not exist; columns of padding hold NaN."""

    m: int
    num_experts: int
    k: int
    seed: int = 0

    def make(self) -> tuple[Array, Array]:
        """(x, w), bf16, with 8 columns of NaN behind each row."""
        rng = np.random.default_rng(self.seed)
        x = np.full((self.m, self.k + 8), np.nan, BF16)
        w = np.full((self.num_experts, self.k + 8), np.nan, BF16)
        x[:, : self.k] = rng.standard_normal((self.m, self.k))
        w[:, : self.k] = rng.standard_normal((self.num_experts, self.k)) / np.sqrt(self.k)
        return x, w

    def pack(self, x: int, w: int, out: int, stride_out: int) -> bytes:
        """The router_operands_t."""
        return struct.pack(
            "=3Q3i4x3q", x, w, out, self.m, self.num_experts, self.k,
            self.k + 8, self.k + 8, stride_out,
        )  # fmt: skip


def router_kernel(tile: Tile, edits: Edits | None = None) -> BuiltKernel:
    """router_gemm for a tile."""
    return build("seekernel/moe/router_gemm.cuh", f"router_gemm<{tile.name}>", edits=edits)


def run_router(device: Device, kernel: BuiltKernel, tile: Tile, router: Router) -> Array:
    """Launch router_gemm; logits [m, num_experts]."""
    x, w = router.make()
    stride = router.num_experts + 3
    out = Guarded(device, (router.m, stride), np.float32, np.float32(-5))
    d_x, d_w = device.buffer(x), device.buffer(w)
    device.launch(
        kernel.on(device), grid=tile.grid(router.num_experts, router.m),
        block=(256,), cluster=(tile.splits,), shared_bytes=4 * tile.shared_floats,
        args=(router.pack(d_x.address, d_w.address, out.address, stride),),
    )  # fmt: skip
    got = out.numpy()
    assert (got[:, router.num_experts :] == -5).all(), "wrote beyond a row"
    return np.asarray(got[:, : router.num_experts])


def gate_kernel(num_experts: int, edits: Edits | None = None) -> BuiltKernel:
    """moe_gate for so many experts."""
    return build("seekernel/moe/gate.cuh", f"moe_gate<{per_lane(num_experts)}>", edits=edits)


def run_gate(
    device: Device, kernel: BuiltKernel, gate: Gate, logits: Array, bias: Array | None
) -> tuple[Array, Array, int]:
    """Launch moe_gate; (weights, ids, error)."""
    m, columns = len(logits), gate.top_k + gate.num_shared
    padded = np.full((m, gate.num_experts + 5), np.nan, np.float32)
    padded[:, : gate.num_experts] = logits
    weights = Guarded(device, (m, columns), np.float32, np.float32(-5))
    ids = Guarded(device, (m, columns), np.int32, -99)
    error = device.buffer(np.zeros(1, np.int32))
    d_logits = device.buffer(padded)
    d_bias = np.uint64(0) if bias is None else device.buffer(bias)
    device.launch(
        kernel.on(device), grid=(-(-m // 4),), block=(128,),
        args=(d_logits, d_bias, weights, ids, error, np.int32(m), np.int64(padded.shape[1]),
              np.int64(columns), np.int64(columns), gate.pack()),
    )  # fmt: skip
    return weights.numpy(), ids.numpy(), int(error.numpy()[0])


def route_shared_bytes(tile: Tile, num_experts: int, num_local: int, num_ids: int) -> int:
    """Dynamic shared memory of moe_route."""
    words = max(
        tile.shared_floats, 256 * per_lane(num_experts), plan_shared_bytes(8, num_local) // 4
    )
    return 4 * (-(-words // 4) * 4 + num_ids)


def route_kernel(tile: Tile, num_experts: int, edits: Edits | None = None) -> BuiltKernel:
    """moe_route for a tile and so many experts."""
    instance = f"moe_route<{tile.name}, {per_lane(num_experts)}>"
    return build("seekernel/moe/route.cuh", instance, edits=edits)


@dataclass(frozen=True)
class Routed:
    """What moe_route wrote."""

    logits: Array
    weights: Array
    ids: Array
    error: int
    plan: PlanBuffers


def run_route(
    device: Device, kernel: BuiltKernel, tile: Tile, router: Router, gate: Gate, plan: Plan,
    bias: Array | None, launches: int = 1,
) -> Routed:  # fmt: skip
    """Launch moe_route (twice to see that the counter is left as it was), check its plan."""
    x, w = router.make()
    columns = gate.top_k + gate.num_shared
    logits = Guarded(device, (router.m, router.num_experts), np.float32, np.float32(-5))
    weights = Guarded(device, (router.m, columns), np.float32, np.float32(-5))
    ids = Guarded(device, (router.m, columns), np.int32, -99)
    error, counter = (device.buffer(np.zeros(1, np.int32)) for _ in range(2))
    d_x, d_w = device.buffer(x), device.buffer(w)
    d_bias = np.uint64(0) if bias is None else device.buffer(bias)
    for _ in range(launches):
        buffers = PlanBuffers(device, plan, router.m, columns)
        device.launch(
            kernel.on(device), grid=tile.grid(router.num_experts, router.m), block=(256,),
            cluster=(tile.splits,),
            shared_bytes=route_shared_bytes(
                tile, router.num_experts, plan.num_local, router.m * columns
            ),
            args=(
                router.pack(d_x.address, d_w.address, logits.address, router.num_experts),
                gate.pack(), buffers.pack(0), d_bias, weights, ids, error, counter,
            ),
        )  # fmt: skip
    assert counter.numpy()[0] == 0
    got = ids.numpy()
    buffers.check(got)
    return Routed(logits.numpy(), weights.numpy(), got, int(error.numpy()[0]), buffers)
