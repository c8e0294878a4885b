"""The sampling kernels' PTX, in every schedule: bit for bit what the CPU ops give, nothing to report."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from seekernel import ops
from tests.emulator.launch import Device, KernelFault
from tests.emulator.schedules import NINE_SCHEDULES
from tests.kernel_testing import BACKENDS, build, devices, to_numpy
from tests.sampling_testing import (
    RELAXED,
    Array,
    Edits,
    Request,
    launch_mtp,
    launch_sample,
    launch_token_logprobs,
)
from tests.test_sample_op import all_changes, int32, normal

NAN, INF = math.nan, math.inf
GEOMETRIES = [(1, 2), (2, 3), (8, 1)]  # CTAs per row, warps per CTA


def same_bits(got: Array, want: Tensor) -> None:
    """Equal; NaNs count as equal whatever their payload."""
    expected = to_numpy(want)
    assert got.dtype == expected.dtype
    np.testing.assert_array_equal(got, expected)


def check_sample(
    device: Device, request: Request, edits: Edits | None = None, **geometry: int
) -> None:
    ids, status, probs = request.on_cpu(want_probs=True)
    got = launch_sample(device, request, want_probs=True, edits=edits, **geometry)
    assert probs is not None
    assert got[2] is not None
    same_bits(got[0], ids)
    same_bits(got[1], status)
    same_bits(got[2], probs)


def mixed_rows(v: int, dtype: torch.dtype = torch.float32) -> Request:
    return Request(
        normal(6, v, seed=1).to(dtype),
        temperature=[0.0, 1.0, 0.6, 1.5, 1.0, 0.9],
        top_k=[0, 0, 0, 40, 5, 0],
        top_p=[1.0, 1.0, 0.95, 0.8, 1.0, 0.3],
        min_p=[0.0, 0.0, 0.0, 0.01, 0.0, 0.4],
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("num_ctas", "num_warps"), GEOMETRIES)
def test_filters(backend: str, num_ctas: int, num_warps: int) -> None:
    for device in devices(backend):
        check_sample(device, mixed_rows(900), num_ctas=num_ctas, num_warps=num_warps)


@pytest.mark.parametrize("backend", BACKENDS)
def test_unaligned_bfloat16_rows_with_all_changes(backend: str) -> None:
    logits = normal(6, 333, seed=2).bfloat16()
    request = Request(logits, temperature=1.2, top_p=0.9, top_k=50, **all_changes(6, 333))
    for device in devices(backend):
        check_sample(device, request, num_ctas=2, num_warps=2)


@pytest.mark.parametrize("backend", BACKENDS)
def test_aligned_rows_with_all_changes(backend: str) -> None:
    request = Request(normal(6, 260, seed=3), temperature=0.8, **all_changes(6, 260))
    for device in devices(backend, NINE_SCHEDULES[:3]):
        check_sample(device, request, num_ctas=1, num_warps=2)


def ties(v: int) -> Request:
    """Rows that the search can only cut within equal steps, equal logits, or equal everything."""
    logits = torch.zeros(6, v)
    logits[1] = torch.arange(v) % 3
    logits[2] = torch.arange(v) * 2.0**-30  # one step, different logits
    logits[3, ::2] = -0.0
    logits[4] = -40.0
    logits[4, 7] = 0.0
    logits[5] = normal(1, v)[0].round()
    return Request(logits, top_k=[17, 0, 5, 31, 9, 0], top_p=[1.0, 0.7, 1.0, 0.5, 1.0, 0.77])


@pytest.mark.parametrize("backend", BACKENDS)
def test_ties(backend: str) -> None:
    for device in devices(backend, NINE_SCHEDULES[::3]):
        check_sample(device, ties(300), num_ctas=2, num_warps=2)
        check_sample(device, ties(300), num_ctas=1, num_warps=1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_hostile_rows(backend: str) -> None:
    v = 140
    logits = normal(10, v, seed=4)
    logits[0, 139] = NAN
    logits[1, 3] = INF
    logits[2] = -INF
    logits[3] = -INF
    logits[3, 77] = -1.0
    logits[4] = torch.where(torch.arange(v) == 9, 3e38, -3e38)
    mask = torch.full((10, 5), -1, dtype=torch.int32)
    mask[5] = 0
    mask[6] = int32([0, 0, 0, 1 << 7, 0])
    request = Request(
        logits,
        temperature=[1, 0, 0, 1, 1e-45, 1, 1, 1e38, NAN, INF],
        top_k=[0, 0, 0, 0, 2**31 - 1, 0, 0, -1, 0, 0],
        top_p=[1, 1, 1, 1, 0, 1, 0.5, NAN, 1, 0.5],
        min_p=[0, 0, 0, 0, 1, 0, 0, NAN, 0, 0],
        seeds=[-1, 2**63 - 1, 3, 4, 5, 6, 7, 8, 9, -(2**63)],
        offsets=[-1] * 5 + [2**40 + i for i in range(5)],
        mask=mask,
    )
    for device in devices(backend, NINE_SCHEDULES[::3]):
        check_sample(device, request, num_ctas=2, num_warps=1)


def test_same_token_for_many_seeds() -> None:
    """One launch of 200 rows on the emulator against the CPU: a seed gives the same token on both."""
    rows = 200
    request = Request(
        normal(rows, 128, seed=8),
        temperature=[0.3 + 0.01 * i for i in range(rows)],
        top_p=[0.2 + 0.004 * i for i in range(rows)],
        seeds=[i * 0x9E3779B97F4A7C15 % 2**63 for i in range(rows)],
    )
    (device, *_) = devices("emulator", NINE_SCHEDULES[:1])
    check_sample(device, request, num_ctas=1, num_warps=1)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("num_ctas", "num_warps"), GEOMETRIES)
def test_token_logprobs(backend: str, num_ctas: int, num_warps: int) -> None:
    logits = normal(5, 600, seed=5)
    logits[1] = logits[1].round()  # ties
    logits[2, 5] = NAN
    logits[3] = -INF
    logits[3, 100:104] = 2.0
    ids = int32(3, 599, 1, 101, -1)
    for n in (7, 64):
        want = ops.token_logprobs(logits, ids, n)
        schedules = NINE_SCHEDULES if n == 7 else NINE_SCHEDULES[::4]
        for device in devices(backend, schedules):
            got = launch_token_logprobs(
                device, logits, ids, n, num_ctas=num_ctas, num_warps=num_warps
            )
            for a, b in zip(got, want, strict=True):
                same_bits(a, b)


@pytest.mark.parametrize("backend", BACKENDS)
def test_add_token_counts(backend: str) -> None:
    kernel = build("seekernel/sampling/token_counts.cuh", "add_token_counts<2>")
    counts = torch.arange(30, dtype=torch.int32).reshape(3, 10)
    slots, ids = int32(1, 1, -1, 3, 0), torch.arange(-1, 14, dtype=torch.int32).reshape(5, 3)
    want = counts.clone()
    ops.add_token_counts(want, slots, ids)
    for device in devices(backend):
        buffers = [device.buffer(to_numpy(t)) for t in (counts, slots, ids)]
        sizes = [np.int32(x) for x in (5, 3, 3, 10)]
        device.launch(kernel.on(device), grid=(1,), block=(256,), args=(*buffers, *sizes))
        same_bits(buffers[0].numpy(), want)


def strict_case() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    random = lambda *shape: torch.randint(-1, 3, shape, generator=generator, dtype=torch.int32)
    return {"target_ids": random(200, 4), "draft_ids": random(200, 3)}


def relaxed_case() -> dict[str, Tensor]:
    b, n, t = 150, 3, 4
    logits = normal(b * (n + 1), 8, seed=6) / 2
    got = ops.token_logprobs(logits, torch.zeros(b * (n + 1), dtype=torch.int32), t)
    logprobs = got.top_logprobs.reshape(b, n + 1, t).clone()
    logprobs[::2] = logprobs[::2, :, :1]  # equal: delta 0 accepts them too
    generator = torch.Generator().manual_seed(1)
    return {
        "top_ids": got.top_ids.reshape(b, n + 1, t),
        "top_logprobs": logprobs,
        "draft_ids": torch.randint(-1, 8, (b, n), generator=generator, dtype=torch.int32),
        "slots": torch.randperm(b + 2, generator=generator)[:b].int() - 1,
        "slot_delta": torch.rand(b, generator=generator).round(decimals=1) * 0.3,
    }


def rejection_case(with_q: bool) -> dict[str, Tensor]:
    b, n, v = 14, 2, 700
    logits = normal(b * (n + 1), v, seed=7).reshape(b, n + 1, v)
    p = torch.softmax(logits, -1)
    q = torch.softmax(logits[:, :n] + normal(b * n, v, seed=8).reshape(b, n, v) / 2, -1)
    q[0] = p[0, :n]
    p[1, 0, v - 1] = NAN
    p[2, 2] = 0.0
    drafts = q.argmax(-1).int()
    drafts[7:] = p[7:, :n].argmax(-1).int()
    drafts[1] = v - 1
    drafts[3, 1] = -1
    drafts[4, 0] = v
    case = {"target_probs": p, "draft_ids": drafts}
    case |= {"seeds": torch.arange(b) * 7 - 3, "offsets": torch.arange(b)}
    return case | ({"draft_probs": q} if with_q else {})


def check_mtp(
    device: Device, name: str, case: dict[str, Tensor], edits: Edits | None = None, **geometry: int
) -> None:
    deltas: Tensor | None = None
    if name == "strict":
        want = ops.mtp_verify_strict(**case)
    elif name == "relaxed":
        deltas = case["slot_delta"].clone()
        want = ops.mtp_verify_relaxed(
            case["top_ids"],
            case["top_logprobs"],
            case["draft_ids"],
            case["slots"],
            deltas,
            *RELAXED,
        )
    else:
        want = ops.mtp_verify_rejection(**{"draft_probs": None, **case})
    got = launch_mtp(device, name, case, edits=edits, **geometry)
    same_bits(got[0], want[0])
    same_bits(got[1], want[1])
    if deltas is not None:
        assert got[2] is not None
        same_bits(got[2], deltas)


@pytest.mark.parametrize("backend", BACKENDS)
def test_mtp_strict_and_relaxed(backend: str) -> None:
    for device in devices(backend):
        check_mtp(device, "strict", strict_case())
        check_mtp(device, "relaxed", relaxed_case())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("with_q", [True, False])
@pytest.mark.parametrize(("num_ctas", "num_warps"), [(1, 2), (2, 2), (8, 1)])
def test_mtp_rejection(backend: str, with_q: bool, num_ctas: int, num_warps: int) -> None:
    for device in devices(backend):
        check_mtp(
            device, "rejection", rejection_case(with_q), num_ctas=num_ctas, num_warps=num_warps
        )


Check = Callable[[Device, Edits], None]
ROW, SELECT, SAMPLE, LOGPROBS, MTP = (
    f"seekernel/sampling/{name}.cuh"
    for name in ("row", "select", "sample", "token_logprobs", "mtp_verify")
)


def logprobs_check(device: Device, edits: Edits) -> None:
    logits = normal(2, 600, seed=5).round()
    ids = int32(3, 599)
    got = launch_token_logprobs(device, logits, ids, 9, num_ctas=2, num_warps=2, edits=edits)
    for a, b in zip(got, ops.token_logprobs(logits, ids, 9), strict=True):
        same_bits(a, b)


def rejection_check(device: Device, edits: Edits) -> None:
    for num_ctas, num_warps in ((1, 2), (2, 2)):
        check_mtp(
            device, "rejection", rejection_case(True), edits, num_ctas=num_ctas, num_warps=num_warps
        )


def sample_check(device: Device, edits: Edits) -> None:
    request = Request(normal(3, 260, seed=3), temperature=0.8, top_k=50, **all_changes(3, 260))
    check_sample(device, request, edits, num_ctas=1, num_warps=2)


PLANTED: dict[str, tuple[Check, str, str, str]] = {
    "sum before the warps' values": (logprobs_check, ROW, "__syncthreads();  // the warps' values are there", ""),
    "one inbox for every round": (logprobs_check, ROW, "row.round ^= 1;", ""),
    "push to a CTA that has not started": (logprobs_check, ROW, "if (row.num_ctas > 1) ptx::barrier_cluster_arrive();\n}", "}"),
    "arrive without a wait": (logprobs_check, LOGPROBS, "row_wait(row);", ""),
    "list read before it is complete": (logprobs_check, LOGPROBS, "__syncthreads();  // the list is complete", ""),
    "ties cut one short": (logprobs_check, SELECT, "if (count >= need) {", "if (count > need) {"),
    "weights of the wrong step": (logprobs_check, "seekernel/sampling/weight.cuh", "<< 16 >> (step", "<< 15 >> (step"),
    "CTA without its offset": (rejection_check, SELECT, "before += scratch.inbox[row.round][c][0];", ""),
    "warp without its offset": (rejection_check, SELECT, "before += scratch.partial[w][0];", ""),
    "token behind the vocabulary": (rejection_check, MTP, "if (i >= v) return 0;", ""),
    "residual without q": (rejection_check, MTP, "return fixed > less ? fixed - less : 0;", "return fixed;"),
    "draft accepted at equal odds": (rejection_check, MTP, "__umul64hi(random, q) >= p", "__umul64hi(random, q) > 2 * p"),
    "one ulp of delta": (lambda d, e: check_mtp(d, "relaxed", relaxed_case(), e), MTP, "<= limit", "< limit"),
    "state set too early": (lambda d, e: check_mtp(d, "relaxed", relaxed_case(), e), MTP, "next_delta = 0.0f", "next_delta = delta"),
    "listed tokens read too early": (sample_check, SAMPLE, "__syncthreads();  // and the listed ones, before their owners read them", ""),
    "bias after penalties": (sample_check, SAMPLE, "if (bias_ids[j] == i) x =", "if (bias_ids[j] == i && j) x ="),
}  # fmt: skip


@pytest.mark.parametrize("bug", PLANTED)
def test_planted_bugs_are_seen(bug: str) -> None:
    check, header, old, new = PLANTED[bug]
    for device in devices("emulator", NINE_SCHEDULES[::4]):
        with pytest.raises((AssertionError, KernelFault)):
            check(device, {header: [(old, new)]})
