"""mla_prefill against its reference, what must not change its bits, and its match with mla_decode."""

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
from tests.op_testing import UNIT_ROUNDOFF, assert_rejects, assert_repeatable, opcheck

SCALE = 0.1352


@dataclass(frozen=True)
class Case:
    s_q: tuple[int, ...]
    s_kv: tuple[int, ...]
    h: int = 2
    nope: int = 128
    rope: int = 64
    d_v: int = 128
    q_dtype: torch.dtype = F32
    kv_dtype: torch.dtype = F32
    causal: bool = True

    def __str__(self) -> str:
        dtypes = f"{str(self.q_dtype)[6:]}-{str(self.kv_dtype)[6:]}"
        return f"q{self.s_q}-kv{self.s_kv}-h{self.h}-{self.nope}+{self.rope}+{self.d_v}-{dtypes}{'-causal' * self.causal}"


RAGGED = dict(s_q=(130, 5, 0, 7, 40), s_kv=(200, 3, 9, 0, 40))
CASES = [
    Case((), ()),
    Case((0,), (0,)),
    Case((1,), (1,)),
    Case((1,), (0,)),
    Case((300,), (300,)),
    *(
        Case(**RAGGED, q_dtype=q_dtype, kv_dtype=kv_dtype, causal=causal)
        for q_dtype in (F32, BF16)
        for kv_dtype in (F32, BF16)
        for causal in (True, False)
    ),
    Case(**RAGGED, h=3, nope=13, rope=6, d_v=33),  # no vector width divides these
    Case(**RAGGED, h=1, nope=0, rope=2, d_v=1),
    Case(**RAGGED, h=1, nope=5, rope=0, d_v=70, causal=False),
]


def make(case: Case, seed: int = 0) -> dict[str, Any]:
    torch.manual_seed(seed)
    s_q, s_kv = sum(case.s_q), sum(case.s_kv)
    return {
        "q": torch.randn(s_q, case.h, case.nope + case.rope).to(case.q_dtype),
        "kv": torch.randn(s_kv, case.h, case.nope + case.d_v).to(case.kv_dtype),
        "k_pe": torch.randn(s_kv, case.rope).to(case.kv_dtype),
        "cu_seqlens_q": offsets(case.s_q),
        "cu_seqlens_kv": offsets(case.s_kv),
        "softmax_scale": SCALE,
        "causal": case.causal,
    }


def keys_and_values(arguments: dict[str, Any], rows: slice, nope: int) -> tuple[Tensor, Tensor]:
    kv, k_pe = arguments["kv"][rows].double(), arguments["k_pe"][rows].double()
    k_pe = k_pe.unsqueeze(1).expand(-1, kv.shape[1], -1)
    return torch.cat([kv[..., :nope], k_pe], dim=-1), kv[..., nope:]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_mla_prefill(case: Case) -> None:
    arguments = make(case)
    out, lse = ops.mla_prefill(**arguments, d_v=case.d_v)
    want_out, want_lse = reference.mla_prefill(**arguments)
    assert out.dtype == case.q_dtype
    assert out.shape == want_out.shape
    assert lse.shape == want_lse.shape
    cu_q, cu_kv = arguments["cu_seqlens_q"].tolist(), arguments["cu_seqlens_kv"].tolist()
    for request in range(len(case.s_q)):
        part = slice(cu_q[request], cu_q[request + 1])
        cached = slice(cu_kv[request], cu_kv[request + 1])
        k, v = keys_and_values(arguments, cached, case.nope)
        bounds = attention_bounds(arguments["q"][part], k, v, SCALE, case.causal, case.q_dtype)
        assert_within(lse[part], want_lse[part], bounds.lse)
        assert_within(out[part], want_out[part], bounds.out)


def test_bits_do_not_depend_on_threads() -> None:
    arguments = make(Case(**RAGGED, h=5))
    first, *others = for_each_thread_count(lambda: ops.mla_prefill(**arguments))
    for other in others:
        assert_same_bits(other, first)
    assert_repeatable(lambda: ops.mla_prefill(**arguments))


