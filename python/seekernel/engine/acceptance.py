"""Which drafts a step keeps: verification on the device, nothing read on the host."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Relaxed:
    """Relaxed acceptance while a sequence thinks: drafts among the top_k likeliest tokens whose
    probability is at least the best one's less delta. begin, end: token ids around the thinking."""

    top_k: int
    delta: float
    begin: int
    end: int


def accept(tokens: Tensor, drafts: Tensor) -> Tensor:
    """Return how many tokens of each row stand: the leading ones that the drafts foretold, and one.

    tokens: [b, 1 + n], chosen at each position as if all drafts before it were right.
    drafts: [b, n].
    """
    right = (tokens[:, :-1] == drafts).to(torch.int64)
    return right.cumprod(dim=1).sum(dim=1) + 1


def accept_relaxed(
    logits: Tensor, drafts: Tensor, deltas: Tensor, top_k: int
) -> tuple[Tensor, Tensor]:
    """Choose greedily, but let a draft stand that is nearly as likely as the best token.

    Draft i stands if it is the best token at its position, or one of the top_k best with
    p >= p_best - delta; the first that does not stand ends the run, and the best token takes its place.
    Args:
        logits: [b, 1 + n, vocab_size].  drafts: [b, n].  deltas: [b], 0: greedy alone.
    Returns: tokens [b, 1 + n], and how many of them count [b].
    """
    best = logits.argmax(dim=-1)
    probabilities = torch.softmax(logits[:, :-1].float(), dim=-1)
    top = probabilities.topk(min(top_k, logits.shape[-1]), dim=-1)
    floor = top.values[..., :1] - deltas[:, None, None]
    near = ((top.indices == drafts[..., None]) & (top.values >= floor)).any(dim=-1)
    stands = (drafts == best[:, :-1]) | (near & (deltas[:, None] > 0))
    run = stands.to(torch.int64).cumprod(dim=1)
    tokens = best.clone()
    tokens[:, :-1] = torch.where(run.bool(), drafts, best[:, :-1])
    return tokens, run.sum(dim=1) + 1


def update_deltas(deltas: Tensor, tokens: Tensor, num_new: Tensor, rule: Relaxed) -> Tensor:
    """Return the deltas of the next step: the last marker among the tokens that count decides."""
    step = torch.arange(tokens.shape[1], device=tokens.device)
    counts = step < num_new[:, None]
    last_begin = torch.where(counts & (tokens == rule.begin), step, -1).amax(dim=1)
    last_end = torch.where(counts & (tokens == rule.end), step, -1).amax(dim=1)
    thinking = torch.where(last_begin > last_end, rule.delta, 0.0).to(deltas.dtype)
    return torch.where(last_begin == last_end, deltas, thinking)


def thinks(tokens: list[int], rule: Relaxed) -> bool:
    """Whether a text ends inside its thinking: the last marker is the beginning."""
    for token in reversed(tokens):
        if token in (rule.begin, rule.end):
            return token == rule.begin
    return False
