"""mla_prepare, rope_interleaved, mla_gather_latent, merge_attention_states on a Hopper GPU, against the CPU's."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from seekernel import _extension, ops, reference
from tests.mla_prepare_testing import FORMATS, prepare_inputs, scale_of, stored
from tests.mla_testing import BF16, F32, assert_same_bits, cos_sin, int32, offsets, paged, paged_fp8
from tests.op_testing import assert_error_within, assert_rejects, assert_repeatable

HAS_HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability()[0] == 9
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not HAS_HOPPER, reason="no Hopper GPU"),
    pytest.mark.skipif(not _extension.build_info()["cuda_version"], reason="built without CUDA"),
]


def to_gpu(given: dict[str, Any]) -> dict[str, Any]:
    return {k: v.cuda() if isinstance(v, Tensor) else v for k, v in given.items()}


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize("page_size", [16, 32, 64, 128])
@pytest.mark.parametrize(("s", "q_lora"), [(1, 1536), (300, 1536), (129, 0)])
def test_mla_prepare(kind: str, dtype: torch.dtype, page_size: int, s: int, q_lora: int) -> None:
    given = prepare_inputs(kind, dtype, s, q_lora, 512, 64, page_size)
    on_cpu = {**given, "kv_cache": given["kv_cache"].clone()}
    want_q = ops.mla_prepare(**on_cpu, q_latent=None)
    on_gpu = to_gpu(given)
    q_latent = ops.mla_prepare(**on_gpu, q_latent=None)
    if want_q is not None:
        assert q_latent is not None
        truth, _ = reference.mla_prepare(**given)
        assert truth is not None
        assert_error_within(q_latent.cpu(), truth, want_q)
    values, want = (
        reference.latent_values(cache.cpu(), 512, given["kv_scale"])
        for cache in (on_gpu["kv_cache"], on_cpu["kv_cache"])
    )
    # Sums of squares are added in another order: a value on the edge may round the other way, by a
    # step of e4m3 (relative 1/8, absolute a 512th of a multiplier of at most amax / 224).
    step = {"float": 1e-6, "bfloat16": 2.0**-7, "blocks": 0.126, "flat": 0.126}[kind]
    floor = {"blocks": 2.0**-9 / 224, "flat": 0.0}.get(kind, 1e-6)
    bound = (
        step * want.abs()
        + floor * want.abs().amax(-1, keepdim=True)
        + 2.0**-9 * 0.0173 * (kind == "flat")
    )
    assert ((values - want).abs() <= bound).all()
    assert ((values != want).float().mean() < 0.02) or kind == "float"
    live = given["slots"][given["slots"] >= 0]
    dead = torch.ones(values.shape[0] * page_size, dtype=torch.bool)
    dead[live] = False
    raw = [
        c.cpu().view(torch.uint8).flatten(0, 1)[dead]
        for c in (on_gpu["kv_cache"], given["kv_cache"])
    ]
    assert torch.equal(*raw), "touched other rows"
    assert_repeatable(
        lambda: ops.mla_prepare(**on_gpu, q_latent=None) if q_lora else on_gpu["kv_cache"].clone()
    )


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize(("s", "h", "rope"), [(5, 3, 64), (300, 128, 64), (2, 1, 8)])
def test_rope_interleaved(dtype: torch.dtype, s: int, h: int, rope: int) -> None:
    torch.manual_seed(0)
    x, positions = (
        torch.randn(s, h, rope + 128).to(dtype),
        torch.randint(0, 99, (s,), dtype=torch.int32),
    )
    want, naive = (
        reference.rope_interleaved(x[..., 128:], positions, cos_sin(99, rope), t)
        for t in (torch.float64, dtype)
    )
    got = x.cuda()
    ops.rope_interleaved(got[..., 128:], positions.cuda(), cos_sin(99, rope).cuda())
    assert torch.equal(got[..., :128].cpu(), x[..., :128])
    assert_error_within(got[..., 128:].cpu(), want, naive)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize("page_size", [16, 32, 64, 128])
def test_mla_gather_latent(kind: str, dtype: torch.dtype, page_size: int) -> None:
    torch.manual_seed(0)
    lengths = (100, 0, 1, 777, 0)
    rows = [stored(torch.randn(n, 576), kind, 512) for n in lengths]
    if kind in ("blocks", "flat"):
        cache, table = paged_fp8(rows, page_size)
    else:
        cache, table = paged(rows, page_size, 576, rows[0].dtype)
    scale = scale_of(kind)
    want = ops.mla_gather_latent(cache, table, offsets(lengths), 878, dtype=dtype, kv_scale=scale)
    call = lambda: ops.mla_gather_latent(
        cache.cuda(), table.cuda(), offsets(lengths).cuda(), 878, dtype=dtype,
        kv_scale=None if scale is None else scale.cuda(),
    )  # fmt: skip
    assert_same_bits([t.cpu() for t in call()], want)
    assert_repeatable(call)


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_merge_attention_states(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    states = [(torch.randn(70, 16, 128).to(dtype), torch.randn(70, 16) * 9) for _ in range(2)]
    for i, (out, lse) in enumerate(states):
        lse[i::3] = -math.inf
        out[i::3] = math.nan
    states[0][1][5] = states[1][1][5] = -math.inf
    want = reference.merge_attention_states(*states[0], *states[1])
    naive = reference.merge_attention_states(*states[0], *states[1], dtype=dtype)
    given = [t.cuda() for state in states for t in state]
    call = lambda: ops.merge_attention_states(*given)
    got = call()
    assert_error_within(got[0].cpu(), want[0], naive[0])
    assert_error_within(got[1].cpu(), want[1], naive[1])
    assert_repeatable(call)
    in_place = ops.merge_attention_states(*given, out=given[0], lse=given[1])
    assert_same_bits(in_place, got)


@pytest.mark.parametrize("kind", ["bfloat16", "blocks", "flat"])
def test_chunked_prefill_over_a_cached_prefix(kind: str) -> None:
    """Append, gather, attend in pieces: what mla_prefill gives over the cache's own values at once."""
    torch.manual_seed(0)
    s_kv, s_q, h = 700, 200, 4
    given = to_gpu(prepare_inputs(kind, BF16, s_kv, 0, 512, 64, 64))
    order = torch.randperm(-(-s_kv // 64)).cuda()
    token = torch.arange(s_kv).cuda()
    given["slots"] = order[token // 64] * 64 + token % 64
    given["positions"] = (token % 99).int()
    given["kv_cache"] = torch.zeros(len(order), *given["kv_cache"].shape[1:], dtype=torch.uint8).cuda().view(given["kv_cache"].dtype) if kind != "bfloat16" else torch.zeros(len(order), 64, 576, dtype=BF16).cuda()  # fmt: skip
    ops.mla_prepare(**given, q_latent=None)
    latent, k_pe = ops.mla_gather_latent(
        given["kv_cache"], order.int()[None], int32([0, s_kv]).cuda(), s_kv, dtype=BF16, kv_scale=given["kv_scale"]
    )  # fmt: skip
    kv_b = (torch.randn(512, h * 256).cuda() / 512).to(BF16)
    kv = (latent @ kv_b).view(s_kv, h, 256)
    q = torch.randn(s_q, h, 192).cuda().to(BF16)
    cu_q = int32([0, s_q]).cuda()
    want = reference.mla_prefill(q, kv, k_pe, cu_q, int32([0, s_kv]).cuda(), 0.1)
    naive = reference.mla_prefill(q, kv, k_pe, cu_q, int32([0, s_kv]).cuda(), 0.1, dtype=BF16)
    out = torch.empty(s_q, h, 128).cuda()
    lse = torch.full((s_q, h), -math.inf).cuda()
    for begin, end in ((0, 300), (300, 500)):
        ops.mla_prefill(
            q, kv[begin:end], k_pe[begin:end], cu_q, int32([0, end - begin]).cuda(), 0.1, False, out, lse,
            previous_out=out, previous_lse=lse,
        )  # fmt: skip
    got = ops.mla_prefill(
        q,
        kv[500:],
        k_pe[500:],
        cu_q,
        int32([0, 200]).cuda(),
        0.1,
        previous_out=out,
        previous_lse=lse,
    )
    assert_error_within(got[0].cpu(), want[0].cpu(), naive[0].cpu())
    assert_error_within(got[1].cpu(), want[1].cpu(), naive[1].cpu())


def test_graph_replay() -> None:
    given = to_gpu(prepare_inputs("blocks", BF16, 8, 1536, 512, 64, 64))
    q_latent = torch.empty(8, 1536, dtype=BF16).cuda()
    call = lambda: ops.mla_prepare(**given, q_latent=q_latent)
    call()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    given["slots"].copy_(torch.arange(8).flip(0))
    given["positions"].zero_()
    given["qkv_a"].copy_(torch.randn(8, 2112))
    graph.replay()
    torch.cuda.synchronize()
    replayed = (q_latent.clone(), given["kv_cache"].clone())
    given["kv_cache"].zero_()
    call()
    live = torch.arange(8).cuda()
    assert_same_bits(
        [q_latent, given["kv_cache"].flatten(0, 1)[live]],
        [replayed[0], replayed[1].flatten(0, 1)[live]],
    )


def test_empty_and_rejects() -> None:
    given = to_gpu(prepare_inputs("blocks", BF16, 3, 1536, 512, 64, 64))
    none = {k: given[k][:0] for k in ("qkv_a", "positions", "slots")}
    assert ops.mla_prepare(**{**given, **none}, q_latent=None).shape == (0, 1536)  # type: ignore[union-attr]
    call = lambda **changed: ops.mla_prepare(**{**given, **changed}, q_latent=None)
    assert_rejects(
        "mla_prepare: positions: expected the device of qkv_a",
        call,
        positions=given["positions"].cpu(),
    )
    unaligned = torch.zeros(3, 2116, dtype=BF16).cuda()[:, 3:2115]
    assert_rejects(
        "qkv_a: expected rows that start at multiples of 16 bytes", call, qkv_a=unaligned
    )
    assert_rejects(
        "kv_scale: expected none for a kv_cache of dtype uint8", call, kv_scale=torch.ones(1).cuda()
    )
