"""A step on its way to the device: what was planned, as plain numbers, and where its rows lie."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from seekernel.engine.acceptance import Relaxed, thinks
from seekernel.engine.request import TokenSequence
from seekernel.engine.scheduler import StepPlan
from seekernel.engine.step_sampling import is_plain
from seekernel.model import Batch

PageWrites = list[tuple[int, int, list[int]]]  # slot, first entry, pages


@dataclass(frozen=True)
class ChunkInput:
    """Known tokens of one sequence, `begin` rows of which are in the cache already.

    following: the token after them, None where this step chooses it.  thinking: see acceptance.
    num_scored: of its tokens, those whose successor is a token of the prompt that wants its
    log-probability; num_top: and of so many others.
    """

    slot: int
    tokens: list[int]
    begin: int
    pages: list[int]
    following: int | None
    thinking: bool
    num_scored: int = 0
    num_top: int = 0


@dataclass(frozen=True)
class Step:
    """What the device needs of a plan; the sequences may change while it runs.

    sequences: those that get tokens: the decodes, then the chunks that end their sequence.
    num_rows: of the longest sequence, after the step.  on_device: every choice is the likeliest token.
    """

    copies: list[tuple[int, int]]
    page_writes: PageWrites
    decode_slots: list[int]
    chunks: list[ChunkInput]
    sequences: list[TokenSequence]
    num_rows: int
    on_device: bool


def prepare(
    plan: StepPlan, page_writes: PageWrites, num_drafts: int, relaxed: Relaxed | None
) -> Step:
    """Take from a plan what the device needs."""
    chunks = []
    sequences = [item.sequence for item in plan.decodes]
    num_rows = max((item.max_rows for item in plan.decodes), default=0)
    for chunk in plan.chunks:
        sequence = chunk.sequence
        if chunk.samples:
            sequences.append(sequence)
        num_rows = max(num_rows, chunk.end + 2 * num_drafts)
        num_top = sequence.params.prompt_logprobs
        scored = min(chunk.end, len(sequence.prompt_token_ids) - 1) - chunk.begin
        chunks.append(
            ChunkInput(
                slot=sequence.slot,
                tokens=sequence.token_range(chunk.begin, chunk.end),
                begin=chunk.begin,
                pages=list(sequence.pages),
                following=None if chunk.samples else sequence.tokens[chunk.end],
                thinking=relaxed is not None and thinks(sequence.tokens, relaxed),
                num_scored=0 if num_top is None else max(scored, 0),
                num_top=num_top or 0,
            )
        )
    return Step(
        copies=list(plan.copies),
        page_writes=page_writes,
        decode_slots=[item.sequence.slot for item in plan.decodes],
        chunks=chunks,
        sequences=sequences,
        num_rows=num_rows,
        on_device=all(is_plain(sequence, 1 + num_drafts) for sequence in sequences),
    )


@dataclass(frozen=True)
class Layout:
    """Where the rows of a step lie: first 1 + n rows for each of d decodes, then the chunks.

    decode_slots [d], chunk_slots [p] int64: of what gets tokens; d counts padding too.
    logit_rows: rows of the forward whose logits are wanted, None: all.
    last_rows [p]: those that end a sampling chunk.  ends [p] int32: rows cached after it.
    shifted: for each chunk row the token that follows, 0 where this step chooses it.
    """

    batch: Batch
    token_ids: Tensor
    decode_slots: Tensor
    chunk_slots: Tensor
    logit_rows: Tensor | None
    last_rows: Tensor
    ends: Tensor
    shifted: Tensor
    num_rows: int | None

    @property
    def num_decodes(self) -> int:
        return self.decode_slots.shape[0]

    @property
    def slots(self) -> Tensor:
        if not self.chunk_slots.shape[0]:
            return self.decode_slots
        return torch.cat([self.decode_slots, self.chunk_slots])


def with_chunks(
    layout: Layout, chunks: list[ChunkInput], page_size: int, only_absorbed: bool
) -> Layout:
    """Put chunks behind the decodes of a layout."""
    device = layout.token_ids.device
    first = layout.batch.num_tokens
    batch = Batch.build(
        device,
        page_size,
        [chunk.pages for chunk in chunks],
        [chunk.begin for chunk in chunks],
        [len(chunk.tokens) for chunk in chunks],
        first_token=first,
        only_absorbed=only_absorbed,
    )
    row, last_rows, ends, slots, ids, shifted = first, [], [], [], [], []
    for chunk in chunks:
        row += len(chunk.tokens)
        ids += chunk.tokens
        shifted += chunk.tokens[1:]
        shifted.append(0 if chunk.following is None else chunk.following)
        if chunk.following is None:
            last_rows.append(row - 1)
            ends.append(chunk.begin + len(chunk.tokens))
            slots.append(chunk.slot)

    def int64(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64).to(device)

    return Layout(
        batch=layout.batch.join(batch) if first else batch,
        token_ids=torch.cat([layout.token_ids, int64(ids)]),
        decode_slots=layout.decode_slots,
        chunk_slots=int64(slots),
        logit_rows=int64([*range(first), *last_rows]),
        last_rows=int64(last_rows),
        ends=int64(ends).to(torch.int32),
        shifted=int64(shifted),
        num_rows=layout.num_rows,
    )
