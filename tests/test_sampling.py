"""SamplingParams and the sampler: what is refused, and which token is chosen."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from seekernel.engine.outputs import CompletionOutput
from seekernel.engine.request import TokenSequence
from seekernel.engine.sampler import Choice, sample, top_logprobs
from seekernel.engine.sampling_params import SamplingParams
from seekernel.errors import RequestError, SeekernelError

NAN, INF = math.nan, math.inf


def make_sequence(seed: int = 0, prompt: list[int] | None = None, **params: Any) -> TokenSequence:
    return TokenSequence(
        prompt_token_ids=prompt or [1],
        params=SamplingParams(**params),
        max_tokens=8,
        end_ids={0: None},
        output=CompletionOutput(0),
        generator=torch.Generator().manual_seed(seed),
    )


def random_logits(rows: int, vocab_size: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, vocab_size, generator=torch.Generator().manual_seed(seed)) * 3


def chosen(choices: list[Choice | None]) -> list[int]:
    return [choice.token_id for choice in choices if choice is not None]


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"temperature": NAN}, "temperature: expected a number from 0 to 100, got nan"),
    ({"temperature": -0.1}, "temperature: expected a number from 0 to 100, got -0.1"),
    ({"temperature": INF}, "temperature: expected"),
    ({"temperature": "hot"}, "temperature: expected a number from 0 to 100, got 'hot'"),
    ({"temperature": True}, "temperature: expected"),
    ({"top_k": -1}, "top_k: expected an integer from 0"),
    ({"top_k": 1.5}, "top_k: expected an integer from 0"),
    ({"top_p": 0.0}, "top_p: expected a number above 0, at most 1, got 0.0"),
    ({"top_p": 1.01}, "top_p: expected"),
    ({"top_p": NAN}, "top_p: expected"),
    ({"min_p": -1}, "min_p: expected"),
    ({"seed": 2**64}, "seed: expected"),
    ({"seed": "7"}, "seed: expected"),
    ({"max_tokens": 0}, "max_tokens: expected an integer from 1 to 2147483647, got 0"),
    ({"max_tokens": -5}, "max_tokens: expected an integer from 1 to 2147483647, got -5"),
    ({"max_tokens": None}, "max_tokens: expected"),
    ({"max_tokens": 10**30}, "max_tokens: expected"),
    ({"min_tokens": 33}, "min_tokens: expected an integer from 0 to max_tokens=32, got 33"),
    ({"n": 0}, "n: expected an integer from 1 to 128, got 0"),
    ({"n": 10**6}, "n: expected an integer from 1 to 128"),
    ({"logprobs": 21}, "logprobs: expected an integer from 0 to 20, got 21"),
    ({"prompt_logprobs": -1}, "prompt_logprobs: expected an integer from 0 to 20, got -1"),
    ({"best_of": 0}, "best_of: expected an integer from 1 to 128, got 0"),
    ({"best_of": 2, "n": 3}, "best_of: expected at least n=3, got 2"),
    ({"logit_bias": {-1: 0.0}}, "logit_bias: token id: expected an integer from 0"),
    ({"logit_bias": {"7": 0.0}}, "logit_bias: token id: expected an integer from 0"),
    ({"logit_bias": {7: 101}}, "logit_bias: expected a number from -100 to 100, got 101"),
    ({"logit_bias": [7]}, "logit_bias: expected a mapping of at most 1024 token ids"),
    ({"guided": "json"}, "guided: expected an object with fill_mask, got 'json'"),
    ({"repetition_penalty": 0}, "repetition_penalty: expected a number above 0"),
    ({"presence_penalty": 2.5}, "presence_penalty: expected a number from -2 to 2"),
    ({"frequency_penalty": NAN}, "frequency_penalty: expected"),
    ({"stop": ""}, "stop: expected strings of 1 to 1024 characters, got ''"),
    ({"stop": ["a", 3]}, "stop: expected strings"),
    ({"stop": ["a"] * 17}, "stop: expected at most 16 strings"),
    ({"stop": "x" * 2000}, "stop: expected strings of 1 to 1024"),
    ({"stop_token_ids": [-1]}, "stop_token_ids: expected token ids of 0 or more, got -1"),
    ({"stop_token_ids": 3}, "stop_token_ids: expected token ids"),
    ({"ignore_eos": 1}, "ignore_eos: expected true or false, got 1"),
]


@pytest.mark.parametrize(("fields", "message"), REFUSED, ids=str)
def test_params_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=re.escape(message)) as caught:
        SamplingParams(**fields)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


ANYTHING: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=4),
    st.lists(st.integers()),
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(list(SamplingParams.__dataclass_fields__)), ANYTHING))
def test_params_raise_nothing_else(fields: dict[str, Any]) -> None:
    try:
        params = SamplingParams(**fields)
    except SeekernelError:
        return
    assert params.max_tokens >= 1
    assert math.isfinite(params.effective_temperature)


def test_params_normalise_stops() -> None:
    params = SamplingParams(stop="end", stop_token_ids=[3, 4])
    assert params.stop == ("end",)
    assert params.stop_token_ids == (3, 4)


@pytest.mark.parametrize(
    ("fields", "temperature"),
    [
        ({}, 0.0), ({"top_p": 0.9}, 1.0), ({"top_k": 5}, 1.0), ({"top_k": 1}, 0.0),
        ({"min_p": 0.1}, 1.0), ({"temperature": 0, "top_p": 0.9}, 0.0), ({"temperature": 0.6}, 0.6),
    ],
)  # fmt: skip
def test_default_is_greedy_unless_sampling_is_asked(
    fields: dict[str, Any], temperature: float
) -> None:
    assert SamplingParams(**fields).effective_temperature == temperature


def test_greedy_takes_the_lowest_id_of_a_tie() -> None:
    logits = torch.tensor([[1.0, 5.0, 5.0, 5.0], [0.0, -0.0, 0.0, -1.0], [7.0, 1.0, 2.0, 7.0]])
    assert chosen(sample(logits, [make_sequence() for _ in range(3)])) == [1, 0, 0]


@pytest.mark.parametrize("bad", [NAN, INF])
def test_broken_row_fails_alone(bad: float) -> None:
    logits = random_logits(3, 50)
    want = sample(logits, [make_sequence(i, temperature=1.0) for i in range(3)])
    logits[1, 7] = bad
    got = sample(logits, [make_sequence(i, temperature=1.0) for i in range(3)])
    assert got[1] is None
    assert (got[0], got[2]) == (want[0], want[2])


def test_infinitely_unlikely_tokens_are_never_drawn() -> None:
    logits = torch.full((1, 50), -INF)
    logits[0, 9] = 1.0
    assert chosen(sample(logits, [make_sequence(temperature=1.0)])) == [9]
    logits[0, 9] = -INF
    assert sample(logits, [make_sequence(temperature=1.0)]) == [None]


def test_same_seed_same_tokens_in_any_batch() -> None:
    vocab_size = 4099
    settings_: list[dict[str, Any]] = [
        {"temperature": 0.7}, {"top_p": 0.9}, {"top_k": 40, "temperature": 1.3}, {"min_p": 0.05},
        {"temperature": 1.0, "repetition_penalty": 1.2, "prompt": [3, 4, 5]},
    ]  # fmt: skip
    logits = random_logits(len(settings_), vocab_size)
    alone = [
        chosen(sample(logits[i : i + 1], [make_sequence(i, **fields)]))[0]
        for i, fields in enumerate(settings_)
    ]
    together = sample(logits, [make_sequence(i, **fields) for i, fields in enumerate(settings_)])
    backwards = sample(
        logits.flip(0), [make_sequence(i, **settings_[i]) for i in reversed(range(len(settings_)))]
    )
    assert chosen(together) == alone
    assert chosen(backwards) == alone[::-1]


def reference_support(logits: Tensor, params: SamplingParams) -> set[int]:
    """Tokens that min_p, then top_k, then top_p leave, by the plain definition, in float64."""
    probabilities = torch.softmax(logits.double() / params.effective_temperature, -1).tolist()
    order = sorted(range(len(probabilities)), key=lambda i: (-probabilities[i], i))
    kept = [i for i in order if probabilities[i] >= params.min_p * probabilities[order[0]]]
    kept = kept[: params.top_k] if params.top_k else kept
    mass, nucleus = sum(probabilities[i] for i in kept), []
    total = 0.0
    for index in kept:
        nucleus.append(index)
        total += probabilities[index]
        if total >= params.top_p * mass * (1 - 1e-6):
            break
    return set(nucleus)


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 1.0}, {"top_k": 3}, {"top_p": 0.5}, {"top_p": 1e-6}, {"min_p": 0.3},
        {"top_k": 5, "top_p": 0.7}, {"min_p": 0.05, "top_k": 9, "top_p": 0.8, "temperature": 1.7},
        {"top_k": 1000, "top_p": 0.9},
    ],
)  # fmt: skip
def test_draws_come_from_exactly_the_support(fields: dict[str, Any]) -> None:
    params = SamplingParams(**fields)
    logits = random_logits(1, 23, seed=3) / 2
    draws = 4000
    sequences = [make_sequence(seed, **fields) for seed in range(draws)]
    drawn = Counter(chosen(sample(logits.expand(draws, -1), sequences)))
    support = reference_support(logits[0], params)
    assert set(drawn) <= support
    probabilities = torch.softmax(logits[0].double() / params.effective_temperature, -1)
    mass = float(sum(probabilities[i] for i in support))
    for token in support:
        p = float(probabilities[token]) / mass
        assert abs(drawn[token] - draws * p) <= 5 * math.sqrt(draws * p * (1 - p)) + 1e-9


def test_draw_ties_at_top_k_go_to_the_lower_ids() -> None:
    logits = torch.tensor([[0.0, 1.0, 1.0, 1.0]]).expand(100, -1)
    assert set(chosen(sample(logits, [make_sequence(i, top_k=2) for i in range(100)]))) == {1, 2}


@pytest.mark.parametrize("temperature", [1e-8, 1.0, 100.0])
def test_draw_extremes(temperature: float) -> None:
    logits = torch.tensor([[-3e38, 3e38, 0.0, -INF]]).expand(50, -1)
    sequences = [make_sequence(i, temperature=temperature) for i in range(50)]
    assert set(chosen(sample(logits, sequences))) == {1}


def test_penalties() -> None:
    # Each token's logit after penalties, against a token that none touches.
    penalties = {"repetition_penalty": 2.0, "presence_penalty": 0.5, "frequency_penalty": 0.25}
    logits = [2.0, -2.0, 1.0, 4.0, 0.0]
    want = [1.0, -4.0, 1.0, 2.0 - 0.5 - 0.5, 0.0 - 0.5 - 0.25]
    for token, value in enumerate(want):
        for other, best in ((value - 2**-10, token), (value + 2**-10, 5)):
            row = [-9.0] * 5 + [other]
            row[token] = logits[token]
            sequence = make_sequence(prompt=[0, 1], **penalties)
            sequence.output.token_ids.extend([3, 3, 4])
            assert chosen(sample(torch.tensor([row]), [sequence])) == [best]


def test_logit_bias_and_guided_decoding() -> None:
    class OnlyEven:
        def fill_mask(self, output_token_ids: Sequence[int], mask: Tensor) -> None:
            mask.fill_(0x55555555 if not output_token_ids else 0)

    logits = torch.tensor([[1.0, 9.0, 3.0, 2.0, 2.5]])
    assert chosen(sample(logits, [make_sequence(logit_bias={1: -7.0, 4: 0.75})])) == [4]
    assert chosen(sample(logits, [make_sequence(guided=OnlyEven())])) == [2]
    sequence = make_sequence(guided=OnlyEven())
    both = sample(logits.expand(2, -1), [sequence, make_sequence()])
    assert chosen(both) == [2, 1]
    sequence.append(2)
    assert sample(logits, [sequence]) == [None], "nothing is allowed"


def test_min_tokens_bars_the_end() -> None:
    logits = torch.tensor([[9.0, 1.0, 5.0]])
    sequence = make_sequence(min_tokens=1)
    assert chosen(sample(logits, [sequence])) == [2]
    sequence.append(2)
    assert chosen(sample(logits, [sequence])) == [0]
    assert logits[0, 0] == 9.0, "the caller's logits were changed"


def test_logprobs_are_of_the_model_itself() -> None:
    logits = random_logits(1, 31)[0]
    want = torch.log_softmax(logits.double(), -1)
    order = want.argsort(descending=True).tolist()
    (got,) = top_logprobs(logits[None], [order[10]], 3)
    assert list(got) == [order[10], *order[:3]]
    assert [got[token][1] for token in order[:3]] == [1, 2, 3]
    assert got[order[10]][1] == 11
    for token, (value, _) in got.items():
        assert value == pytest.approx(float(want[token]), abs=2e-6)
    choice = sample(logits[None], [make_sequence(logprobs=1, temperature=0.5, top_k=1)])[0]
    assert choice is not None
    assert choice.logprobs is not None
    assert list(choice.logprobs) == [order[0]]
    assert choice.logprobs[order[0]][0] == pytest.approx(float(want[order[0]]), abs=2e-6)
