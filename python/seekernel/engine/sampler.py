"""Chooses the next token of each sequence of a batch: parameters into tensors, then the ops.

Each row is computed alone and from nothing but its own sequence, so a sequence gets the same
tokens in any batch and on any device; greedy ties go to the lower id.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from seekernel import ops
from seekernel.engine.request import TokenSequence

LogprobsOfToken = dict[int, tuple[float, int]]


@dataclass(frozen=True)
class Choice:
    """A chosen token; with logprobs {id: (logprob, rank)} of it and of the likeliest, if asked."""

    token_id: int
    logprobs: LogprobsOfToken | None = None


def sample(logits: Tensor, sequences: Sequence[TokenSequence]) -> list[Choice | None]:
    """Choose one token per row.

    Args:
        logits: [r, vocab_size] float32 or bfloat16.  sequences: r of them. A draw depends on the
        generator's seed and the length of the output alone.
    Returns: r choices, None for a row with a NaN, an infinite maximum, or no token allowed.
    """
    if not sequences:
        return []
    params = [sequence.params for sequence in sequences]
    column = _Columns(logits.device)
    ids, _ = ops.sample(
        logits,
        column.float32([p.effective_temperature for p in params]),
        column.int32([p.top_k for p in params]),
        column.float32([p.top_p for p in params]),
        column.float32([p.min_p for p in params]),
        column.int64([signed_seed(sequence.generator.initial_seed()) for sequence in sequences]),
        column.int64([len(sequence.output.token_ids) for sequence in sequences]),
        penalties=make_penalties(sequences, logits),
        bias=make_bias(sequences, logits.device),
        mask=make_mask(sequences, logits),
    )
    chosen = ids.tolist()
    logprobs = _logprobs(logits, [p.logprobs for p in params], chosen)
    return [
        None if token < 0 else Choice(token, logprobs.get(row)) for row, token in enumerate(chosen)
    ]


def top_logprobs(logits: Tensor, token_ids: Sequence[int], count: int) -> list[LogprobsOfToken]:
    """Return {id: (log-probability, rank from 1)} of one token per row and of the `count` likeliest.

    logits: [r, vocab_size]; the model's own distribution. Equal logits rank in order of id.
    """
    ids = torch.tensor(token_ids, dtype=torch.int32, device=logits.device)
    got = ops.token_logprobs(logits, ids, min(count, logits.shape[1]))
    rows = zip(
        token_ids, *(tensor.tolist() for tensor in got), strict=True
    )  # token, logprob, rank, top ids, top logprobs
    return [
        {token: (logprob, rank)}
        | {
            top: (value, place)
            for place, (top, value) in enumerate(zip(tops, values, strict=True), start=1)
        }
        for token, logprob, rank, tops, values in rows
    ]


def signed_seed(seed: int) -> int:
    """The int64 with the bits of an unsigned 64-bit seed."""
    seed %= 2**64
    return seed - 2**64 if seed >= 2**63 else seed


def make_penalties(sequences: Sequence[TokenSequence], logits: Tensor) -> ops.Penalties | None:
    """Counts of the tokens that each penalised sequence has seen; None if there is no such one."""
    rows = [row for row, sequence in enumerate(sequences) if sequence.params.penalises_seen]
    if not rows:
        return None
    column = _Columns(logits.device)
    counts = torch.empty(len(rows), logits.shape[1], dtype=torch.int32, device=logits.device)
    slots = [-1] * len(sequences)
    for slot, row in enumerate(rows):
        slots[row] = slot
        sequence = sequences[row]
        ops.reset_token_counts(
            counts,
            slot,
            column.int32(sequence.prompt_token_ids),
            column.int32(sequence.output.token_ids),
        )
    return ops.Penalties(
        column.float32([sequence.params.repetition_penalty for sequence in sequences]),
        column.float32([sequence.params.presence_penalty for sequence in sequences]),
        column.float32([sequence.params.frequency_penalty for sequence in sequences]),
        counts,
        column.int32(slots),
    )


def make_bias(sequences: Sequence[TokenSequence], device: torch.device) -> ops.LogitBias | None:
    """logit_bias of each sequence, and its ends barred while min_tokens asks for more."""
    rows = [bias_entries(sequence) for sequence in sequences]
    width = max(map(len, rows))
    if width == 0:
        return None
    padded = [[*row, *[(-1, 0.0)] * (width - len(row))] for row in rows]
    column = _Columns(device)
    return ops.LogitBias(
        column.int32([[token for token, _ in row] for row in padded]),
        column.float32([[value for _, value in row] for row in padded]),
    )


def bias_entries(sequence: TokenSequence) -> list[tuple[int, float]]:
    """(token id, what is added to its logit) of one sequence at its next token."""
    entries = list(sequence.params.bias_entries)
    if not sequence.may_end:
        entries += [(token, -math.inf) for token in sorted(sequence.end_ids)]
    return entries


def make_mask(sequences: Sequence[TokenSequence], logits: Tensor) -> Tensor | None:
    """Bits of the tokens that guided decoding allows; None if no sequence is guided."""
    guided = [
        (row, sequence.params.guided, sequence.output.token_ids)
        for row, sequence in enumerate(sequences)
        if sequence.params.guided is not None
    ]
    if not guided:
        return None
    mask = torch.full((len(sequences), -(-logits.shape[1] // 32)), -1, dtype=torch.int32)
    for row, decoding, output in guided:
        decoding.fill_mask(output, mask[row])
    return mask.to(logits.device)


@dataclass(frozen=True)
class _Columns:
    """Host values as tensors on one device."""

    device: torch.device

    def float32(self, values: Sequence[object]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=self.device)

    def int32(self, values: Sequence[object]) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, device=self.device)

    def int64(self, values: Sequence[object]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self.device)


def _logprobs(
    logits: Tensor, wanted: Sequence[int | None], chosen: Sequence[int]
) -> dict[int, LogprobsOfToken]:
    """By row, for the rows that want them."""
    rows = [row for row, count in enumerate(wanted) if count is not None and chosen[row] >= 0]
    if not rows:
        return {}
    counts = [wanted[row] or 0 for row in rows]
    picked = logits if len(rows) == logits.shape[0] else logits[rows]
    found = top_logprobs(picked, [chosen[row] for row in rows], max(counts))
    return {
        row: _first(logprobs, chosen[row], count)
        for row, logprobs, count in zip(rows, found, counts, strict=True)
    }


def _first(logprobs: LogprobsOfToken, token_id: int, count: int) -> LogprobsOfToken:
    """Those of the token and of the `count` likeliest."""
    return {
        token: value for token, value in logprobs.items() if token == token_id or value[1] <= count
    }
