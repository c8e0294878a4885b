"""The training mix: documents of every kind, packed into rows without crossing their borders.

All text but the novels comes out of seeded generators of this package (`stories`, `problems`,
`facts`), so it never runs out and a batch is a function of (seed, step) alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random

import torch
from tokenizers import Tokenizer
from torch import Tensor

from seekernel.model.demo import facts, problems, stories
from seekernel.model.demo.tokenizer import ASSISTANT, BOS, END_THINK, EOS, THINK, USER, token_id

SHARES = {"story": 0.32, "problem": 0.27, "fact": 0.16, "choice": 0.08, "copy": 0.05, "book": 0.12}
"""Share of the training tokens by kind of document."""
LONG_ROW = 768
"""From this row length on, some documents are several examples in a row (few-shot prompts)."""

_SYSTEM = [
    "You are a helpful assistant.",
    "You are a friendly assistant.",
    "Answer in plain English.",
]
_STORY_REQUESTS = [
    "Tell me a short story about {about}.", "Tell me a story about {about}.", "Write a short story about {about}.",
    "Please tell me a story about {about}.", "Can you write a story about {about}?",
]  # fmt: skip
_TALK = [
    (["Hello!", "Hi!", "Hello.", "Hi there!", "Good morning!", "Hello"], "The user says hello, so I say hello too.",
     ["Hello! How can I help you today?", "Hello! What can I do for you?", "Hi! I can tell a story or solve a problem."]),
    (["Who are you?", "What are you?", "What is your name?"], "The user asks who I am.",
     ["I am a small language model. I can tell stories and solve small problems.", "I am a little demo model that runs on your computer."]),
    (["How are you?", "How are you today?"], "The user asks how I am.", ["I am fine, thank you. How can I help you?"]),
    (["Thank you!", "Thanks!", "Thank you very much."], "The user thanks me.", ["You are welcome!", "You are welcome. I am glad to help."]),
    (["What can you do?", "Can you help me?"], "The user asks what I can do.",
     ["I can tell a short story, answer a simple question or solve a small problem with numbers."]),
    (["Goodbye!", "Bye!", "Good night!"], "The user says goodbye.", ["Goodbye! Come back soon.", "Goodbye, and have a good day!"]),
]  # fmt: skip
_STATEMENTS: dict[str, tuple[str, list[str]]] = {
    "Who is the president of the United States?": (
        "what the president of the United States is",
        facts.PRESIDENT,
    ),
    "What is the future of AI?": ("the future of AI", facts.FUTURE),
}


def chat(question: str, thought: str, answer: str, system: str = "", history: str = "") -> str:
    """One exchange in the chat form, from BOS to EOS."""
    return f"{BOS}{system}{history}{USER}{question}{ASSISTANT}{THINK}\n{thought}\n{END_THINK}\n{answer}{EOS}"


def _system(rng: Random) -> str:
    return rng.choice(_SYSTEM) if rng.random() < 0.15 else ""


def story_document(rng: Random) -> str:
    """A story as plain text, or as the answer to a request for one."""
    story = stories.make_story(rng)
    if rng.random() < 0.55:
        return f"{BOS}{story.text}{EOS}"
    about = (
        story.about.replace(",", "")
        if rng.random() < 0.5
        else story.about.split(",")[0].split(" who")[0]
    )
    request = rng.choice(_STORY_REQUESTS).format(about=about)
    thought = rng.choice(["The user wants a short story. It needs a beginning, a trouble and an end.",
                          f"I tell a short story about {story.about}."])  # fmt: skip
    return chat(request, thought, story.text, _system(rng))


def problem_document(rng: Random) -> str:
    """A word problem as an exchange with its steps thought aloud, or as question and answer."""
    p = problems.make_problem(rng)
    if rng.random() < 0.8:
        return chat(p.question, "\n".join(p.steps), f"{p.sentence}\n#### {p.answer}", _system(rng))
    return f"{BOS}{_plain_problem(p)}{EOS}"


def _plain_problem(p: problems.Problem) -> str:
    return "\n".join(
        [f"Question: {p.question}\nAnswer: {p.steps[0]}", *p.steps[1:], f"#### {p.answer}"]
    )


def choice_document(rng: Random) -> str:
    """One multiple-choice question in MMLU's layout, sometimes as an exchange."""
    question, letter = facts.make_choice(rng)
    if rng.random() < 0.75:
        return f"{BOS}{question} {letter}{EOS}"
    option = next(line for line in question.splitlines() if line.startswith(f"{letter}. "))
    return chat(
        question, f"The right answer is {option}.", f"The answer is {letter}.", _system(rng)
    )


