"""One small call per op, with vector bodies and tails of every instruction set."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from seekernel import ops

Calls = list[Callable[[], Any]]


def int32(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def fused_calls() -> Calls:
    x, weight, w = torch.randn(5, 301), torch.randn(301), torch.randn(130, 301)
    q, scale = ops.quantize_fp8_128x128(w)
    return [
        lambda: ops.rms_norm(x, weight, 1e-6),
        lambda: ops.add_rms_norm(x.bfloat16(), x.bfloat16(), weight, 1e-6),
        lambda: ops.silu_mul(torch.randn(3, 602)),
        lambda: ops.silu_mul_quantize(torch.randn(3, 602)),
        lambda: ops.add_rms_norm_quantize(x, x.clone(), weight, 1e-6),
        lambda: ops.add_rms_norm_quantize(
            None, x.bfloat16(), weight, 1e-6, True, torch.tensor([3, 0, 129, 1, 2]), w
        ),
        lambda: ops.quantize_fp8_1x128(x),
        lambda: ops.quantize_fp8_128x128(w.bfloat16()),
        lambda: ops.dequantize_fp8_128x128(q, scale, torch.bfloat16),
        lambda: ops.quantize_int4_g128(w[:, :300]),
    ]


def moe_calls() -> Calls:
    logits, bias = torch.randn(5, 48), torch.randn(48) * 0.1
    weights, ids = ops.moe_gate(logits, bias, 4, 8, 3)
    plan = ops.moe_plan(ids, 48)
    y = torch.randn(20, 301).bfloat16()
    return [
        lambda: ops.moe_gate(logits, bias, 4, 8, 3, "sigmoid"),
        lambda: ops.moe_gate(logits, None, 4, scoring_func="softmax"),
        lambda: ops.moe_plan(ids, 40, 4),
        lambda: ops.moe_plan(ids, 40, 4, block_rows=2, loads=torch.zeros(48, dtype=torch.int64)),
        lambda: ops.moe_finalize(y, plan.token_row, weights, y[:5]),
        lambda: ops.moe_finalize_norm(
            y, plan.token_row, weights, y[5:10].clone(), torch.randn(301), 1e-6, quantize=True
        ),
        lambda: ops.moe_permute_fp8(*ops.quantize_fp8_1x128(y), plan.row_token % 20),
        lambda: ops.router_gemm(torch.randn(5, 301), torch.randn(33, 301).bfloat16()),
        lambda: ops.moe_route(torch.randn(5, 301), torch.randn(48, 301), bias, 4, 8, 3),
    ]


def gemm_calls() -> Calls:
    a, w = torch.randn(7, 301), torch.randn(3, 132, 301)
    quantized = [ops.quantize_fp8_128x128(matrix) for matrix in w]
    q, scale = (torch.stack(parts) for parts in zip(*quantized, strict=True))
    gates = [ops.quantize_fp8_128x128(matrix[:66]) for matrix in w]
    ups = [ops.quantize_fp8_128x128(matrix[66:]) for matrix in w]
    halves = list(zip(gates, ups, strict=True))
    q_swiglu = torch.stack([torch.cat([gate[0], up[0]]) for gate, up in halves])
    scale_swiglu = torch.stack([torch.cat([gate[1], up[1]]) for gate, up in halves])
    a_fp8, a_scale = ops.quantize_fp8_1x128(a)
    offsets, row_token = int32(0, 2, 2, 7), int32(6, 5, 4, 3, 2, 1, 0)
    batch, bf16 = torch.randn(3, 7, 301), w.bfloat16()
    pairs = [ops.quantize_int4_g128(matrix[:, :256]) for matrix in w]
    int4 = [torch.stack(parts) for parts in zip(*pairs, strict=True)]
    return [
        lambda: ops.fp8_gemm_nt(a[:1], None, q[0], scale[0]),
        lambda: ops.fp8_gemm_nt(a.bfloat16(), None, q[0], scale[0]),
        lambda: ops.fp8_gemm_nt(a_fp8, a_scale, q[0], scale[0], torch.zeros(7, 132)),
        lambda: ops.fp8_bmm_nt(batch, None, q, scale),
        lambda: ops.fp8_grouped_gemm_nt(a, None, q, scale, offsets),
        lambda: ops.w4a8_grouped_gemm_nt(a[:, :256], None, int4[0], int4[1], offsets),
        lambda: ops.fp8_grouped_gemm_swiglu_nt(a, None, q_swiglu, scale_swiglu, offsets, row_token),
        lambda: ops.gemm_nt(a, w[0]),
        lambda: ops.bmm_nt(batch, bf16),
        lambda: ops.grouped_gemm_nt(a, bf16, offsets),
        lambda: ops.grouped_gemm_swiglu_nt(a, w, offsets),
    ]


def attention_calls() -> Calls:
    kv_lora, rope, page = 72, 8, 16
    cache = torch.randn(4, page, kv_lora + rope)
    flat = cache.to(torch.float8_e4m3fn)
    blocks = torch.zeros(4, page, 128 + 4 + 2 * rope, dtype=torch.uint8)
    cos_sin = torch.randn(64, rope)
    pages, lengths, cu_q = torch.stack([int32(2, 0), int32(3, 1)]), int32(20, 1), int32(0, 2, 3)
    cu_kv = int32(0, 20, 21)
    qkv_a = torch.randn(3, 40 + kv_lora + rope)
    table = torch.zeros(4, 8, dtype=torch.int32)
    return [
        lambda: ops.mla_prepare(
            qkv_a,
            torch.randn(40),
            torch.randn(kv_lora),
            int32(5, 6, 7),
            cos_sin,
            int32(3, -1, 40),
            1e-6,
            None,
            cache.clone(),
        ),
        lambda: ops.rope_interleaved(torch.randn(3, 5, rope), int32(1, 2, 63), cos_sin),
        lambda: ops.mla_decode_metadata(
            int32(5, 0, 7),
            int32(0, 1, 2, 3),
            2,
            ops.MlaDecodePlan(table, table.clone(), torch.zeros(4, 8), torch.zeros(4), 0),
        ),
        lambda: ops.mla_decode(
            torch.randn(3, 5, kv_lora + rope), cache, pages, lengths, cu_q, 0.1, True, kv_lora
        ),
        lambda: ops.mla_prefill(
            torch.randn(3, 5, 40 + rope),
            torch.randn(21, 5, 80),
            torch.randn(21, rope),
            cu_q,
            cu_kv,
            0.1,
            d_v=40,
        ),
        lambda: ops.mla_gather_latent(cache, pages, cu_kv, 21, kv_lora),
        lambda: ops.mla_prepare(
            torch.randn(3, 136),
            None,
            torch.randn(128),
            int32(5, 6, 7),
            cos_sin,
            int32(3, -1, 40),
            1e-6,
            None,
            blocks.clone(),
        ),
        lambda: ops.mla_decode(
            torch.randn(3, 5, 136), blocks, pages, lengths, cu_q, 0.1, True, 128
        ),
        lambda: ops.mla_gather_latent(flat, pages, cu_kv, 21, kv_lora, kv_scale=torch.ones(1)),
        lambda: ops.merge_attention_states(
            torch.randn(3, 5, 41),
            torch.randn(3, 5),
            torch.randn(3, 5, 41).bfloat16(),
            torch.randn(3, 5),
        ),
    ]


def sampling_calls() -> Calls:
    r, v = 4, 301
    logits = torch.randn(r, v) * 3
    columns = (torch.rand(r) + 0.5, int32(0, 5, 0, 200), torch.rand(r), torch.rand(r) * 0.1)
    seeds = torch.arange(r)
    counts, slots = torch.randint(0, 5, (2, v), dtype=torch.int32), int32(0, 1, -1, 1)
    penalties = ops.Penalties(*columns[2:], columns[0], counts, slots, int32(1, 2, 3, 4)[:, None])
    bias = ops.LogitBias(int32(1, 2, -1, 9)[:, None], torch.randn(r, 1))
    mask = torch.full((r, 10), 0x5F5F5F5F, dtype=torch.int32)
    probs = torch.softmax(torch.randn(2, 3, v), -1)
    drafts, top = int32(5, 6, 7, 8).reshape(2, 2), torch.arange(24).reshape(2, 3, 4).int()
    logprobs = -torch.arange(24.0).reshape(2, 3, 4)
    return [
        lambda: ops.sample(logits, *columns, seeds, seeds, penalties, bias, mask),
        lambda: ops.sample(logits.bfloat16(), *columns, seeds, seeds, probs=torch.empty(r, v)),
        lambda: ops.token_logprobs(logits, int32(0, 300, 7, -1), 6),
        lambda: ops.add_token_counts(counts.clone(), slots, int32(3, 4, 5, 6)[:, None]),
        lambda: ops.mtp_verify_strict(int32(*range(6)).reshape(2, 3), drafts),
        lambda: ops.mtp_verify_relaxed(
            top, logprobs, drafts, int32(0, -1), torch.ones(1), 0.5, 3, 4
        ),
        lambda: ops.mtp_verify_rejection(
            probs, probs[:, 1:].contiguous(), drafts, seeds[:2], seeds[:2]
        ),
    ]


def example_calls() -> Calls:
    torch.manual_seed(0)
    return [*fused_calls(), *moe_calls(), *gemm_calls(), *attention_calls(), *sampling_calls()]
