"""How the tokens of one request are chosen and when they end."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from seekernel.errors import RequestError

MAX_N = 128
MAX_LOGIT_BIAS = 1024
MAX_LOGPROBS = 20
MAX_STOP_STRINGS = 16
MAX_STOP_CHARACTERS = 1024


@runtime_checkable
class GuidedDecoding(Protocol):
    """Says which tokens may come next: a grammar, a schema, a choice of texts."""

    def fill_mask(self, output_token_ids: Sequence[int], mask: Tensor) -> None:
        """Allow the tokens that may follow the output so far.

        mask: [ceil(vocab_size / 32)] int32 on the CPU; bit i % 32 of word i / 32 allows token i.
        Every bit is set on entry. If none is left, the request ends with an error.
        One object serves all samples of a request: the output alone must decide. It is called
        once for every token, and again for the same output when a step is repeated.
        """


@dataclass(frozen=True)
class SamplingParams:
    """Sampling parameters of one request. Errors: RequestError naming the field.

    temperature: 0 is greedy. None: greedy, unless top_k, top_p or min_p asks for sampling, then 1.
    top_k: keep the k likeliest tokens; 0 keeps all.  top_p: keep the smallest set of likeliest
    tokens whose probabilities reach top_p.  min_p: keep tokens at least min_p times as likely as
    the likeliest. They apply in this order: guided, logit_bias, penalties, temperature, min_p, top_k,
    top_p.
    seed: same seed, same prompt, same text; None draws one from the engine's own seed.
    max_tokens, min_tokens: of the output. min_tokens bars the ends of text until then.
    stop: strings that end the text, cut off from it.  stop_token_ids: the same for tokens.
    ignore_eos: go on after the model's end-of-sequence token.  n: samples per prompt.  best_of:
    samples to make, of which the n of largest cumulative log-probability are given back; None: n.
    repetition_penalty: > 1 divides (or multiplies, below 0) logits of tokens already in prompt or
    output.  presence_penalty: subtracted once, frequency_penalty: per occurrence, output only.
    logprobs: natural-log probabilities of that many likeliest tokens and of the chosen one, from
    the model's own distribution, before penalties and temperature.  prompt_logprobs: the same for
    the prompt's tokens.
    logit_bias: {token id: value from -100 to 100} added to logits.  guided: bars tokens, see
    GuidedDecoding.
    """

    temperature: float | None = None
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    max_tokens: int = 32
    min_tokens: int = 0
    stop: str | tuple[str, ...] | list[str] = ()
    stop_token_ids: tuple[int, ...] | list[int] = ()
    ignore_eos: bool = False
    n: int = 1
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logprobs: int | None = None
    best_of: int | None = None
    prompt_logprobs: int | None = None
    logit_bias: Mapping[int, float] | tuple[tuple[int, float], ...] = ()
    guided: GuidedDecoding | None = None

    def __post_init__(self) -> None:
        if self.temperature is not None:
            _number("temperature", self.temperature, 0.0, 100.0)
        _integer("top_k", self.top_k, 0, 2**31 - 1)
        if not _number("top_p", self.top_p, 0.0, 1.0) > 0.0:
            raise RequestError.expected("top_p", "a number above 0, at most 1", self.top_p)
        _number("min_p", self.min_p, 0.0, 1.0)
        if self.seed is not None:
            _integer("seed", self.seed, -(2**63), 2**64 - 1)
        _integer("max_tokens", self.max_tokens, 1, 2**31 - 1)
        _integer("min_tokens", self.min_tokens, 0, self.max_tokens, "max_tokens")
        _integer("n", self.n, 1, MAX_N)
        if self.best_of is not None:
            if isinstance(self.best_of, int) and 1 <= self.best_of < self.n:
                raise RequestError.expected("best_of", f"at least n={self.n}", self.best_of)
            _integer("best_of", self.best_of, 1, MAX_N)
        if self.logprobs is not None:
            _integer("logprobs", self.logprobs, 0, MAX_LOGPROBS)
        if self.prompt_logprobs is not None:
            _integer("prompt_logprobs", self.prompt_logprobs, 0, MAX_LOGPROBS)
        if not _number("repetition_penalty", self.repetition_penalty, 0.0, 100.0) > 0.0:
            raise RequestError.expected(
                "repetition_penalty", "a number above 0, at most 100", self.repetition_penalty
            )
        _number("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _number("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        if not isinstance(self.ignore_eos, bool):
            raise RequestError.expected("ignore_eos", "true or false", self.ignore_eos)
        object.__setattr__(self, "stop", _stop_strings(self.stop))
        object.__setattr__(self, "stop_token_ids", _token_ids(self.stop_token_ids))
        object.__setattr__(self, "logit_bias", _logit_bias(self.logit_bias))
        if self.guided is not None and not isinstance(self.guided, GuidedDecoding):
            raise RequestError.expected("guided", "an object with fill_mask", self.guided)

    @property
    def bias_entries(self) -> tuple[tuple[int, float], ...]:
        """logit_bias as pairs, whichever way it was given."""
        return _logit_bias(self.logit_bias)

    @property
    def effective_temperature(self) -> float:
        """The temperature with None resolved; 0 is greedy."""
        if self.temperature is not None:
            return float(self.temperature)
        return 1.0 if self.top_k > 1 or self.top_p < 1.0 or self.min_p > 0.0 else 0.0

    @property
    def num_samples(self) -> int:
        """Samples to make: best_of, or n."""
        return self.n if self.best_of is None else self.best_of

    @property
    def penalises_seen(self) -> bool:
        """Whether tokens seen before are worth less or more."""
        return (
            self.repetition_penalty != 1.0
            or self.presence_penalty != 0.0
            or self.frequency_penalty != 0.0
        )

    @property
    def has_penalties(self) -> bool:
        """Whether logits are changed before the choice: by penalties, logit_bias or guided."""
        return self.penalises_seen or bool(self.logit_bias) or self.guided is not None


def _number(name: str, value: object, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise RequestError.expected(name, f"a number from {low:g} to {high:g}", value)
    if not low <= value <= high:
        raise RequestError.expected(name, f"a number from {low:g} to {high:g}", value)
    return float(value)


def _integer(name: str, value: object, low: int, high: int, high_name: str = "") -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        limit = f"{high_name}={high}" if high_name else str(high)
        raise RequestError.expected(name, f"an integer from {low} to {limit}", value)


def _stop_strings(value: object) -> tuple[str, ...]:
    strings = (value,) if isinstance(value, str) else value
    if not isinstance(strings, tuple | list) or len(strings) > MAX_STOP_STRINGS:
        raise RequestError.expected("stop", f"at most {MAX_STOP_STRINGS} strings", value)
    for item in strings:
        if not isinstance(item, str) or not 0 < len(item) <= MAX_STOP_CHARACTERS:
            raise RequestError.expected(
                "stop", f"strings of 1 to {MAX_STOP_CHARACTERS} characters", item
            )
    return tuple(strings)


def _token_ids(value: object) -> tuple[int, ...]:
    if not isinstance(value, tuple | list):
        raise RequestError.expected("stop_token_ids", "token ids", value)
    for item in value:
        if isinstance(item, bool) or not isinstance(item, int) or item < 0:
            raise RequestError.expected("stop_token_ids", "token ids of 0 or more", item)
    return tuple(value)


def _logit_bias(value: object) -> tuple[tuple[int, float], ...]:
    pairs = tuple(value.items()) if isinstance(value, Mapping) else value
    if not isinstance(pairs, tuple) or len(pairs) > MAX_LOGIT_BIAS:
        raise RequestError.expected(
            "logit_bias", f"a mapping of at most {MAX_LOGIT_BIAS} token ids to numbers", value
        )
    for pair in pairs:
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise RequestError.expected("logit_bias", "a mapping of token ids to numbers", value)
        _integer("logit_bias: token id", pair[0], 0, 2**31 - 1)
        _number("logit_bias", pair[1], -100.0, 100.0)
    return tuple(sorted((int(token), float(bias)) for token, bias in pairs))
