"""mla_decode against its reference, and what must not change its bits."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from seekernel import ops, reference
from tests.mla_testing import (
    BF16,
    F32,
    assert_same_bits,
    assert_within,
    attention_bounds,
    for_each_thread_count,
    int32,
    offsets,
    paged,
)
from tests.op_testing import assert_rejects, assert_repeatable, opcheck

SCALE = 0.0721


@dataclass(frozen=True)
class Case:
    s_kv: tuple[int, ...]
    s_q: tuple[int, ...]
    h_q: int = 16
    page_size: int = 64
    d_v: int = 512
    rope: int = 64
    q_dtype: torch.dtype = F32
    cache_dtype: torch.dtype = F32
    causal: bool = True

    def __str__(self) -> str:
        dtypes = f"{str(self.q_dtype)[6:]}-{str(self.cache_dtype)[6:]}"
        return f"kv{self.s_kv}-q{self.s_q}-h{self.h_q}-p{self.page_size}-{self.d_v}+{self.rope}-{dtypes}{'-causal' * self.causal}"


RAGGED = dict(s_kv=(100, 0, 1, 700, 5, 48), s_q=(1, 1, 2, 3, 0, 1))
CASES = [
    Case((), ()),
    Case((0,), (1,)),
    Case((1,), (1,)),
    Case((3,), (5,)),  # the first two queries see no key
    Case((65,), (1,), h_q=128),
    *(
        Case(**RAGGED, h_q=h_q, page_size=page_size, q_dtype=q_dtype, cache_dtype=cache_dtype)
        for h_q, page_size, q_dtype, cache_dtype in (
            (16, 64, F32, F32),
            (40, 1, F32, BF16),
            (3, 7, BF16, BF16),
            (9, 16, BF16, F32),
        )
    ),
    Case(**RAGGED, h_q=5, causal=False),
    Case(**RAGGED, h_q=7, d_v=33, rope=6),  # no vector width divides these
    Case(**RAGGED, h_q=2, d_v=1, rope=0, cache_dtype=BF16),
    Case((6500,), (1,), h_q=4, d_v=32, rope=8),  # more keys than 32 chunks of the usual size
]


def make(case: Case, seed: int = 0) -> tuple[dict[str, Any], list[Tensor]]:
    """Return (arguments of mla_decode, the cached rows of every request as the cache holds them)."""
    torch.manual_seed(seed)
    d_qk = case.d_v + case.rope
    rows = [torch.randn(length, d_qk).to(case.cache_dtype) for length in case.s_kv]
    kv_cache, block_table = paged(rows, case.page_size, d_qk, case.cache_dtype)
    arguments = {
        "q": torch.randn(sum(case.s_q), case.h_q, d_qk).to(case.q_dtype),
        "kv_cache": kv_cache,
        "block_table": block_table,
        "seq_lens": int32(case.s_kv),
        "cu_seqlens_q": offsets(case.s_q),
        "softmax_scale": SCALE,
        "causal": case.causal,
        "d_v": case.d_v,
    }
    return arguments, rows


@pytest.mark.parametrize("case", CASES, ids=str)
def test_mla_decode(case: Case) -> None:
    arguments, rows = make(case)
    out, lse = ops.mla_decode(**arguments)
    want_out, want_lse = reference.mla_decode(**arguments)
    assert out.dtype == case.q_dtype
    assert lse.dtype == F32
    assert out.shape == want_out.shape
    assert lse.shape == want_lse.shape
    cu = arguments["cu_seqlens_q"].tolist()
    for request, row in enumerate(rows):
        part = slice(cu[request], cu[request + 1])
        keys = row.unsqueeze(1).expand(-1, case.h_q, -1)
        bounds = attention_bounds(
            arguments["q"][part], keys, keys[..., : case.d_v], SCALE, case.causal, case.q_dtype
        )
        assert_within(lse[part], want_lse[part], bounds.lse)
        assert_within(out[part], want_out[part], bounds.out)


def test_no_key_gives_zero_and_minus_infinity() -> None:
    out, lse = ops.mla_decode(**make(Case((3, 0), (5, 1)))[0])
    assert (out[:2] == 0).all()
    assert (lse[:2] == -math.inf).all()
    assert torch.isfinite(lse[2:5]).all()
    assert (out[5] == 0).all()
    assert (lse[5] == -math.inf).all()


@pytest.mark.parametrize(
    "case", [Case(**RAGGED), Case((6000,), (1,)), Case((900,), (1,), h_q=70)], ids=str
)
def test_bits_do_not_depend_on_threads(case: Case) -> None:
    arguments, _ = make(case)
    first, *others = for_each_thread_count(lambda: ops.mla_decode(**arguments))
    for other in others:
        assert_same_bits(other, first)
    assert_repeatable(lambda: ops.mla_decode(**arguments))


def test_bits_do_not_depend_on_the_batch() -> None:
    case = Case(**RAGGED, h_q=37)
    arguments, rows = make(case)
    together = ops.mla_decode(**arguments)
    cu = arguments["cu_seqlens_q"].tolist()
    for request, row in enumerate(rows):
        kv_cache, block_table = paged([row], 5, case.d_v + case.rope, F32)
        for token in range(cu[request], cu[request + 1]):
            alone = ops.mla_decode(
                arguments["q"][token : token + 1, 30:34],
                kv_cache,
                block_table,
                int32([max(0, len(row) - (cu[request + 1] - 1 - token))]),
                int32([0, 1]),
                SCALE,
            )
            assert_same_bits(alone, [result[token : token + 1, 30:34] for result in together])


def test_a_nan_stays_with_those_who_see_it() -> None:
    case = Case((200,), (3,), h_q=4)
    arguments, rows = make(case)
    clean_out, clean_lse = ops.mla_decode(**arguments)
    rows[0][198, 7] = math.nan  # the second of the three new tokens
    kv_cache, block_table = paged(rows, case.page_size, 576, F32)
    out, lse = ops.mla_decode(**{**arguments, "kv_cache": kv_cache, "block_table": block_table})
    assert_same_bits((out[0], lse[0]), (clean_out[0], clean_lse[0]))
    assert lse[1:].isnan().all()
    assert out[1:].isnan().all()
    arguments["q"][0, 2, 500] = math.nan  # one head of one token
    out, lse = ops.mla_decode(**arguments)
    bad = torch.zeros(3, 4, dtype=torch.bool)
    bad[0, 2] = True
    assert torch.equal(lse.isnan(), bad)
    assert_same_bits((out[~bad], lse[~bad]), (clean_out[~bad], clean_lse[~bad]))


def test_large_scores_do_not_overflow() -> None:
    case = Case((300,), (1,), h_q=2)
    arguments, rows = make(case)
    arguments["q"][0, 0] = rows[0][123] * 1000  # its score is about 4e4, e^that is not a float
    arguments["q"][0, 1] = -rows[0][5] * 1000
    out, lse = ops.mla_decode(**arguments)
    assert torch.isfinite(out).all()
    assert torch.isfinite(lse).all()
    assert torch.equal(out[0, 0], rows[0][123, :512])


def test_given_outputs_and_strides() -> None:
    case = Case((70, 30), (1, 1), h_q=4)
    arguments, _ = make(case)
    want = ops.mla_decode(**arguments)
    wide = torch.full((2, 4, 600), math.nan)
    wide[..., :576] = arguments["q"]
    layers = torch.full((arguments["kv_cache"].shape[0], 2, 64, 580), math.nan)
    layers[:, 1, :, :576] = arguments["kv_cache"]
    arguments |= {"q": wide[..., :576], "kv_cache": layers[:, 1, :, :576]}
    out, lse = torch.full((2, 4, 520), math.nan), torch.empty(2, 4)
    got = ops.mla_decode(**arguments, out=out[..., :512], lse=lse)
    assert got[0].data_ptr() == out.data_ptr()
    assert got[1].data_ptr() == lse.data_ptr()
    assert_same_bits(got, want)
    assert out[..., 512:].isnan().all(), "wrote beyond the row"


def test_opcheck() -> None:
    arguments, _ = make(Case((5, 0), (2, 1), h_q=2, d_v=8, rope=4, page_size=4))
    opcheck("mla_decode", *arguments.values(), torch.empty(3, 2, 8), torch.empty(3, 2))


REJECTED = {
    "q: expected dtype float32 or bfloat16, got shape [4, 2, 12]": {
        "q": torch.zeros(4, 2, 12).half()
    },
    "q: expected shape [s, h_q, d_qk], got shape [4, 24]": {"q": torch.zeros(4, 24)},
    "kv_cache: expected shape [num_pages=9, page_size=4, 12], got shape [9, 4, 13]": {
        "kv_cache": torch.zeros(9, 4, 13)
    },
    "kv_cache: expected page_size > 0, got 0": {"kv_cache": torch.zeros(9, 0, 12)},
    "kv_cache: expected stride 1 in the last dimension": {
        "kv_cache": torch.zeros(9, 12, 4).transpose(1, 2)
    },
    "seq_lens: expected dtype int32": {"seq_lens": torch.tensor([5, 9])},
    "seq_lens[1]: expected a length >= 0, got -1": {"seq_lens": int32([5, -1])},
    "block_table: request 1 of 99 tokens: expected at least 25 pages, got max_pages=5": {
        "seq_lens": int32([5, 99])
    },
    "block_table: expected shape [b=2, max_pages], got shape [3, 4]": {
        "block_table": int32([0] * 12).view(3, 4)
    },
    "block_table[1, 0]: expected a page in [0, num_pages=": {
        "block_table": int32([0, 1, 0, 1 << 30, 0, 0]).view(2, 3)
    },
    "block_table[0, 1]: expected a page in [0, num_pages=": {
        "block_table": int32([0, -1, 0, 0, 0, 0]).view(2, 3)
    },
    "cu_seqlens_q: expected shape [3], got shape [2]": {"cu_seqlens_q": int32([0, 4])},
    "cu_seqlens_q: expected ascending values, got 5 then 4 at index 1": {
        "cu_seqlens_q": int32([0, 5, 4])
    },
    "cu_seqlens_q: expected values from 0 to 4, got from 0 to 3": {
        "cu_seqlens_q": int32([0, 1, 3])
    },
    "cu_seqlens_q: expected values from 0 to 4, got from 1 to 4": {
        "cu_seqlens_q": int32([1, 1, 4])
    },
    "d_v: expected a value in [0, d_qk=12], got 13": {"d_v": 13},
    "out: expected shape [s=4, h_q=2, 8], got shape [4, 2, 9]": {"out": torch.zeros(4, 2, 9)},
    "out: expected dtype float32 as q": {"out": torch.zeros(4, 2, 8).bfloat16()},
    "lse: expected dtype float32": {"lse": torch.zeros(4, 2).double()},
    "lse: expected a contiguous tensor": {"lse": torch.zeros(2, 4).t()},
}


@pytest.mark.parametrize("message", REJECTED)
def test_rejects(message: str) -> None:
    arguments, _ = make(Case((5, 9), (1, 3), h_q=2, d_v=8, rope=4, page_size=4))
    assert_rejects("mla_decode: " + message, ops.mla_decode, **{**arguments, **REJECTED[message]})
