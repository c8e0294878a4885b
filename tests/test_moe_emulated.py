"""router_gemm, moe_gate, moe_plan, moe_route: right in every schedule, nothing to report, planted bugs seen."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from seekernel import ops
from tests.emulator.launch import KernelFault
from tests.emulator.schedules import NINE_SCHEDULES
from tests.kernel_testing import BACKENDS, build, devices
from tests.moe_testing import (
    TILES,
    Array,
    Edits,
    Gate,
    Plan,
    Router,
    gate_kernel,
    route_kernel,
    router_kernel,
    run_gate,
    run_plan,
    run_route,
    run_router,
)
from tests.test_moe import Gate as GateCase
from tests.test_moe import assert_right_choice

GATE_HEADER = "seekernel/moe/gate.cuh"
PLAN_HEADER = "seekernel/moe/plan.cuh"
ROUTER_HEADER = "seekernel/moe/router_gemm.cuh"
ROUTE_HEADER = "seekernel/moe/route.cuh"
INF, NAN = float("inf"), float("nan")

# k: less than a step of a warp, tails of 8 and 24 columns, more than a pass of all warps of all CTAs.
ROUTERS = [
    (8, Router(1, 16, 8)),
    (8, Router(5, 20, 264)),
    (32, Router(17, 40, 536)),
    (64, Router(70, 33, 512)),
    ("wide", Router(70, 130, 200)),
    pytest.param(8, Router(8, 256, 7168), marks=pytest.mark.slow),
    pytest.param(64, Router(64, 256, 2104), marks=pytest.mark.slow),
]


def check_logits(got: Array, router: Router) -> None:
    """Products of bf16 are exact in fp32; sums of n of them are off by at most n roundings."""
    x, w = (part[:, : router.k].astype(np.float64) for part in router.make())
    bound = router.k * 2.0**-24 * (np.abs(x) @ np.abs(w).T)
    assert (np.abs(got - x @ w.T) <= bound).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("tile", "router"), ROUTERS, ids=str)
def test_router_gemm(tile: str | int, router: Router, backend: str) -> None:
    kernel, first = router_kernel(TILES[tile]), None
    for device in devices(backend):
        got = run_router(device, kernel, TILES[tile], router)
        check_logits(got, router)
        first = got if first is None else first
        assert np.array_equal(got, first), "bits depend on the schedule"


def test_decode_logits_do_not_depend_on_the_batch() -> None:
    """The three decode tiles split k alike, so a token has the same bits in each."""
    routers = {8: Router(8, 24, 600), 32: Router(8, 24, 600), 64: Router(8, 24, 600)}
    results = [
        run_router(device, router_kernel(TILES[tile]), TILES[tile], router)
        for tile, router in routers.items()
        for device in devices("emulator", NINE_SCHEDULES[:1])
    ]
    assert all(np.array_equal(results[0], other) for other in results[1:])


PLANTED_ROUTER = {
    "no start barrier": ("ptx::barrier_cluster_wait();  // every CTA of the cluster has started", ""),
    "no barrier before the CTA's sums": ("__syncthreads();              // every warp's sums are there", ""),
    "no barrier before the cluster's sums": (
        "ptx::barrier_cluster_arrive();\n    ptx::barrier_cluster_wait();  // every part has arrived",
        "",
    ),
    "one inbox for all": ("rank * Tile::kQuadsPerRank + quad %", "quad %"),
    "columns beyond k": ("step < step_end && 32 * step + column < args.k", "step < step_end"),
    "rows beyond m": ("inside && token + row + 8 * i < args.m", "inside"),
    "experts beyond e": ("if (expert + i < args.num_experts) p[i]", "p[i]"),
    "last step lost": ("num_steps * (rank + 1) / Tile::kSplits", "num_steps * (rank + 1) / Tile::kSplits - (rank == 3)"),
}  # fmt: skip


@pytest.mark.parametrize("bug", PLANTED_ROUTER)
def test_planted_router_bugs_are_seen(bug: str) -> None:
    router = Router(5, 18, 264)
    kernel = router_kernel(TILES[8], {ROUTER_HEADER: [PLANTED_ROUTER[bug]]})
    if bug == "no start barrier":  # its arrive goes with it
        arrive = "if constexpr (Tile::kSplits > 1) ptx::barrier_cluster_arrive();"
        kernel = router_kernel(TILES[8], {ROUTER_HEADER: [PLANTED_ROUTER[bug], (arrive, "")]})
    for device in devices("emulator", NINE_SCHEDULES[:1]):
        with pytest.raises((AssertionError, KernelFault)):
            check_logits(run_router(device, kernel, TILES[8], router), router)


GATES = [
    (Gate(256, 8, 8, 4, factor=2.5, num_shared=1), True),
    (Gate(160, 6, 8, 3, softmax=True, norm_topk_prob=False, factor=16.0), False),
    (Gate(64, 6, softmax=True, norm_topk_prob=False), False),
    (Gate(33, 16, 3, 2, softmax=True), True),
    (Gate(8, 8), True),
    (Gate(16, 2, 16, 5), False),
    (Gate(12, 4, 6, 2), False),
    (Gate(128, 8, 2, 1), True),
    (Gate(256, 8, 16, 3), True),
    (Gate(288, 8, 9, 4), True),
    (Gate(384, 8), True),
    (Gate(512, 8, 4, 2), True),
    (Gate(1024, 16, 64, 3, num_shared=2), True),
    (Gate(1, 1), False),
]


def gate_inputs(gate: Gate, with_bias: bool, m: int) -> tuple[Array, Array | None]:
    """Random tokens, tokens of few distinct logits, equal ones, one group that dominates."""
    rng = np.random.default_rng(gate.num_experts)
    logits = (rng.standard_normal((m, gate.num_experts)) * 2).astype(np.float32)
    logits[1::4] = np.round(logits[1::4] / 2)
    logits[2::8] = 0.5
    size = gate.num_experts // gate.n_group
    logits[3, -size:] += 9
    bias = (rng.standard_normal(gate.num_experts) * 0.1 - 1.5).astype(np.float32)
    half = gate.num_experts // 2  # binary fractions: ties of sums are true ones
    bias[:half] = np.round(bias[:half] * 16) / 16
    return logits, bias if with_bias else None


def check_gate(gate: Gate, logits: Array, bias: Array | None, weights: Array, ids: Array) -> None:
    """ids against float64 as in test_moe.py, weights against the CPU op."""
    t_bias = None if bias is None else torch.from_numpy(bias)
    want_weights, want_ids = ops.moe_gate(torch.from_numpy(logits), t_bias, *gate.options())
    k = gate.top_k
    chosen = torch.from_numpy(np.ascontiguousarray(ids[:, :k]))
    case = GateCase(
        len(ids), gate.num_experts, k, gate.n_group, gate.topk_group,
        "softmax" if gate.softmax else "sigmoid", bias is not None,
    )  # fmt: skip
    assert_right_choice(case, torch.from_numpy(logits), t_bias, chosen)
    same = (ids[:, :k] == want_ids.numpy()).all(1)
    assert same.mean() > 0.9
    np.testing.assert_allclose(weights[same, :k], want_weights.numpy()[same], rtol=3e-6, atol=1e-9)
    assert (ids[:, k:] == gate.num_experts + np.arange(gate.num_shared)).all()
    assert (weights[:, k:] == 1).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("gate", "with_bias"), GATES, ids=str)
def test_moe_gate(gate: Gate, with_bias: bool, backend: str) -> None:
    kernel = gate_kernel(gate.num_experts)
    logits, bias = gate_inputs(gate, with_bias, 13)
    for index, device in enumerate(devices(backend)):
        # The checker's verdict holds for every schedule of a kernel without asynchrony: few tokens do.
        part = logits if index == 0 else logits[:5]
        weights, ids, error = run_gate(device, kernel, gate, part, bias)
        assert error == 0
        check_gate(gate, part, bias, weights, ids)


@pytest.mark.slow
@pytest.mark.parametrize(("gate", "with_bias"), GATES[:10], ids=str)
def test_moe_gate_many_tokens(gate: Gate, with_bias: bool) -> None:
    logits, bias = gate_inputs(gate, with_bias, 1000)
    for device in devices("emulator", NINE_SCHEDULES[:1]):
        weights, ids, _ = run_gate(device, gate_kernel(gate.num_experts), gate, logits, bias)
        check_gate(gate, logits, bias, weights, ids)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("softmax", [False, True])
def test_moe_gate_hostile_logits(softmax: bool, backend: str) -> None:
    rng = np.random.default_rng(7)
    palette = np.array([NAN, INF, -INF, 0, -0.0, 3e38, -3e38, 1e-40, 88, -104], np.float32)
    logits = palette[rng.integers(0, 10, (40, 48))]
    logits[0], logits[1], logits[2] = NAN, INF, -INF
    gate = Gate(48, 4, 6, 2, softmax=softmax, norm_topk_prob=False)
    bias = palette[rng.integers(1, 10, 48)]
    for device in devices(backend, NINE_SCHEDULES[:1]):
        for b in (None, bias):
            weights, ids, error = run_gate(device, gate_kernel(48), gate, logits, b)
            assert error == 3, "NaN and infinite logits are reported"
            t_bias = None if b is None else torch.from_numpy(b)
            want_weights, want = ops.moe_gate(torch.from_numpy(logits), t_bias, *gate.options())
            assert np.array_equal(ids, want.numpy())
            np.testing.assert_allclose(weights, want_weights.numpy(), rtol=3e-6, atol=1e-37)
        for value, bits in ((INF, 2), (NAN, 1), (0.0, 0)):
            one = np.zeros((2, 48), np.float32)
            one[1, 47] = value
            assert run_gate(device, gate_kernel(48), gate, one, None)[2] == bits


PLANTED_GATE = {
    "higher index on ties": ("best == top ? ~(32 * at + lane) : 0", "best == top ? 32 * at + lane + 1 : 0"),
    "lost groups kept": ("if ((word >> (group / 32) & 1) == 0) keys[i] = 0;", ""),
    "lost groups at zero": ("if ((word >> (group / 32) & 1) == 0) keys[i] = 0;", "if ((word >> (group / 32) & 1) == 0) keys[i] = ordered_key(0.0f);"),
    "bias weighs": ("const float score = lane < config.top_k ? score_of(__ldcg(logits + id)) : 0.0f;", "const float score = lane < config.top_k ? score_of(__ldcg(logits + id)) + bias[id] : 0.0f;"),
    "one choice makes a group's score": ("pair ? key_value(first) + key_value(second)", "pair ? key_value(first)"),
    "no sync after scratch": ("= keys[i];\n  __syncwarp();", "= keys[i];"),
    "experts beyond e": ("if (e < config.num_experts) {", "{"),
    "an expert taken twice": ("keys[i] = 0;\n  }\n  return index;", "keys[i] -= 0;\n  }\n  return index;"),
}  # fmt: skip


@pytest.mark.parametrize("bug", PLANTED_GATE)
def test_planted_gate_bugs_are_seen(bug: str) -> None:
    seen = 0
    for gate in (Gate(160, 6, 8, 3), Gate(100, 16, 5, 2), Gate(40, 8)):
        kernel = gate_kernel(gate.num_experts, {GATE_HEADER: [PLANTED_GATE[bug]]})
        logits, bias = gate_inputs(gate, True, 13)
        if bug == "experts beyond e":
            bias = None  # nothing to read beyond
            logits[:] = -200
        for device in devices("emulator", NINE_SCHEDULES[:1]):
            try:
                check_gate(gate, logits, bias, *run_gate(device, kernel, gate, logits, bias)[:2])
            except (AssertionError, KernelFault, IndexError):
                seen += 1
    assert seen >= 1


REPLICAS = np.array([[0, -1, -1], [3, 4, 5], [-1, -1, -1], [2, 6, -1], [7, 1, -1]], np.int32)
PLANS = [
    # plan, ids' shape, ids below, CTAs, threads
    (Plan(32), (7, 5), 32, 1, 64),
    (Plan(8, 8, 64), (40, 5), 32, 1, 128),
    (Plan(8, 0, 4, num_logical=20), (100, 3), 12, 4, 64),
    (Plan(4, 2, 16, REPLICAS, num_logical=5), (50, 3), 6, 8, 32),
    (Plan(5, 0, 8), (0, 4), 5, 1, 64),
    (Plan(0), (4, 4), 5, 2, 64),
    (Plan(257, 0, 64, num_logical=257), (64, 9), 257, 1, 256),
    (Plan(1, 0, 7), (33, 1), 1, 2, 32),
    (Plan(70, 3, 3), (21, 16), 70, 2, 1024),
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("plan", "shape", "below", "ranks", "threads"), PLANS)
def test_moe_plan(
    plan: Plan, shape: tuple[int, int], below: int, ranks: int, threads: int, backend: str
) -> None:
    ids = np.random.default_rng(3).integers(-1, below, shape).astype(np.int32)
    kernel = build(PLAN_HEADER, "moe_plan<1024>")
    for device in devices(backend):
        run_plan(device, kernel, plan, ids, ranks=ranks, threads=threads)


@pytest.mark.parametrize("backend", BACKENDS)
def test_moe_plan_extreme_ids(backend: str) -> None:
    kernel = build(PLAN_HEADER, "moe_plan<1024>")
    limits = np.iinfo(np.int32)
    hostile = np.random.default_rng(4).choice([limits.min, -2, -1, 0, 3, 4, 5, limits.max], (60, 4))
    one = np.full((130, 8), 5)
    for device in devices(backend, NINE_SCHEDULES[:2]):
        for ids in (hostile, one, np.full((9, 2), -1)):
            for plan in (Plan(4, 2, 16, num_logical=6), Plan(6, 0, 64, REPLICAS)):
                run_plan(device, kernel, plan, ids.astype(np.int32), ranks=2, threads=96)


PLANTED_PLAN = {
    "peers out of order": ("const uint32_t ahead = __popc(peers & ((1u << lane) - 1));", "const uint32_t ahead = __popc(peers >> lane) - 1;"),
    "CTAs out of order": ("if (r == rank) before = all;", "if (r == num_ranks - 1 - rank) before = all;"),
    "no barrier before the CTAs' counts": ("ptx::barrier_cluster_arrive();\n      ptx::barrier_cluster_wait();  // every CTA's `mine` is there", ""),
    "a CTA leaves while it is read": ("if (num_ranks > 1) ptx::barrier_cluster_arrive();  // no more reads of the others' memory", ""),
    "no barrier between a step's count and the next": ("__syncwarp();  // the next step may add to the same count from another lane", ""),
    "no barrier before the columns": ("      __syncwarp();  // the next step may add to the same count from another lane\n    }\n    __syncthreads();", "      __syncwarp();\n    }"),
    "counts not cleared": ("shared[i] = 0;", "shared[i] = i == 1;"),
    "tail not written": ("config.row_token[i] = -1;", ""),
    "tile of the next group": ("config.block_rows);\n    reinterpret_cast", "config.block_rows + 1);\n    reinterpret_cast"),
    "replica by token only": ("(token + i - token * config.columns) % count", "token % count"),
    "loads of local ids": ("id >= 0 && id < config.num_logical && lane", "expert >= 0 && lane"),
}  # fmt: skip


@pytest.mark.parametrize("bug", PLANTED_PLAN)
def test_planted_plan_bugs_are_seen(bug: str) -> None:
    edits = [PLANTED_PLAN[bug]]
    if bug == "a CTA leaves while it is read":
        edits.append(("if (num_ranks > 1) ptx::barrier_cluster_wait();  // of scan()", "//"))
    kernel = build(PLAN_HEADER, "moe_plan<1024>", edits={PLAN_HEADER: edits})
    seen = 0
    for index in (2, 3):
        plan, shape, below, ranks, threads = PLANS[index]
        ids = np.random.default_rng(3).integers(-1, below, shape).astype(np.int32)
        for device in devices("emulator", NINE_SCHEDULES[:1]):
            try:
                run_plan(device, kernel, plan, ids, ranks=ranks, threads=threads)
            except (AssertionError, KernelFault, IndexError):
                seen += 1
    assert seen >= 1


ROUTES = [
    (8, Router(1, 8, 64), Gate(8, 2), Plan(8)),
    (8, Router(5, 24, 264), Gate(24, 3, 4, 2, factor=2.5, num_shared=1), Plan(25, 0, 16, num_logical=25)),
    (32, Router(20, 24, 264), Gate(24, 3, 4, 2, num_shared=1), Plan(6, 6, 16)),
    (64, Router(70, 40, 264), Gate(40, 5, 8, 3, softmax=True), Plan(40, 0, 64)),
]  # fmt: skip


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("tile", "router", "gate", "plan"), ROUTES, ids=str)
def test_moe_route(tile: int, router: Router, gate: Gate, plan: Plan, backend: str) -> None:
    """The fused kernel's bits are those of the three kernels; two launches share the counter."""
    kernel = route_kernel(TILES[tile], router.num_experts)
    rng = np.random.default_rng(1)
    bias = (rng.standard_normal(router.num_experts) * 0.1).astype(np.float32)
    # The largest case is slow; its protocol is that of the others.
    schedules = NINE_SCHEDULES[::4] if tile == 64 else NINE_SCHEDULES
    for device in devices(backend, schedules):
        got = run_route(device, kernel, TILES[tile], router, gate, plan, bias, launches=2)
        check_logits(got.logits, router)
        logits = run_router(device, router_kernel(TILES[tile]), TILES[tile], router)
        assert np.array_equal(got.logits, logits)
        weights, ids, error = run_gate(device, gate_kernel(router.num_experts), gate, logits, bias)
        assert np.array_equal(got.ids, ids)
        assert np.array_equal(got.weights, weights)
        assert got.error == error == 0


