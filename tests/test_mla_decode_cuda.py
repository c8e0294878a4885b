"""mla_decode and its plan on a Hopper GPU, through the op, against the reference."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from seekernel import _extension, ops
from tests.mla_decode_testing import SCALE, Case, Inputs, check, make
from tests.mla_testing import HUGE, assert_same_bits
from tests.op_testing import assert_rejects, assert_repeatable

HAS_HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability()[0] == 9
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not HAS_HOPPER, reason="no Hopper GPU"),
    pytest.mark.skipif(not _extension.build_info()["cuda_version"], reason="built without CUDA"),
]
EDGES = (0, 1, 63, 64, 65, 127, 128, 129, 1000)
CASES = [
    *(
        Case(EDGES, h_q=h_q, page_size=page_size)
        for h_q in (1, 8, 16, 32, 63, 64, 128)
        for page_size in (16, 64)
    ),
    *(
        Case(EDGES, (1, 2, 3, 4, 0, 4, 3, 2, 1), h_q=h_q, page_size=page_size, causal=causal)
        for h_q, page_size, causal in ((16, 32, True), (128, 128, True), (64, 64, False))
    ),
    Case((20000,), (1,), h_q=128, ramp=True),
    Case((5000, 3, 9000), (2, 2, 2), h_q=128),
    Case((5000, 300, 900), (3, 3, 3), h_q=128, split_tokens=512),
    Case((700,) * 40, (1,) * 40, h_q=16),
    Case((700, 1), (9, 2), h_q=128, page_size=32),
    Case((700, 300), (1, 2), h_q=128, dtype=torch.float16),
    *(
        Case(EDGES, h_q=h_q, page_size=page_size, cache=cache, ramp=h_q == 128)
        for h_q, page_size in ((16, 16), (128, 64))
        for cache in ("blocks", "flat")
    ),
    Case((5000, 3, 9000), (2, 2, 2), h_q=128, cache="blocks"),
]


def on_gpu(inputs: Inputs) -> dict[str, Tensor]:
    named = {name: getattr(inputs, name) for name in Inputs.__dataclass_fields__}
    return {name: tensor.cuda() for name, tensor in named.items() if tensor is not None}


def planned(tensors: dict[str, Tensor], split_tokens: int) -> ops.MlaDecodePlan:
    q, table = tensors["q"], tensors["block_table"]
    max_tokens = table.shape[1] * tensors["kv_cache"].shape[1]
    plan = ops.mla_decode_plan(q.shape[0], q.shape[1], q.device, split_tokens, max_tokens)
    return ops.mla_decode_metadata(tensors["seq_lens"], tensors["cu_seqlens_q"], q.shape[1], plan)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_mla_decode(case: Case) -> None:
    inputs = make(case)
    tensors = on_gpu(inputs)
    plan = planned(tensors, case.split_tokens) if case.split_tokens else None
    call = lambda: ops.mla_decode(**tensors, softmax_scale=SCALE, causal=case.causal, plan=plan)
    out, lse = call()
    check((out.cpu(), lse.cpu()), inputs, case.causal)
    assert_repeatable(call)


@pytest.mark.parametrize("h_q", [16, 128])
def test_batch_invariant_plan(h_q: int) -> None:
    lengths = (3000, 1, 700, 129, 4100, 0, 64)
    case = Case(lengths, (1,) * 7, h_q=h_q, split_tokens=512)
    tensors = on_gpu(make(case))
    together = ops.mla_decode(**tensors, softmax_scale=SCALE, plan=planned(tensors, 512))
    for i in range(len(lengths)):
        alone = {
            **tensors,
            "q": tensors["q"][i : i + 1],
            "block_table": tensors["block_table"][i : i + 1],
            "seq_lens": tensors["seq_lens"][i : i + 1],
            "cu_seqlens_q": tensors["cu_seqlens_q"][:2],
        }
        got = ops.mla_decode(**alone, softmax_scale=SCALE, plan=planned(alone, 512))
        assert_same_bits(got, [result[i : i + 1] for result in together])


def test_graph_replays_on_other_lengths_and_pages() -> None:
    case = Case((900, 5, 300, 64), (1,) * 4, h_q=128)
    longest = make(replace(case, s_kv=(1000, 1000, 1000, 1000)))
    tensors = on_gpu(longest)
    plan = ops.mla_decode_plan(4, 128, "cuda")
    out, lse = torch.empty(4, 128, 512, dtype=torch.bfloat16).cuda(), torch.empty(4, 128).cuda()

    def step() -> None:
        ops.mla_decode_metadata(tensors["seq_lens"], tensors["cu_seqlens_q"], 128, plan)
        ops.mla_decode(**tensors, softmax_scale=SCALE, out=out, lse=lse, plan=plan)

    step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    for seed, lengths in enumerate([(900, 5, 300, 64), (0, 1000, 1, 65), (1000, 1000, 1000, 1000)]):
        inputs = make(replace(case, s_kv=lengths), seed)
        width = tensors["block_table"].shape[1]
        table = torch.full((4, width), HUGE, dtype=torch.int32)
        table[:, : inputs.block_table.shape[1]] = inputs.block_table[:, :width]
        tensors["q"].copy_(inputs.q)
        tensors["kv_cache"].fill_(float("nan"))
        tensors["kv_cache"][: len(inputs.kv_cache)].copy_(inputs.kv_cache)
        tensors["block_table"].copy_(table)
        tensors["seq_lens"].copy_(inputs.seq_lens)
        graph.replay()
        torch.cuda.synchronize()
        check((out.cpu(), lse.cpu()), inputs, True)


def test_pages_beyond_four_gigabytes() -> None:
    case = Case((300,), (1,), h_q=128)
    inputs = make(case)
    tensors = on_gpu(inputs)
    want = ops.mla_decode(**tensors, softmax_scale=SCALE)
    pages, shift = len(inputs.kv_cache), 80_000  # 80,000 pages are 5.9e9 bytes
    wide = torch.full((shift + pages, 64, 576), float("nan"), dtype=torch.bfloat16, device="cuda")
    wide[shift:] = tensors["kv_cache"]
    moved = {**tensors, "kv_cache": wide, "block_table": tensors["block_table"] + shift}
    assert_same_bits(ops.mla_decode(**moved, softmax_scale=SCALE), want)


def test_rejects() -> None:
    tensors = on_gpu(make(Case((100,), (1,), h_q=16)))
    call = lambda **changed: ops.mla_decode(**{**tensors, "softmax_scale": SCALE, **changed})
    for message, changed in {
        "q: expected dtype bfloat16 or float16": {"q": tensors["q"].float()},
        "d_v: expected 512, got 500": {"d_v": 500},
        "softmax_scale: expected a positive value": {"softmax_scale": -1.0},
        "kv_cache: expected dtype bfloat16 as q": {"kv_cache": tensors["kv_cache"].float()},
        "kv_scale: expected none": {"kv_scale": torch.ones(1).cuda()},
        "kv_cache: expected page_size 16, 32, 64 or 128, got 63": {
            "kv_cache": tensors["kv_cache"][:, :63]
        },
        "block_table: expected the device of q": {"block_table": tensors["block_table"].cpu()},
        "items: expected shape [2, 8]": {"plan": ops.mla_decode_plan(2, 16, "cuda")},
    }.items():
        assert_rejects("mla_decode: " + message, call, **changed)


def test_empty() -> None:
    tensors = on_gpu(make(Case((100,), (0,), h_q=16)))
    out, lse = ops.mla_decode(**tensors, softmax_scale=SCALE)
    assert out.shape == (0, 16, 512)
    assert lse.shape == (0, 16)
