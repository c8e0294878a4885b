"""References of mla_prepare, rope_interleaved, mla_decode, mla_prefill, mla_gather_latent.

They write nothing: what an op writes in place is returned as a new tensor.
"""

from __future__ import annotations

import torch
from torch import Tensor

from seekernel.reference.norm import rms_norm


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
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor | None, Tensor]:
    """Return (q_latent, the whole cache after the append), both in `dtype`."""
    q_lora = 0 if q_norm_weight is None else q_norm_weight.shape[0]
    sizes = [q_lora, kv_norm_weight.shape[0], cos_sin.shape[1]]
    q, latent, k_pe = qkv_a.split_with_sizes(sizes, dim=-1)
    live = slots >= 0
    rope_key = rope_interleaved(k_pe[live].unsqueeze(1), positions[live], cos_sin, dtype).squeeze(1)
    cache = kv_cache.to(dtype, copy=True)
    rows = cache.reshape(-1, cache.shape[-1])
    rows[slots[live].long()] = torch.cat(
        [rms_norm(latent[live], kv_norm_weight, eps, dtype), rope_key], dim=-1
    )
    q_latent = None if q_norm_weight is None else rms_norm(q, q_norm_weight, eps, dtype)
    return q_latent, rows.reshape(cache.shape)


def mla_gather_latent(
    kv_cache: Tensor, block_table: Tensor, cu_seqlens_kv: Tensor, kv_lora: int
) -> tuple[Tensor, Tensor]:
    """Return (latent, k_pe): the cached tokens of every request, one after the other."""
    page_size = kv_cache.shape[1]
    rows = [kv_cache.new_empty(0, kv_cache.shape[2])]
    for request, length in enumerate(cu_seqlens_kv.diff().tolist()):
        token = torch.arange(length, device=kv_cache.device)
        page = block_table[request, token // page_size].long()
        rows.append(kv_cache[page, token % page_size])
    latent, k_pe = torch.cat(rows).split_with_sizes([kv_lora, kv_cache.shape[2] - kv_lora], dim=-1)
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
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor]:
    """Return (out, lse), in `dtype`: gather every request's rows, attend with one key for all heads."""
    cu_seqlens_kv = torch.cat([seq_lens.new_zeros(1), seq_lens.cumsum(0)]).int()
    latent, k_pe = mla_gather_latent(kv_cache, block_table, cu_seqlens_kv, d_v)
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
    return torch.cat(outs), torch.cat(lses)
