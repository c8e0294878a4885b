"""mla_prepare, rope_interleaved and mla_gather_latent against their references."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from seekernel import ops, reference
from tests.mla_testing import (
    BF16,
    F32,
    HUGE,
    assert_same_bits,
    cos_sin,
    for_each_thread_count,
    int32,
    offsets,
    paged,
)
from tests.op_testing import assert_error_within, assert_rejects, assert_repeatable, opcheck

EPS = 1e-6
MAX_POS = 5000


def make(
    s: int = 7,
    q_lora: int | None = 96,
    kv_lora: int = 512,
    rope: int = 64,
    dtype: torch.dtype = F32,
    cache_dtype: torch.dtype = F32,
    weight_dtype: torch.dtype = F32,
    wide_slots: bool = True,
) -> dict[str, Any]:
    torch.manual_seed(0)
    slots = torch.randperm(s + 20)[:s]
    slots[1::3] = -1
    positions = torch.randint(0, MAX_POS, (s,), dtype=torch.int32)
    positions[1::3] = HUGE  # of rows that are not stored: never looked up
    return {
        "qkv_a": (torch.randn(s, (q_lora or 0) + kv_lora + rope) * 3).to(dtype),
        "q_norm_weight": None if q_lora is None else torch.randn(q_lora).to(weight_dtype),
        "kv_norm_weight": torch.randn(kv_lora).to(weight_dtype),
        "positions": positions,
        "cos_sin": cos_sin(MAX_POS, rope),
        "slots": slots if wide_slots else slots.int(),
        "eps": EPS,
        "q_latent": None,
        "kv_cache": torch.full((-(-(s + 20) // 8), 8, kv_lora + rope), 7.0, dtype=cache_dtype),
    }


@pytest.mark.parametrize(
    "case",
    [
        {},
        {"s": 1},
        {"s": 300, "dtype": BF16, "cache_dtype": BF16, "weight_dtype": BF16},
        {"dtype": BF16, "cache_dtype": F32, "wide_slots": False},
        {"dtype": F32, "cache_dtype": BF16, "weight_dtype": BF16},
        {"q_lora": None},
        {"q_lora": 33, "kv_lora": 17, "rope": 6},
        {"q_lora": 5, "kv_lora": 1, "rope": 0, "cache_dtype": BF16},
    ],
    ids=str,
)
def test_mla_prepare(case: dict[str, Any]) -> None:
    arguments = make(**case)
    x, before = arguments["qkv_a"], arguments["kv_cache"].clone()
    given = {name: value for name, value in arguments.items() if name != "q_latent"}
    want_q, want_cache = reference.mla_prepare(**given)
    naive_q, naive_cache = reference.mla_prepare(**given, dtype=x.dtype)
    q_latent = ops.mla_prepare(**arguments)
    if want_q is None:
        assert q_latent is None
    else:
        assert q_latent is not None
        assert q_latent.dtype == x.dtype
        assert_error_within(q_latent, want_q, naive_q)
    cache = arguments["kv_cache"]
    assert_error_within(cache, want_cache, naive_cache.to(cache.dtype))
    written = torch.zeros(cache.shape[0] * cache.shape[1], dtype=torch.bool)
    written[arguments["slots"][arguments["slots"] >= 0].long()] = True
    assert torch.equal(cache.flatten(0, 1)[~written], before.flatten(0, 1)[~written])


def test_mla_prepare_bits_do_not_depend_on_threads_or_batch() -> None:
    arguments = make(s=200)

    def call() -> tuple[torch.Tensor, ...]:
        cache = torch.zeros_like(arguments["kv_cache"])
        q_latent = ops.mla_prepare(**{**arguments, "kv_cache": cache})
        assert q_latent is not None
        return q_latent, cache

    first, *others = for_each_thread_count(call)
    for other in others:
        assert_same_bits(other, first)
    assert_repeatable(call)
    alone = torch.zeros_like(arguments["kv_cache"])
    for i in range(200):
        one = {
            k: v[i : i + 1] for k, v in arguments.items() if k in ("qkv_a", "positions", "slots")
        }
        q_latent = ops.mla_prepare(**{**arguments, **one, "kv_cache": alone})
        assert q_latent is not None
        assert_same_bits([q_latent[0]], [first[0][i]])
    assert_same_bits([alone], [first[1]])


def test_mla_prepare_strides_and_a_nan_row() -> None:
    arguments = make()
    want_cache = arguments["kv_cache"].clone()
    want = ops.mla_prepare(**{**arguments, "kv_cache": want_cache})
    assert want is not None
    wide = torch.full((7, 700), math.nan)
    wide[:, :672] = arguments["qkv_a"]
    layers = torch.full((want_cache.shape[0], 2, 8, 576), 7.0)
    out = torch.full((7, 100), math.nan)
    got = ops.mla_prepare(
        **{**arguments, "qkv_a": wide[:, :672], "kv_cache": layers[:, 1], "q_latent": out[:, :96]}
    )
    assert got is not None
    assert_same_bits((got, layers[:, 1]), (want, want_cache))
    assert (layers[:, 0] == 7).all()
    assert out[:, 96:].isnan().all()
    arguments["qkv_a"][2] = math.nan
    got = ops.mla_prepare(**arguments)
    assert got is not None
    assert got[2].isnan().all()
    assert_same_bits([got[3:]], [want[3:]])


@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize(("s", "h", "rope"), [(5, 3, 64), (300, 16, 64), (2, 1, 2), (3, 2, 10)])
def test_rope_interleaved(dtype: torch.dtype, s: int, h: int, rope: int) -> None:
    torch.manual_seed(0)
    table, positions = cos_sin(MAX_POS, rope), torch.randint(0, MAX_POS, (s,), dtype=torch.int32)
    q = torch.randn(s, h, rope + 24).to(dtype)
    before, x = q.clone(), q[..., 24:]
    want, naive = (
        reference.rope_interleaved(x, positions, table, t) for t in (torch.float64, dtype)
    )
    again = ops.rope_interleaved(before[..., 24:].clone(), positions, table)
    result = ops.rope_interleaved(x, positions, table)
    assert result.data_ptr() == x.data_ptr()
    assert_error_within(x, want, naive)
    assert_same_bits([x, q[..., :24]], [again, before[..., :24]])


def test_rope_keeps_the_scores_of_equal_distances() -> None:
    """What rope is for: q at i against k at j depends on i - j alone."""
    torch.manual_seed(0)
    q, k = torch.randn(1, 1, 64), torch.randn(1, 1, 64)
    table = cos_sin(200, 64)

    def score(i: int, j: int) -> torch.Tensor:
        rotated_q = ops.rope_interleaved(q.clone(), int32([i]), table)
        return (rotated_q * ops.rope_interleaved(k.clone(), int32([j]), table)).sum()

    torch.testing.assert_close(score(107, 100), score(7, 0), rtol=0, atol=64 * 2.0**-24 * 64)
    assert (score(107, 100) - score(8, 0)).abs() > 1e-3


@pytest.mark.parametrize("cache_dtype", [F32, BF16])
@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("page_size", [1, 7, 64])
def test_mla_gather_latent(cache_dtype: torch.dtype, dtype: torch.dtype, page_size: int) -> None:
    torch.manual_seed(0)
    lengths = (100, 0, 1, 77)
    rows = [torch.randn(length, 40).to(cache_dtype) for length in lengths]
    kv_cache, block_table = paged(rows, page_size, 40, cache_dtype)
    latent, k_pe = torch.empty(178, 33, dtype=dtype), torch.empty(178, 7)
    call = lambda: ops.mla_gather_latent(
        kv_cache, block_table, offsets(lengths), 178, 33, latent=latent, k_pe=k_pe
    )
    result = call()
    assert result[0].data_ptr() == latent.data_ptr()
    assert torch.equal(latent, torch.cat(rows)[:, :33].to(dtype))
    assert torch.equal(k_pe, torch.cat(rows)[:, 33:].float())
    want = reference.mla_gather_latent(kv_cache, block_table, offsets(lengths), 33)
    assert torch.equal(latent, want[0].to(dtype))
    assert torch.equal(k_pe, want[1].float())
    assert_repeatable(call)
    allocated = ops.mla_gather_latent(kv_cache, block_table, offsets(lengths), 178, 33, dtype)
    assert [tensor.dtype for tensor in allocated] == [dtype, dtype]
    assert torch.equal(allocated[0], latent)
    assert torch.equal(allocated[1], want[1].to(dtype))


def test_empty() -> None:
    arguments = make(s=0)
    q_latent = ops.mla_prepare(**arguments)
    assert q_latent is not None
    assert q_latent.shape == (0, 96)
    assert (arguments["kv_cache"] == 7).all()
    for shape in ((0, 3, 8), (3, 0, 8), (2, 2, 0)):
        x = torch.empty(shape)
        ops.rope_interleaved(x, int32([0] * shape[0]), cos_sin(4, shape[2]))
    cache = torch.empty(0, 8, 576)
    for b in (0, 2):
        latent, k_pe = ops.mla_gather_latent(cache, int32([]).view(b, 0), int32([0] * (b + 1)), 0)
        assert latent.shape == (0, 512)
        assert k_pe.shape == (0, 64)


def test_opcheck() -> None:
    a = make(s=3, q_lora=8, kv_lora=16, rope=4)
    a["positions"] = int32([1, 2, 3])
    opcheck("mla_prepare", *{**a, "q_latent": torch.empty(3, 8)}.values())
    opcheck("rope_interleaved", torch.randn(3, 2, 4), a["positions"], a["cos_sin"])
    table, latent = int32([1, 0]).view(1, 2), torch.empty(9, 16)
    opcheck("mla_gather_latent", a["kv_cache"], table, int32([0, 9]), latent, torch.empty(9, 4))


PREPARE_REJECTED: dict[str, dict[str, Any]] = {
    "qkv_a: expected shape [s=7, 672], got shape [7, 671]": {"qkv_a": torch.zeros(7, 671)},
    "qkv_a: expected dtype float32 or bfloat16": {"qkv_a": torch.zeros(7, 672).half()},
    "expected q_norm_weight and q_latent together or neither": {
        "q_norm_weight": None,
        "q_latent": torch.zeros(7, 96),
    },
    "positions: expected shape [s=7], got shape [6]": {"positions": int32([0] * 6)},
    "positions: expected dtype int32": {"positions": torch.zeros(7).long()},
    "positions[2]: expected a value in [0, max_pos=5000), got 5000": {
        "positions": int32([0, 0, 5000, 0, 0, 0, 0])
    },
    "positions[3]: expected a value in [0, max_pos=5000), got -1": {
        "positions": int32([0, 0, 0, -1, 0, 0, 0])
    },
    "slots[0]: expected -1 or a value in [0, 32), got 32": {"slots": int32([32, 1, 2, 3, 4, 5, 6])},
    "slots[6]: expected -1 or a value in [0, 32), got -2": {"slots": int32([7, 1, 2, 3, 4, 5, -2])},
    "slots: expected dtype int32 or int64": {"slots": torch.zeros(7)},
    "cos_sin: expected dtype float32": {"cos_sin": cos_sin(MAX_POS, 64).double()},
    "cos_sin: expected an even last dimension, got rope=63": {"cos_sin": torch.zeros(MAX_POS, 63)},
    "kv_cache: expected shape [num_pages=4, page_size=8, 576]": {
        "kv_cache": torch.zeros(4, 8, 575)
    },
    "q_latent: expected dtype float32 as qkv_a": {"q_latent": torch.zeros(7, 96).bfloat16()},
    "kv_norm_weight: expected a contiguous": {"kv_norm_weight": torch.zeros(1024)[::2]},
}


@pytest.mark.parametrize("message", PREPARE_REJECTED)
def test_mla_prepare_rejects(message: str) -> None:
    arguments = {**make(), "positions": int32([0] * 7), **PREPARE_REJECTED[message]}
    assert_rejects("mla_prepare: " + message, ops.mla_prepare, **arguments)


def test_rope_and_gather_reject() -> None:
    x, table = torch.zeros(2, 3, 8), cos_sin(4, 8)
    rope = ops.rope_interleaved
    assert_rejects(
        "rope_interleaved: x: expected shape [s, h, rope]", rope, x[0], int32([0, 0]), table
    )
    assert_rejects(
        "positions[1]: expected a value in [0, max_pos=4), got 4", rope, x, int32([0, 4]), table
    )
    assert_rejects(
        "cos_sin: expected shape [max_pos=4, rope=8]", rope, x, int32([0, 0]), table[:, :6]
    )
    assert_rejects("x: expected an even last", rope, x[..., :7], int32([0, 0]), table[:, :7])
    gather = torch.ops.seekernel.mla_gather_latent
    cache, latent, k_pe = torch.zeros(2, 4, 12), torch.zeros(5, 8), torch.zeros(5, 4)
    pages = int32([1, 0]).view(1, 2)
    assert_rejects(
        "mla_gather_latent: kv_cache: expected shape [num_pages=2, page_size=4, 12]",
        gather,
        cache[..., :11],
        pages,
        int32([0, 5]),
        latent,
        k_pe,
    )
    assert_rejects(
        "cu_seqlens_kv: expected values from 0 to 5, got from 0 to 6",
        gather,
        cache,
        pages,
        int32([0, 6]),
        latent,
        k_pe,
    )
    assert_rejects(
        "block_table[0, 1]: expected a page in [0, num_pages=2), got 2",
        gather,
        cache,
        int32([0, 2]).view(1, 2),
        int32([0, 5]),
        latent,
        k_pe,
    )
    assert_rejects(
        "k_pe: expected shape [s_kv=5, rope], got shape [4, 4]",
        gather,
        cache,
        pages,
        int32([0, 5]),
        latent,
        k_pe[:4],
    )
