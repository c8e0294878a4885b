"""The demo's text generators, its tokenizer and its chat template."""

from __future__ import annotations

import json
import operator
import re
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from seekernel.model.demo import books, data, facts, problems, stories
from seekernel.model.demo import tokenizer as demo_tokenizer

OPERATORS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}
WORD_NUMBERS = {"twice": 2, "three times": 3, "four times": 4}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return demo_tokenizer.train_tokenizer(data.tokenizer_texts({}, seed=0, count=60), 700)


@pytest.mark.parametrize("kind", sorted(data.GENERATORS))
def test_generators_repeat_for_a_seed_and_differ_between_seeds(kind: str) -> None:
    make = data.GENERATORS[kind]
    first = [make(rng) for rng in [Random(5)] for _ in range(40)]
    again = [make(rng) for rng in [Random(5)] for _ in range(40)]
    other = [make(rng) for rng in [Random(6)] for _ in range(40)]
    assert first == again
    assert first != other
    assert all(t.startswith(demo_tokenizer.BOS) and t.endswith(demo_tokenizer.EOS) for t in first)


def check_problem(p: problems.Problem) -> None:
    """Recompute every equation, and trace every number in it to the question or to an earlier line."""
    known = {int(n) for n in re.findall(r"\d+", p.question)}
    known |= {value for word, value in WORD_NUMBERS.items() if word in p.question}
    result = None
    for step in p.steps:
        found = re.fullmatch(r".*: (\d+) ([-+*/]) (\d+) = (\d+)\.", step)
        assert found, step
        a, b, result = int(found[1]), int(found[3]), int(found[4])
        assert OPERATORS[found[2]](a, b) == result, step
        assert {a, b} <= known, (p.question, step)
        known.add(result)
    assert result == p.answer
    assert str(p.answer) in re.findall(r"\d+", p.sentence)


def test_problems_are_right_by_recomputation() -> None:
    rng = Random(11)
    for _ in range(3000):
        check_problem(problems.make_problem(rng))


def test_the_problem_check_sees_a_wrong_line() -> None:
    wrong = problems.Problem(
        "Tom has 3 eggs and 4 eggs.", ("Sum: 3 + 4 = 8.",), "Tom has 8 eggs.", 8
    )
    with pytest.raises(AssertionError):
        check_problem(wrong)


def test_problem_documents_end_in_the_answer() -> None:
    rng = Random(12)
    for _ in range(300):
        text = data.problem_document(rng).removesuffix(demo_tokenizer.EOS)
        assert re.search(r"\n#### \d+$", text), text


def test_choices_have_one_right_answer() -> None:
    rng = Random(13)
    letters: Counter[str] = Counter()
    for _ in range(2000):
        state = rng.getstate()
        fact = facts.make_fact(rng)
        assert fact.answer not in fact.wrong
        rng.setstate(state)
        question, letter = facts.make_choice(rng)
        options = dict(re.findall(r"^([A-D])\. (.+)$", question, re.M))
        assert sorted(options) == list("ABCD")
        assert len(set(options.values())) == 4, question
        assert options[letter] == fact.answer
        letters[letter] += 1
    assert min(letters.values()) > 400


def test_stories_are_whole() -> None:
    rng = Random(14)
    seen = {stories.make_story(rng).text for _ in range(500)}
    assert len(seen) == 500
    for text in seen:
        assert not set("{}_") & set(text), text
        assert text[0].isupper(), text
        assert text[-1] in '.!"', text
        assert text.count('"') % 2 == 0, text
        assert not re.search(r"\ba [aeiou]\w+", text), text


def test_facts_read_as_sentences() -> None:
    rng = Random(15)
    for _ in range(500):
        text = facts.make_text(rng)
        assert text[0].isupper(), text
        assert text[-1] in ".!?", text


def test_paragraphs_join_lines_and_keep_blank_ones() -> None:
    assert books.paragraphs(["one", "two ", "", " ", "_three_", "four"]) == [
        "one two",
        "three four",
    ]


def test_missing_books_are_an_error(tmp_path: Path) -> None:
    pytest.importorskip("rdata")
    with pytest.raises(FileNotFoundError):
        books.load(tmp_path)


