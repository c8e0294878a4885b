"""What a request gives back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

FinishReason = Literal["stop", "length", "abort", "error"]


@dataclass(frozen=True)
class Logprob:
    """One token's natural-log probability under the model, and its place among all (1 is best)."""

    logprob: float
    rank: int
    decoded_token: str


@dataclass
class Speculation:
    """Decode steps of one sample, the drafts they ran and how many of those stood."""

    num_steps: int = 0
    num_drafted: int = 0
    num_accepted: int = 0

    @property
    def acceptance_rate(self) -> float:
        return self.num_accepted / max(self.num_drafted, 1)

    @property
    def tokens_per_step(self) -> float:
        """Tokens that one decode step gave on average: 1 without drafts."""
        return (self.num_steps + self.num_accepted) / max(self.num_steps, 1)


@dataclass
class CompletionOutput:
    """One sample. token_ids holds the token that ended it, text does not.

    finish_reason: "stop" (end of sequence, or stop_reason), "length", "abort", or "error".
    stop_reason: the stop string or stop token id that ended it; None for the model's own end.
    cumulative_logprob, logprobs: None unless SamplingParams.logprobs was given; the first also
    where best_of needs it.
    speculation: what the drafts were worth, None without them.
    """

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    cumulative_logprob: float | None = None
    logprobs: list[dict[int, Logprob]] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    error: str | None = None
    speculation: Speculation | None = field(default=None, compare=False)

    def count_drafts(self, drafted: int, accepted: int) -> None:
        """Note one decode step with drafts."""
        if self.speculation is None:
            self.speculation = Speculation()
        self.speculation.num_steps += 1
        self.speculation.num_drafted += drafted
        self.speculation.num_accepted += accepted


@dataclass
class Timing:
    """Seconds since the request came in, None: not yet. A request of several samples takes the
    first sample's start and first token and the last one's end."""

    scheduled: float | None = None
    first_token: float | None = None
    finished: float | None = None


@dataclass
class RequestOutput:
    """One prompt with its samples. prompt is None when token ids were given without text.

    prompt_logprobs: per token of the prompt, None for the first; None unless asked for.
    cached_tokens: of the prompt, that were not run because their pages were known.
    """

    request_id: int
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    prompt_logprobs: list[dict[int, Logprob] | None] | None = None
    cached_tokens: int = field(default=0, compare=False)
    timing: Timing = field(default_factory=Timing, compare=False)

    @property
    def finished(self) -> bool:
        return all(output.finish_reason is not None for output in self.outputs)
