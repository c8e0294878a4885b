"""What tests of the engine share: naive generation, and a device that only keeps books.

The book-keeping one runs the scheduler's plans and checks every row they touch.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from seekernel.engine.checkpoint import default_model_dir
from seekernel.engine.core import EngineCore
from seekernel.engine.kv_manager import KVManager
from seekernel.engine.options import EngineOptions
from seekernel.engine.outputs import CompletionOutput
from seekernel.engine.request import TokenSequence
from seekernel.engine.sampling_params import SamplingParams
from seekernel.engine.scheduler import Chunk, Decode, Scheduler, StepPlan, extra_rows
from seekernel.model import DeepseekV3ForCausalLM
from seekernel.model import batch as batch_module
from seekernel.tokenizer import Tokenizer
from tests.checkpoint_files import SPECIAL, write_checkpoint, write_tokenizer
from tests.model_testing import Runner

PAGE = 16
# Two shrunken models with random weights and an MTP module, beside the bundled checkpoint.
SHRUNKEN: dict[str, dict[str, Any]] = {
    "fp8_blocks": {"num_nextn_predict_layers": 1, "kv_lora_rank": 128},
    "plain_no_q_lora": {
        "num_nextn_predict_layers": 1, "quantization_config": None, "q_lora_rank": None,
        "n_group": 1, "n_routed_experts": 6, "num_experts_per_tok": 3, "n_shared_experts": 2,
        "num_hidden_layers": 3, "kv_lora_rank": 48, "rope_scaling": None,
    },
}  # fmt: skip
MODELS = ("demo", *SHRUNKEN)


def model_dir(name: str, folder: Path) -> Path:
    """Return the directory of one of MODELS, written below `folder` unless it is the bundled one."""
    if name == "demo":
        return default_model_dir()
    if not (folder / "config.json").exists():
        write_checkpoint(folder, **SHRUNKEN[name])
        write_tokenizer(folder, special=(*SPECIAL, "<think>", "</think>"))
    return folder


def naive_greedy(
    model: DeepseekV3ForCausalLM, prompt: list[int], count: int, dtype: str = "auto"
) -> list[int]:
    """Return greedy tokens of one sequence alone, each forward in the absorbed form, no engine."""
    runner = Runner(model)
    runner.cache = model.allocate_kv_cache(-(-(len(prompt) + count) // PAGE), PAGE, dtype)
    runner._free = list(range(len(runner.cache[0])))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch_module, "MAX_ABSORBED_TOKENS", 10**9)
        return runner.greedy(0, prompt, count)[0]


def make_core(
    model: DeepseekV3ForCausalLM, tokenizer: Tokenizer | None = None, **options: Any
) -> EngineCore:
    return EngineCore(model, EngineOptions(**options), tokenizer)


def run_core(
    core: EngineCore, sequences: Sequence[TokenSequence], rng: random.Random | None = None
) -> None:
    """Run sequences to their end: all at once, or arriving at random."""
    waiting = list(reversed(sequences))
    while waiting or core.has_work:
        burst = len(waiting) if rng is None else rng.choice([0, 0, 1, 2, 9])
        for _ in range(min(burst, len(waiting))):
            core.add(waiting.pop())
        if core.has_work:
            core.step()


def make_sequence(prompt: int | list[int], max_tokens: int, **params: Any) -> TokenSequence:
    """Return a sequence of that prompt, or of one of that many tokens."""
    return TokenSequence(
        prompt_token_ids=list(range(prompt)) if isinstance(prompt, int) else prompt,
        params=SamplingParams(max_tokens=max_tokens, **params),
        max_tokens=max_tokens,
        end_ids={},
        output=CompletionOutput(0),
        generator=torch.Generator().manual_seed(params.get("seed", 0)),
    )


def make_scheduler(
    num_pages: int,
    max_batch_size: int,
    max_num_tokens: int,
    policy: str = "guaranteed_no_evict",
    num_drafts: int = 0,
    reuse: bool = True,
    chunked: bool = True,
    page_size: int = PAGE,
) -> Scheduler:
    kv = KVManager(num_pages, page_size, reuse, reuse, look_ahead=int(num_drafts > 0))
    return Scheduler(kv, max_batch_size, max_num_tokens, policy, num_drafts, chunked)


class BookKeeper:
    """Stands in for model and device.

    Each row of the cache remembers the token it was computed from and, with drafts, the token that
    followed (the MTP module's row depends on both). Before a sequence attends to its rows they are
    compared with its tokens; a row may be written only in a page that one sequence holds and that
    the tree does not offer. overlap: a step is processed after the next one was launched.
    """

    def __init__(self, scheduler: Scheduler, rng: random.Random, overlap: bool) -> None:
        self.scheduler, self.kv, self.rng, self.overlap = scheduler, scheduler.kv, rng, overlap
        self.num_drafts = scheduler._num_drafts
        self.rows: dict[tuple[int, int], tuple[int, int | None]] = {}
        self.slots: dict[int, list[int]] = {}
        self.in_flight: tuple[StepPlan, list[list[int]]] | None = None
        self.num_steps = 0

    def step(self) -> tuple[StepPlan, list[TokenSequence]]:
        """Schedule, run and process; return the plan and what finished."""
        plan = self.scheduler.schedule()
        if not plan and self.in_flight is None and self.scheduler.has_work:
            plan = self.scheduler.schedule()
            assert plan, "work left, nothing under way, and nothing scheduled"
        self.num_steps += bool(plan)
        self.check_plan(plan)
        launched = (plan, self.run(plan)) if plan else None
        previous = self.in_flight if self.overlap else launched
        self.in_flight = launched if self.overlap else None
        finished: list[TokenSequence] = []
        if previous is not None:
            finished = self.process(*previous)
        self.check_books()
        return plan, finished

    def check_plan(self, plan: StepPlan) -> None:
        width = 1 + self.num_drafts
        total = plan.num_context_tokens + len(plan.decodes) * width
        assert total <= self.scheduler._max_num_tokens
        items: list[Decode | Chunk] = [*plan.decodes, *plan.chunks]
        owners = [item.sequence for item in items]
        assert len(set(map(id, owners))) == len(owners) <= self.scheduler.max_running
        assert len({owner.slot for owner in owners}) == len(owners)

    def run(self, plan: StepPlan) -> list[list[int]]:
        """Return the tokens chosen for each decode and for each chunk that ends its sequence."""
        for source, destination in plan.copies:
            assert self.kv.pool.num_holders(destination) == 1
            for offset in range(self.kv.page_size):
                self.rows.pop((destination, offset), None)
                if (source, offset) in self.rows:
                    self.rows[destination, offset] = self.rows[source, offset]
        chosen = []
        for item in plan.decodes:
            tokens = self.slots[item.sequence.slot]
            count = self.rng.randint(1, 1 + self.num_drafts)
            new = [self.rng.randrange(4) for _ in range(count)]
            known = len(tokens) - 1
            self.attend(item.sequence, tokens, known)
            tokens += new
            last = known + 1 + extra_rows(self.num_drafts)
            assert last <= item.max_rows
            self.write(item.sequence, tokens, known, last, known + count)
            chosen.append(new)
        for chunk in plan.chunks:
            sequence = chunk.sequence
            tokens = list(sequence.tokens)
            self.attend(sequence, tokens, chunk.begin)
            last = chunk.end
            if chunk.samples:
                assert chunk.end == len(tokens)
                tokens.append(self.rng.randrange(4))
                self.slots[sequence.slot] = tokens
                chosen.append(tokens[-1:])
                last += max(self.num_drafts - 1, 0)
            self.write(sequence, tokens, chunk.begin, last, chunk.end)
        return chosen

    def attend(self, sequence: TokenSequence, tokens: list[int], known: int) -> None:
        size = self.kv.page_size
        for row in range(known):
            after = tokens[row + 1] if self.num_drafts else None
            stored = self.rows.get((sequence.pages[row // size], row % size))
            assert stored == (tokens[row], after), f"row {row}: {stored}"

    def write(
        self, sequence: TokenSequence, tokens: list[int], begin: int, end: int, valid: int
    ) -> None:
        """Write rows begin to end; those from `valid` on are of drafts that did not stand."""
        size = self.kv.page_size
        assert end <= len(sequence.pages) * size, "more rows than pages"
        for row in range(begin, end):
            page = sequence.pages[row // size]
            assert self.kv.pool.num_holders(page) == 1, "a shared page is written"
            assert not self.kv.pool.keeps(page), "a page that is offered for reuse is written"
            after = tokens[row + 1] if self.num_drafts and row < valid else None
            self.rows[page, row % size] = (tokens[row] if row < valid else -1, after)

    def process(self, plan: StepPlan, chosen: list[list[int]]) -> list[TokenSequence]:
        items: list[Decode | Chunk] = [*plan.decodes]
        for chunk in plan.chunks:
            if chunk.samples:
                items.append(chunk)
            elif self.scheduler.processed(chunk):
                chunk.sequence.num_cached = chunk.end
                self.kv.publish(chunk.sequence)
        finished: list[TokenSequence] = []
        for item, tokens in zip(items, chosen, strict=True):
            sequence = item.sequence
            live = self.scheduler.processed(item)
            if sequence.finished:
                continue
            for token in tokens:
                sequence.append(token)
                if sequence.output.finish_reason is not None:
                    break
            if live:
                sequence.num_cached = sequence.num_tokens - 1
                self.kv.publish(sequence)
            if sequence.output.finish_reason is not None:
                self.scheduler.remove(sequence)
                finished.append(sequence)
        return finished

    def check_books(self) -> None:
        """Every page is free, idle or held, as often as sequences hold it."""
        pool, held = self.kv.pool, [0] * self.kv.pool.num_pages
        reserved = 0
        for sequence in self.scheduler.sequences():
            reserved += sequence.num_reserved
            for page in sequence.pages:
                held[page] += 1
        assert held == [pool.num_holders(page) for page in range(pool.num_pages)]
        assert pool.num_free == held.count(0)
        assert pool.num_idle == sum(
            pool.keeps(page) and not holders for page, holders in enumerate(held)
        )
        assert reserved == self.kv.num_reserved <= pool.num_free
        for page in range(pool.num_pages):
            assert (self.kv.tree.node_of(page) is not None) == pool.keeps(page)