def test_tokenizer_ids_and_round_trip(tokenizer: Tokenizer) -> None:
    special = [*demo_tokenizer.SPECIAL, demo_tokenizer.THINK, demo_tokenizer.END_THINK]
    assert [tokenizer.token_to_id(t) for t in special] == list(range(7))
    assert tokenizer.encode("A 123").tokens[0] == demo_tokenizer.BOS
    assert tokenizer.encode("1234", add_special_tokens=False).tokens == list("1234")
    for text in ("plain  text\n\n", "naïve, 12*3 = 36 – “ok” 你好 🙂", "\x00\t"):
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids) == text


def test_unknown_token_is_named(tokenizer: Tokenizer) -> None:
    with pytest.raises(KeyError, match="nothing"):
        demo_tokenizer.token_id(tokenizer, "<nothing>")


def test_saved_tokenizer_shows_thinking_marks(tokenizer: Tokenizer, tmp_path: Path) -> None:
    demo_tokenizer.save_tokenizer(tokenizer, tmp_path)
    stored = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    text = data.chat("Why?", "Because.", "So.")
    ids = stored.encode(text, add_special_tokens=False).ids
    assert stored.decode(ids) == "Why?<think>\nBecause.\n</think>\nSo."
    assert stored.decode(ids, skip_special_tokens=False) == text
    assert ids == tokenizer.encode(text, add_special_tokens=False).ids


def render(directory: Path, messages: list[dict[str, str]], **kwargs: Any) -> str:
    config = json.loads((directory / "tokenizer_config.json").read_text("utf-8"))
    template = ImmutableSandboxedEnvironment().from_string(config["chat_template"])
    return template.render(
        messages=messages, bos_token=config["bos_token"], eos_token=config["eos_token"], **kwargs
    )


def test_chat_template(tokenizer: Tokenizer, tmp_path: Path) -> None:
    demo_tokenizer.save_tokenizer(tokenizer, tmp_path)
    bos, eos = demo_tokenizer.BOS, demo_tokenizer.EOS
    user, assistant = demo_tokenizer.USER, demo_tokenizer.ASSISTANT
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\nOne."},
        {"role": "user", "content": "Two?"},
    ]
    history = f"{bos}Be kind.{user}One?{assistant}\nOne.{eos}{user}Two?"
    assert render(tmp_path, messages) == history
    assert (
        render(tmp_path, messages, add_generation_prompt=True) == f"{history}{assistant}<think>\n"
    )
    assert (
        render(tmp_path, messages[1:2], add_generation_prompt=True)
        == f"{bos}{user}One?{assistant}<think>\n"
    )
    assert render(tmp_path, []) == bos


def test_training_chats_have_the_template_form(tokenizer: Tokenizer, tmp_path: Path) -> None:
    demo_tokenizer.save_tokenizer(tokenizer, tmp_path)
    prompt = render(tmp_path, [{"role": "user", "content": "Why?"}], add_generation_prompt=True)
    assert data.chat("Why?", "Because.", "So.").startswith(prompt)


NOVEL = {
    "a book": [f"Paragraph {i} of a book that is long enough to fill a row." for i in range(80)]
}


def test_batches_repeat_and_fill_every_row(tokenizer: Tokenizer) -> None:
    bos = demo_tokenizer.token_id(tokenizer, demo_tokenizer.BOS)
    batch = data.Mix(tokenizer, NOVEL, seed=3).batch(step=7, rows=6, length=512)
    again = data.Mix(tokenizer, NOVEL, seed=3).batch(step=7, rows=6, length=512)
    other = data.Mix(tokenizer, NOVEL, seed=3).batch(step=8, rows=6, length=512)
    assert batch.ids.equal(again.ids)
    assert not batch.ids.equal(other.ids)
    assert batch.ids.shape == batch.segments.shape == (6, 514)
    begins = batch.segments[:, 1:] != batch.segments[:, :-1]
    is_bos = batch.ids.eq(bos)
    assert is_bos[:, 0].all()
    assert is_bos[:, 1:][begins].all()
    assert is_bos.sum(1).equal(batch.segments[:, -1] + 1)


def test_mix_keeps_its_shares(tokenizer: Tokenizer) -> None:
    mix = data.Mix(tokenizer, {}, seed=3)
    text = [tokenizer.decode(row.tolist()) for row in mix.batch(step=0, rows=40, length=256).ids]
    joined = "\n".join(text)
    assert joined.count("####") > 10
    assert joined.count("Answer: ") > 5
    assert len(re.findall(r"[Oo]nce|There was|lived", joined)) > 10