PLANTED_ROUTE = {
    "no barrier before the ticket": ("__syncthreads();  // hands the CTA's logits to thread 0", ""),
    "no fence before the ticket": ("__threadfence();\n    const uint32_t ticket", "const uint32_t ticket"),
    "no fence after the ticket": ("atomicAdd(counter, 1u);\n    __threadfence();", "atomicAdd(counter, 1u);"),
    "the first cluster goes on": ("found |= tickets[i] == last;", "found |= tickets[i] == 0;"),
    "counter not reset": ("if (rank == 0 && threadIdx.x == 0) *counter = 0;", ""),
    "no barrier before the ids": ("ptx::barrier_cluster_arrive();\n  ptx::barrier_cluster_wait();  // all ids have arrived", ""),
    "ids of one CTA only": ("ptx::store_cluster(inbox + 4 * at, static_cast<uint32_t>(id));", "all_ids[at] = id;"),
}  # fmt: skip


@pytest.mark.parametrize("bug", PLANTED_ROUTE)
def test_planted_route_bugs_are_seen(bug: str) -> None:
    # Every CTA writes logits, by more than one warp.
    tile, router = 64, Router(64, 40, 64)
    gate, plan = Gate(40, 3, 4, 2), Plan(6, 6, 16)
    edits: Edits = {ROUTE_HEADER: [PLANTED_ROUTE[bug]]}
    kernel = route_kernel(TILES[tile], router.num_experts, edits)
    bias = np.zeros(router.num_experts, np.float32)
    for device in devices("emulator", NINE_SCHEDULES[:1]):
        with pytest.raises((AssertionError, KernelFault, IndexError)):
            run_route(device, kernel, TILES[tile], router, gate, plan, bias, launches=2)
