"""The sampling ops on a Hopper GPU: bit for bit what the CPU ops give."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from seekernel import _extension, ops
from tests.op_testing import assert_rejects, assert_repeatable
from tests.sampling_testing import RELAXED, Request, chi_square_fits
from tests.test_sample_op import FILTERS, all_changes, int32, normal, reference_probs
from tests.test_sampling_emulated import (
    mixed_rows,
    rejection_case,
    relaxed_case,
    strict_case,
    ties,
)

HAS_HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability()[0] == 9
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not HAS_HOPPER, reason="no Hopper GPU"),
    pytest.mark.skipif(not _extension.build_info()["cuda_version"], reason="built without CUDA"),
]
VOCABULARY = 129280


def cuda(values: Sequence[Tensor | None]) -> list[Tensor | None]:
    return [None if value is None else value.cuda() for value in values]


def on_cuda(request: Request, want_probs: bool = True) -> tuple[Tensor, Tensor, Tensor | None]:
    logits = request.logits.cuda()
    probs = torch.full(logits.shape, 7.0, device="cuda") if want_probs else None
    ids, status = ops.sample(
        logits,
        *(column.cuda() for column in request.columns.values()),
        penalties=None if request.penalties is None else ops.Penalties(*cuda(request.penalties)),
        bias=None if request.bias is None else ops.LogitBias(*cuda(request.bias)),
        mask=None if request.mask is None else request.mask.cuda(),
        probs=probs,
    )
    return ids.cpu(), status.cpu(), None if probs is None else probs.cpu()


def check(request: Request) -> None:
    for got, want in zip(on_cuda(request), request.on_cpu(want_probs=True), strict=True):
        assert got is not None
        assert want is not None
        assert torch.equal(got.nan_to_num(-1.0), want.nan_to_num(-1.0))


# One CTA a row; a cluster of 2, 4 and 8; V3's; unaligned rows.
@pytest.mark.parametrize("v", [1, 77, 1000, 4000, 8000, 16001, VOCABULARY, VOCABULARY + 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_same_as_on_the_cpu(v: int, dtype: torch.dtype) -> None:
    check(mixed_rows(v, dtype))
    request = Request(normal(6, v).to(dtype), top_p=0.9, **all_changes(6, v))
    check(request)


@pytest.mark.parametrize("rows", [1, 3, 64, 300])
def test_many_rows(rows: int) -> None:
    request = Request(
        normal(rows, VOCABULARY, seed=rows),
        temperature=[(0.0, 0.6, 1.0, 2.0)[i % 4] for i in range(rows)],
        top_k=[(0, 50, 0, 1000, 1)[i % 5] for i in range(rows)],
        top_p=[(1.0, 0.95, 0.5)[i % 3] for i in range(rows)],
        min_p=[(0.0, 0.0, 0.05)[i % 3] for i in range(rows)],
        seeds=list(range(rows)),
    )
    check(request)
    assert_repeatable(lambda: on_cuda(request, want_probs=False)[0])


def test_ties_and_hostile_rows() -> None:
    for v in (300, 20_000):
        check(ties(v))
    logits = normal(5, 5000)
    logits[0, 4999], logits[1, 3], logits[2] = math.nan, math.inf, -math.inf
    logits[3] = -math.inf
    logits[3, 4000] = 0.0
    check(Request(logits, temperature=[1, 0, 0, 1, 1e-45], top_p=[1, 1, 1, 1, 0]))


@pytest.mark.parametrize("fields", FILTERS, ids=str)
def test_draws_follow_the_distribution(fields: dict[str, Any]) -> None:
    request = Request(normal(1, 50, seed=5).expand(100_000, -1).contiguous(), seeds=11, **fields)
    ids, _, _ = on_cuda(request, want_probs=False)
    assert chi_square_fits(ids, reference_probs(Request(normal(1, 50, seed=5), **fields))[0])
    assert torch.equal(ids, request.on_cpu()[0])


@pytest.mark.parametrize("v", [64, 5000, VOCABULARY, VOCABULARY + 3])
@pytest.mark.parametrize("n", [0, 1, 20, 64])
def test_token_logprobs(v: int, n: int) -> None:
    logits = normal(9, v)
    logits[3] = logits[3].round()
    logits[4, 7] = math.nan
    ids = torch.arange(9, dtype=torch.int32) * 7 - 1
    want = ops.token_logprobs(logits, ids, n)
    got = ops.token_logprobs(logits.cuda(), ids.cuda(), n)
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a.cpu().nan_to_num(-1.0), b.nan_to_num(-1.0))


def test_mtp_verify() -> None:
    case = strict_case()
    want = ops.mtp_verify_strict(**case)
    got = ops.mtp_verify_strict(*(t.cuda() for t in case.values()))
    assert all(torch.equal(a.cpu(), b) for a, b in zip(got, want, strict=True))

    case = relaxed_case()
    deltas = case.pop("slot_delta")
    on_cpu, on_gpu = deltas.clone(), deltas.cuda()
    want = ops.mtp_verify_relaxed(**case, slot_delta=on_cpu, relaxed_delta=RELAXED[0],
                                  begin_thinking_id=RELAXED[1], end_thinking_id=RELAXED[2])  # fmt: skip
    on_device = {name: t.cuda() for name, t in case.items()}
    got = ops.mtp_verify_relaxed(**on_device, slot_delta=on_gpu, relaxed_delta=RELAXED[0],
                                 begin_thinking_id=RELAXED[1], end_thinking_id=RELAXED[2])  # fmt: skip
    assert all(torch.equal(a.cpu(), b) for a, b in zip(got, want, strict=True))
    assert torch.equal(on_gpu.cpu(), on_cpu)

    for with_q in (True, False):
        rejection: dict[str, Any] = {"draft_probs": None, **rejection_case(with_q)}
        want = ops.mtp_verify_rejection(**rejection)
        got = ops.mtp_verify_rejection(
            **{key: None if t is None else t.cuda() for key, t in rejection.items()}
        )
        assert all(torch.equal(a.cpu(), b) for a, b in zip(got, want, strict=True))


def test_mtp_rejection_of_a_full_vocabulary() -> None:
    b, n = 4, 3
    p = torch.softmax(normal(b * (n + 1), VOCABULARY), -1).reshape(b, n + 1, -1)
    q = torch.softmax(normal(b * n, VOCABULARY, 1) / 2 + p[:, :n].reshape(b * n, -1).log(), -1)
    q = q.reshape(b, n, -1)
    drafts = torch.multinomial(q.reshape(b * n, -1), 1).reshape(b, n).int()
    rest = (torch.arange(b), torch.arange(b) * 9)
    want = ops.mtp_verify_rejection(p, q, drafts, *rest)
    got = ops.mtp_verify_rejection(*(t.cuda() for t in (p, q, drafts, *rest)))
    assert all(torch.equal(a.cpu(), b) for a, b in zip(got, want, strict=True))


def test_token_counts() -> None:
    counts = torch.zeros(3, 50, dtype=torch.int32)
    slots = int32(0, 1, 2, -1, 9, 1)
    ids = torch.randint(-1, 51, (6, 40), dtype=torch.int32)
    on_gpu = counts.cuda()
    ops.add_token_counts(counts, slots, ids)
    ops.add_token_counts(on_gpu, slots.cuda(), ids.cuda())
    assert torch.equal(on_gpu.cpu(), counts)


def test_graph_replay_with_other_contents() -> None:
    request, other = (Request(normal(8, VOCABULARY, seed=s), top_p=0.9, top_k=40) for s in (1, 2))
    logits = request.logits.cuda()
    columns = [column.cuda() for column in request.columns.values()]
    ids, status = (torch.empty(8, dtype=torch.int32, device="cuda") for _ in range(2))
    run = lambda: ops.sample(logits, *columns, ids=ids, status=status)
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    logits.copy_(other.logits)
    columns[5].add_(100)
    other.columns["offsets"].add_(100)
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(ids.cpu(), other.on_cpu()[0])


def test_empty_and_rejects() -> None:
    empty = Request(torch.empty(0, 9))
    assert on_cuda(empty)[0].shape == (0,)
    logits, columns = normal(2, 40).cuda(), list(Request(normal(2, 40)).columns.values())
    assert_rejects("temperature: expected the device of logits", ops.sample, logits, *columns)
    wide = torch.empty(1, 500_000, device="cuda")
    columns = [c[:1].cuda() for c in columns]
    assert_rejects("logits: expected a row that 8 CTAs can hold", ops.sample, wide, *columns)
