"""Verification of drafted tokens: how many are accepted, and which token comes next."""

from __future__ import annotations

import torch
from torch import Tensor

from seekernel import _extension as _extension
from seekernel.ops._fakes import register_fakes

_strict = torch.ops.seekernel.mtp_verify_strict.default
_relaxed = torch.ops.seekernel.mtp_verify_relaxed.default
_rejection = torch.ops.seekernel.mtp_verify_rejection.default


def mtp_verify_strict(
    target_ids: Tensor,
    draft_ids: Tensor,
    out_ids: Tensor | None = None,
    num_out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Accept drafts while they are what the target model chose, then take its next choice.

        k = length of the longest prefix with draft_ids[i, :k] == target_ids[i, :k]
        out_ids[i] = target_ids[i, :k + 1], then -1;  num_out[i] = k + 1

    With greedy drafts this is exact for sampled targets too: choosing target_ids by `sample` at
    every position and comparing is rejection sampling against a point mass, and gives the very
    tokens that sampling without drafts gives.

    Args:
        target_ids: [b, n + 1] int32: the target's choice after each prefix of the drafts, -1 where
            it has none.  draft_ids: [b, n] int32, -1 (never accepted) where there is none.
        out_ids: [b, n + 1] int32.  num_out: [b] int32.  Both allocated when not given.
    Returns: (out_ids, num_out). A target of -1 that is reached ends the row before it: num_out[i]
        is then the number of tokens before, 0 if there are none.
    Errors: RuntimeError naming the argument, expected and got.  Writes: out_ids, num_out.
    """
    out_ids, num_out = _outputs(draft_ids, out_ids, num_out)
    _strict(target_ids, draft_ids, out_ids, num_out)
    return out_ids, num_out


def mtp_verify_relaxed(
    top_ids: Tensor,
    top_logprobs: Tensor,
    draft_ids: Tensor,
    slots: Tensor,
    slot_delta: Tensor,
    relaxed_delta: float,
    begin_thinking_id: int,
    end_thinking_id: int,
    out_ids: Tensor | None = None,
    num_out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Accept drafts among the target's likeliest tokens, if they are nearly as likely as its best.

        delta = slot_delta[slots[i]];  p = exp(top_logprobs)
        draft d is accepted at position j if d == top_ids[i, j, 0], or
        if d == top_ids[i, j, t] and p[i, j, t'] >= p[i, j, 0] - delta for all t' <= t
        the first that is not ends the acceptance; top_ids[i, j, 0] comes after the accepted ones
        then slot_delta = relaxed_delta after begin_thinking_id, 0 after end_thinking_id, whichever
        was emitted last: it counts from the next call on

    Args:
        top_ids, top_logprobs: [b, n + 1, t] int32, float32, t from 1: of token_logprobs.
        draft_ids: [b, n] int32, -1 where there is none; n may be 0 (the first token of a request).
        slots: [b] int32; a row whose slot is outside slot_delta is verified with delta 0.
        slot_delta: [num_slots] float32, updated. Start a request with relaxed_delta if its prompt
            holds begin_thinking_id, else 0.  relaxed_delta: at least 0.
        out_ids: [b, n + 1] int32.  num_out: [b] int32.  Both allocated when not given.
    Returns: (out_ids, num_out) as mtp_verify_strict; a top id of -1 that is reached ends the row.
        p has 40 fractional bits: equal logprobs compare equal, on every device alike.
    Errors: RuntimeError naming the argument, expected and got.  Writes: slot_delta, out_ids,
        num_out.
    Source: relaxed acceptance as TensorRT-LLM defines it for the thinking phase of DeepSeek-R1.
    """
    out_ids, num_out = _outputs(draft_ids, out_ids, num_out)
    _relaxed(
        top_ids,
        top_logprobs,
        draft_ids,
        slots,
        relaxed_delta,
        begin_thinking_id,
        end_thinking_id,
        slot_delta,
        out_ids,
        num_out,
    )
    return out_ids, num_out


def mtp_verify_rejection(
    target_probs: Tensor,
    draft_probs: Tensor | None,
    draft_ids: Tensor,
    seeds: Tensor,
    offsets: Tensor,
    out_ids: Tensor | None = None,
    num_out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Accept drafts at random so that the output is distributed as the target's own samples.

        draft d at position j is accepted with probability min(1, p[j, d] / q[j, d])
        the first that is not is replaced by a draw from max(p[j] - q[j], 0), normalised
        after n accepted drafts comes a draw from p[n]

    Args:
        target_probs: p, [b, n + 1, v] float32, contiguous; v < 2^20.  draft_probs: q, [b, n, v],
            what the drafts were drawn from; None for greedy drafts (1 at the draft).
        draft_ids: [b, n] int32, -1 (never accepted; the draw is from p[j]) where there is none.
        seeds, offsets: [b] int64, as in `sample`: offsets[i] is the position of the first draft.
        out_ids: [b, n + 1] int32.  num_out: [b] int32.  Both allocated when not given.
    Returns: (out_ids, num_out) as mtp_verify_strict. A position whose p holds a NaN or no mass, if
        reached, ends the row. Probabilities are read with 40 fractional bits.
    Errors: RuntimeError naming the argument, expected and got.  Writes: out_ids, num_out.
    Source: Leviathan et al., Fast inference from transformers via speculative decoding (2022).
    """
    out_ids, num_out = _outputs(draft_ids, out_ids, num_out)
    _rejection(target_probs, draft_probs, draft_ids, seeds, offsets, out_ids, num_out)
    return out_ids, num_out


def _outputs(
    draft_ids: Tensor, out_ids: Tensor | None, num_out: Tensor | None
) -> tuple[Tensor, Tensor]:
    b, n = draft_ids.shape
    if out_ids is None:
        out_ids = draft_ids.new_empty(b, n + 1, dtype=torch.int32)
    if num_out is None:
        num_out = draft_ids.new_empty(b, dtype=torch.int32)
    return out_ids, num_out


register_fakes("mtp_verify_strict", "mtp_verify_relaxed", "mtp_verify_rejection")
