"""The page pool and the scheduler: no page leaks or is shared, every sequence finishes in turn."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seekernel.engine.kv_pages import (
    PagePool,
    available_memory_bytes,
    pages_for,
    size_pool,
)
from seekernel.engine.outputs import CompletionOutput
from seekernel.engine.request import TokenSequence
from seekernel.engine.sampling_params import SamplingParams
from seekernel.engine.scheduler import Chunk, Scheduler
from seekernel.errors import CapacityError

PAGE = 16


def make_sequence(num_prompt: int, max_tokens: int) -> TokenSequence:
    return TokenSequence(
        prompt_token_ids=list(range(num_prompt)),
        params=SamplingParams(max_tokens=max_tokens),
        max_tokens=max_tokens,
        end_ids={},
        output=CompletionOutput(0),
        generator=torch.Generator(),
    )


def advance(chunks: list[Chunk]) -> None:
    """Do what the engine does with a step, with token 7 for every sample."""
    for chunk in chunks:
        chunk.sequence.num_cached += chunk.num_new
        assert chunk.samples == (chunk.sequence.num_uncached == 0)
        if chunk.samples:
            chunk.sequence.append(7)


def test_pool_counts_holders() -> None:
    pool = PagePool(4)
    pages = pool.allocate(3)
    assert len(set(pages)) == 3
    assert pool.num_free == 1
    pool.share(pages[:1])
    pool.release(pages)
    assert pool.num_free == 3
    pool.release(pages[:1])
    assert pool.num_free == 4
    with pytest.raises(RuntimeError, match="released twice"):
        pool.release(pages[:1])
    with pytest.raises(RuntimeError, match="cannot be shared"):
        pool.share(pages[:1])
    with pytest.raises(CapacityError, match="5 pages wanted, 4 are free"):
        pool.allocate(5)
    assert pool.num_free == 4


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 9)), max_size=200))
def test_pool_never_leaks_or_doubles(operations: list[tuple[int, int]]) -> None:
    pool = PagePool(20)
    held: list[list[int]] = []
    for kind, value in operations:
        if kind == 0 and value <= pool.num_free:
            held.append(pool.allocate(value))
        elif kind == 1 and held:
            pool.share(held[value % len(held)])
            held.append(held[value % len(held)])
        elif kind == 2 and held:
            pool.release(held.pop(value % len(held)))
        live = {page for pages in held for page in pages}
        assert pool.num_free == 20 - len(live)
        fresh = pool.allocate(pool.num_free)
        assert live.isdisjoint(fresh)
        pool.release(fresh)


def test_pool_size_is_computed() -> None:
    def size(max_batch_size: int, max_seq_len: int | None, limit: int) -> tuple[int, int]:
        return size_pool(1000, 64, max_batch_size, max_seq_len, 4096, limit)

    assert size(2, 640, 10**9) == (20, 640)
    assert size(200, 640, 50_000) == (50, 640)
    assert size(1, None, 10**9) == (64, 4096)
    assert size(1, None, 3000) == (3, 192)
    with pytest.raises(CapacityError, match=r"one request of 640 tokens needs 10 pages of 64"):
        size(1, 640, 9999)
    with pytest.raises(CapacityError, match=r"kv_cache_bytes"):
        size(1, None, 999)


def test_available_memory_is_plausible() -> None:
    assert 1 << 20 < available_memory_bytes() < 1 << 50


def test_decodes_first_then_prefill_in_order_in_chunks() -> None:
    scheduler = Scheduler(PagePool(64), PAGE, max_batch_size=3, max_num_tokens=10)
    first, second, third, fourth = (make_sequence(n, 4) for n in (3, 12, 5, 1))
    for sequence in (first, second, third, fourth):
        scheduler.add(sequence)
    plan = []
    for _ in range(3):
        chunks = scheduler.schedule()
        plan.append([(chunk.sequence, chunk.num_new, chunk.samples) for chunk in chunks])
        advance(chunks)
    assert plan[0] == [(first, 3, True), (second, 7, False)]
    assert plan[1] == [(first, 1, True), (second, 5, True), (third, 4, False)]
    assert plan[2] == [(first, 1, True), (second, 1, True), (third, 1, True)]
    assert fourth.pages == [], "max_batch_size 3 was exceeded"


def test_admission_guarantees_the_end() -> None:
    scheduler = Scheduler(pool := PagePool(4), PAGE, max_batch_size=8, max_num_tokens=100)
    long, short = make_sequence(PAGE * 3, PAGE), make_sequence(1, 1)
    assert scheduler.fits(make_sequence(PAGE * 4, 1))
    assert not scheduler.fits(make_sequence(PAGE * 4, 2))
    blocker = make_sequence(PAGE, 1)
    for sequence in (blocker, long, short):
        scheduler.add(sequence)
    advance(scheduler.schedule())
    # The long one needs all four pages: it waits, and the short one does not overtake it.
    assert (pool.num_free, long.pages, short.pages) == (3, [], [])
    scheduler.remove(blocker)
    scheduler.remove(blocker)
    advance(scheduler.schedule())
    assert (pool.num_free, len(long.pages), short.pages) == (0, 4, [])


@pytest.mark.parametrize("seed", range(20))
def test_every_sequence_finishes(seed: int) -> None:
    rng = random.Random(seed)
    num_pages, budget = rng.randint(4, 30), rng.randint(1, 40)
    scheduler = Scheduler(pool := PagePool(num_pages), PAGE, rng.randint(1, 8), budget)
    waiting = [make_sequence(rng.randint(1, 60), rng.randint(1, 9)) for _ in range(60)]
    alive: list[TokenSequence] = []
    finished = left_out = 0
    for _ in range(20_000):
        while waiting and rng.random() < 0.5:
            alive.append(waiting.pop())
            if scheduler.fits(alive[-1]):
                scheduler.add(alive[-1])
            else:
                alive.pop()
                left_out += 1
        if alive and rng.random() < 0.05:
            scheduler.remove(victim := alive.pop(rng.randrange(len(alive))))
            victim.finish("abort")
            left_out += 1
        chunks = scheduler.schedule()
        assert sum(chunk.num_new for chunk in chunks) <= budget
        owned = [page for sequence in alive for page in sequence.pages]
        assert len(owned) == len(set(owned)) == num_pages - pool.num_free
        assert bool(chunks) == scheduler.has_work, "work left and nothing scheduled"
        for chunk in chunks:
            assert chunk.sequence.num_cached + chunk.num_new <= len(chunk.sequence.pages) * PAGE
        advance(chunks)
        for sequence in [item for item in alive if item.finished]:
            scheduler.remove(sequence)
            alive.remove(sequence)
            finished += 1
        if not waiting and not alive:
            break
    assert not scheduler.has_work
    assert pool.num_free == num_pages
    assert finished == 60 - left_out > 0


def test_pages_for() -> None:
    assert [pages_for(n, 64) for n in (0, 1, 64, 65)] == [0, 1, 1, 2]
