"""Chooses the next token of each sequence. Plain torch, float32; sums in float64.

Each row is computed alone and from nothing but its own sequence, so a sequence gets the same
tokens in any batch; greedy ties go to the lower id.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from seekernel.engine.request import TokenSequence
from seekernel.engine.sampling_params import SamplingParams


@dataclass(frozen=True)
class Choice:
    """A chosen token; with logprobs {id: (logprob, rank)} of it and of the likeliest, if asked."""

    token_id: int
    logprobs: dict[int, tuple[float, int]] | None = None


def sample(logits: Tensor, sequences: Sequence[TokenSequence]) -> list[Choice | None]:
    """Choose one token per row.

    Args:
        logits: [r, vocab_size] float32.  sequences: r of them; a generator advances by one draw
        where its sequence samples.
    Returns: r choices, None for a row with a NaN or an infinite maximum. Writes: the generators.
    """
    # Not max(dim=-1): it waits for other threads, up to 30 ms when a core is busy with other work.
    best_ids = logits.argmax(dim=-1)
    usable = torch.isfinite(logits.gather(1, best_ids[:, None])).squeeze(1).tolist()
    greedy_ids = best_ids.tolist()
    choices: list[Choice | None] = []
    for row, sequence in enumerate(sequences):
        if not usable[row]:
            choices.append(None)
            continue
        params = sequence.params
        bars_ends = not sequence.may_end and bool(sequence.end_ids)
        if params.effective_temperature == 0.0 and not params.has_penalties and not bars_ends:
            token_id = greedy_ids[row]
        else:
            token_id = _choose(logits[row].float().clone(), sequence, bars_ends)
        logprobs = None
        if params.logprobs is not None:
            logprobs = top_logprobs(logits[row], token_id, params.logprobs)
        choices.append(Choice(token_id, logprobs))
    return choices


def top_logprobs(logits: Tensor, token_id: int, count: int) -> dict[int, tuple[float, int]]:
    """Return {id: (log-probability, rank from 1)} of one token and of the `count` likeliest.

    logits: [vocab_size]. Equal logits rank in order of id.
    """
    logprobs = torch.log_softmax(logits.double(), dim=-1)
    order = torch.sort(logprobs, descending=True, stable=True).indices[:count]
    chosen = logprobs[token_id]
    earlier = (logprobs > chosen).sum() + (logprobs[:token_id] == chosen).sum()
    result = {token_id: (float(chosen), int(earlier) + 1)}
    for rank, (index, value) in enumerate(
        zip(order.tolist(), logprobs[order].tolist(), strict=True), start=1
    ):
        result[index] = (value, rank)
    return result


def _choose(logits: Tensor, sequence: TokenSequence, bars_ends: bool) -> int:
    params = sequence.params
    if params.has_penalties:
        apply_penalties(logits, params, sequence.prompt_token_ids, sequence.output.token_ids)
    if bars_ends:
        logits[torch.tensor(sorted(sequence.end_ids), device=logits.device)] = -math.inf
    if params.effective_temperature == 0.0:
        return int(logits.argmax())
    uniform = torch.rand((), generator=sequence.generator, dtype=torch.float64).item()
    return draw(logits, params, uniform)


def apply_penalties(
    logits: Tensor, params: SamplingParams, prompt: Sequence[int], output: Sequence[int]
) -> None:
    """Lower the logits of tokens already seen. logits: [vocab_size]. Writes: logits."""
    if params.repetition_penalty != 1.0:
        seen = torch.tensor(sorted({*prompt, *output}), device=logits.device)
        values = logits[seen]
        factor = params.repetition_penalty
        logits[seen] = torch.where(values > 0, values / factor, values * factor)
    if output and (params.presence_penalty or params.frequency_penalty):
        counts = sorted(Counter(output).items())
        ids = torch.tensor([token for token, _ in counts], device=logits.device)
        times = torch.tensor([count for _, count in counts], device=logits.device)
        logits[ids] -= params.presence_penalty + params.frequency_penalty * times.float()


def draw(logits: Tensor, params: SamplingParams, uniform: float) -> int:
    """Draw one token from the distribution that temperature, min_p, top_k and top_p leave.

    Args: logits: [vocab_size] float32.  uniform: in [0, 1), the draw's only randomness.
    The smallest set that reaches top_p is taken from what min_p and top_k left.
    """
    # exp((z - max) / t): the largest weight is 1 at any temperature, so nothing overflows.
    weights = torch.exp((logits - logits.max()) / params.effective_temperature).double()
    keep = weights >= params.min_p if params.min_p > 0.0 else weights > 0.0
    # A serial sum: the bits must not depend on the number of threads.
    total = torch.cumsum(weights[keep], dim=0)[-1]
    if 0 < params.top_k < weights.numel():
        keep &= weights >= torch.topk(weights, params.top_k).values[-1]
    elif params.top_p < 1.0:
        # All tokens below this together weigh less than 1 - top_p, so none is in the nucleus; the
        # margin covers the rounding of the sums. Without the cut a full sort would dominate.
        keep &= weights >= (1.0 - params.top_p) * total / weights.numel() * (1.0 - 1e-9)
    ids = keep.nonzero().squeeze(1)
    weights = weights[ids]
    if params.top_k or params.top_p < 1.0:
        weights, order = torch.sort(weights, descending=True, stable=True)
        ids = ids[order]
    if params.top_k:
        weights, ids = weights[: params.top_k], ids[: params.top_k]
    cumulative = torch.cumsum(weights, dim=0)
    if params.top_p < 1.0:
        mass = params.top_p * (cumulative[-1] if params.top_k else total)
        cumulative = cumulative[: int(torch.searchsorted(cumulative, mass)) + 1]
    index = int(torch.searchsorted(cumulative, uniform * cumulative[-1], right=True))
    return int(ids[min(index, cumulative.numel() - 1)])
