"""moe_gate, moe_plan, moe_finalize against their references."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch
from torch import Tensor

from seekernel import ops, reference
from seekernel.ops import MoePlan
from tests.op_testing import (
    assert_error_within,
    assert_rejects,
    assert_repeatable,
    opcheck,
)

INF, NAN = float("inf"), float("nan")


@dataclass(frozen=True)
class Gate:
    m: int
    e: int
    top_k: int
    n_group: int = 1
    topk_group: int = 1
    scoring_func: str = "sigmoid"
    with_bias: bool = True
    norm_topk_prob: bool = True
    factor: float = 1.0

    def __str__(self) -> str:
        bias = "bias" if self.with_bias else "plain"
        groups = f"g{self.topk_group}of{self.n_group}"
        return f"m{self.m}-e{self.e}-k{self.top_k}-{groups}-{self.scoring_func}-{bias}"


GATES = [
    Gate(200, 256, 8, 8, 4, factor=2.5),  # DeepSeek-V3
    Gate(50, 160, 6, 8, 3, "softmax", with_bias=False, norm_topk_prob=False, factor=16.0),  # V2
    Gate(50, 64, 6, 1, 1, "softmax", with_bias=False, norm_topk_prob=False),  # V2-Lite
    Gate(50, 384, 8, factor=2.827),
    Gate(1, 1, 1),
    Gate(3, 1, 1, scoring_func="softmax"),
    Gate(20, 1024, 16, 64, 3),
    Gate(20, 1024, 16, 1024, 16),
    Gate(20, 288, 8, 16, 16, with_bias=False),
    Gate(20, 33, 16, 3, 2, "softmax"),
    Gate(20, 12, 4, 6, 2, with_bias=False),
    Gate(33, 8, 8),
]


def gate_inputs(case: Gate, seed: int = 0) -> tuple[Tensor, Tensor | None]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(case.m, case.e, generator=generator) * 2
    bias = torch.randn(case.e, generator=generator) * 0.1 - 0.5 if case.with_bias else None
    return logits, bias


def options(case: Gate) -> tuple[int, int, int, str, bool, float]:
    return (
        case.top_k,
        case.n_group,
        case.topk_group,
        case.scoring_func,
        case.norm_topk_prob,
        case.factor,
    )


@pytest.mark.parametrize("case", GATES, ids=str)
def test_moe_gate(case: Gate) -> None:
    logits, bias = gate_inputs(case)
    want_weights, want_ids = reference.moe_gate(logits, bias, *options(case))
    naive_weights, _ = reference.moe_gate(logits, bias, *options(case), dtype=torch.float32)
    weights, ids = ops.moe_gate(logits, bias, *options(case))
    # float32 and float64 may order two choices differently only where they nearly tie.
    rows = (ids == want_ids).all(1)
    _, choices = reference.moe_choices(logits, bias, *options(case)[1:4])
    for row in (~rows).nonzero().flatten().tolist():
        a, b = (choices[row, i[row].long()] for i in (ids, want_ids))
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    assert rows.float().mean() > 0.97, "near-ties are rare in random logits"
    assert_error_within(weights[rows], want_weights[rows], naive_weights[rows], factor=4.0)
    assert_repeatable(lambda: ops.moe_gate(logits, bias, *options(case)))


def adversarial(case: Gate, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
    """Random, few-valued and equal logits, biased choices all below zero, one group above all others."""
    logits = torch.randn(case.m, case.e, generator=generator) * 2
    logits[1::4] = logits[1::4].round()
    logits[2::8] = 0.25
    size = case.e // case.n_group
    logits[3::8, -size:] += 9
    # Binary fractions: equal sums are equal in float32 too, so that these ties are true ones.
    bias = ((torch.randn(case.e, generator=generator) * 0.1 - 1.5) * 16).round() / 16
    return logits, bias if case.with_bias else None


def assert_right_choice(case: Gate, logits: Tensor, bias: Tensor | None, ids: Tensor) -> None:
    """float64's ids, but where float32 cannot tell the choices (or sums of two) apart."""
    want = reference.moe_gate(logits, bias, *options(case))[1]
    rows = (ids != want).any(1).nonzero().flatten()
    # Few-valued tokens: the same two numbers summed in another order tie, but for their rounding.
    assert len(rows) <= 0.03 * case.m, f"{len(rows)} of {case.m} tokens differ"
    if len(rows) == 0:
        return
    scores, _ = reference.moe_choices(logits[rows], bias, 1, 1, case.scoring_func)
    choices = scores if bias is None else scores + bias.double()
    near = 2.0**-22  # a few roundings of values around 2
    groups = choices.view(len(rows), case.n_group, -1)
    best = 1 if bias is None else min(2, groups.shape[-1])
    group_scores = groups.topk(best, dim=-1).values.sum(-1)
    size = case.e // case.n_group
    for row, got_ids, want_ids in zip(range(len(rows)), ids[rows].long(), want[rows].long(), strict=True):  # fmt: skip
        got, right = (choices[row, i].sort().values for i in (got_ids, want_ids))
        kept = [set((i // size).tolist()) for i in (got_ids, want_ids)]
        if kept[0] == kept[1]:
            assert (got - right).abs().max() < near
        else:  # a group too was chosen from near-ties
            swapped = [group_scores[row, list(a - b)] for a, b in (kept, kept[::-1]) if a - b]
            edges = torch.cat(swapped)
            assert edges.max() - edges.min() < 2 * near or (got - right).abs().max() < near


MANY = [
    Gate(300_000, 256, 8, 8, 4, factor=2.5),
    Gate(100_000, 8, 2),
    Gate(100_000, 16, 4, 16, 5),
    Gate(100_000, 64, 6, 1, 1, "softmax", with_bias=False, norm_topk_prob=False),
    Gate(80_000, 128, 8, 4, 2),
    Gate(80_000, 160, 6, 8, 3, "softmax", with_bias=False, norm_topk_prob=False),
    Gate(80_000, 256, 8, 16, 3),
    Gate(60_000, 288, 8, 12, 5),
    Gate(60_000, 384, 8),
    Gate(60_000, 512, 8, 2, 1),
]
assert sum(case.m for case in MANY) >= 1_000_000


@pytest.mark.parametrize("m", [5_000, pytest.param(None, marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", MANY, ids=str)
def test_gate_chooses_as_float64(case: Gate, m: int | None) -> None:
    """A million tokens in all in the slow run."""
    generator = torch.Generator().manual_seed(case.e + case.n_group)
    for begin in range(0, m or case.m, 10_000):
        part = replace(case, m=min(10_000, (m or case.m) - begin))
        logits, bias = adversarial(part, generator)
        ids = ops.moe_gate(logits, bias, *options(part))[1]
        assert_right_choice(part, logits, bias, ids)


@pytest.mark.parametrize("bits", [0, 1, 2, 3])
def test_gate_reports_faults_and_appends_shared_experts(bits: int) -> None:
    logits, error = torch.zeros(40, 12), torch.zeros(1, dtype=torch.int32)
    if bits & 1:
        logits[17, 3] = NAN
    if bits & 2:
        logits[39, 11] = -INF
    weights, ids = ops.moe_gate(logits, None, 4, error=error, num_shared=2)
    assert error.item() == bits
    assert ids[:, 4:].tolist() == [[12, 13]] * 40
    assert weights[:, 4:].eq(1).all()
    ops.moe_gate(torch.zeros(1, 12), None, 4, error=error)
    assert error.item() == bits, "nothing is cleared"


@pytest.mark.parametrize("scoring_func", ["sigmoid", "softmax"])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize(("n_group", "topk_group"), [(1, 1), (4, 2), (8, 8), (32, 9)])
def test_ties_go_to_the_lower_index(
    scoring_func: str, with_bias: bool, n_group: int, topk_group: int
) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randint(0, 3, (64, 32), generator=generator).float()
    logits[0] = 0.0
    bias = torch.zeros(32) if with_bias else None
    args = (logits, bias, 8, n_group, topk_group, scoring_func)
    assert torch.equal(ops.moe_gate(*args)[1], reference.moe_gate(*args)[1])
    kept = 32 if topk_group == n_group else topk_group * (32 // n_group)
    assert ops.moe_gate(*args)[1][0].tolist() == list(range(min(8, kept)))


def test_zeros_of_both_signs_tie() -> None:
    logits = torch.full((1, 8), -INF)  # sigmoid 0
    bias = torch.tensor([-0.0, 0.0] * 4)
    assert ops.moe_gate(logits, bias, 3)[1].tolist() == [[0, 1, 2]]


def test_bias_selects_and_never_weighs() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    bias = torch.tensor([0.0, 0.0, 0.0, 5.0])
    weights, ids = ops.moe_gate(logits, bias, 2, norm_topk_prob=False, routed_scaling_factor=2.0)
    assert ids.tolist() == [[3, 0]]
    torch.testing.assert_close(weights, 2 * logits.sigmoid()[:, [3, 0]])


def test_lost_groups_are_out_even_when_kept_choices_are_negative() -> None:
    # Masking with 0 instead of -inf would choose from the lost group: every choice is below 0.
    bias = torch.tensor([-1.0, -3.0, -2.0, -2.5, -1.5, -1.6])
    _, ids = ops.moe_gate(torch.zeros(1, 6), bias, 2, n_group=3, topk_group=1)
    assert ids.tolist() == [[4, 5]]
    dead = torch.full((6,), -INF)
    _, ids = ops.moe_gate(torch.zeros(1, 6), dead, 2, n_group=3, topk_group=1)
    assert ids.tolist() == [[0, 1]]
    dead[4:] = torch.tensor([1.0, -INF])
    _, ids = ops.moe_gate(torch.zeros(1, 6), dead, 4, n_group=3, topk_group=2)
    assert ids.tolist() == [[0, 1, 2, 3]], "a pair with -inf sums to -inf, and ties go low"


def test_group_score_is_a_pair_with_bias_and_the_best_without() -> None:
    logits = torch.tensor([[3.0, -9.0, 2.0, 2.0]])
    args = (1, 2, 1)
    assert ops.moe_gate(logits, None, *args)[1].tolist() == [[0]]
    assert ops.moe_gate(logits, torch.zeros(4), *args)[1].tolist() == [[2]]


@pytest.mark.parametrize("scoring_func", ["sigmoid", "softmax"])
@pytest.mark.parametrize(("n_group", "topk_group"), [(1, 1), (4, 2), (16, 16)])
def test_hostile_logits(scoring_func: str, n_group: int, topk_group: int) -> None:
    generator = torch.Generator().manual_seed(3)
    palette = torch.tensor([NAN, INF, -INF, 0.0, -0.0, 3e38, -3e38, 1e-40, 88.0, -104.0])
    for bias in (None, palette[torch.randint(0, 10, (16,), generator=generator)]):
        logits = palette[torch.randint(0, 10, (400, 16), generator=generator)]
        logits[0], logits[1], logits[2] = NAN, INF, -INF
        weights, ids = ops.moe_gate(logits, bias, 4, n_group, topk_group, scoring_func)
        assert ((ids >= 0) & (ids < 16)).all()
        assert (ids.sort(1).values.diff(dim=1) > 0).all(), "an expert was chosen twice"
        assert_repeatable(partial(ops.moe_gate, logits, bias, 4, n_group, topk_group))
        assert weights.shape == (400, 4)


@pytest.mark.parametrize("scoring_func", ["sigmoid", "softmax"])
def test_nan_logit_is_taken_last(scoring_func: str) -> None:
    logits = torch.tensor([[NAN, -INF, 1.0, 2.0], [NAN, NAN, NAN, NAN]])
    weights, ids = ops.moe_gate(logits, None, 3, scoring_func=scoring_func, norm_topk_prob=False)
    assert ids.tolist() == [[3, 2, 1], [0, 1, 2]]
    finite = getattr(torch, scoring_func)(
        logits[:1, 1:], *([-1] if scoring_func == "softmax" else [])
    )
    torch.testing.assert_close(weights[:1], finite[:, [2, 1, 0]])
    assert weights[1].isnan().all(), "a broken token stays visible"


def test_softmax_of_infinite_logits() -> None:
    logits = torch.tensor([[0.0, INF, 5.0, -INF]])
    weights, ids = ops.moe_gate(logits, None, 2, scoring_func="softmax", norm_topk_prob=False)
    assert ids.tolist() == [[1, 0]]
    assert weights.tolist() == [[1.0, 0.0]]


def test_gate_strided_rows_and_given_out() -> None:
    wide = torch.randn(5, 40)
    weights, ids = torch.full((5, 6), NAN), torch.full((5, 6), -7, dtype=torch.int32)
    got = ops.moe_gate(wide[:, 3:35], None, 4, weights=weights[:, :4], ids=ids[:, :4])
    want = ops.moe_gate(wide[:, 3:35].contiguous(), None, 4)
    assert torch.equal(got[0], want[0])
    assert torch.equal(got[1], want[1])
    assert weights[:, 4:].isnan().all(), "wrote beyond the row"
    assert (ids[:, 4:] == -7).all(), "wrote beyond the row"


def test_gate_rejects() -> None:
    x, bias = torch.randn(3, 12), torch.randn(12)
    f = ops.moe_gate
    assert_rejects("moe_gate: logits: expected dtype float32", f, x.double(), None, 2)
    assert_rejects("logits: expected stride 1 in the last dim", f, torch.randn(12, 3).t(), None, 2)
    assert_rejects("bias: expected shape [e=12], got shape [11]", f, x, bias[:11], 2)
    assert_rejects("n_group: expected a divisor of e=12, got 5", f, x, bias, 2, 5)
    assert_rejects("n_group: expected a divisor of e=12, got 0", f, x, bias, 2, 0)
    assert_rejects("topk_group: expected 1 to n_group=4, got 5", f, x, bias, 2, 4, 5)
    assert_rejects("at most 3 experts in topk_group groups, got top_k=4", f, x, bias, 4, 4, 1)
    assert_rejects("ids: expected top_k from 1 to 16", f, torch.randn(3, 40), None, 17)
    assert_rejects("ids: expected top_k from 1 to 16", f, x, None, 0)
    assert_rejects("expected 1 to 1024 experts, got e=1025", f, torch.randn(1, 1025), None, 1)
    assert_rejects("expected 1 to 1024 experts, got e=0", f, torch.randn(1, 0), None, 1)
    assert_rejects(
        "scoring_func: expected sigmoid or softmax, got 'relu'", f, x, None, 2, scoring_func="relu"
    )
    ids = torch.empty(3, 2, dtype=torch.int64)
    assert_rejects("ids: expected dtype int32", f, x, None, 2, ids=ids)


@pytest.mark.parametrize("m", [0, 1, 7, 100])
@pytest.mark.parametrize(("first", "num_local"), [(0, 32), (8, 8), (31, 1), (40, 4), (3, 0)])
def test_moe_plan(m: int, first: int, num_local: int) -> None:
    generator = torch.Generator().manual_seed(m)
    ids = torch.randint(-1, 32, (m, 5), generator=generator, dtype=torch.int32)
    got = ops.moe_plan(ids, num_local, first)
    for a, b in zip(got[:3], reference.moe_plan(ids, num_local, first), strict=True):
        assert torch.equal(a, b)
    assert_repeatable(lambda: ops.moe_plan(ids, num_local, first))


@pytest.mark.parametrize("m", [0, 1, 5, 64, 1000])
@pytest.mark.parametrize("block_rows", [1, 64])
def test_moe_plan_tiles_replicas_and_loads(m: int, block_rows: int) -> None:
    generator = torch.Generator().manual_seed(m)
    ids = torch.randint(-1, 12, (m, 4), generator=generator, dtype=torch.int32)
    replicas = torch.tensor([[i, 12 + i if i % 3 else -1] for i in range(11)], dtype=torch.int32)
    loads = torch.full((11,), 7)
    got = ops.moe_plan(ids, 20, 2, replicas=replicas, block_rows=block_rows, loads=loads)
    physical = reference.physical_ids(ids, replicas)
    for a, b in zip(got[:3], reference.moe_plan(physical, 20, 2), strict=True):
        assert torch.equal(a, b)
    want = reference.tile_map(got.offsets, block_rows)
    assert got.tiles is not None
    assert got.num_tiles is not None
    assert got.num_tiles.item() == len(want)
    assert torch.equal(got.tiles[: len(want)], want)
    counts = torch.tensor([(ids == e).sum() for e in range(11)])
    assert torch.equal(loads, counts + 7)


@pytest.mark.parametrize("m", [0, 1, 40])
def test_moe_route_is_its_three_parts(m: int) -> None:
    x, weight, bias = torch.randn(m, 40), torch.randn(24, 40), torch.randn(24) * 0.1
    error, counter = (torch.zeros(1, dtype=torch.int32) for _ in range(2))
    options = {"num_shared": 1, "block_rows": 16, "error": error, "counter": counter}
    got = ops.moe_route(x, weight, bias, 4, 6, 3, **options)
    logits = ops.router_gemm(x, weight)
    weights, ids = ops.moe_gate(logits, bias, 4, 6, 3, num_shared=1)
    plan = ops.moe_plan(ids, 25, block_rows=16)
    for a, b in zip((got.logits, got.weights, got.ids), (logits, weights, ids), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(got.plan[:3], plan[:3], strict=True):
        assert torch.equal(a, b)
    assert counter.item() == error.item() == 0
    local = ops.moe_route(x, weight, bias, 4, 6, 3, first_expert=6, num_local=6)
    assert torch.equal(local.plan.offsets, ops.moe_plan(local.ids, 6, 6).offsets)


def test_moe_plan_hostile_ids() -> None:
    limits = torch.iinfo(torch.int32)
    ids = torch.tensor([[limits.min, -2, 3], [limits.max, 3, 3]], dtype=torch.int32)
    plan = ops.moe_plan(ids, num_local=4)
    assert plan.offsets.tolist() == [0, 0, 0, 0, 3]
    assert plan.row_token.tolist() == [0, 1, 1, -1, -1, -1]
    assert plan.token_row.tolist() == [[-1, -1, 0], [-1, 1, 2]]


def test_moe_plan_one_expert_takes_all() -> None:
    plan = ops.moe_plan(torch.full((1000, 8), 5, dtype=torch.int32), num_local=16)
    assert plan.offsets.tolist() == [0] * 6 + [8000] * 11
    assert torch.equal(plan.row_token, torch.arange(1000, dtype=torch.int32).repeat_interleave(8))


def test_moe_plan_overwrites_what_it_is_given() -> None:
    ids = torch.tensor([[1, 0], [-1, 1]], dtype=torch.int32)
    given = MoePlan(*(torch.full(s, -99, dtype=torch.int32) for s in ((3,), (4,), (2, 2))))
    assert ops.moe_plan(ids, 2, plan=given) is given
    assert given.offsets.tolist() == [0, 1, 3]
    assert given.row_token.tolist() == [0, 0, 1, -1]
    assert given.token_row.tolist() == [[1, 0], [-1, 2]]


def test_plan_rejects() -> None:
    ids = torch.zeros(3, 2, dtype=torch.int32)
    good = ops.moe_plan(ids, 4)
    f = ops.moe_plan
    assert_rejects("moe_plan: ids: expected dtype int32", f, ids.long(), 4, plan=good)
    assert_rejects("ids: expected a contiguous tensor", f, ids.t(), 4)
    assert_rejects("first_expert: expected at least 0, got -1", f, ids, 4, -1)
    short = good._replace(row_token=good.row_token[:5])
    assert_rejects("row_token: expected shape [m*top_k=6], got shape [5]", f, ids, 4, plan=short)
    assert_rejects(
        "offsets: expected num_local+1 values, got none",
        f,
        ids,
        4,
        plan=good._replace(offsets=ids.new_empty(0)),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("with_shared", [True, False])
@pytest.mark.parametrize(
    ("m", "n", "top_k"),
    [(1, 1, 1), (1, 7168, 8), (3, 33, 4), (17, 512, 8), (5, 129, 16), (4, 64, 0)],
)
def test_moe_finalize(m: int, n: int, top_k: int, with_shared: bool, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(m + n)
    ids = torch.randint(-1, 4, (m, top_k), generator=generator, dtype=torch.int32)
    plan = ops.moe_plan(ids, num_local=4)
    rows = m * top_k
    y = torch.randn(rows, n, generator=generator).to(dtype)
    y[int(plan.offsets[-1]) :] = NAN  # rows of nobody are never read
    weights = torch.rand(m, top_k, generator=generator)
    shared = torch.randn(m, n, generator=generator).to(dtype) if with_shared else None
    args = (y, plan.token_row, weights, shared)
    want, naive = (reference.moe_finalize(*args, dtype=d) for d in (torch.float64, dtype))
    assert_error_within(ops.moe_finalize(*args), want, naive)
    assert_repeatable(lambda: ops.moe_finalize(*args))


def test_moe_finalize_order_is_fixed() -> None:
    # In float32 these sum to 1 from the left and to 0 from the right.
    y = torch.tensor([[1e8], [-1e8], [1.0]])
    rows = torch.tensor([[0, 1, 2], [2, 1, 0]], dtype=torch.int32)
    assert ops.moe_finalize(y, rows, torch.ones(2, 3)).tolist() == [[1.0], [0.0]]


def test_moe_finalize_strided_rows_and_given_out() -> None:
    y, shared = torch.randn(6, 40)[:, 4:37], torch.randn(3, 50)[:, :33]
    rows = torch.tensor([[5, -1], [-1, -1], [0, 3]], dtype=torch.int32)
    weights = torch.rand(3, 2)
    out = torch.full((3, 36), NAN)
    got = ops.moe_finalize(y, rows, weights, shared, out[:, :33])
    want = ops.moe_finalize(y.contiguous(), rows, weights, shared.contiguous())
    assert got.data_ptr() == out.data_ptr()
    assert torch.equal(got, want)
    assert torch.equal(got[1], shared[1])
    assert out[:, 33:].isnan().all(), "wrote beyond the row"


def test_finalize_rejects() -> None:
    y, rows, weights = torch.randn(4, 8), torch.zeros(3, 2, dtype=torch.int32), torch.rand(3, 2)
    f = ops.moe_finalize
    assert_rejects(
        "moe_finalize: y: expected dtype float32 or bfloat16", f, y.half(), rows, weights
    )
    assert_rejects("token_row: expected dtype int32", f, y, rows.long(), weights)
    assert_rejects(
        "weights: expected shape [m=3, top_k=2], got shape [3, 1]", f, y, rows, weights[:, :1]
    )
    assert_rejects("weights: expected dtype float32", f, y, rows, weights.bfloat16())
    assert_rejects("shared: expected shape [m=3, n=8]", f, y, rows, weights, y)
    assert_rejects("shared: expected dtype float32 as y", f, y, rows, weights, y[:3].bfloat16())
    for bad in (4, -2, 2**31 - 1):
        rows[1, 1] = bad
        assert_rejects(
            f"token_row: expected -1 or a row below rows=4, got {bad}", f, y, rows, weights
        )


def test_empty() -> None:
    weights, ids = ops.moe_gate(torch.empty(0, 16), torch.zeros(16), 4, 4, 2)
    assert weights.shape == ids.shape == (0, 4)
    plan = ops.moe_plan(ids, 16)
    assert plan.offsets.tolist() == [0] * 17
    assert ops.moe_finalize(torch.empty(0, 8), plan.token_row, weights).shape == (0, 8)
    rows = torch.full((2, 4), -1, dtype=torch.int32)
    assert ops.moe_finalize(torch.empty(0, 8), rows, torch.ones(2, 4)).tolist() == [[0.0] * 8] * 2
    assert ops.moe_finalize(torch.empty(0, 0), rows, torch.ones(2, 4)).shape == (2, 0)


def test_opcheck() -> None:
    logits, ids = torch.randn(3, 16), torch.empty(3, 4, dtype=torch.int32)
    for bias in (None, torch.randn(16)):
        opcheck("moe_gate", logits, bias, 4, 2, "sigmoid", True, 2.5, torch.empty(3, 4), ids)
    plan = ops.moe_plan(ops.moe_gate(logits, None, 4)[1], 16)
    opcheck("moe_plan", ids.zero_(), 0, *(torch.empty_like(t) for t in plan[:3]))
    for shared in (None, torch.randn(3, 8)):
        y, weights = torch.randn(12, 8), torch.rand(3, 4)
        opcheck("moe_finalize", y, plan.token_row, weights, shared, torch.empty(3, 8))


def test_route_and_back_is_identity() -> None:
    """Gate, plan, gather by row_token, finalize: with normalised weights each token comes back."""
    x = torch.randn(50, 24)
    weights, ids = ops.moe_gate(torch.randn(50, 32), torch.randn(32) * 0.1, 8, 8, 4)
    plan = ops.moe_plan(ids, 32)
    torch.testing.assert_close(
        ops.moe_finalize(x[plan.row_token.long()], plan.token_row, weights), x
    )