def test_bits_do_not_depend_on_the_batch() -> None:
    arguments = make(Case(**RAGGED, h=5))
    together = ops.mla_prefill(**arguments)
    cu_q, cu_kv = arguments["cu_seqlens_q"].tolist(), arguments["cu_seqlens_kv"].tolist()
    for request, (s_q, s_kv) in enumerate(zip(RAGGED["s_q"], RAGGED["s_kv"], strict=True)):
        part, cached = (slice(cu[request], cu[request + 1]) for cu in (cu_q, cu_kv))
        alone = ops.mla_prefill(
            arguments["q"][part, 3:],
            arguments["kv"][cached, 3:],
            arguments["k_pe"][cached],
            offsets([s_q]),
            offsets([s_kv]),
            SCALE,
        )
        assert_same_bits(alone, [result[part, 3:] for result in together])


@pytest.mark.parametrize("piece", [7, 50, 128])
def test_prefill_in_pieces_gives_the_same_bits(piece: int) -> None:
    arguments = make(Case((290,), (290,)))
    whole = ops.mla_prefill(**arguments)
    for begin in range(0, 290, piece):
        end = min(290, begin + piece)
        part = ops.mla_prefill(
            arguments["q"][begin:end],
            arguments["kv"][:end],
            arguments["k_pe"][:end],
            offsets([end - begin]),
            offsets([end]),
            SCALE,
        )
        assert_same_bits(part, [result[begin:end] for result in whole])


