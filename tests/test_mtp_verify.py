"""mtp_verify_strict, _relaxed, _rejection on the CPU: the rules one by one, and what is left of the distribution."""

from __future__ import annotations

import math
import random
from typing import Any

import torch
from torch import Tensor

from seekernel import ops, reference
from tests.op_testing import assert_rejects, assert_repeatable, opcheck
from tests.sampling_testing import chi_square_fits

BEGIN, END = 3, 4
NAN = math.nan


def int32(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def rows(out_ids: Tensor, num_out: Tensor) -> list[list[int]]:
    """What each request emits; everything behind must be -1."""
    emitted = []
    for row, count in zip(out_ids.tolist(), num_out.tolist(), strict=True):
        assert row[count:] == [-1] * (len(row) - count)
        emitted.append(row[:count])
    return emitted


def test_strict_against_the_rule() -> None:
    generator = random.Random(0)
    for n in range(5):
        target = [[generator.randrange(-1, 3) for _ in range(n + 1)] for _ in range(300)]
        drafts = [[generator.randrange(-1, 3) for _ in range(n)] for _ in range(300)]
        got = ops.mtp_verify_strict(int32(target), int32(drafts).reshape(300, n))
        want = [reference.mtp_verify_strict(t, d) for t, d in zip(target, drafts, strict=True)]
        assert rows(*got) == want
    assert ops.mtp_verify_strict(int32([]).reshape(0, 3), int32([]).reshape(0, 2))[0].shape == (
        0,
        3,
    )


def test_relaxed_against_the_rule() -> None:
    """Probabilities are multiples of 1/64, so that thresholds are met exactly, and often."""
    generator = random.Random(1)
    b, v = 400, 8
    emitted_relaxed = 0
    for n, num_top in ((0, 1), (1, 3), (3, 4), (4, 1)):
        top_ids, top_probs = [], []
        for _ in range(b * (n + 1)):
            weights = sorted(
                (generator.choice((1, 2, 4, 8, 16)) for _ in range(num_top)), reverse=True
            )
            top_ids.append(generator.sample(range(v), num_top))
            top_probs.append([w / 64 for w in weights])
        ids = int32(top_ids).reshape(b, n + 1, num_top)
        # ln of a power of two comes back exactly from 40 bits.
        probs = torch.tensor(top_probs, dtype=torch.float64).reshape(b, n + 1, num_top)
        drafts = [[generator.randrange(-1, v) for _ in range(n)] for _ in range(b)]
        slots = list(range(b))
        generator.shuffle(slots)
        slots[::7] = [-1] * len(slots[::7])
        deltas = [generator.choice((0.0, 4 / 64, 8 / 64, 0.25, 1.0)) for _ in range(b)]
        slot_delta = torch.tensor(deltas)
        logprobs = probs.log().float()
        # The op's own reading of a logprob decides ties: it must read equal powers as equal.
        got = ops.mtp_verify_relaxed(
            ids, logprobs, int32(drafts).reshape(b, n), int32(slots), slot_delta, 0.375, BEGIN, END
        )
        after = deltas.copy()
        for i, emitted in enumerate(rows(*got)):
            delta = deltas[slots[i]] if slots[i] >= 0 else 0.0
            want, next_delta = reference.mtp_verify_relaxed(
                ids[i].tolist(), read_probs(logprobs[i]), drafts[i], delta, 0.375, BEGIN, END
            )
            assert emitted == want, (ids[i], probs[i], drafts[i], delta)
            if slots[i] >= 0:
                after[slots[i]] = next_delta
            for position, token in enumerate(emitted):
                best = float(probs[i, position, 0])
                if token != int(ids[i, position, 0]):
                    emitted_relaxed += 1
                    place = ids[i, position].tolist().index(token)
                    assert float(probs[i, position, place]) >= best - delta - 1e-5
        assert slot_delta.tolist() == torch.tensor(after).tolist()
    assert emitted_relaxed > 100, "nothing was accepted that strict would not accept"


def read_probs(logprobs: Tensor) -> list[list[float]]:
    """exp of float32 log-probabilities as the op reads them: 20 bits a halving, 40 in all."""
    scale = torch.tensor(1512775.375, dtype=torch.float32)
    steps = ((0.0 - logprobs) * scale).to(torch.int64)
    return [[float(2.0 ** -(step / 2**20)) for step in row] for row in steps.tolist()]


def test_relaxed_thinking_state() -> None:
    ids = int32([[[7, 5], [BEGIN, 6], [8, 9]]])
    logprobs = torch.tensor([[[0.6, 0.3], [0.5, 0.4], [0.5, 0.4]]]).log()
    delta = torch.zeros(1)
    call = lambda drafts: rows(
        *ops.mtp_verify_relaxed(ids, logprobs, int32([drafts]), int32([0]), delta, 0.5, BEGIN, END)
    )
    assert call([5, BEGIN]) == [[7]], "delta 0 is strict"
    assert call([7, BEGIN]) == [[7, BEGIN, 8]]
    assert delta.item() == 0.5, "thinking began: relaxed from the next step on"
    assert call([5, 6]) == [[5, 6, 8]]
    ids[0, 0, 1] = END
    assert call([END, 6]) == [[END, 6, 8]], "thinking ended, but this step is still relaxed"
    assert delta.item() == 0.0


def distributions(count: int, v: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.softmax(torch.randn(count, v, generator=generator) * 1.5, -1)


def draw(probs: Tensor, count: int, seed: int) -> Tensor:
    return torch.multinomial(
        probs, count, replacement=True, generator=torch.Generator().manual_seed(seed)
    ).int()


def check_rejection(with_q: bool) -> None:
    b, n, v = 100_000, 2, 12
    p, q = distributions(n + 1, v, 1), distributions(n, v, 2)
    p[0, 3], p[1, 5] = 0.0, 0.0  # tokens that filters took away
    p /= p.sum(-1, keepdim=True)
    drafts = torch.stack([draw(q[j], b, 3 + j) for j in range(n)], 1)
    if not with_q:
        drafts[:] = p[:2].argmax(-1).int()  # greedy drafts, the same for all
    out, num = ops.mtp_verify_rejection(
        p.expand(b, -1, -1).contiguous(),
        q.expand(b, -1, -1).contiguous() if with_q else None,
        drafts,
        torch.full((b,), 77),
        torch.arange(b) * 3,
    )
    assert num.min() >= 1
    for position in range(n + 1):
        reached = num > position
        assert chi_square_fits(out[reached, position], p[position].double())
    # Accepted or not, the pair of the first two tokens is independent.
    pair = num > 1
    joint = out[pair, 0].long() * v + out[pair, 1]
    marginal = torch.bincount(out[pair, 0].long(), minlength=v).double() / pair.sum()
    assert chi_square_fits(joint, (marginal[:, None] * p[1].double()).flatten())
    accepted = (out[:, 0] == drafts[:, 0]).double().mean().item()
    expected = torch.minimum(p[0], q[0]).sum().item() if with_q else p[0].max().item()
    assert abs(accepted - expected) < 0.01, "a rejected draft must not come back"
    wrong = q if with_q else distributions(n, v, 9)
    assert not chi_square_fits(out[:, 0], wrong[0].double()), "the test cannot tell p from q"


def test_rejection_keeps_the_distribution() -> None:
    check_rejection(with_q=True)


def test_rejection_of_greedy_drafts_keeps_the_distribution() -> None:
    check_rejection(with_q=False)


def test_sampled_targets_and_strict_give_what_sampling_alone_gives() -> None:
    """Rejection sampling against a point mass: drafts change the steps, never the tokens."""
    v, n, length, b = 30, 3, 40, 8
    table = torch.randn(v, v, generator=torch.Generator().manual_seed(0)) * 2
    ones = lambda rows_: torch.ones(rows_)
    zeros = lambda rows_: torch.zeros(rows_, dtype=torch.int32)

    def sample(previous: Tensor, seeds: Tensor, offsets: Tensor) -> Tensor:
        size = previous.numel()
        logits = table[previous.long()]
        return ops.sample(
            logits,
            ones(size) * 0.8,
            zeros(size),
            ones(size) * 0.9,
            torch.zeros(size),
            seeds,
            offsets,
        )[0]

    plain = torch.zeros(b, 1, dtype=torch.int32)
    for position in range(length):
        plain = torch.cat(
            (plain, sample(plain[:, -1], torch.arange(b), torch.full((b,), position))[:, None]), 1
        )
    for i in range(b):
        tokens = [0]
        steps = 0
        while len(tokens) <= length:
            drafts: list[int] = []
            for _ in range(n):
                drafts.append(int(table[(tokens + drafts)[-1]].argmax()))
            inputs = int32([tokens[-1], *drafts])
            offsets = torch.arange(n + 1) + len(tokens) - 1
            target = sample(inputs, torch.full((n + 1,), i), offsets)
            tokens += rows(*ops.mtp_verify_strict(target[None], int32([drafts])))[0]
            steps += 1
        assert tokens[: length + 1] == plain[i].tolist()
        assert steps < length, "no draft was accepted"


def test_rejection_of_bad_rows() -> None:
    p = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]])
    nothing, broken = torch.zeros(3), torch.tensor([NAN, 0.5, 0.5])
    target = torch.stack(
        [
            torch.stack([p[1], p[1]]),
            torch.stack([broken, p[1]]),
            torch.stack([p[1], broken]),
            torch.stack([nothing, p[1]]),
            torch.stack([p[0], p[1]]),
            torch.stack([p[1], p[1]]),
        ]
    )
    drafts = int32([[2], [0], [2], [1], [-1], [7]])
    call = lambda: ops.mtp_verify_rejection(
        target, None, drafts, torch.zeros(6, dtype=torch.long), torch.arange(6)
    )
    emitted = rows(*call())
    assert emitted[:4] == [[2, 2], [], [2], []]
    assert len(emitted[4]) == 1
    assert emitted[4][0] in (0, 1)
    assert emitted[5] == [2], "a draft outside the vocabulary is never accepted"
    assert_repeatable(call)


