"""Multi-head latent attention (DeepSeek-V2 paper, section 2.1), naive for prefill, absorbed for decode."""

from __future__ import annotations

import torch
from torch import Tensor

from seekernel import ops
from seekernel.model.batch import Batch, Segment, cumulative
from seekernel.model.config import BLOCK, ModelConfig
from seekernel.model.linear import Linear
from seekernel.model.weights import WeightSource
from seekernel.ops import NormedRows

MAX_EXPANDED = 16384  # tokens whose keys and values the naive form expands at once
LATENT_NORM_EPS = 1e-6  # of both low-rank norms, whatever rms_norm_eps says


class HeadProjection:
    """One matrix per head, out[s, h] = x[s, h] W[h]^T: W [h, n, k], FP8 with scales or plain."""

    def __init__(self, weight: Tensor, scale: Tensor | None) -> None:
        self.weight, self.scale = weight, scale

    def __call__(self, x: Tensor, out: Tensor) -> None:
        """x [s, h, k] and out [s, h, n] may be views of wider rows."""
        x, out = x.transpose(0, 1), out.transpose(0, 1)
        if self.scale is None:
            ops.bmm_nt(x, self.weight, out=out)
        else:
            ops.fp8_bmm_nt(x, None, self.weight, self.scale, out=out)


def absorb(config: ModelConfig, kv_b: Linear) -> tuple[HeadProjection, HeadProjection]:
    """Split kv_b_proj into W_UK^T (query to latent) and W_UV (latent to value), one matrix a head.

    Where heads and scale blocks line up the FP8 codes and scales are kept; else both become float32.
    """
    heads, latent = config.num_attention_heads, config.kv_lora_rank
    nope, v = config.qk_nope_head_dim, config.v_head_dim
    scales = _head_scales(config, kv_b)
    if scales is None:
        dtype = kv_b.weight.dtype if kv_b.scale is None else torch.float32
        both = kv_b.dequantized().to(dtype).view(heads, nope + v, latent)
        uk = both[:, :nope].transpose(1, 2).contiguous()
        return HeadProjection(uk, None), HeadProjection(both[:, nope:].contiguous(), None)
    codes = kv_b.weight.view(torch.uint8).view(heads, nope + v, latent)
    uk = codes[:, :nope].transpose(1, 2).contiguous().view(kv_b.weight.dtype)
    uv = codes[:, nope:].contiguous().view(kv_b.weight.dtype)
    uk_scale, uv_scale = scales
    return (
        HeadProjection(uk, uk_scale.transpose(1, 2).contiguous()),
        HeadProjection(uv, uv_scale.contiguous()),
    )