@pytest.mark.parametrize("where", ["kv key", "kv value", "k_pe"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_a_query_does_not_see_cannot_harm_it(where: str, value: float) -> None:
    arguments = make(Case((150,), (200,)))
    clean = ops.mla_prefill(**arguments)
    bad = 111  # seen by queries 61 and later
    if where == "k_pe":
        arguments["k_pe"][bad, 5] = value
    else:
        arguments["kv"][bad, :, 5 if where == "kv key" else 130] = value
    out, lse = ops.mla_prefill(**arguments)
    assert_same_bits((out[:61], lse[:61]), [result[:61] for result in clean])
    assert not torch.isfinite(out[61:]).all(dim=-1).any() or value == math.inf
    assert not torch.equal(out[61:], clean[0][61:])


def test_large_scores_do_not_overflow() -> None:
    arguments = make(Case((4,), (300,), causal=False))
    arguments["q"][0, 0, :128] = arguments["kv"][77, 0, :128] * 1000
    arguments["q"][0, 0, 128:] = arguments["k_pe"][77] * 1000
    arguments["q"][1] *= -1e4
    out, lse = ops.mla_prefill(**arguments)
    assert torch.isfinite(out).all()
    assert torch.isfinite(lse).all()
    assert torch.equal(out[0, 0], arguments["kv"][77, 0, 128:])


def test_matches_absorbed_decode() -> None:
    """One sequence through both forms: kv = latent @ w.T per head, or w folded into q and out."""
    torch.manual_seed(0)
    s, h, nope, rope, d_v, lora = 150, 6, 128, 64, 128, 512
    latent, k_pe = torch.randn(s, lora), torch.randn(s, rope)
    q = torch.randn(s, h, nope + rope)
    w = torch.randn(h, nope + d_v, lora).double() / math.sqrt(lora)
    w_uk, w_uv = w[:, :nope], w[:, nope:]
    kv = torch.einsum("sl,hdl->shd", latent.double(), w)
    naive, naive_lse = ops.mla_prefill(q, kv.float(), k_pe, offsets([s]), offsets([s]), SCALE)
    q_absorbed = torch.cat(
        [torch.einsum("shd,hdl->shl", q[..., :nope].double(), w_uk), q[..., nope:].double()], dim=-1
    )
    rows = torch.cat([latent, k_pe], dim=-1)
    kv_cache, block_table = paged([rows], 64, lora + rope, F32)
    absorbed, absorbed_lse = ops.mla_decode(
        q_absorbed.float(), kv_cache, block_table, int32([s]), offsets([s]), SCALE
    )
    # Rounding kv and q_absorbed to float32 moves a score by one unit more than the bounds count.
    k, v = keys_and_values({"kv": kv, "k_pe": k_pe}, slice(0, s), nope)
    bound = attention_bounds(q, k, v, SCALE, True, F32)
    keys = rows.unsqueeze(1).expand(-1, h, -1)
    bound_absorbed = attention_bounds(q_absorbed, keys, keys[..., :lora], SCALE, True, F32)
    assert_within(absorbed_lse, naive_lse.double(), bound.lse + bound_absorbed.lse)
    got = torch.einsum("shl,hdl->shd", absorbed.double(), w_uv)
    tolerance = torch.einsum("shl,hdl->shd", bound_absorbed.out, w_uv.abs())
    assert_within(got, naive.double(), bound.out + tolerance + UNIT_ROUNDOFF[F32] * naive.abs())


def test_strides_and_given_out() -> None:
    arguments = make(Case((20,), (30,)))
    want = ops.mla_prefill(**arguments)
    wide = {"q": 5, "kv": 9, "k_pe": 3}
    for name, extra in wide.items():
        tensor = arguments[name]
        padded = torch.full((*tensor.shape[:-1], tensor.shape[-1] + extra), math.nan)
        padded[..., : tensor.shape[-1]] = tensor
        arguments[name] = padded[..., : tensor.shape[-1]]
    out = torch.full((20, 2, 200), math.nan)
    got = ops.mla_prefill(**arguments, out=out[..., :128])
    assert got[0].data_ptr() == out.data_ptr()
    assert_same_bits(got, want)
    assert out[..., 128:].isnan().all(), "wrote beyond the row"


def test_opcheck() -> None:
    arguments = make(Case((3, 0), (5, 2), nope=8, rope=4, d_v=6))
    opcheck("mla_prefill", *arguments.values(), torch.empty(3, 2, 6), torch.empty(3, 2))


REJECTED = {
    "q: expected dtype float32 or bfloat16, got shape [4, 2, 12]": {
        "q": torch.zeros(4, 2, 12).double()
    },
    "kv: expected shape [s_kv=6, h=2, 14], got shape [6, 1, 14]": {"kv": torch.zeros(6, 1, 14)},
    "kv: expected shape [s_kv=6, h=2, 14], got shape [6, 2, 15]": {"kv": torch.zeros(6, 2, 15)},
    "kv: expected stride 1 in the last dim": {"kv": torch.zeros(6, 14, 2).transpose(1, 2)},
    "k_pe: expected d_rope <= d_qk=12, got d_rope=13": {"k_pe": torch.zeros(6, 13)},
    "k_pe: expected shape [s_kv, d_rope], got shape [6, 1, 4]": {"k_pe": torch.zeros(6, 1, 4)},
    "cu_seqlens_q: expected shape [b + 1], got shape [0]": {"cu_seqlens_q": int32([])},
    "cu_seqlens_q: expected dtype int32": {"cu_seqlens_q": torch.tensor([0, 4])},
    "cu_seqlens_kv: expected shape [3], got shape [2]": {"cu_seqlens_kv": int32([0, 6])},
    "cu_seqlens_kv: expected values from 0 to 6, got from 0 to 7": {
        "cu_seqlens_kv": int32([0, 2, 7])
    },
    "cu_seqlens_kv: expected ascending values, got 8 then 6 at index 1": {
        "cu_seqlens_kv": int32([0, 8, 6])
    },
    "out: expected dtype float32 as q": {"out": torch.zeros(4, 2, 6).bfloat16()},
    "out: expected shape [s_q=4, h=2, d_v], got shape [3, 2, 6]": {"out": torch.zeros(3, 2, 6)},
    "lse: expected shape [s_q=4, h=2], got shape [2, 4]": {"lse": torch.zeros(2, 4)},
}


@pytest.mark.parametrize("message", REJECTED)
def test_rejects(message: str) -> None:
    arguments = make(Case((1, 3), (2, 4), nope=8, rope=4, d_v=6))
    arguments |= {"out": torch.zeros(4, 2, 6), **REJECTED[message]}
    assert_rejects("mla_prefill: " + message, ops.mla_prefill, **arguments)