def test_equal_distributions_accept_everything() -> None:
    b, n, v = 2000, 3, 9
    p = distributions(n + 1, v, 4).expand(b, -1, -1).contiguous()
    drafts = torch.stack([draw(p[0, j], b, j) for j in range(n)], 1)
    _, num = ops.mtp_verify_rejection(
        p, p[:, :n].contiguous(), drafts, torch.zeros(b, dtype=torch.long), torch.arange(b)
    )
    assert num.eq(n + 1).all()


def test_opcheck_and_rejects() -> None:
    drafts, out, num = int32([[1, 2]]), int32([[0, 0, 0]]), int32([0])
    opcheck("mtp_verify_strict", int32([[1, 2, 3]]), drafts, out, num)
    top, logprobs = int32([[[1, 2]] * 3]), torch.zeros(1, 3, 2)
    slots, delta = int32([0]), torch.zeros(2)
    opcheck("mtp_verify_relaxed", top, logprobs, drafts, slots, 0.5, 3, 4, delta, out, num)
    p, seeds = torch.ones(1, 3, 5) / 5, torch.zeros(1, dtype=torch.long)
    opcheck("mtp_verify_rejection", p, p[:, :2].contiguous(), drafts, seeds, seeds, out, num)
    assert_rejects(
        "mtp_verify_strict: target_ids: expected shape [b=1, n+1=3]",
        ops.mtp_verify_strict, int32([[1, 2]]), drafts,
    )  # fmt: skip
    assert_rejects(
        "relaxed_delta: expected a number of at least 0, got -1",
        ops.mtp_verify_relaxed, top, logprobs, drafts, slots, delta, -1.0, 3, 4,
    )  # fmt: skip
    assert_rejects(
        "draft_probs: expected shape [b=1, n=2, v=5]",
        ops.mtp_verify_rejection, p, p, drafts, seeds, seeds,
    )  # fmt: skip
