"""The page manager and the scheduler: no page leaks or is shared for writing, everyone finishes."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seekernel.engine.kv_pages import PagePool, available_memory_bytes, pages_for, size_pool
from seekernel.engine.request import TokenSequence
from seekernel.engine.scheduler import POLICIES
from seekernel.errors import CapacityError
from tests.engine_testing import PAGE, BookKeeper, make_scheduler, make_sequence


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
    with pytest.raises(RuntimeError, match="cannot be kept"):
        pool.keep(pages[0])
    with pytest.raises(CapacityError, match="5 pages wanted, 4 are free"):
        pool.allocate(5)
    assert pool.num_free == 4


def test_idle_pages_are_taken_last_and_oldest_first() -> None:
    evicted: list[int] = []
    pool = PagePool(4, evicted.append)
    a, b, c, d = pool.allocate(4)
    for page in (a, b, c):
        pool.keep(page)
    for page in (b, d, a, c):
        pool.release([page])
    assert (pool.num_free, pool.num_idle) == (4, 3)
    pool.share([b])  # found again: it is not the oldest any more
    pool.release([b])
    pool.drop(c)
    assert set(pool.allocate(2)) == {d, c}
    assert evicted == []
    assert pool.allocate(2) == [a, b]
    assert (evicted, pool.num_evicted) == ([a, b], 2)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9)), max_size=200))
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
        elif kind == 3 and held and held[-1]:
            pool.keep(held[-1][0])
        live = {page for pages in held for page in pages}
        assert pool.num_free == 20 - len(live)
    fresh = pool.allocate(pool.num_free)
    assert live_of(held).isdisjoint(fresh)
    assert len(set(fresh)) == len(fresh)


def live_of(held: list[list[int]]) -> set[int]:
    return {page for pages in held for page in pages}


def test_pool_size_is_computed() -> None:
    def size(max_batch_size: int, max_seq_len: int | None, limit: int) -> tuple[int, int]:
        return size_pool(1000, 64, max_batch_size, max_seq_len, 4096, limit)

    assert size(2, 640, 10**9) == (20, 640)
    assert size(200, 640, 50_000) == (50, 640)
    assert size(1, None, 10**9) == (64, 4096)
    assert size(1, None, 3000) == (3, 192)
    assert size_pool(1000, 64, 1, 640, 4096, 10**9, extra_rows=5) == (11, 640)
    assert size_pool(1000, 64, 1, None, 4096, 3000, extra_rows=5) == (3, 187)
    with pytest.raises(CapacityError, match=r"one request of 640 tokens needs 10 pages of 64"):
        size(1, 640, 9999)
    with pytest.raises(CapacityError, match=r"kv_cache_bytes"):
        size(1, None, 999)


def test_available_memory_is_plausible() -> None:
    assert 1 << 20 < available_memory_bytes() < 1 << 50


def test_pages_for() -> None:
    assert [pages_for(n, 64) for n in (0, 1, 64, 65)] == [0, 1, 1, 2]


def test_decodes_first_then_prefill_in_order_in_chunks() -> None:
    scheduler = make_scheduler(64, max_batch_size=3, max_num_tokens=10, reuse=False)
    keeper = BookKeeper(scheduler, random.Random(0), overlap=False)
    first, second, third, fourth = (make_sequence(n, 4) for n in (3, 12, 5, 1))
    for sequence in (first, second, third, fourth):
        scheduler.add(sequence)
    plan, _ = keeper.step()
    assert [(c.sequence, c.num_new, c.samples) for c in plan.chunks] == [
        (first, 3, True), (second, 7, False),
    ]  # fmt: skip
    plan, _ = keeper.step()
    assert [decode.sequence for decode in plan.decodes] == [first]
    assert [(c.sequence, c.num_new, c.samples) for c in plan.chunks] == [
        (second, 5, True), (third, 4, False),
    ]  # fmt: skip
    plan, _ = keeper.step()
    assert [decode.sequence for decode in plan.decodes] == [first, second]
    assert [(c.sequence, c.num_new, c.samples) for c in plan.chunks] == [(third, 1, True)]
    assert fourth.slot == -1, "max_batch_size 3 was exceeded"


def test_without_chunks_a_prompt_runs_whole() -> None:
    scheduler = make_scheduler(64, max_batch_size=4, max_num_tokens=10, reuse=False, chunked=False)
    keeper = BookKeeper(scheduler, random.Random(0), overlap=False)
    first, second = make_sequence(6, 3), make_sequence(8, 2)
    scheduler.add(first)
    scheduler.add(second)
    plan, _ = keeper.step()
    assert [(c.sequence, c.num_new) for c in plan.chunks] == [(first, 6)]
    plan, _ = keeper.step()
    assert (len(plan.decodes), [(c.sequence, c.num_new) for c in plan.chunks]) == (1, [(second, 8)])


def test_admission_guarantees_the_end() -> None:
    scheduler = make_scheduler(4, max_batch_size=8, max_num_tokens=100, reuse=False)
    keeper, pool = BookKeeper(scheduler, random.Random(0), overlap=False), scheduler.kv.pool
    long, short = make_sequence(PAGE * 3, PAGE), make_sequence(1, 1)
    assert scheduler.fits(make_sequence(PAGE * 4, 1))
    assert not scheduler.fits(make_sequence(PAGE * 4, 2))
    blocker = make_sequence(PAGE, 2)
    for sequence in (blocker, long, short):
        scheduler.add(sequence)
    keeper.step()
    # The long one needs all four pages: it waits, and the short one does not overtake it.
    assert (pool.num_free, long.pages, short.pages) == (3, [], [])
    scheduler.remove(blocker)
    scheduler.remove(blocker)
    keeper.step()
    assert (pool.num_free, len(long.pages), short.pages) == (1, 3, [])
    assert scheduler.kv.num_unpromised == 0, "the last page is promised to the long one"


def test_promises_of_drafts_and_pages_come_to_the_end_of_a_sequence() -> None:
    """With room for exactly one sequence and its drafts, nothing is missing and nothing is left."""
    for num_drafts in (0, 1, 3):
        for length in range(1, 40):
            sequence = make_sequence(length, 20)
            probe = make_scheduler(99, 1, 64, num_drafts=num_drafts)
            pages = pages_for(probe.max_rows(sequence), PAGE)
            scheduler = make_scheduler(pages, 1, 64, num_drafts=num_drafts)
            keeper = BookKeeper(scheduler, random.Random(length), overlap=True)
            assert scheduler.fits(sequence)
            scheduler.add(sequence)
            while not sequence.finished:
                keeper.step()
            assert len(sequence.output.token_ids) == 20


def drive(seed: int, num_operations: int) -> dict[str, int]:
    """Run random arrivals and aborts through a random configuration; return what happened."""
    rng = random.Random(seed)
    num_drafts = rng.choice([0, 0, 1, 3])
    scheduler = make_scheduler(
        num_pages=rng.choice([rng.randint(6, 12), rng.randint(6, 40)]),
        max_batch_size=rng.randint(1, 8),
        max_num_tokens=rng.randint(1 + num_drafts, 60),
        policy=rng.choice(POLICIES),
        num_drafts=num_drafts,
        reuse=rng.random() < 0.8,
        chunked=rng.random() < 0.8,
    )
    keeper = BookKeeper(scheduler, rng, overlap=rng.random() < 0.5)
    stems = [[rng.randrange(4) for _ in range(70)] for _ in range(3)]
    alive: list[TokenSequence] = []
    seen = {"operations": 0, "finished": 0, "aborted": 0}
    while seen["operations"] < num_operations or scheduler.has_work:
        seen["operations"] += 1
        arriving = seen["operations"] < num_operations
        choice = rng.random()
        if arriving and choice < 0.3 and len(alive) < 40:
            stem = rng.choice(stems)[: rng.randint(1, 60)]
            prompt = stem + [rng.randrange(4) for _ in range(rng.randint(0, 3))]
            sequence = make_sequence(prompt, rng.randint(1, 40))
            if scheduler.fits(sequence):
                scheduler.add(sequence)
                alive.append(sequence)
        elif alive and choice < 0.31:
            victim = alive.pop(rng.randrange(len(alive)))
            scheduler.remove(victim)
            scheduler.remove(victim)
            victim.finish("abort")
            seen["aborted"] += 1
        elif choice < 0.312:
            scheduler.kv.clear()
        else:
            _, finished = keeper.step()
            for sequence in finished:
                alive.remove(sequence)
                assert len(sequence.output.token_ids) == sequence.max_tokens
                seen["finished"] += 1
    keeper.step()
    assert not alive
    assert scheduler.kv.pool.num_free == scheduler.kv.pool.num_pages
    seen["preempted"] = scheduler.num_preempted
    seen["evicted"] = scheduler.kv.pool.num_evicted
    seen["reused"] = scheduler.kv.stats.reused_tokens
    seen["copied"] = scheduler.kv.stats.partial_copies
    seen["merged"] = scheduler.kv.stats.merged_pages
    return seen


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32))
def test_random_histories(seed: int) -> None:
    drive(seed, 120)


def test_long_histories_see_every_event() -> None:
    """A hundred thousand operations."""
    total: dict[str, int] = {}
    for seed in range(40):
        for name, count in drive(seed, 2500).items():
            total[name] = total.get(name, 0) + count
    assert total["operations"] >= 100_000
    assert all(count > 50 for count in total.values()), total


@pytest.mark.slow
def test_very_long_histories() -> None:
    for seed in range(40, 60):
        assert drive(seed, 5000)["finished"] > 0


@pytest.mark.parametrize("policy", POLICIES)
def test_ten_thousand_requests_and_nobody_starves(policy: str) -> None:
    """Heavy traffic of mixed lengths: a request is never passed by one that came after it."""
    rng = random.Random(5)
    scheduler = make_scheduler(400, 64, 512, policy, page_size=64)
    keeper = BookKeeper(scheduler, rng, overlap=True)
    keeper.check_books = lambda: None
    keeper.attend = lambda *_: None
    total, added, done, last_admitted = 10_000, 0, 0, -1
    waits: list[int] = []
    came: dict[int, int] = {}
    first_seen: set[int] = set()
    while done < total:
        # About as many arrivals as there is room for, in bursts.
        for _ in range(rng.choice([0, 0, 4, 12, 40])):
            if added < total and scheduler.num_waiting < 500:
                long = rng.random() < 0.02
                prompt = [
                    rng.randrange(1000)
                    for _ in range(rng.randint(900, 1500) if long else rng.randint(1, 60))
                ]
                sequence = make_sequence(prompt, rng.randint(1, 16))
                scheduler.add(sequence)
                came[sequence.order] = keeper.num_steps
                added += 1
        plan, finished = keeper.step()
        for chunk in plan.chunks:
            order = chunk.sequence.order
            if order not in first_seen:
                assert order > last_admitted, "a request was overtaken"
                last_admitted = order
                first_seen.add(order)
                waits.append(keeper.num_steps - came[order])
        done += len(finished)
    assert added == len(waits) == total
    # The queue never held more than 500, and 64 run at once for 17 steps at most plus their prefill.
    assert max(waits) < 1500, max(waits)
