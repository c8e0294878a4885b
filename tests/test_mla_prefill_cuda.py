"""mla_prefill on a Hopper GPU, by the CPU reference and the emulated tests' budgets."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from seekernel import _extension, ops
from tests.mla_prefill_testing import SCALE, Case, Inputs, make
from tests.mla_testing import BF16, F32, assert_same_bits, offsets
from tests.op_testing import assert_error_within, assert_rejects, assert_repeatable

HAS_HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability()[0] == 9
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not HAS_HOPPER, reason="no Hopper GPU"),
    pytest.mark.skipif(not _extension.build_info()["cuda_version"], reason="built without CUDA"),
]
RAGGED = dict(s_q=(130, 5, 0, 7, 40, 1000), s_kv=(200, 3, 9, 0, 40, 1129))
CASES = [
    Case((), ()),
    Case((0,), (0,)),
    Case((1,), (1,), h=128),
    Case((1,), (0,)),
    *(Case((s,), (s,), h=3) for s in (63, 64, 65, 127, 128, 129, 1000)),
    Case((129,), (2057,), h=16, ramp=-1),
    Case((700,), (1300,), h=5, causal=False, ramp=1),
    Case(**RAGGED, h=16),
    Case(**RAGGED, h=7, causal=False),
    Case(**RAGGED, h=3, out=F32, previous=F32),
    Case(**RAGGED, h=3, previous=BF16),
    Case(**RAGGED, h=3, out=F32, previous=BF16),
    Case((70, 4), (5, 40), previous=BF16),
    Case((1,) * 70, (0, 1, 2, 127, 128, 130, 500) * 10, h=2),
    Case((4096,), (4096,), h=2),
]


def arguments(inputs: Inputs, case: Case) -> tuple[Any, ...]:
    tensors = (inputs.q, inputs.kv, inputs.k_pe, inputs.cu_q, inputs.cu_kv)
    return (*(t.cuda() for t in tensors), SCALE, case.causal)


def run(inputs: Inputs, case: Case) -> tuple[Tensor, Tensor]:
    s_q, h = inputs.q.shape[:2]
    wide = torch.full((s_q, h, 144), math.nan, dtype=case.out, device="cuda")
    more = {}
    if inputs.previous is not None:
        more = dict(
            zip(("previous_out", "previous_lse"), (t.cuda() for t in inputs.previous), strict=True)
        )
    out, lse = ops.mla_prefill(*arguments(inputs, case), out=wide[..., :128], **more)
    assert wide[..., 128:].isnan().all(), "wrote beyond the rows"
    return out.cpu(), lse.cpu()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_mla_prefill(case: Case) -> None:
    inputs = make(case)
    out, lse = run(inputs, case)
    assert_error_within(out, inputs.want[0], inputs.naive[0])
    assert_error_within(lse, inputs.want[1], inputs.naive[1])
    assert_repeatable(lambda: run(inputs, case))


def test_bits_do_not_depend_on_the_batch() -> None:
    case = Case(**RAGGED, h=5)
    inputs = make(case)
    together = run(inputs, case)
    for request, (s_q, s_kv) in enumerate(zip(case.s_q, case.s_kv, strict=True)):
        part, cached = (
            slice(*cu[request : request + 2].tolist()) for cu in (inputs.cu_q, inputs.cu_kv)
        )
        alone = ops.mla_prefill(
            inputs.q[part, 3:].cuda(), inputs.kv[cached, 3:].cuda(), inputs.k_pe[cached].cuda(),
            offsets([s_q]).cuda(), offsets([s_kv]).cuda(), SCALE,
        )  # fmt: skip
        assert_same_bits([t.cpu() for t in alone], [t[part, 3:] for t in together])


def test_merging_pieces_in_place_matches_the_whole() -> None:
    """Chunked prefill: the cached prefix without a mask, then the new keys, merged in float32."""
    case = Case((300,), (1500,), h=4)
    inputs = make(case)
    q, kv, k_pe = inputs.q.cuda(), inputs.kv.cuda(), inputs.k_pe.cuda()
    cu_q = inputs.cu_q.cuda()
    out = torch.zeros(300, 4, 128, device="cuda")
    lse = torch.full((300, 4), -math.inf, device="cuda")
    for begin in (0, 512, 1024):
        end = min(begin + 512, 1200)
        ops.mla_prefill(
            q, kv[begin:end], k_pe[begin:end], cu_q, offsets([end - begin]).cuda(), SCALE, False,
            out, lse, previous_out=out, previous_lse=lse,
        )  # fmt: skip
    final = ops.mla_prefill(
        q, kv[1200:], k_pe[1200:], cu_q, offsets([300]).cuda(), SCALE, True,
        previous_out=out, previous_lse=lse,
    )  # fmt: skip
    assert final[0].dtype == BF16
    assert_error_within(final[0].cpu(), inputs.want[0], inputs.naive[0])
    assert_error_within(final[1].cpu(), inputs.want[1], inputs.naive[1])


def test_strided_inputs() -> None:
    case = Case((70,), (90,), h=3)
    inputs = make(case)
    want = run(inputs, case)
    wide: list[Tensor] = []
    for tensor in (inputs.q, inputs.kv, inputs.k_pe):
        padded = torch.full((*tensor.shape[:-1], tensor.shape[-1] + 24), math.nan, dtype=BF16)
        padded[..., 8 : 8 + tensor.shape[-1]] = tensor
        wide.append(padded.cuda()[..., 8 : 8 + tensor.shape[-1]])
    got = ops.mla_prefill(wide[0], wide[1], wide[2], inputs.cu_q.cuda(), inputs.cu_kv.cuda(), SCALE)
    assert_same_bits([t.cpu() for t in got], want)


def test_graph_replay_with_changing_lengths() -> None:
    first, second = Case((100, 28), (300, 100), h=4), Case((3, 125), (130, 270), h=4)
    inputs = [make(replace(case)) for case in (first, second)]
    buffers = [
        t.cuda()
        for t in (inputs[0].q, inputs[0].kv, inputs[0].k_pe, inputs[0].cu_q, inputs[0].cu_kv)
    ]
    out, lse = torch.empty(128, 4, 128, dtype=BF16).cuda(), torch.empty(128, 4).cuda()
    q, kv, k_pe, cu_q, cu_kv = buffers
    call = lambda: ops.mla_prefill(q, kv, k_pe, cu_q, cu_kv, SCALE, out=out, lse=lse)
    call()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    for given in inputs[::-1]:
        for buffer, tensor in zip(
            buffers, (given.q, given.kv, given.k_pe, given.cu_q, given.cu_kv), strict=True
        ):
            buffer.copy_(tensor)
        graph.replay()
        torch.cuda.synchronize()
        assert_error_within(out.cpu(), given.want[0], given.naive[0])
        assert_error_within(lse.cpu(), given.want[1], given.naive[1])


def test_rejects() -> None:
    inputs = make(Case((5,), (9,), h=2))
    good = list(arguments(inputs, Case((5,), (9,))))
    call = ops.mla_prefill
    assert_rejects("mla_prefill: q: expected dtype bfloat16", call, good[0].float(), *good[1:])
    assert_rejects(
        "mla_prefill: q: expected shape [s_q, h, 192]", call, good[0][..., :128], *good[1:]
    )
    assert_rejects("kv: expected the device of q", call, good[0], inputs.kv, *good[2:])
    assert_rejects("softmax_scale: expected a positive number", call, *good[:5], 0.0)
    unaligned = torch.zeros(5, 2, 200, dtype=BF16).cuda()[..., 3:195]
    assert_rejects(
        "q: expected rows that start at multiples of 16 bytes", call, unaligned, *good[1:]
    )
