"""sample, token_logprobs, add_token_counts on the CPU: exact distributions, ties, hostile input."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from seekernel import ops, reference
from tests.op_testing import assert_rejects, assert_repeatable, opcheck
from tests.sampling_testing import Request, chi_square_fits

NAN, INF = math.nan, math.inf
FILTERS: list[dict[str, Any]] = [
    {}, {"temperature": 0.6}, {"temperature": 3.0}, {"top_k": 7}, {"top_p": 0.8}, {"min_p": 0.1},
    {"top_k": 12, "top_p": 0.7}, {"min_p": 0.02, "top_k": 20, "top_p": 0.9, "temperature": 1.4},
]  # fmt: skip


def normal(rows: int, v: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, v, generator=torch.Generator().manual_seed(seed)) * 2


def int32(*values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def all_changes(rows: int, v: int) -> dict[str, Any]:
    """Penalties, bias and a mask that touch every kind of token."""
    generator = torch.Generator().manual_seed(3)
    counts = torch.randint(0, 7, (2, v), generator=generator, dtype=torch.int32)
    counts[:, torch.rand(v, generator=generator) < 0.7] = 0
    mask = torch.randint(-(2**31), 2**31, (rows, -(-v // 32)), generator=generator)
    extra = torch.randint(-1, v, (rows, 3), generator=generator, dtype=torch.int32)
    extra[:, 2] = extra[:, 0]
    bias_ids = torch.randint(-1, v, (rows, 4), generator=generator, dtype=torch.int32)
    bias_ids[:, 3] = extra[:, 1]
    values = torch.randn(rows, 4, generator=generator) * 3
    values[0, 0] = -INF
    slots = torch.arange(rows, dtype=torch.int32) % 3 - 1
    column = lambda low, high: torch.rand(rows, generator=generator) * (high - low) + low
    return {
        "penalties": ops.Penalties(
            column(0.5, 2), column(-1, 1), column(-0.5, 0.5), counts, slots, extra
        ),
        "bias": ops.LogitBias(bias_ids, values),
        "mask": mask.to(torch.int32),
    }


def reference_probs(request: Request) -> Tensor:
    c = request.columns
    return reference.sample_probs(
        request.logits, c["temperature"], c["top_k"], c["top_p"], c["min_p"],
        request.penalties, request.bias, request.mask,
    )  # fmt: skip


@pytest.mark.parametrize("fields", FILTERS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_distribution(fields: dict[str, Any], dtype: torch.dtype) -> None:
    request = Request(normal(5, 777).to(dtype), **fields)
    ids, status, probs = request.on_cpu(want_probs=True)
    assert status.eq(0).all()
    want = reference_probs(request)
    assert probs is not None
    assert torch.equal(probs > 0, want > 0), "another support"
    # A step is 2^-20 of a halving; fp32 rounds the distance from the maximum, at most 41 halvings.
    assert ((probs.double() - want).abs() <= 1e-5 * want + 1e-9).all()
    assert probs.gather(1, ids[:, None].long()).gt(0).all()


@pytest.mark.parametrize("v", [3, 64, 65, 333])
def test_changes_of_logits(v: int) -> None:
    request = Request(normal(6, v), temperature=1.3, top_p=0.95, **all_changes(6, v))
    _, status, probs = request.on_cpu(want_probs=True)
    assert probs is not None
    x = reference.changed_logits(request.logits, request.penalties, request.bias, request.mask)
    empty = x.isneginf().all(-1)
    assert torch.equal(status, empty.int() * 2)
    want = reference_probs(request)
    assert torch.equal(probs[~empty] > 0, want[~empty] > 0)
    assert ((probs - want).abs() <= 1e-5 * want + 1e-9)[~empty].all()
    assert probs[empty].isnan().all()


@pytest.mark.parametrize("fields", FILTERS, ids=str)
def test_draws_follow_the_distribution(fields: dict[str, Any]) -> None:
    draws, v = 100_000, 50
    request = Request(normal(1, v, seed=5).expand(draws, -1), seeds=11, **fields)
    ids, _, _ = request.on_cpu()
    want = reference_probs(Request(normal(1, v, seed=5), **fields))[0]
    assert chi_square_fits(ids, want)
    wrong = reference_probs(Request(normal(1, v, seed=5), **{**fields, "temperature": 0.9}))[0]
    assert not chi_square_fits(ids, wrong), "the test could not tell another temperature"


def test_draws_of_changed_logits_follow_the_distribution() -> None:
    draws, v = 100_000, 40
    changes = all_changes(2, v)
    logits = normal(2, v, seed=6)
    want = reference_probs(Request(logits, **changes))[1]
    row = lambda t: t[1:2].expand(draws, *t.shape[1:]).contiguous()
    penalties = changes["penalties"]
    repeated = ops.Penalties(
        row(penalties.repetition), row(penalties.presence), row(penalties.frequency),
        penalties.token_counts, row(penalties.slots), row(penalties.extra_ids),
    )  # fmt: skip
    bias = ops.LogitBias(*map(row, changes["bias"]))
    request = Request(row(logits), penalties=repeated, bias=bias, mask=row(changes["mask"]))
    assert chi_square_fits(request.on_cpu()[0], want)


def test_draws_of_neighbouring_seeds_and_offsets_are_independent() -> None:
    draws, v = 100_000, 8
    flat = torch.zeros(1, v).expand(draws, -1)
    by_offset = Request(flat, seeds=5).on_cpu()[0]
    by_seed = Request(flat, seeds=list(range(draws)), offsets=0).on_cpu()[0]
    uniform = torch.full((v,), 1 / v, dtype=torch.float64)
    assert chi_square_fits(by_offset, uniform)
    assert chi_square_fits(by_seed, uniform)
    pairs = torch.full((v * v,), 1 / v**2, dtype=torch.float64)
    assert chi_square_fits(by_offset[:-1] * v + by_offset[1:], pairs)
    assert chi_square_fits(by_offset * v + by_seed, pairs)


def test_philox_known_answer() -> None:
    """The published vector of Philox4x32-10 at zero, seen in a draw from 2^19 equal tokens."""
    v = 2**19
    ids, _, _ = Request(torch.zeros(1, v), seeds=0, offsets=[0]).on_cpu()
    assert int(ids) == (0xE169C58D << 32 | 0x6627E8D5) * v >> 64


def test_a_row_does_not_depend_on_its_batch() -> None:
    logits = normal(9, 500)
    fields: dict[str, Any] = {"temperature": [0, 1, 0.5] * 3, "top_k": [0, 9, 0] * 3, "top_p": 0.9}
    seeds, offsets = list(range(9)), list(range(100, 109))
    together = Request(logits, seeds=seeds, offsets=offsets, **fields).on_cpu()[0]
    alone = [
        int(
            Request(
                logits[r : r + 1],
                temperature=fields["temperature"][r],
                top_k=fields["top_k"][r],
                top_p=0.9,
                seeds=seeds[r],
                offsets=[offsets[r]],
            ).on_cpu()[0]
        )
        for r in range(9)
    ]
    assert together.tolist() == alone
    assert_repeatable(lambda: Request(logits, top_p=0.9).on_cpu()[0])


def test_ties_go_to_the_lower_index() -> None:
    logits = torch.tensor([[1.0, 5.0, 5.0, 5.0, -1.0], [-0.0, 0.0, -0.0, 0.0, -3.0]])
    assert Request(logits, temperature=0.0).on_cpu()[0].tolist() == [1, 0]
    _, _, probs = Request(logits, top_k=2).on_cpu(want_probs=True)
    assert probs is not None
    assert probs.tolist() == [[0, 0.5, 0.5, 0, 0], [0.5, 0.5, 0, 0, 0]]
    _, _, probs = Request(torch.zeros(1, 1000), top_p=0.25).on_cpu(want_probs=True)
    assert probs is not None
    assert probs[0].nonzero().flatten().tolist() == list(range(250))


def test_weights_are_strictly_ordered() -> None:
    """All 2^20 fractions of a halving: strictly falling, and within 1.2e-7 of the true power."""
    v = 2**19
    for half in (0, 1):
        steps = torch.arange(half * v, (half + 1) * v, dtype=torch.float64)
        # At temperature log2(e), rounded, a logit of -f is 2^-f; scale is then 2^20 exactly.
        logits = -(steps / 2**20).float()
        logits[0] = 0.0
        temperature = torch.tensor(1512775.375 / 2**20, dtype=torch.float32)
        assert float(torch.tensor(1512775.375) / temperature) == 2**20
        request = Request(logits[None], temperature=float(temperature))
        _, _, probs = request.on_cpu(want_probs=True)
        assert probs is not None
        relative = probs[0].double() / probs[0, 0].double()
        assert (relative[1:].diff() < 0).all()
        want = torch.exp2(logits.double())
        assert (relative / want - 1).abs().max() < 3e-7  # with the rounding of probs to fp32


HOSTILE: list[tuple[list[float], dict[str, Any], int, int]] = [
    ([NAN, 1.0, 2.0], {}, 1, -1),
    ([1.0, INF, 2.0], {}, 1, -1),
    ([1.0, INF, 2.0], {"temperature": 0.0}, 1, -1),
    ([-INF, -INF, -INF], {}, 2, -1),
    ([-INF, -INF, -INF], {"temperature": 0.0}, 2, -1),
    ([-INF, 1.0, -INF], {}, 0, 1),
    ([-3e38, 3e38, 0.0], {"temperature": 1e-8}, 0, 1),
    ([-3e38, 3e38, 0.0], {"temperature": 1e-45}, 0, 1),
    ([0.0, 1e-30, 0.0], {"temperature": 1e-38}, 0, 1),
    ([0.0, 9.0, 0.0], {"top_p": 0.0}, 0, 1),
    ([0.0, 9.0, 0.0], {"top_k": 1}, 0, 1),
    ([0.0, 9.0, 0.0], {"min_p": 1.0}, 0, 1),
    ([0.0, 9.0, 0.0], {"min_p": 7.0}, 0, 1),
    ([0.0, 90.0, 0.0], {"top_k": 99, "top_p": 1.0}, 0, 1),
    ([0.0, 90.0, 0.0], {"top_k": -5, "top_p": NAN, "min_p": NAN}, 0, 1),
    ([0.0, 90.0, 0.0], {"temperature": NAN}, 0, 1),
    ([0.0, 90.0, 0.0], {"temperature": -1.0}, 0, 1),
    ([5.0, 9.0, 7.0], {"mask": int32([4])}, 0, 2),
    ([5.0, 9.0, 7.0], {"mask": int32([-8])}, 2, -1),
    ([5.0, 9.0, 7.0], {"bias": ops.LogitBias(int32([1, 9, -7]), torch.tensor([[NAN, 1.0, 1.0]]))}, 1, -1),
    ([5.0, 9.0, 7.0], {"bias": ops.LogitBias(int32([1, 9, -7]), torch.tensor([[-INF, 1.0, 1.0]])), "temperature": 0.0}, 0, 2),
]  # fmt: skip


@pytest.mark.parametrize(("row", "fields", "status", "token"), HOSTILE, ids=str)
def test_hostile(row: list[float], fields: dict[str, Any], status: int, token: int) -> None:
    ids, got, probs = Request(torch.tensor([row]), **fields).on_cpu(want_probs=True)
    assert (int(got), int(ids)) == (status, token)
    assert probs is not None
    if status:
        assert probs.isnan().all()
    else:
        assert float(probs.sum()) == pytest.approx(1, abs=1e-6)


def test_any_temperature_stays_within_the_vocabulary() -> None:
    for temperature in (1e-45, 1e-20, 1e-3, 1e3, 1e20, 3e38, INF):
        logits = normal(200, 33)
        logits[:, ::2] = -INF
        ids, status, _ = Request(logits, temperature=temperature).on_cpu()
        assert status.eq(0).all()
        assert ids.remainder(2).eq(1).all(), "drew what has no probability"


def test_empty_batch_and_single_token() -> None:
    assert Request(torch.empty(0, 7)).on_cpu()[0].shape == (0,)
    assert Request(torch.zeros(2, 1), top_k=1, top_p=0.1).on_cpu()[0].tolist() == [0, 0]
    got = ops.token_logprobs(torch.empty(0, 7), int32().reshape(0), 3)
    assert got.top_ids.shape == (0, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("v", "n"), [(1, 1), (40, 0), (77, 5), (1000, 64)])
def test_token_logprobs(v: int, n: int, dtype: torch.dtype) -> None:
    logits = normal(6, v).to(dtype)
    ids = torch.arange(6, dtype=torch.int32) * 7 % (v + 1) - 1
    got = ops.token_logprobs(logits, ids, n)
    want = reference.token_logprobs(logits, ids, n)
    torch.testing.assert_close(got.logprobs.double(), want[0], rtol=0, atol=2e-6)
    torch.testing.assert_close(got.top_logprobs.double(), want[3], rtol=0, atol=2e-6)
    assert torch.equal(got.ranks.long(), want[1].long())
    assert torch.equal(got.top_ids.long(), want[2])
    assert_repeatable(lambda: ops.token_logprobs(logits, ids, n))


def test_token_logprobs_of_bad_rows() -> None:
    logits = torch.tensor([[NAN, 1.0], [INF, 1.0], [-INF, -INF], [-INF, 1.0]])
    got = ops.token_logprobs(logits, int32(1, 1, 1, 0), 2)
    assert got.logprobs[:3].isnan().all()
    assert got.ranks.tolist() == [0, 0, 0, 2]
    assert got.top_ids.tolist() == [[-1, -1]] * 3 + [[1, 0]]
    assert float(got.logprobs[3]) == -INF


def test_token_counts() -> None:
    counts = torch.zeros(3, 5, dtype=torch.int32)
    ops.reset_token_counts(counts, 1, int32(0, 2, 2), int32(2, 4, 4))
    assert counts.tolist() == [[0] * 5, [1, 0, 3, 0, 4], [0] * 5]
    ops.add_token_counts(counts, int32(1, -1, 3, 2), int32([4, 4], [0, 0], [0, 0], [3, -1]))
    assert counts.tolist() == [[0] * 5, [1, 0, 3, 0, 8], [0, 0, 0, 2, 0]]
    generator = torch.Generator().manual_seed(3)
    counts = torch.randint(0, 9, (6, 50), generator=generator, dtype=torch.int32)
    slots = torch.randint(-2, 8, (40,), generator=generator, dtype=torch.int32)
    ids = torch.randint(-3, 55, (40, 3), generator=generator, dtype=torch.int32)
    want = reference.add_token_counts(counts, slots, ids)
    ops.add_token_counts(counts, slots, ids)
    assert torch.equal(counts, want)


def test_every_instruction_set_draws_the_same() -> None:
    code = (
        "import torch; from seekernel import ops; from tests.sampling_testing import Request\n"
        "torch.manual_seed(0); x = torch.randn(64, 3001) * 4\n"
        "r = Request(x, temperature=0.8, top_p=0.95, top_k=900, min_p=1e-5)\n"
        "ids, _, p = r.on_cpu(True); l = ops.token_logprobs(x, ids, 9)\n"
        "print(ids.tolist(), p.view(torch.int32).sum().item(), "
        "l.top_logprobs.view(torch.int32).sum().item())"
    )
    said = set()
    for isa in ("baseline", "avx2", "avx512"):
        env = {**os.environ, "SEEKERNEL_CPU_ISA": isa}
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
        if done.returncode == 0:
            said.add(done.stdout)
        else:
            assert "SEEKERNEL_CPU_ISA" in done.stderr, done.stderr
    assert len(said) == 1


def test_opcheck() -> None:
    request = Request(normal(3, 65), top_p=0.9, **all_changes(3, 65))
    ids, status, probs = int32(0, 0, 0), int32(0, 0, 0), torch.empty(3, 65)
    changes = (*(request.penalties or ()), *(request.bias or ()), request.mask)
    opcheck("sample", request.logits, *request.columns.values(), *changes, ids, status, probs)
    opcheck("token_logprobs", request.logits, ids, *ops.token_logprobs(request.logits, ids, 4))
    opcheck("add_token_counts", torch.zeros(2, 9, dtype=torch.int32), int32(1), int32([3, 4]))


def test_rejects() -> None:
    logits = normal(2, 40)
    good = dict(Request(logits).columns)
    call = lambda **changed: ops.sample(changed.pop("logits", logits), **{**good, **changed})
    assert_rejects("sample: top_k: expected dtype int32", call, top_k=good["top_p"])
    assert_rejects("seeds: expected shape [r=2]", call, seeds=good["seeds"][:1])
    assert_rejects("mask: expected shape [r=2, ceil(v/32)=2]", call, mask=torch.zeros(2, 1).int())
    assert_rejects("logits: expected dtype", call, logits=logits.double())
    assert_rejects("logits: expected v from 1 to", call, logits=torch.empty(2, 0))
    assert_rejects("bias: expected shape", call, bias=(int32([1], [1]), torch.ones(2, 2)))
    assert_rejects("top_ids: expected n from 0 to 64", ops.token_logprobs, logits, int32(1, 2), 41)
