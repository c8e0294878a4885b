"""References of mla_prepare, rope_interleaved, mla_decode, mla_prefill, mla_gather_latent, merge_attention_states.

They write nothing: what an op writes in place is returned as a new tensor.
"""

from __future__ import annotations

import torch
from torch import Tensor

from seekernel.reference.norm import rms_norm
from seekernel.reference.quantize import to_e4m3

_BLOCK = 128
_E4M3_MAX = 448.0


def quantize_latent(values: Tensor, kv_lora: int, kv_scale: Tensor | None = None) -> Tensor:
    """Return cache rows of values [..., kv_lora + rope] float32: flat with kv_scale, else in blocks.

    Blocks [..., kv_lora + kv_lora/32 + 2 rope] uint8: codes, float32 multipliers (powers of two), rope.
    """
    values = values.float()
    if kv_scale is not None:
        return to_e4m3(values / kv_scale)
    latent, rope = values[..., :kv_lora], values[..., kv_lora:]
    blocks = latent.reshape(*latent.shape[:-1], kv_lora // _BLOCK, _BLOCK)
    amax = blocks.abs().nan_to_num(nan=0.0, posinf=float("inf")).amax(-1)
    scale = torch.exp2(torch.ceil(torch.log2((amax.clamp_min(1e-4) / _E4M3_MAX).double()))).float()
    codes = to_e4m3(blocks / scale[..., None]).flatten(-2)
    parts = (codes.contiguous(), scale.contiguous(), rope.bfloat16().contiguous())
    return torch.cat([part.view(torch.uint8) for part in parts], dim=-1)


def latent_values(
    kv_cache: Tensor,
    kv_lora: int,
    kv_scale: Tensor | None = None,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Return the kv_lora + rope values of every row of a cache of any format, in `dtype`."""
    if kv_scale is not None:
        return kv_cache.to(dtype) * kv_scale.to(dtype)
    if kv_cache.dtype != torch.uint8:
        return kv_cache.to(dtype)
    blocks = kv_lora // _BLOCK
    sizes = [kv_lora, 4 * blocks, kv_cache.shape[-1] - kv_lora - 4 * blocks]
    codes, scales, rope = (part.contiguous() for part in kv_cache.split_with_sizes(sizes, dim=-1))
    latent = codes.view(torch.float8_e4m3fn).to(dtype)
    latent = latent.reshape(*latent.shape[:-1], blocks, _BLOCK)
    latent = latent * scales.view(torch.float32).to(dtype)[..., None]
    return torch.cat([latent.flatten(-2), rope.view(torch.bfloat16).to(dtype)], dim=-1)


def rope_interleaved(
    x: Tensor, positions: Tensor, cos_sin: Tensor, dtype: torch.dtype = torch.float64
) -> Tensor:
    """Return x [s, h, rope] with its pairs rotated as complex numbers, in `dtype`."""
    cos, sin = cos_sin[positions.long()].to(dtype).unsqueeze(1).chunk(2, dim=-1)
    even, odd = x.to(dtype).reshape(*x.shape[:-1], x.shape[-1] // 2, 2).unbind(-1)
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)


def mla_prepare(
    qkv_a: Tensor,
    q_norm_weight: Tensor | None,
    kv_norm_weight: Tensor,
    positions: Tensor,
    cos_sin: Tensor,
    slots: Tensor,
    eps: float,
    kv_cache: Tensor,
    kv_scale: Tensor | None = None,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor | None, Tensor]:
    """Return (q_latent, the values of the whole cache after the append), both in `dtype`.

    The appended rows are not quantised: what an FP8 cache adds is its own error.
    """
    q_lora = 0 if q_norm_weight is None else q_norm_weight.shape[0]
    sizes = [q_lora, kv_norm_weight.shape[0], cos_sin.shape[1]]
    q, latent, k_pe = qkv_a.split_with_sizes(sizes, dim=-1)
    live = slots >= 0
    rope_key = rope_interleaved(k_pe[live].unsqueeze(1), positions[live], cos_sin, dtype).squeeze(1)
    cache = latent_values(kv_cache, sizes[1], kv_scale, dtype).clone()
    rows = cache.reshape(-1, cache.shape[-1])
    rows[slots[live].long()] = torch.cat(
        [rms_norm(latent[live], kv_norm_weight, eps, dtype), rope_key], dim=-1
    )
    q_latent = None if q_norm_weight is None else rms_norm(q, q_norm_weight, eps, dtype)
    return q_latent, rows.reshape(cache.shape)


def mla_gather_latent(
    kv_cache: Tensor,
    block_table: Tensor,
    cu_seqlens_kv: Tensor,
    kv_lora: int,
    kv_scale: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return (latent, k_pe): the cached tokens of every request, one after the other.

    In the dtype of kv_cache, or exact in float64 from an FP8 cache.
    """
    page_size = kv_cache.shape[1]
    rows = [kv_cache.new_empty(0, kv_cache.shape[2])]
    for request, length in enumerate(cu_seqlens_kv.diff().tolist()):
        token = torch.arange(length, device=kv_cache.device)
        page = block_table[request, token // page_size].long()
        rows.append(kv_cache[page, token % page_size])
    values = torch.cat(rows)
    if kv_cache.dtype in (torch.uint8, torch.float8_e4m3fn):
        values = latent_values(values, kv_lora, kv_scale)
    latent, k_pe = values.split_with_sizes([kv_lora, values.shape[1] - kv_lora], dim=-1)
    return latent, k_pe


def attention(
    q: Tensor, k: Tensor, v: Tensor, softmax_scale: float, causal: bool
) -> tuple[Tensor, Tensor]:
    """Return (out, lse) of q [s_q, h, d], k [s_kv, h, d], v [s_kv, h, d_v], in their dtype.

    Query i sees keys [0, s_kv - s_q + i] when causal; one that sees none gives 0 and -inf.
    """
    s_q, s_kv = q.shape[0], k.shape[0]
    scores = torch.einsum("qhd,khd->hqk", q, k) * softmax_scale
    if causal:
        visible = torch.ones(s_q, s_kv, dtype=torch.bool, device=q.device).tril(s_kv - s_q)
        scores = scores.masked_fill(~visible, float("-inf"))
    lse = torch.logsumexp(scores, dim=-1)
    weights = torch.exp(scores - lse.unsqueeze(-1)).nan_to_num(0.0)
    return torch.einsum("hqk,khd->qhd", weights, v), lse.T


def mla_decode(
    q: Tensor,
    kv_cache: Tensor,
    block_table: Tensor,
    seq_lens: Tensor,
    cu_seqlens_q: Tensor,
    softmax_scale: float,
    causal: bool = True,
    d_v: int = 512,
    kv_scale: Tensor | None = None,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor]:
    """Return (out, lse), in `dtype`: gather every request's rows, attend with one key for all heads."""
    cu_seqlens_kv = torch.cat([seq_lens.new_zeros(1), seq_lens.cumsum(0)]).int()
    latent, k_pe = mla_gather_latent(kv_cache, block_table, cu_seqlens_kv, d_v, kv_scale)
    keys = torch.cat([latent, k_pe], dim=-1).to(dtype)
    outs, lses = (
        [q.new_empty(0, q.shape[1], d_v, dtype=dtype)],
        [q.new_empty(0, q.shape[1], dtype=dtype)],
    )
    for request in range(seq_lens.shape[0]):
        rows = slice(*cu_seqlens_q[request : request + 2].tolist())
        cached = slice(*cu_seqlens_kv[request : request + 2].tolist())
        k = keys[cached].unsqueeze(1).expand(-1, q.shape[1], -1)
        out, lse = attention(q[rows].to(dtype), k, k[..., :d_v], softmax_scale, causal)
        outs.append(out)
        lses.append(lse)
    return torch.cat(outs), torch.cat(lses)


def mla_prefill(
    q: Tensor,
    kv: Tensor,
    k_pe: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_kv: Tensor,
    softmax_scale: float,
    causal: bool = True,
    previous_out: Tensor | None = None,
    previous_lse: Tensor | None = None,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor]:
    """Return (out, lse), in `dtype`: the rope key is copied to every head, then plain attention."""
    h, d_nope = q.shape[1], q.shape[2] - k_pe.shape[1]
    k_nope, v = kv.to(dtype).split_with_sizes([d_nope, kv.shape[2] - d_nope], dim=-1)
    k = torch.cat([k_nope, k_pe.to(dtype).unsqueeze(1).expand(-1, h, -1)], dim=-1)
    outs, lses = [v.new_empty(0, h, v.shape[2])], [v.new_empty(0, h)]
    for request in range(cu_seqlens_q.shape[0] - 1):
        rows = slice(*cu_seqlens_q[request : request + 2].tolist())
        cached = slice(*cu_seqlens_kv[request : request + 2].tolist())
        out, lse = attention(q[rows].to(dtype), k[cached], v[cached], softmax_scale, causal)
        outs.append(out)
        lses.append(lse)
    out, lse = torch.cat(outs), torch.cat(lses)
    if previous_out is None or previous_lse is None:
        return out, lse
    return merge_attention_states(out, lse, previous_out, previous_lse, dtype)


def merge_attention_states(
    out_a: Tensor,
    lse_a: Tensor,
    out_b: Tensor,
    lse_b: Tensor,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor]:
    """Return (out, lse) over the keys of both states, in `dtype`."""
    lse = torch.logaddexp(lse_a.to(dtype), lse_b.to(dtype))
    out = torch.zeros(out_a.shape, dtype=dtype, device=out_a.device)
    for part, part_lse in ((out_a, lse_a), (out_b, lse_b)):
        weight = torch.exp(part_lse.to(dtype) - lse).unsqueeze(-1)
        dead = (part_lse == float("-inf")).unsqueeze(-1)
        out += torch.where(dead, torch.zeros_like(out), part.to(dtype) * weight)
    return out, lse
