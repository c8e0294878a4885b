"""Word problems with whole numbers, solved one equation a line, and bare sums.

A problem carries its steps as data, and the text of the solution is made from them, so an equation
and its result cannot disagree; the tests recompute every line all the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from seekernel.model.demo.stories import BOYS, GIRLS

ITEMS = ["apples", "books", "pencils", "marbles", "cookies", "stickers", "flowers", "oranges",
         "stamps", "shells", "balloons", "eggs", "coins", "cards", "buttons", "candles"]  # fmt: skip
BOXES = ["boxes", "bags", "baskets", "packs", "jars"]
_OPS: dict[str, Callable[[int, int], int]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a // b,
}


@dataclass(frozen=True)
class Problem:
    """A question, its worked steps (one a line), the answer as a sentence and as a number."""

    question: str
    steps: tuple[str, ...]
    sentence: str
    answer: int


class _Work:
    """Collects steps; each call computes, writes the line, and returns the result."""

    def __init__(self) -> None:
        self.steps: list[str] = []

    def __call__(self, reason: str, a: int, op: str, b: int) -> int:
        result = _OPS[op](a, b)
        self.steps.append(f"{reason}: {a} {op} {b} = {result}.")
        return result


def _people(rng: Random) -> tuple[str, str, str]:
    girl = rng.random() < 0.5
    name = rng.choice(GIRLS if girl else BOYS)
    other = rng.choice([n for n in GIRLS + BOYS if n != name])
    return name, "she" if girl else "he", other


def _gain_loss(rng: Random) -> Problem:
    name, he, other = _people(rng)
    item = rng.choice(ITEMS)
    a, b = rng.randint(3, 40), rng.randint(2, 20)
    c = rng.randint(1, min(a + b - 1, 20))
    work = _Work()
    gain = rng.choice(
        [f"{other} gives {name} {b} more", f"{name} buys {b} more", f"{name} finds {b} more"]
    )
    loss = rng.choice(
        [
            f"Then {he} loses {c} of them",
            f"Then {he} gives away {c} of them",
            f"Then {he} sells {c} of them",
        ]
    )
    total = work(f"First {name} has {a} and gets {b}", a, "+", b)
    left = work(f"Then {c} are gone", total, "-", c)
    question = f"{name} has {a} {item}. {gain}. {loss}. How many {item} does {name} have now?"
    return Problem(question, tuple(work.steps), f"{name} has {left} {item} now.", left)


def _boxes(rng: Random) -> Problem:
    name, _, _ = _people(rng)
    item, box = rng.choice(ITEMS), rng.choice(BOXES)
    a, b, c = rng.randint(2, 9), rng.randint(2, 10), rng.randint(1, 20)
    work = _Work()
    inside = work(f"In the {box} there are", a, "*", b)
    total = work(f"With the {c} others that makes", inside, "+", c)
    question = rng.choice([
        f"{name} has {a} {box} with {b} {item} in each, and {c} more {item} on the table. How many {item} does {name} have?",
        f"There are {b} {item} in each of {name}'s {a} {box}. {name} also has {c} other {item}. How many {item} is that in all?",
    ])  # fmt: skip
    return Problem(question, tuple(work.steps), f"{name} has {total} {item}.", total)


def _share(rng: Random) -> Problem:
    name, he, _ = _people(rng)
    item = rng.choice(ITEMS)
    friends, each, kept = rng.randint(2, 9), rng.randint(2, 10), rng.randint(1, 10)
    work = _Work()
    total = friends * each + kept
    shared = work(f"{name} keeps {kept}, so to share there are", total, "-", kept)
    result = work(f"Each of the {friends} friends gets", shared, "/", friends)
    question = (f"{name} has {total} {item}. {he.capitalize()} keeps {kept} and shares the rest equally "
                f"among {friends} friends. How many {item} does each friend get?")  # fmt: skip
    return Problem(question, tuple(work.steps), f"Each friend gets {result} {item}.", result)


def _money(rng: Random) -> Problem:
    name, he, _ = _people(rng)
    item = rng.choice(ITEMS)
    count, price = rng.randint(2, 9), rng.randint(2, 9)
    purse = count * price + rng.randint(1, 30)
    work = _Work()
    cost = work(f"The {item} cost", count, "*", price)
    left = work("So what is left is", purse, "-", cost)
    question = (f"{name} has {purse} dollars. {he.capitalize()} buys {count} {item} for {price} dollars each. "
                f"How many dollars does {name} have left?")  # fmt: skip
    return Problem(question, tuple(work.steps), f"{name} has {left} dollars left.", left)


def _times(rng: Random) -> Problem:
    name, _, other = _people(rng)
    item = rng.choice(ITEMS)
    a, times = rng.randint(2, 12), rng.choice([2, 2, 3, 4])
    word = {2: "twice", 3: "three times", 4: "four times"}[times]
    work = _Work()
    more = work(f"{other} has {word} as many", a, "*", times)
    total = work("Together they have", a, "+", more)
    question = f"{name} has {a} {item}. {other} has {word} as many {item} as {name}. How many {item} do they have together?"
    return Problem(question, tuple(work.steps), f"Together they have {total} {item}.", total)


def _weeks(rng: Random) -> Problem:
    name, he, _ = _people(rng)
    verb, noun = rng.choice([("reads", "pages"), ("walks", "miles"), ("writes", "letters"), ("draws", "pictures"),
                             ("plants", "trees"), ("bakes", "loaves")])  # fmt: skip
    a, days, extra = rng.randint(2, 10), rng.randint(2, 9), rng.randint(1, 15)
    work = _Work()
    usual = work(f"In {days} days that makes", a, "*", days)
    total = work(f"With the {extra} on the last day that makes", usual, "+", extra)
    question = (f"{name} {verb} {a} {noun} a day for {days} days. On the next day {he} {verb} {extra} {noun}. "
                f"How many {noun} is that in all?")  # fmt: skip
    return Problem(question, tuple(work.steps), f"That is {total} {noun} in all.", total)


def _three(rng: Random) -> Problem:
    name, he, other = _people(rng)
    item, box = rng.choice(ITEMS), rng.choice(BOXES)
    a, b = rng.randint(2, 9), rng.randint(2, 9)
    given = rng.randint(1, a * b - 1)
    found = rng.randint(1, 20)
    work = _Work()
    total = work("At first there are", a, "*", b)
    rest = work(f"After {name} gives {given} to {other} there are", total, "-", given)
    result = work(f"After {he} finds {found} more there are", rest, "+", found)
    question = (f"{name} buys {a} {box} of {item} with {b} {item} in each. {he.capitalize()} gives {given} {item} "
                f"to {other} and then finds {found} more. How many {item} does {name} have in the end?")  # fmt: skip
    return Problem(question, tuple(work.steps), f"In the end {name} has {result} {item}.", result)


def _age(rng: Random) -> Problem:
    name, _, other = _people(rng)
    a, b, years = rng.randint(4, 30), rng.randint(1, 15), rng.randint(2, 12)
    work = _Work()
    now = work(f"{other} is now", a, "+", b)
    later = work(f"In {years} years {other} will be", now, "+", years)
    question = (f"{name} is {a} years old. {other} is {b} years older than {name}. "
                f"How old will {other} be in {years} years?")  # fmt: skip
    return Problem(question, tuple(work.steps), f"{other} will be {later} years old.", later)


def _sum(rng: Random) -> Problem:
    op = rng.choice("++--**/")
    if op == "+":
        a, b = rng.randint(1, 99), rng.randint(1, 60)
    elif op == "-":
        a = rng.randint(2, 99)
        b = rng.randint(1, a)
    else:
        a, b = rng.randint(2, 12), rng.randint(2, 12)
        a = a * b if op == "/" else a
    work = _Work()
    words = {"+": "plus", "-": "minus", "*": "times", "/": "divided by"}[op]
    result = work("I compute", a, op, b)
    question = rng.choice(
        [f"What is {a} {words} {b}?", f"What is {a} {op} {b}?", f"How much is {a} {words} {b}?"]
    )
    return Problem(question, tuple(work.steps), f"{a} {words} {b} is {result}.", result)


_KINDS = (_gain_loss, _boxes, _share, _money, _times, _weeks, _three, _age, _sum, _sum)


def make_problem(rng: Random) -> Problem:
    """One problem with one to three steps; every number in it is a whole number from 0 to 200."""
    return rng.choice(_KINDS)(rng)
