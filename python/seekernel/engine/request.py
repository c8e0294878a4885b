"""A sequence on its way through the engine: its tokens, its pages, when it ends."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from seekernel.engine.outputs import CompletionOutput, FinishReason, Logprob
from seekernel.engine.prefix_tree import Node
from seekernel.engine.sampling_params import SamplingParams
from seekernel.tokenizer import IncrementalDetokenizer

if TYPE_CHECKING:
    from seekernel.engine.handle import RequestHandle


@dataclass(eq=False)
class TokenSequence:
    """One sample of one prompt.

    max_tokens: SamplingParams.max_tokens, cut so that prompt and output stay within max_seq_len.
    end_ids: tokens that end it, mapped to the stop_reason they give.
    num_cached: leading tokens whose rows are known to be in the cache.

    What the scheduler keeps: order, of arrival.  slot: of the device's buffers, -1: none.
    target: tokens that its prefill covers.  num_launched: those of them that were launched.
    in_flight, in_flight_max: launched steps that choose tokens for it and are not processed yet,
    and the most tokens they may give.  epoch: counts how often it was sent back to wait.
    may_reuse: whether known pages may stand in for its tokens.  num_reused: rows that did.
    prompt_logprobs: of the tokens after the first, as far as they were run; None: not wanted.
    """

    prompt_token_ids: list[int]
    params: SamplingParams
    max_tokens: int
    end_ids: dict[int, int | None]
    output: CompletionOutput
    generator: torch.Generator
    detokenizer: IncrementalDetokenizer | None = None
    pages: list[int] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    num_cached: int = 0
    num_reserved: int = 0
    order: int = 0
    slot: int = -1
    target: int = 0
    num_launched: int = 0
    in_flight: int = 0
    in_flight_max: int = 0
    epoch: int = 0
    may_reuse: bool = True
    num_reused: int = 0
    owner: RequestHandle | None = None
    prompt_logprobs: list[dict[int, Logprob]] | None = None
    tokens: list[int] = field(default_factory=list)
    first_scheduled_at: float | None = None
    first_token_at: float | None = None
    finished_at: float | None = None

    def __post_init__(self) -> None:
        if self.params.prompt_logprobs is not None and self.output.index == 0:
            self.may_reuse = False  # all rows are run, and none is run with others' rounding
            if self.prompt_logprobs is None:
                self.prompt_logprobs = []
        self.tokens = [*self.prompt_token_ids, *self.output.token_ids]

    @property
    def num_tokens(self) -> int:
        return len(self.tokens)

    @property
    def max_total(self) -> int:
        """Tokens of prompt and output at most."""
        return len(self.prompt_token_ids) + self.max_tokens

    @property
    def prefilling(self) -> bool:
        """Whether some of its known tokens were not launched yet."""
        return self.num_launched < self.target

    @property
    def max_cached(self) -> int:
        """Tokens the cache must hold at most: all but the last, which is never attended to."""
        return len(self.prompt_token_ids) + self.max_tokens - 1

    @property
    def finished(self) -> bool:
        return self.output.finish_reason is not None

    @property
    def may_end(self) -> bool:
        """Whether the next token may be the last by choice, not by max_tokens."""
        return len(self.output.token_ids) >= self.params.min_tokens

    def token_range(self, begin: int, end: int) -> list[int]:
        """Return tokens begin to end, of prompt and output together."""
        return self.tokens[begin:end]

    def append(self, token_id: int) -> None:
        """Add a chosen token, extend the text, and finish if it ends here."""
        may_end = self.may_end
        self.output.token_ids.append(token_id)
        self.tokens.append(token_id)
        if self.first_token_at is None:
            self.first_token_at = time.perf_counter()
        if may_end and token_id in self.end_ids:
            self.finish("stop", self.end_ids[token_id])
            return
        stopped = False
        if self.detokenizer is not None:
            stopped = self._extend(self.detokenizer.push(token_id), may_end)
        if not stopped and len(self.output.token_ids) >= self.max_tokens:
            self.finish("length")

    def finish(self, reason: FinishReason, stop_reason: int | None = None) -> None:
        """End the sequence, once. Text that was held back is given out, and may hold a stop."""
        if self.finished:
            return
        self.finished_at = time.perf_counter()
        if self.detokenizer is not None and self._extend(self.detokenizer.flush(), self.may_end):
            return
        self.output.finish_reason, self.output.stop_reason = reason, stop_reason

    def fail(self, message: str) -> None:
        """End the sequence with an error of its own."""
        self.finish("error")
        self.output.finish_reason, self.output.error = "error", message

    def _extend(self, piece: str, may_end: bool) -> bool:
        """Add text, up to the first stop string in it, which ends the sequence: then True."""
        before = len(self.output.text)
        self.output.text += piece
        if not piece or not may_end or not self.params.stop:
            return False
        begin = max(before - max(map(len, self.params.stop)) + 1, 0)
        found = [(self.output.text.find(stop, begin), stop) for stop in self.params.stop]
        hits = [hit for hit in found if hit[0] >= 0]
        if not hits:
            return False
        position, stop = min(hits, key=lambda hit: hit[0])
        self.output.text = self.output.text[:position]
        self.output.finish_reason, self.output.stop_reason = "stop", stop
        self.finished_at = time.perf_counter()
        return True
