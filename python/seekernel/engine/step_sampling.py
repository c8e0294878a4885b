"""Choices that need what the host knows of a sequence: sampling, penalties, log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from seekernel.engine.outputs import CompletionOutput
from seekernel.engine.request import TokenSequence
from seekernel.engine.sampler import Choice, sample


def is_plain(sequence: TokenSequence, num_tokens: int) -> bool:
    """Whether its next tokens are the likeliest ones, whatever came before."""
    params = sequence.params
    return (
        params.effective_temperature == 0.0
        and not params.has_penalties
        and params.logprobs is None
        and (params.min_tokens <= len(sequence.output.token_ids) or not sequence.end_ids)
    )


def choose_on_host(
    logits: Tensor,
    sequences: Sequence[TokenSequence],
    first_rows: Sequence[int],
    drafts: Sequence[Sequence[int]],
) -> list[list[Choice | None]]:
    """Choose tokens one by one, and go on to the next row while the draft foretold the choice.

    Each token is drawn from the model's own distribution, so drafts never change what is drawn; a
    draft saves the step that the next token would have needed. (For a draft that is certain of its
    token this is rejection sampling: Leviathan et al. 2023, section 2.3.)
    Args: logits [rows, vocab_size]; per sequence its first row, and its drafts for the rows after it.
    Returns: per sequence 1 to 1 + len(drafts) choices; None, the last one, for logits without a best.
    """
    chosen: list[list[Choice | None]] = [[] for _ in sequences]
    views = list(sequences)
    active = list(range(len(sequences)))
    depth = 0
    while active:
        rows = [first_rows[index] + depth for index in active]
        picked = logits if len(rows) == logits.shape[0] else logits[rows]
        choices = sample(picked, [views[index] for index in active])
        going_on = []
        for index, choice in zip(active, choices, strict=True):
            chosen[index].append(choice)
            if choice is None or depth >= len(drafts[index]):
                continue
            sequence = views[index]
            if choice.token_id != drafts[index][depth] or choice.token_id in sequence.end_ids:
                continue
            tokens = [*sequence.output.token_ids, choice.token_id]
            output = CompletionOutput(sequence.output.index, token_ids=tokens)
            views[index] = replace(sequence, output=output)
            going_on.append(index)
        active = going_on
        depth += 1
    return chosen
