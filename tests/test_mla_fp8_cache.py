"""Both FP8 formats of the latent cache on the CPU: append, decode and gather, against exact arithmetic on what the cache holds."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from seekernel import ops, reference
from tests.mla_testing import (
    BF16,
    F32,
    HUGE,
    assert_same_bits,
    assert_within,
    attention_bounds,
    cos_sin,
    for_each_thread_count,
    int32,
    offsets,
    paged_fp8,
)
from tests.op_testing import assert_rejects, assert_repeatable, opcheck

KV_LORA, ROPE, SCALE = 512, 64, 0.0721
FORMATS = ["blocks", "flat"]
PAGE_SIZES = [16, 32, 64, 128]


def kv_scale_of(kind: str) -> Tensor | None:
    return torch.tensor([0.0173]) if kind == "flat" else None


def rows_of(
    kind: str, lengths: tuple[int, ...], kv_lora: int = KV_LORA, rope: int = ROPE
) -> list[Tensor]:
    """Random cache rows; blocks of very different magnitude, so that a wrong multiplier shows."""
    magnitude = torch.exp2(torch.arange(kv_lora + rope) // 128 * 3.0 - 4)
    return [
        reference.quantize_latent(
            torch.randn(n, kv_lora + rope) * magnitude, kv_lora, kv_scale_of(kind)
        )
        for n in lengths
    ]


def decode_arguments(
    kind: str, page_size: int, dtype: torch.dtype = F32, h_q: int = 20
) -> tuple[dict[str, Any], list[Tensor]]:
    torch.manual_seed(0)
    s_kv, s_q = (100, 0, 1, 300, 5, 64), (1, 1, 2, 3, 0, 1)
    rows = rows_of(kind, s_kv)
    q = (torch.randn(sum(s_q), h_q, KV_LORA + ROPE) / 16).to(dtype)
    kv_cache, block_table = paged_fp8(rows, page_size)
    arguments = {
        "q": q,
        "kv_cache": kv_cache,
        "block_table": block_table,
        "seq_lens": int32(s_kv),
        "cu_seqlens_q": offsets(s_q),
        "softmax_scale": SCALE,
        "causal": True,
        "d_v": KV_LORA,
        "kv_scale": kv_scale_of(kind),
    }
    return arguments, rows


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("page_size", PAGE_SIZES)
@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_decode_is_exact_attention_over_what_the_cache_holds(
    kind: str, page_size: int, dtype: torch.dtype
) -> None:
    arguments, rows = decode_arguments(kind, page_size, dtype)
    out, lse = ops.mla_decode(**arguments)
    want_out, want_lse = reference.mla_decode(**arguments)
    cu = arguments["cu_seqlens_q"].tolist()
    for request, row in enumerate(rows):
        part = slice(cu[request], cu[request + 1])
        keys = reference.latent_values(row, KV_LORA, arguments["kv_scale"])
        keys = keys.unsqueeze(1).expand(-1, out.shape[1], -1)
        bounds = attention_bounds(
            arguments["q"][part], keys, keys[..., :KV_LORA], SCALE, True, dtype
        )
        assert_within(lse[part], want_lse[part], bounds.lse)
        assert_within(out[part], want_out[part], bounds.out)


@pytest.mark.parametrize("kind", FORMATS)
def test_bits_do_not_depend_on_page_size_or_threads(kind: str) -> None:
    first = ops.mla_decode(**decode_arguments(kind, 64, h_q=70)[0])
    for page_size in PAGE_SIZES:
        arguments, _ = decode_arguments(kind, page_size, h_q=70)
        for result in for_each_thread_count(lambda given=arguments: ops.mla_decode(**given)):
            assert_same_bits(result, first)


@pytest.mark.parametrize("kind", FORMATS)
def test_every_code_decodes_to_its_value(kind: str) -> None:
    """One key per code: its value row comes back as it is, NaN codes as NaN."""
    codes = torch.arange(256, dtype=torch.uint8)
    latent = codes[:, None].expand(-1, 128).contiguous()
    if kind == "flat":
        row = torch.cat([latent, torch.zeros(256, 8, dtype=torch.uint8)], dim=-1)
        rows = row.view(torch.float8_e4m3fn)
        factor = 0.0173
    else:
        factor = 0.0625
        scales = torch.full((256, 1), factor).view(torch.uint8)
        rope = torch.zeros(256, 8, dtype=BF16).view(torch.uint8)
        rows = torch.cat([latent, scales, rope], dim=-1)
    kv_cache, block_table = paged_fp8([rows[i : i + 1] for i in range(256)], 16)
    out, _ = ops.mla_decode(
        torch.zeros(256, 1, 136), kv_cache, block_table, int32([1] * 256), int32(range(257)),
        SCALE, d_v=128, kv_scale=kv_scale_of(kind),
    )  # fmt: skip
    want = codes.view(torch.float8_e4m3fn).float() * factor
    assert torch.equal(out[:, 0, 0].isnan(), want.isnan())
    assert torch.equal(out[:, 0].nan_to_num(7.0), want[:, None].expand(-1, 128).nan_to_num(7.0))


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("page_size", PAGE_SIZES)
@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_gather_is_exact(kind: str, page_size: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    lengths = (100, 0, 1, 77)
    rows = rows_of(kind, lengths)
    kv_cache, block_table = paged_fp8(rows, page_size)
    scale = kv_scale_of(kind)
    call = lambda: ops.mla_gather_latent(
        kv_cache, block_table, offsets(lengths), 178, KV_LORA, dtype, kv_scale=scale
    )
    latent, k_pe = call()
    values = reference.latent_values(torch.cat(rows), KV_LORA, scale)
    assert latent.dtype == k_pe.dtype == dtype
    # The product of an 8-bit code and a 24-bit multiplier is rounded once in float32.
    want = values.float().to(dtype)
    assert torch.equal(latent, want[:, :KV_LORA])
    assert torch.equal(k_pe, want[:, KV_LORA:])
    if kind == "blocks":
        assert torch.equal(latent.double(), values[:, :KV_LORA]), "power-of-two scales are exact"
    given = reference.mla_gather_latent(kv_cache, block_table, offsets(lengths), KV_LORA, scale)
    assert torch.equal(given[0].float().to(dtype), latent)
    assert_repeatable(call)


def prepare_arguments(kind: str, page_size: int, dtype: torch.dtype = BF16) -> dict[str, Any]:
    torch.manual_seed(0)
    s, q_lora = 50, 96
    num_pages = -(-70 // page_size)
    slots = torch.randperm(70)[:s]
    slots[1::3] = -1
    positions = torch.randint(0, 5000, (s,), dtype=torch.int32)
    positions[1::3] = HUGE
    row = KV_LORA + ROPE if kind == "flat" else 656
    cache = torch.full((num_pages, page_size, row), 0x35, dtype=torch.uint8)
    return {
        "qkv_a": (torch.randn(s, q_lora + KV_LORA + ROPE) * 3).to(dtype),
        "q_norm_weight": torch.randn(q_lora),
        "kv_norm_weight": torch.randn(KV_LORA) * torch.exp2(torch.arange(KV_LORA) // 128 * 4.0 - 6),
        "positions": positions,
        "cos_sin": cos_sin(5000, ROPE),
        "slots": slots,
        "eps": 1e-6,
        "q_latent": None,
        "kv_cache": cache.view(torch.float8_e4m3fn) if kind == "flat" else cache,
        "kv_scale": kv_scale_of(kind),
    }


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("page_size", PAGE_SIZES)
@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_append_is_within_half_a_step(kind: str, page_size: int, dtype: torch.dtype) -> None:
    arguments = prepare_arguments(kind, page_size, dtype)
    before = arguments["kv_cache"].clone()
    given = {name: value for name, value in arguments.items() if name != "q_latent"}
    want_q, want = reference.mla_prepare(**given)
    want, scale = want.flatten(0, 1), arguments["kv_scale"]
    q_latent = ops.mla_prepare(**arguments)
    assert q_latent is not None
    assert want_q is not None
    torch.testing.assert_close(q_latent.double(), want_q, rtol=2.0**-8, atol=1e-6)
    cache = arguments["kv_cache"]
    live = arguments["slots"][arguments["slots"] >= 0]
    dead = torch.ones(len(want), dtype=torch.bool)
    dead[live] = False
    raw = cache.flatten(0, 1).view(torch.uint8)
    assert torch.equal(raw[dead], before.flatten(0, 1).view(torch.uint8)[dead])
    values = reference.latent_values(cache, KV_LORA, scale).flatten(0, 1)[live]
    want = want[live]
    if scale is not None:
        steps = scale.double().expand(want.shape)
        want = want.clamp(-448 * steps, 448 * steps)  # the largest code
    else:
        multipliers = raw[live][:, KV_LORA : KV_LORA + 16].contiguous().view(F32).double()
        amax = want[:, :KV_LORA].unflatten(-1, (4, 128)).abs().amax(-1)
        assert torch.equal(torch.frexp(multipliers)[0], torch.full_like(multipliers, 0.5))
        assert (amax <= 448 * multipliers * (1 + 1e-6)).all()
        assert (amax >= 224 * multipliers * (1 - 1e-6)).all()
        steps = torch.cat([multipliers.repeat_interleave(128, 1), torch.zeros(len(live), ROPE)], 1)
    # Half an ulp of e4m3 (relative 2^-4, absolute 2^-10 steps) or bfloat16, after float32 arithmetic.
    rounding = torch.where(steps > 0, want.abs() * 2.0**-4 + steps * 2.0**-10, want.abs() * 2.0**-8)
    arithmetic = 1e-6 * want.abs().amax(-1, keepdim=True)
    assert ((values - want).abs() <= rounding * (1 + 1e-5) + arithmetic).all()


@pytest.mark.parametrize("kind", FORMATS)
def test_append_stores_the_codes_of_its_definition(kind: str) -> None:
    """Of float32 rows whose norm is known to the bit, codes and multipliers are those of the reference."""
    arguments = prepare_arguments(kind, 64, F32)
    latent = torch.randint(-8, 9, (50, KV_LORA)).float()
    latent[:, ::2] = 16.0  # the sum of squares is exact; the norm's factor is one float32 number
    arguments["qkv_a"][:, 96 : 96 + KV_LORA] = latent
    arguments["qkv_a"][3, 96 : 96 + KV_LORA] = 0.0
    arguments["positions"] = int32([0] * 50)
    inverse = 1.0 / torch.sqrt(
        arguments["qkv_a"][:, 96 : 96 + KV_LORA].square().sum(-1, keepdim=True) / KV_LORA + 1e-6
    )
    normed = arguments["qkv_a"][:, 96 : 96 + KV_LORA] * inverse * arguments["kv_norm_weight"]
    rows = torch.cat([normed, arguments["qkv_a"][:, 96 + KV_LORA :]], dim=-1)
    want = reference.quantize_latent(rows, KV_LORA, arguments["kv_scale"]).view(torch.uint8)
    ops.mla_prepare(**arguments)
    got = arguments["kv_cache"].view(torch.uint8).flatten(0, 1)
    live = arguments["slots"] >= 0
    assert torch.equal(got[arguments["slots"][live]], want[live])


@pytest.mark.parametrize("kind", FORMATS)
def test_append_then_decode_equals_decode_of_the_quantised_rows(kind: str) -> None:
    """What one op writes, the others read: through pages of every size."""
    results = []
    for page_size in PAGE_SIZES:
        arguments = prepare_arguments(kind, page_size)
        arguments["slots"] = torch.arange(50)
        arguments["positions"] = int32(range(50))
        ops.mla_prepare(**arguments)
        torch.manual_seed(1)
        table = torch.arange(arguments["kv_cache"].shape[0], dtype=torch.int32)[None]
        results.append(
            ops.mla_decode(
                torch.randn(1, 3, KV_LORA + ROPE), arguments["kv_cache"], table, int32([50]),
                int32([0, 1]), SCALE, kv_scale=arguments["kv_scale"],
            )
        )  # fmt: skip
        latent, k_pe = ops.mla_gather_latent(
            arguments["kv_cache"],
            table,
            int32([0, 50]),
            50,
            dtype=F32,
            kv_scale=arguments["kv_scale"],
        )
        keys = torch.cat([latent, k_pe], -1)[:, None].expand(-1, 3, -1)
        torch.manual_seed(1)
        q = torch.randn(1, 3, KV_LORA + ROPE)
        want_out, want_lse = reference.attention(
            q.double(), keys.double(), keys[..., :KV_LORA].double(), SCALE, True
        )
        bounds = attention_bounds(q, keys, keys[..., :KV_LORA], SCALE, True, F32)
        assert_within(results[-1][0], want_out, bounds.out)
        assert_within(results[-1][1], want_lse, bounds.lse)
        assert_same_bits(results[-1], results[0])


def test_a_nan_row_and_an_infinite_row() -> None:
    arguments = prepare_arguments("blocks", 64, F32)
    arguments["slots"], arguments["positions"] = torch.arange(50), int32([0] * 50)
    arguments["kv_norm_weight"][200] = math.nan  # poisons one value of the second block
    ops.mla_prepare(**arguments)
    values = reference.latent_values(arguments["kv_cache"], KV_LORA).flatten(0, 1)[:50]
    assert values[:, 200].isnan().all()
    values[:, 200] = 0
    assert torch.isfinite(values).all(), "one NaN does not poison its block"


def test_opcheck() -> None:
    # The flat format cannot be had: opcheck multiplies its inputs, which torch does not for e4m3.
    a = prepare_arguments("blocks", 16)
    scale = a.pop("kv_scale")
    a["positions"] = int32([0] * 50)
    opcheck("mla_prepare", *{**a, "q_latent": torch.empty(50, 96, dtype=BF16)}.values(), scale)
    table = torch.arange(a["kv_cache"].shape[0], dtype=torch.int32)[None]
    opcheck(
        "mla_gather_latent", a["kv_cache"], table, int32([0, 9]), torch.empty(9, 512),
        torch.empty(9, 64), scale,
    )  # fmt: skip
    opcheck(
        "mla_decode", torch.randn(1, 2, 576), a["kv_cache"], table, int32([5]), int32([0, 1]),
        0.1, True, 512, torch.empty(1, 2, 512), torch.empty(1, 2), scale,
    )  # fmt: skip


def test_rejects() -> None:
    arguments, _ = decode_arguments("blocks", 64)
    flat, _ = decode_arguments("flat", 64)
    call = ops.mla_decode
    assert_rejects(
        "mla_decode: kv_scale: expected one for a kv_cache of dtype float8_e4m3fn, got none",
        call, **{**flat, "kv_scale": None},
    )  # fmt: skip
    assert_rejects(
        "mla_decode: kv_scale: expected none for a kv_cache of dtype uint8, got one",
        call, **{**arguments, "kv_scale": torch.ones(1)},
    )  # fmt: skip
    assert_rejects(
        "mla_decode: kv_scale: expected shape [1], got shape []",
        call, **{**flat, "kv_scale": torch.tensor(1.0)},
    )  # fmt: skip
    assert_rejects(
        "kv_scale: expected dtype float32", call, **{**flat, "kv_scale": torch.ones(1).double()}
    )
    pages = arguments["kv_cache"].shape[0]
    assert_rejects(
        f"mla_decode: kv_cache: expected shape [num_pages={pages}, page_size=64, 656], got shape [{pages}, 64, 655]",
        call, **{**arguments, "kv_cache": arguments["kv_cache"][..., :655].contiguous()},
    )  # fmt: skip
    assert_rejects(
        "kv_cache: expected kv_lora to be a multiple of 128 in the uint8 format, got 500",
        call, **{**arguments, "d_v": 500},
    )  # fmt: skip
    assert_rejects(
        "kv_cache: expected dtype float32 or bfloat16 or uint8 or float8_e4m3fn",
        call, **{**arguments, "kv_cache": arguments["kv_cache"].view(torch.int8)},
    )  # fmt: skip
