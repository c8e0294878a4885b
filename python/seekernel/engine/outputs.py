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
class CompletionOutput:
    """One sample. token_ids holds the token that ended it, text does not.

    finish_reason: "stop" (end of sequence, or stop_reason), "length", "abort", or "error".
    stop_reason: the stop string or stop token id that ended it; None for the model's own end.
    cumulative_logprob, logprobs: None unless SamplingParams.logprobs was given.
    """

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    cumulative_logprob: float | None = None
    logprobs: list[dict[int, Logprob]] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    error: str | None = None


@dataclass
class RequestOutput:
    """One prompt with its samples. prompt is None when token ids were given without text."""

    request_id: int
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]

    @property
    def finished(self) -> bool:
        return all(output.finish_reason is not None for output in self.outputs)
