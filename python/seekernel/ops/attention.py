"""Multi-head latent attention: what feeds the latent cache, and both forms of attention over it.

Lengths are ragged: request r owns rows cu_seqlens[r] to cu_seqlens[r + 1] of a tensor of all tokens.
A paged cache keeps token t of request r at kv_cache[block_table[r, t // page_size], t % page_size],
in one of three formats, told apart by dtype (row = kv_lora latent values, then rope key values):

    values  float32 or bfloat16 [num_pages, page_size, kv_lora + rope]
    blocks  uint8 [num_pages, page_size, kv_lora + kv_lora/32 + 2 rope] (656 for V3): kv_lora e4m3 codes,
            a float32 multiplier per 128 of them, rope bfloat16; kv_lora a multiple of 128
    flat    float8_e4m3fn [num_pages, page_size, kv_lora + rope], all times kv_scale [1] float32
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from seekernel import _extension as _extension
from seekernel.ops._fakes import register_fakes

_mla_prepare = torch.ops.seekernel.mla_prepare.default
_rope_interleaved = torch.ops.seekernel.rope_interleaved.default
_mla_decode = torch.ops.seekernel.mla_decode.default
_mla_decode_metadata = torch.ops.seekernel.mla_decode_metadata.default
_mla_prefill = torch.ops.seekernel.mla_prefill.default
_mla_gather_latent = torch.ops.seekernel.mla_gather_latent.default
_merge_attention_states = torch.ops.seekernel.merge_attention_states.default


def mla_prepare(
    qkv_a: Tensor,
    q_norm_weight: Tensor | None,
    kv_norm_weight: Tensor,
    positions: Tensor,
    cos_sin: Tensor,
    slots: Tensor,
    eps: float,
    q_latent: Tensor | None,
    kv_cache: Tensor,
    kv_scale: Tensor | None = None,
) -> Tensor | None:
    """Norm both latents of the down-projection, rotate its rope key, append to the paged cache.

        q, latent, k_pe = qkv_a.split([q_lora, kv_lora, rope])
        q_latent = rms_norm(q);  kv_cache[slot] = [rms_norm(latent), rope_interleaved(k_pe)]

    Args:
        qkv_a: [s, q_lora + kv_lora + rope] float32 or bfloat16, last dim contiguous.
        q_norm_weight: [q_lora]; None: qkv_a has no query part.  kv_norm_weight: [kv_lora].
        positions: [s] int32, below max_pos where the row is stored.
        cos_sin: [max_pos, rope] float32, rope/2 cosines then rope/2 sines.
        slots: [s] int32 or int64, page * page_size + offset; distinct; -1: the row is not stored.
        q_latent: [s, q_lora] in the dtype of qkv_a; allocated when None.
        kv_cache: [num_pages, page_size, row] of any format, last dim contiguous; FP8 codes are rounded
            to nearest even from float32 and saturate. A block's multiplier is the smallest power of
            two that brings its largest magnitude (at least 1e-4) to 448 or less: what is read back
            is exact in bfloat16.
        kv_scale: [1] float32, of the flat format only.
    Returns: q_latent, or None when q_norm_weight is None. Arithmetic is float32, rounded once.
    Errors: RuntimeError naming the tensor, expected and got.  Writes: q_latent, kv_cache.
    Source: DeepSeek-V2 paper, section 2.1.
    """
    if q_latent is None and q_norm_weight is not None:
        q_latent = qkv_a.new_empty(qkv_a.shape[0], q_norm_weight.shape[0])
    _mla_prepare(
        qkv_a, q_norm_weight, kv_norm_weight, positions, cos_sin, slots, eps, q_latent, kv_cache,
        kv_scale,
    )  # fmt: skip
    return q_latent


def rope_interleaved(x: Tensor, positions: Tensor, cos_sin: Tensor) -> Tensor:
    """Rotate the pairs (x0, x1), (x2, x3), ... of every head, in place.

        x[2i], x[2i+1] = x[2i] cos_i - x[2i+1] sin_i,  x[2i] sin_i + x[2i+1] cos_i

    Args:
        x: [s, h, rope] float32 or bfloat16 view, last dim contiguous.
        positions: [s] int32 below max_pos.  cos_sin: [max_pos, rope] float32, cosines then sines.
    Returns: x.  Errors: RuntimeError naming the tensor, expected and got.  Writes: x.
    """
    _rope_interleaved(x, positions, cos_sin)
    return x


@dataclass(frozen=True)
class MlaDecodePlan:
    """How a GPU shares out the work of a decode step, and room for the parts of a split request.

    parts: [SMs, 8] int32.  items: [s + 1, 8] int32: the plan, written by mla_decode_metadata.
    partial_out: [rows, 512] float32.  partial_lse: [rows] float32: scratch of mla_decode.
    split_tokens: see mla_decode_metadata. On a CPU all are empty.
    """

    parts: Tensor
    items: Tensor
    partial_out: Tensor
    partial_lse: Tensor
    split_tokens: int


def mla_decode_plan(
    s: int,
    h_q: int,
    device: torch.device | str,
    split_tokens: int = 0,
    max_tokens: int = 0,
) -> MlaDecodePlan:
    """Allocate the plan of decode steps of s query tokens; its contents are not defined yet.

    split_tokens, max_tokens: see mla_decode_metadata; max_tokens, the page size times the columns of
    the block table, is needed with split_tokens only: the room is 2 KB for each of s * h_q rows and
    max_tokens / split_tokens pieces.
    """
    device = torch.device(device)
    num_sms = rows = 0
    if device.type == "cuda":
        num_sms = torch.cuda.get_device_properties(device).multi_processor_count
        rows = s * h_q * -(-max_tokens // split_tokens) if split_tokens else 2 * 64 * num_sms
    return MlaDecodePlan(
        torch.empty(num_sms, 8, dtype=torch.int32, device=device),
        torch.empty(s + 1, 8, dtype=torch.int32, device=device),
        torch.empty(rows, 512, dtype=torch.float32, device=device),
        torch.empty(rows, dtype=torch.float32, device=device),
        split_tokens,
    )


def mla_decode_metadata(
    seq_lens: Tensor,
    cu_seqlens_q: Tensor,
    h_q: int,
    plan: MlaDecodePlan,
) -> MlaDecodePlan:
    """Plan a decode step on the device that holds the lengths; all layers of the step may use it.

    Balanced (split_tokens 0): the blocks of 64 keys of all requests are dealt out evenly, a request
    may be cut between any two of them. Batch invariant (split_tokens F, a multiple of 64): a request
    is cut every F keys, whatever else is in the batch: the bits of its result do not depend on it.

    Args:
        seq_lens: [b] int32, cached tokens.  cu_seqlens_q: [b + 1] int32.  h_q: query heads, to 128.
        plan: from mla_decode_plan, for as many query tokens as cu_seqlens_q ends with.
    Returns: plan. No host synchronisation: lengths may change under a captured CUDA graph.
    Errors: RuntimeError naming the tensor, expected and got.  Writes: plan.parts, plan.items.
    """
    _mla_decode_metadata(seq_lens, cu_seqlens_q, h_q, plan.split_tokens, plan.parts, plan.items)
    return plan


def mla_decode(
    q: Tensor,
    kv_cache: Tensor,
    block_table: Tensor,
    seq_lens: Tensor,
    cu_seqlens_q: Tensor,
    softmax_scale: float,
    causal: bool = True,
    d_v: int = 512,
    out: Tensor | None = None,
    lse: Tensor | None = None,
    kv_scale: Tensor | None = None,
    plan: MlaDecodePlan | None = None,
) -> tuple[Tensor, Tensor]:
    """Absorbed MLA over a paged latent cache: every head attends to the same rows.

        out = softmax(softmax_scale * q @ kv.T) @ kv[:, :d_v]

    Args:
        q: [s, h_q, d_qk] float32 or bfloat16 (latent, then rope), last dim contiguous.
        kv_cache: [num_pages, page_size, row] of any format with kv_lora = d_v, last dim contiguous.
        kv_scale: [1] float32, of the flat format only.
        block_table: [b, max_pages] int32; entries past a request's last page may hold anything.
        seq_lens: [b] int32, cached tokens, the new ones included.  cu_seqlens_q: [b + 1] int32.
        causal: query i of s_q sees keys [0, seq_len - s_q + i]; else all.
        out: [s, h_q, d_v] in the dtype of q.  lse: [s, h_q] float32.  Allocated when not given.
        plan: what mla_decode_metadata made of these seq_lens and cu_seqlens_q; made for this call when
            not given. A CPU needs none.
    On a GPU (Hopper): q bfloat16 and kv_cache bfloat16 or FP8, or both float16; d_qk 576, d_v 512, h_q to 128, page
    size 16, 32, 64 or 128; out and lse contiguous; a NaN in a live key may reach every query of its
    request. Lengths and pages are not checked there.
    Returns: out; lse, natural log. A query that sees no key gives 0 and -inf.
    On a CPU, and with a batch-invariant plan, the bits of a token depend on it and its keys alone:
    not on the batch, nor on the threads.
    Errors: RuntimeError naming the tensor, expected and got.  Writes: out, lse.
    Source: DeepSeek-V2 paper, section 2.1; online softmax of Milakov and Gimelshein 2018.
    """
    if out is None:
        out = q.new_empty(q.shape[0], q.shape[1], d_v)
    if lse is None:
        lse = q.new_empty(q.shape[0], q.shape[1], dtype=torch.float32)
    if plan is None and q.is_cuda:
        plan = mla_decode_plan(q.shape[0], q.shape[1], q.device)
        mla_decode_metadata(seq_lens, cu_seqlens_q, q.shape[1], plan)
    of_plan = () if plan is None else (
        plan.parts, plan.items, plan.partial_out, plan.partial_lse, plan.split_tokens
    )  # fmt: skip
    _mla_decode(
        q, kv_cache, block_table, seq_lens, cu_seqlens_q, softmax_scale, causal, d_v, out, lse,
        kv_scale, *of_plan,
    )  # fmt: skip
    return out, lse


def mla_prefill(
    q: Tensor,
    kv: Tensor,
    k_pe: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_kv: Tensor,
    softmax_scale: float,
    causal: bool = True,
    out: Tensor | None = None,
    lse: Tensor | None = None,
    d_v: int = 128,
    previous_out: Tensor | None = None,
    previous_lse: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Naive-form MLA over ragged sequences: keys and values per head, one rope key for all heads.

        k_nope, v = kv[head].split([d_nope, d_v]);  k = [k_nope, k_pe]
        out[head] = softmax(softmax_scale * q[head] @ k.T) @ v

    Args:
        q: [s_q, h, d_nope + d_rope] float32 or bfloat16, last dim contiguous.
        kv: [s_kv, h, d_nope + d_v] float32 or bfloat16, as kv_b_proj gives it.
        k_pe: [s_kv, d_rope] float32 or bfloat16, rotated.
        cu_seqlens_q, cu_seqlens_kv: [b + 1] int32.
        causal: aligned to the end: query i of s_q sees keys [0, s_kv - s_q + i]; else all.
        out: [s_q, h, d_v] in the dtype of q or float32; its shape says d_v when it is given.
        lse: [s_q, h].
        previous_out, previous_lse: [s_q, h, d_v] float32 or bfloat16, [s_q, h] float32: the result
            over other keys, which is merged in; they may be out and lse themselves. Where
            previous_lse is -inf, previous_out is not looked at.
    Returns: out; lse float32, natural log. A query that sees no key gives 0 and -inf.
    The bits of a query depend on it and its keys alone, so prefill in pieces gives the same ones.
    Errors: RuntimeError naming the tensor, expected and got.  Writes: out, lse.
    Source: Dao 2023 (FlashAttention-2) for the loop order.
    """
    if out is None:
        out = q.new_empty(q.shape[0], q.shape[1], d_v)
    if lse is None:
        lse = q.new_empty(q.shape[0], q.shape[1], dtype=torch.float32)
    _mla_prefill(
        q, kv, k_pe, cu_seqlens_q, cu_seqlens_kv, softmax_scale, causal, out, lse, previous_out,
        previous_lse,
    )  # fmt: skip
    return out, lse


