"""References of sample, token_logprobs and mtp_verify_*: distributions in float64, rules one by one."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from seekernel.ops.sampling import LogitBias, Penalties


def changed_logits(
    logits: Tensor,
    penalties: Penalties | None = None,
    bias: LogitBias | None = None,
    mask: Tensor | None = None,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Return [r, v] after mask, bias and penalties."""
    x = logits.to(dtype).clone()
    rows, v = x.shape
    for r in range(rows):
        if mask is not None:
            allowed = [bool(int(mask[r, i // 32]) >> (i % 32) & 1) for i in range(v)]
            x[r, ~torch.tensor(allowed)] = -math.inf
        if bias is not None:
            for token, value in zip(bias.ids[r].tolist(), bias.values[r].tolist(), strict=True):
                if 0 <= token < v:
                    x[r, token] += value
        if penalties is None or not 0 <= int(penalties.slots[r]) < len(penalties.token_counts):
            continue
        counts = penalties.token_counts[int(penalties.slots[r])].clone()
        extra = [] if penalties.extra_ids is None else penalties.extra_ids[r].tolist()
        for token in extra:
            if 0 <= token < v:
                counts[token] += 2
        for token in counts.nonzero().flatten().tolist():
            value, times = float(x[r, token]), int(counts[token]) >> 1
            factor = float(penalties.repetition[r])
            value = value / factor if value > 0 else value * factor
            if times:
                value -= float(penalties.presence[r]) + float(penalties.frequency[r]) * times
            x[r, token] = value
    return x


def sample_probs(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    penalties: Penalties | None = None,
    bias: LogitBias | None = None,
    mask: Tensor | None = None,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Return the distribution [r, v] that `sample` draws from, for rows of status 0."""
    x = changed_logits(logits, penalties, bias, mask, dtype)
    probs = torch.zeros_like(x)
    for r, row in enumerate(x):
        order = torch.sort(row, descending=True, stable=True).indices
        if not temperature[r] > 0:
            probs[r, order[0]] = 1.0
            continue
        weights = torch.exp((row[order] - row[order[0]]) / float(temperature[r]))
        kept = int((weights >= float(min_p[r])).sum()) if min_p[r] > 0 else len(weights)
        if 0 < top_k[r] < kept:
            kept = int(top_k[r])
        weights, order = weights[:kept], order[:kept]
        if top_p[r] < 1:
            mass = weights.cumsum(0)
            reached = mass >= float(top_p[r]) * mass[-1]
            kept = int(reached.int().argmax()) + 1
            weights, order = weights[:kept], order[:kept]
        probs[r, order] = weights / weights.sum()
    return probs


def token_logprobs(
    logits: Tensor, ids: Tensor, num_top: int = 0, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return (logprobs, ranks, top_ids, top_logprobs) of rows without NaN and infinities."""
    logprobs = torch.log_softmax(logits.to(dtype), -1)
    order = torch.sort(logits.float(), dim=-1, descending=True, stable=True).indices
    named = ids[:, None].long().clamp(min=0)
    ranks = (order == named).int().argmax(-1) + 1
    absent = ids < 0
    return (
        logprobs.gather(1, named)[:, 0].masked_fill(absent, -math.inf),
        ranks.masked_fill(absent, 0),
        order[:, :num_top],
        logprobs.gather(1, order[:, :num_top]),
    )


def mtp_verify_strict(target: Sequence[int], drafts: Sequence[int]) -> list[int]:
    """Return the tokens that one request emits."""
    emitted: list[int] = []
    for position, token in enumerate(target):
        if token < 0:
            break
        emitted.append(token)
        if position == len(drafts) or drafts[position] != token:
            break
    return emitted


def mtp_verify_relaxed(
    top_ids: Sequence[Sequence[int]],
    top_probs: Sequence[Sequence[float]],
    drafts: Sequence[int],
    delta: float,
    relaxed_delta: float,
    begin_thinking_id: int,
    end_thinking_id: int,
) -> tuple[list[int], float]:
    """Return (the tokens that one request emits, its next delta)."""
    emitted: list[int] = []
    for position, (ids, probs) in enumerate(zip(top_ids, top_probs, strict=True)):
        draft = drafts[position] if position < len(drafts) else -1
        candidates = [ids[0]]
        for token, p in zip(ids[1:], probs[1:], strict=True):
            if p < probs[0] - delta:
                break
            candidates.append(token)
        accepted = draft >= 0 and draft in candidates
        emitted.append(draft if accepted else ids[0])
        if not accepted:
            break
    for token in emitted:
        if token == begin_thinking_id:
            delta = relaxed_delta
        if token == end_thinking_id:
            delta = 0.0
    return emitted, delta


def add_token_counts(token_counts: Tensor, slots: Tensor, ids: Tensor) -> Tensor:
    """Return token_counts [num_slots, v] with 2 more for each id [b, n] of a row with a slot."""
    counts = token_counts.clone()
    num_slots, v = counts.shape
    for slot, row in zip(slots.tolist(), ids.tolist(), strict=True):
        for token in row:
            if 0 <= slot < num_slots and 0 <= token < v:
                counts[slot, token] += 2
    return counts