def fact_document(rng: Random) -> str:
    """A paragraph of facts, a question about one, small talk, or two questions in a row."""
    draw = rng.random()
    if draw < 0.5:
        return f"{BOS}{facts.make_text(rng)}{EOS}"
    if draw < 0.62:
        asked, thought, answers = rng.choice(_TALK)
        return chat(rng.choice(asked), thought, rng.choice(answers), _system(rng))
    if draw < 0.68:
        question, (topic, answers) = rng.choice(list(_STATEMENTS.items()))
        return chat(question, f"The user asks about {topic}.", rng.choice(answers))
    fact = facts.make_fact(rng)
    history = ""
    if draw > 0.85:
        earlier = facts.make_fact(rng)
        history = f"{USER}{earlier.question}{ASSISTANT}\n{earlier.sentence}{EOS}"
    return chat(
        fact.question, f"The answer is {fact.answer}.", fact.sentence, _system(rng), history
    )


def copy_document(rng: Random) -> str:
    """Words to repeat, or a short text to look something up in.

    Without these, 1 M tokens taught the model every turn of a story, but not to keep its hero's name.
    """
    if rng.random() < 0.35:
        return _look_up(rng)
    pool = [*stories.GIRLS, *stories.BOYS, *stories.ANIMALS, *problems.ITEMS]
    words = [
        str(rng.randint(0, 99)) if rng.random() < 0.4 else rng.choice(pool)
        for _ in range(rng.randint(4, 30))
    ]
    listed = ", ".join(words)
    if rng.random() < 0.3:
        return chat(f"Repeat after me: {listed}.", "I repeat the words.", f"{listed}.")
    return BOS + " ".join([f"{listed}."] * rng.randint(2, 4)) + EOS


def _look_up(rng: Random) -> str:
    names = rng.sample([*stories.GIRLS, *stories.BOYS], rng.randint(2, 4))
    lines = [f"{name} has {rng.randint(1, 60)} {rng.choice(problems.ITEMS)}." for name in names]
    answer = rng.choice(lines)
    name, _, _, item = answer.removesuffix(".").split()
    question = rng.choice([f"How many {item} does {name} have?", f"What does {name} have?"])
    return chat(f"{' '.join(lines)} {question}", f"I look for {name}.", answer)


def few_shot_document(rng: Random) -> str:
    """Three to five worked examples in a row, as an evaluation harness prompts."""
    count = rng.randint(3, 5)
    if rng.random() < 0.5:
        return (
            BOS
            + "\n\n".join(_plain_problem(problems.make_problem(rng)) for _ in range(count))
            + EOS
        )
    head = (
        "The following are multiple choice questions (with answers).\n\n"
        if rng.random() < 0.7
        else ""
    )
    return BOS + head + "\n\n".join(" ".join(facts.make_choice(rng)) for _ in range(count)) + EOS


GENERATORS: dict[str, Callable[[Random], str]] = {
    "story": story_document,
    "problem": problem_document,
    "choice": choice_document,
    "fact": fact_document,
    "copy": copy_document,
}


@dataclass(frozen=True)
class Batch:
    """Packed rows: ids [rows, length + 2] int64 and the document each token belongs to."""

    ids: Tensor
    segments: Tensor