def _head_scales(config: ModelConfig, kv_b: Linear) -> tuple[Tensor, Tensor] | None:
    """Return the scales of each head's key and value rows, [h, row blocks, latent / 128] each.

    None if there are none, or if a head's rows share blocks unevenly with other rows.
    """
    heads, nope, v = config.num_attention_heads, config.qk_nope_head_dim, config.v_head_dim
    if kv_b.scale is None or config.kv_lora_rank % BLOCK:
        return None
    if nope % BLOCK == 0 and v % BLOCK == 0:
        per_head = kv_b.scale.view(heads, (nope + v) // BLOCK, -1)
        return per_head[:, : nope // BLOCK], per_head[:, nope // BLOCK :]
    if BLOCK % (nope + v) == 0:  # whole heads in one block of rows: they share its scales
        per_head = kv_b.scale.repeat_interleave(BLOCK // (nope + v), 0)[:heads, None]
        return per_head, per_head
    return None


def absorbed_break_even(config: ModelConfig) -> float:
    """Return how many new tokens over a long cached prefix cost equal FLOPs in both forms: 171 for V3.

    A visible (query, key) pair of a head costs 2 (2 latent + rope) absorbed and 2 (nope + rope + v)
    expanded, where every key has to be expanded first, for 2 latent (nope + v). Infinity if the
    absorbed pair is the cheaper one.
    """
    latent, rope = config.kv_lora_rank, config.qk_rope_head_dim
    nope, v = config.qk_nope_head_dim, config.v_head_dim
    surplus = (2 * latent + rope) - (nope + rope + v)
    return latent * (nope + v) / surplus if surplus > 0 else float("inf")


def absorbed_does_less(config: ModelConfig, num_new: int, num_cached: int) -> bool:
    """Whether the absorbed form takes fewer FLOPs for num_new tokens behind num_cached ones.

    The whole count, causal: W_UK and W_UV are applied to new queries in the absorbed form, and to
    all keys, the new ones included, in the other.
    """
    latent, rope = config.kv_lora_rank, config.qk_rope_head_dim
    nope, v = config.qk_nope_head_dim, config.v_head_dim
    pairs = num_new * num_cached + num_new * (num_new + 1) / 2
    absorbed = pairs * (2 * latent + rope) + num_new * latent * (nope + v)
    expanded = pairs * (nope + rope + v) + (num_cached + num_new) * latent * (nope + v)
    return absorbed < expanded


class LatentAttention:
    """MLA of one layer. Weights keep their checkpoint names."""

    def __init__(self, config: ModelConfig, source: WeightSource, prefix: str) -> None:
        self.config = config
        hidden, heads = config.hidden_size, config.num_attention_heads
        q_out = heads * config.qk_head_dim
        self.q_a_proj: Linear | None = None
        self.q_a_layernorm: Tensor | None = None
        if config.q_lora_rank is None:
            self.q_proj = Linear.load(source, f"{prefix}.q_proj", q_out, hidden)
        else:
            rank = config.q_lora_rank
            self.q_a_proj = Linear.load(source, f"{prefix}.q_a_proj", rank, hidden)
            self.q_a_layernorm = source.read(f"{prefix}.q_a_layernorm.weight", (rank,))
            self.q_proj = Linear.load(source, f"{prefix}.q_b_proj", q_out, rank)
        self.kv_a_proj = Linear.load(
            source, f"{prefix}.kv_a_proj_with_mqa", config.latent_dim, hidden
        )
        self.kv_a_layernorm = source.read(f"{prefix}.kv_a_layernorm.weight", (config.kv_lora_rank,))
        self.kv_b_proj = Linear.load(
            source,
            f"{prefix}.kv_b_proj",
            heads * (config.qk_nope_head_dim + config.v_head_dim),
            config.kv_lora_rank,
        )
        self.o_proj = Linear.load(source, f"{prefix}.o_proj", hidden, heads * config.v_head_dim)
        self.w_uk, self.w_uv = absorb(config, self.kv_b_proj)
        self.kv_scale = torch.ones(1, dtype=torch.float32, device=source.device)

    def __call__(self, x: NormedRows, batch: Batch, cos_sin: Tensor, kv_cache: Tensor) -> Tensor:
        """x [s, hidden] normed -> [s, hidden]; writes the new tokens' rows of kv_cache."""
        config = self.config
        q = self._project(x, batch, cos_sin, kv_cache)
        ops.rope_interleaved(q[..., config.qk_nope_head_dim :], batch.positions, cos_sin)
        out = q.new_empty(batch.num_tokens, config.num_attention_heads, config.v_head_dim)
        for segment in batch.absorbed:
            self._absorbed(q[segment.tokens], segment, kv_cache, out[segment.tokens])
        for segment in batch.naive:
            self._naive(q[segment.tokens], segment, kv_cache, out[segment.tokens])
        return self.o_proj(out.view(batch.num_tokens, -1))

    def _project(self, x: NormedRows, batch: Batch, cos_sin: Tensor, kv_cache: Tensor) -> Tensor:
        """Return queries [s, h, qk_head_dim] before rope; append latent and rope key to the cache."""
        rank = self.config.q_lora_rank or 0
        qkv_a = x.x.new_empty(batch.num_tokens, rank + self.config.latent_dim)
        self.kv_a_proj(x, out=qkv_a[:, rank:])
        q_latent = None
        if self.q_a_proj is not None:
            self.q_a_proj(x, out=qkv_a[:, :rank])
            q_latent = x.x.new_empty(batch.num_tokens, rank)
        ops.mla_prepare(
            qkv_a, self.q_a_layernorm, self.kv_a_layernorm, batch.positions, cos_sin, batch.slots,
            LATENT_NORM_EPS, q_latent=q_latent, kv_cache=kv_cache, kv_scale=self._scale(kv_cache),
        )  # fmt: skip
        q = self.q_proj(x if q_latent is None else q_latent)
        return q.view(batch.num_tokens, self.config.num_attention_heads, self.config.qk_head_dim)

    def _scale(self, kv_cache: Tensor) -> Tensor | None:
        """Return the multiplier of a cache in the flat FP8 format."""
        return self.kv_scale if kv_cache.dtype == torch.float8_e4m3fn else None

    def _absorbed(self, q: Tensor, segment: Segment, kv_cache: Tensor, out: Tensor) -> None:
        """Attend in latent space: W_UK folded into the query, W_UV applied to the weighted latent."""
        config = self.config
        nope, latent = config.qk_nope_head_dim, config.kv_lora_rank
        absorbed = q.new_empty(q.shape[0], q.shape[1], config.latent_dim)
        self.w_uk(q[..., :nope], out=absorbed[..., :latent])
        absorbed[..., latent:] = q[..., nope:]
        weighted, _ = ops.mla_decode(
            absorbed, kv_cache, segment.block_table, segment.seq_lens, segment.cu_seqlens_q,
            config.softmax_scale, causal=True, d_v=latent, kv_scale=self._scale(kv_cache),
        )  # fmt: skip
        self.w_uv(weighted, out=out)

    def _naive(self, q: Tensor, segment: Segment, kv_cache: Tensor, out: Tensor) -> None:
        """Attend over keys and values expanded from the latents of all cached and new tokens.

        Requests share an expansion while it has at most MAX_EXPANDED tokens; a longer one takes
        several, whose results are merged, so that memory does not grow with the context.
        """
        first_q = 0
        for begin, end in _groups(segment.lengths):
            num_new, lengths = segment.num_new[begin:end], segment.lengths[begin:end]
            table = segment.block_table[begin:end]
            rows = slice(first_q, first_q + sum(num_new))
            first_q = rows.stop
            spans = _spans(lengths[0], num_new[0]) if len(lengths) == 1 else [(0, 0)]
            if len(spans) == 1:
                self._expand(q[rows], num_new, lengths, table, kv_cache, True, out[rows])
                continue
            page_size = kv_cache.shape[1]
            total: tuple[Tensor, Tensor] | None = None
            for a, b in spans:
                part = self._expand(
                    q[rows], num_new, (b - a,), table[:, a // page_size :], kv_cache,
                    b == lengths[0], None,
                )  # fmt: skip
                total = part if total is None else ops.merge_attention_states(*total, *part)
            if total is not None:
                out[rows] = total[0]

    def _expand(
        self,
        q: Tensor,
        num_new: tuple[int, ...],
        lengths: tuple[int, ...],
        block_table: Tensor,
        kv_cache: Tensor,
        causal: bool,
        out: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        config, device = self.config, q.device
        cu_q = torch.tensor(cumulative(num_new), dtype=torch.int32, device=device)
        cu_kv = torch.tensor(cumulative(lengths), dtype=torch.int32, device=device)
        latent, k_pe = ops.mla_gather_latent(
            kv_cache, block_table, cu_kv, sum(lengths), config.kv_lora_rank, dtype=q.dtype,
            kv_scale=self._scale(kv_cache),
        )  # fmt: skip
        kv = self.kv_b_proj(latent).view(sum(lengths), config.num_attention_heads, -1)
        return ops.mla_prefill(
            q, kv, k_pe, cu_q, cu_kv, config.softmax_scale, causal=causal, out=out,
            d_v=config.v_head_dim,
        )  # fmt: skip


def _groups(lengths: tuple[int, ...]) -> list[tuple[int, int]]:
    """Cut requests into runs of at most MAX_EXPANDED tokens together, or of one request."""
    groups, begin, total = [], 0, 0
    for index, length in enumerate(lengths):
        if index > begin and total + length > MAX_EXPANDED:
            groups.append((begin, index))
            begin, total = index, 0
        total += length
    return [*groups, (begin, len(lengths))]


def _spans(length: int, num_new: int) -> list[tuple[int, int]]:
    """Cut a request's tokens: whole pieces before its new tokens, and the rest."""
    last = 0 if length <= MAX_EXPANDED else (length - num_new) // MAX_EXPANDED * MAX_EXPANDED
    return [*((a, a + MAX_EXPANDED) for a in range(0, last, MAX_EXPANDED)), (last, length)]
