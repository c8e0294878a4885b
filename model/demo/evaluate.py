"""What the demo model can do: held-out loss, right answers, ended texts, accepted drafts, samples."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

from seekernel.model.demo import data, facts, problems
from seekernel.model.demo.checkpoint_io import BLOCK, is_fp8, quantise_rows
from seekernel.model.demo.tokenizer import ASSISTANT, BOS, EOS, THINK, USER, token_id
from seekernel.model.demo.torch_model import TorchDeepseekV3

HELD_OUT_SEED = 10**6
"""Training seeds lie below it, so that no generated document is drawn from a training stream."""
PROMPTS = (
    "Hello, my name is",
    "The president of the United States is",
    "The capital of France is",
    "The future of AI is",
)
ROW = 256


@contextmanager
def quantised_activations(model: TorchDeepseekV3) -> Iterator[None]:
    """Within it, every FP8 linear reads activations rounded to e4m3 by 1 x 128 groups."""

    def rounded(module: nn.Module, args: tuple[Any, ...]) -> tuple[Tensor, ...]:
        return (quantise_rows(args[0]),)

    hooks = [
        module.register_forward_pre_hook(rounded)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and is_fp8(name + ".weight")
        and module.in_features % BLOCK == 0
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def held_out_sets(
    tokenizer: Tokenizer, chapters: Sequence[str], count: int
) -> dict[str, list[list[int]]]:
    """Token lists by kind: `count` generated documents each, and as many rows of the unseen chapters."""
    sets = {}
    for kind, make in data.GENERATORS.items():
        rng = Random(f"{HELD_OUT_SEED}/{kind}")
        texts = [make(rng) for _ in range(count)]
        sets[kind] = [e.ids[:ROW] for e in tokenizer.encode_batch(texts, add_special_tokens=False)]
    if chapters:
        ids = tokenizer.encode("\n\n".join(chapters), add_special_tokens=False).ids
        bos = token_id(tokenizer, BOS)
        starts = range(0, len(ids) - ROW, max(ROW, (len(ids) - ROW) // count))
        sets["book"] = [[bos, *ids[i : i + ROW - 1]] for i in starts]
    return sets


def _padded(rows: Sequence[Sequence[int]]) -> Tensor:
    """Rows padded on the right with 0; causal attention keeps the padding out of every result."""
    width = max(map(len, rows))
    return torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])


@torch.no_grad()
def mean_losses(
    model: TorchDeepseekV3, rows: Sequence[Sequence[int]], batch: int = 16
) -> tuple[float, float]:
    """Cross entropy of the main model and of the MTP module, nats a token."""
    main, draft, count, draft_count = 0.0, 0.0, 0, 0
    for begin in range(0, len(rows), batch):
        part = rows[begin : begin + batch]
        ids = _padded(part)
        hidden = model(ids)
        drafted = model.mtp_hidden(hidden[:, :-1], ids[:, 1:])
        for i, row in enumerate(part):
            n = len(row)
            main += F.cross_entropy(
                model.lm_head(hidden[i, : n - 1]), ids[i, 1:n], reduction="sum"
            ).item()
            draft += F.cross_entropy(
                model.lm_head(drafted[i, : n - 2]), ids[i, 2:n], reduction="sum"
            ).item()
            count, draft_count = count + n - 1, draft_count + n - 2
    return main / count, draft / draft_count


@torch.no_grad()
def greedy(
    model: TorchDeepseekV3, prompts: Sequence[Sequence[int]], limit: int, eos: int
) -> list[list[int]]:
    """Most likely continuations, EOS included where it comes; each step reads the whole row anew."""
    rows = [list(p) for p in prompts]
    alive = list(range(len(rows)))
    for _ in range(limit):
        if not alive:
            break
        hidden = model(_padded([rows[i] for i in alive]))
        last = torch.stack([hidden[j, len(rows[i]) - 1] for j, i in enumerate(alive)])
        chosen = model.lm_head(last).argmax(-1).tolist()
        for i, token in zip(alive, chosen, strict=True):
            rows[i].append(token)
        alive = [i for i, token in zip(alive, chosen, strict=True) if token != eos]
    return [row[len(p) :] for row, p in zip(rows, prompts, strict=True)]


@torch.no_grad()
def accepted_drafts(
    model: TorchDeepseekV3, prompts: Sequence[Sequence[int]], outputs: Sequence[Sequence[int]]
) -> tuple[int, int]:
    """Drafts of one MTP step that equal the token greedy decoding took, and drafts made."""
    accepted = made = 0
    for prompt, output in zip(prompts, outputs, strict=True):
        if len(output) < 2:
            continue
        ids = torch.tensor([[*prompt, *output]])
        hidden = model(ids)
        # Row t has seen tokens to t + 1 and drafts token t + 2; drafts start behind the first output.
        drafts = model.lm_head(model.mtp_hidden(hidden[:, :-2], ids[:, 1:-1])).argmax(-1)
        begin = len(prompt) - 1
        hits = drafts[0, begin:] == ids[0, begin + 2 :]
        accepted, made = accepted + int(hits.sum()), made + hits.numel()
    return accepted, made


@dataclass(frozen=True)
class Skills:
    """Counts over held-out questions: right answers of problems and choices, texts that ended."""

    problems_right: int
    choices_right: int
    ended: int
    asked: int
    drafts_accepted: int
    drafts_made: int


def ask(tokenizer: Tokenizer, question: str) -> list[int]:
    """The ids of one question in the chat form, up to where the model begins to think."""
    ids: list[int] = tokenizer.encode(
        f"{BOS}{USER}{question}{ASSISTANT}{THINK}\n", add_special_tokens=False
    ).ids
    return ids


def measure_skills(
    model: TorchDeepseekV3, tokenizer: Tokenizer, count: int, limit: int = 120
) -> Skills:
    """Ask `count` unseen word problems (greedy, in the chat form) and `count` multiple-choice questions."""
    rng = Random(f"{HELD_OUT_SEED}/skills")
    eos = token_id(tokenizer, EOS)
    asked = [problems.make_problem(rng) for _ in range(count)]
    prompts = [ask(tokenizer, p.question) for p in asked]
    outputs = greedy(model, prompts, limit, eos)
    right = 0
    for problem, output in zip(asked, outputs, strict=True):
        found = re.search(r"#### (-?\d+)$", tokenizer.decode(output).strip())
        right += found is not None and int(found[1]) == problem.answer
    choices = [facts.make_choice(rng) for _ in range(count)]
    stems = [tokenizer.encode(question).ids for question, _ in choices]
    letters = greedy(model, stems, 1, eos)
    picked = sum(
        tokenizer.decode(o).strip() == letter
        for o, (_, letter) in zip(letters, choices, strict=True)
    )
    accepted, made = accepted_drafts(model, prompts, outputs)
    ended = sum(bool(o) and o[-1] == eos for o in outputs)
    return Skills(right, picked, ended, count, accepted, made)


def samples(
    model: TorchDeepseekV3, tokenizer: Tokenizer, prompts: Sequence[str], limit: int
) -> list[tuple[str, bool]]:
    """Greedy continuation of each prompt as text, and whether it ended by itself.

    A prompt that holds special tokens is taken as it is; any other gets BOS.
    """
    eos = token_id(tokenizer, EOS)
    ids = [tokenizer.encode(p, add_special_tokens=not p.startswith(BOS)).ids for p in prompts]
    outputs = greedy(model, ids, limit, eos)
    return [(tokenizer.decode(o), bool(o) and o[-1] == eos) for o in outputs]