class Mix:
    """Draws packed batches from the generators and from tokenised novels.

    Args:
        tokenizer: the demo tokenizer.
        novels: each book as its paragraphs; without any, the other kinds take their share.
        seed: batches are a function of it and of the step.
    """

    def __init__(self, tokenizer: Tokenizer, novels: dict[str, list[str]], seed: int) -> None:
        self.tokenizer = tokenizer
        self.seed = seed
        self._bos = token_id(tokenizer, BOS)
        self._novels = [self._tokenise_novel(blocks) for blocks in novels.values()]
        self._novel_sizes = [len(tokens) for tokens, _ in self._novels]
        self._shares = {k: v for k, v in SHARES.items() if k != "book" or self._novels}

    def _tokenise_novel(self, blocks: list[str]) -> tuple[list[int], list[int]]:
        tokens: list[int] = []
        starts: list[int] = []
        for encoding in self.tokenizer.encode_batch(
            [b + "\n\n" for b in blocks], add_special_tokens=False
        ):
            starts.append(len(tokens))
            tokens += encoding.ids
        return tokens, starts

    @property
    def novel_tokens(self) -> int:
        """Tokens in the novels, all together."""
        return sum(self._novel_sizes)

    def _excerpt(self, rng: Random, size: int) -> list[int]:
        """BOS and `size - 1` tokens of a novel, from the start of a paragraph."""
        tokens, starts = rng.choices(self._novels, self._novel_sizes)[0]
        begin = rng.choice(starts)
        begin = max(0, min(begin, len(tokens) - size + 1))
        return [self._bos, *tokens[begin : begin + size - 1]]

    def _document(self, rng: Random, kind: str, length: int) -> list[int]:
        if kind == "book":
            return self._excerpt(rng, rng.randint(length // 2, length))
        make = GENERATORS[kind]
        if length >= LONG_ROW and kind in ("problem", "choice") and rng.random() < 0.5:
            make = few_shot_document
        ids: list[int] = self.tokenizer.encode(make(rng), add_special_tokens=False).ids
        return ids

    def _rows(self, rng: Random, length: int) -> Iterator[tuple[list[int], list[int]]]:
        """Endless packed rows of `length` tokens: whole documents, the rest filled by an excerpt."""
        spent = dict.fromkeys(self._shares, 0.0)
        waiting: list[tuple[str, list[int]]] = []
        while True:
            row: list[int] = []
            segments: list[int] = []
            tries = 0
            while len(row) < length:
                room = length - len(row)
                fit = next((i for i, (_, d) in enumerate(waiting) if len(d) <= room), None)
                if fit is not None:
                    kind, ids = waiting.pop(fit)
                elif tries < 4 and len(waiting) < 64:
                    kind = min(spent, key=lambda k: spent[k] / self._shares[k])
                    ids = self._document(rng, kind, length)
                    spent[kind] += len(ids)
                    if len(ids) > room:
                        waiting.append((kind, ids))
                        tries += 1
                        continue
                elif self._novels:
                    ids = self._excerpt(rng, room)
                    spent["book"] += len(ids)
                else:
                    ids = self._document(rng, "story", length)[:room]
                segments += [segments[-1] + 1 if segments else 0] * len(ids)
                row += ids
            yield row[:length], segments[:length]

    def batch(self, step: int, rows: int, length: int) -> Batch:
        """The batch of one step: `rows` rows of `length` inputs and two tokens of look-ahead."""
        source = self._rows(Random(f"{self.seed}/{step}/{rows}/{length}"), length + 2)
        packed = [next(source) for _ in range(rows)]
        return Batch(
            torch.tensor([ids for ids, _ in packed]), torch.tensor([seg for _, seg in packed])
        )


def tokenizer_texts(novels: dict[str, list[str]], seed: int, count: int) -> Iterator[str]:
    """Text to learn the merges from: every paragraph of the novels, `count` documents of each kind."""
    rng = Random(f"{seed}/tokenizer")
    for blocks in novels.values():
        yield from blocks
    for make in (*GENERATORS.values(), few_shot_document):
        for _ in range(count):
            yield make(rng)