def merge_attention_states(
    out_a: Tensor,
    lse_a: Tensor,
    out_b: Tensor,
    lse_b: Tensor,
    out: Tensor | None = None,
    lse: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention over the keys of both: each state is attention of the same queries over its keys.

        lse = log(e^lse_a + e^lse_b);  out = out_a e^(lse_a - lse) + out_b e^(lse_b - lse)

    Args:
        out_a, out_b: [s, h, d_v] float32 or bfloat16 each.  lse_a, lse_b: [s, h] float32, natural log;
            where one is -inf, its out is not looked at.
        out: [s, h, d_v] float32 or bfloat16, that of out_a when allocated.  lse: [s, h] float32. They
            may be those of a or b.
    Returns: out; lse. Arithmetic is float32, rounded once; 0 and -inf where both are -inf.
    Errors: RuntimeError naming the tensor, expected and got.  Writes: out, lse.
    Source: Rabe and Staats 2021, section 2.
    """
    if out is None:
        out = torch.empty_like(out_a)
    if lse is None:
        lse = torch.empty_like(lse_a)
    _merge_attention_states(out_a, lse_a, out_b, lse_b, out, lse)
    return out, lse


def mla_gather_latent(
    kv_cache: Tensor,
    block_table: Tensor,
    cu_seqlens_kv: Tensor,
    num_kv: int,
    kv_lora: int = 512,
    dtype: torch.dtype | None = None,
    latent: Tensor | None = None,
    k_pe: Tensor | None = None,
    kv_scale: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Copy cached tokens out of their pages, in order: the input of kv_b_proj for a prefill.

        latent[cu[r] + t], k_pe[cu[r] + t] = kv_cache[token t of request r].split([kv_lora, rope])

    Args:
        kv_cache: [num_pages, page_size, row] of any format, last dim contiguous.
        kv_scale: [1] float32, of the flat format only.
        block_table: [b, max_pages] int32.  cu_seqlens_kv: [b + 1] int32, its last value is num_kv.
        num_kv, kv_lora, dtype: of what is allocated; dtype None: that of kv_cache, or bfloat16.
        latent: [num_kv, kv_lora], k_pe: [num_kv, rope], float32 or bfloat16 each; allocated when
            not given.
    Returns: latent, k_pe.
    Errors: RuntimeError naming the tensor, expected and got.  Writes: latent, k_pe.
    """
    if latent is None or k_pe is None:
        is_fp8 = kv_cache.dtype in (torch.uint8, torch.float8_e4m3fn)
        dtype = dtype or (torch.bfloat16 if is_fp8 else kv_cache.dtype)
        rope = kv_cache.shape[2] - kv_lora
        if kv_cache.dtype == torch.uint8:
            rope = (rope - kv_lora // 32) // 2
        if latent is None:
            latent = kv_cache.new_empty(num_kv, kv_lora, dtype=dtype)
        if k_pe is None:
            k_pe = kv_cache.new_empty(num_kv, rope, dtype=dtype)
    _mla_gather_latent(kv_cache, block_table, cu_seqlens_kv, latent, k_pe, kv_scale)
    return latent, k_pe


register_fakes(
    "mla_prepare",
    "rope_interleaved",
    "mla_decode",
    "mla_decode_metadata",
    "mla_prefill",
    "mla_gather_latent",
    "merge_attention_states",
)
