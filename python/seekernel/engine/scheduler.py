"""Which sequences run in the next step, how many tokens of each, and in which pages."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field

from seekernel.engine.kv_manager import KVManager
from seekernel.engine.kv_pages import pages_for
from seekernel.engine.request import TokenSequence

POLICIES = ("guaranteed_no_evict", "max_utilization")


@dataclass(frozen=True)
class Chunk:
    """Known tokens begin to end of a sequence; samples: they are the last known ones."""

    sequence: TokenSequence
    begin: int
    end: int
    samples: bool
    epoch: int

    @property
    def num_new(self) -> int:
        return self.end - self.begin


@dataclass(frozen=True)
class Decode:
    """The next token of a sequence and the drafts after it, which the device knows.

    max_rows: rows that the sequence has in the cache after the step, at most.
    """

    sequence: TokenSequence
    max_rows: int
    epoch: int


@dataclass
class StepPlan:
    """One step: the pages to copy first, decodes, then chunks of prefills."""

    copies: list[tuple[int, int]] = field(default_factory=list)
    decodes: list[Decode] = field(default_factory=list)
    chunks: list[Chunk] = field(default_factory=list)
    num_preempted: int = 0

    def __bool__(self) -> bool:
        return bool(self.decodes or self.chunks)

    @property
    def num_context_tokens(self) -> int:
        return sum(chunk.num_new for chunk in self.chunks)


def extra_rows(num_drafts: int) -> int:
    """Return how many rows past its last token a sequence may write."""
    return max(2 * num_drafts - 1, 0)


class Scheduler:
    """Continuous batching: decodes first, then prefills in order of arrival, in chunks.

    guaranteed_no_evict admits a sequence once its longest possible end is promised to it: what was
    admitted finishes without a break. max_utilization promises nothing: when pages run out the
    youngest sequence gives its own back, waits in front of the queue and is computed again. Either
    way nobody is overtaken: a sequence that waits for pages lets none behind it pass, and the
    oldest one is never preempted for another, so that every sequence finishes.

    num_drafts: tokens that each decode runs behind its next one. Verifying and drafting write rows
    past a sequence's last token: num_drafts and num_drafts - 1 of them.
    """

    def __init__(
        self,
        kv: KVManager,
        max_batch_size: int,
        max_num_tokens: int,
        policy: str = "guaranteed_no_evict",
        num_drafts: int = 0,
        enable_chunked_prefill: bool = True,
    ) -> None:
        self.kv = kv
        self._max_num_tokens = max_num_tokens
        self._num_drafts = num_drafts
        self._extra_rows = extra_rows(num_drafts)
        self._promises = policy == "guaranteed_no_evict"
        self._chunked = enable_chunked_prefill
        # Each running sequence decodes in every step, within max_num_tokens too.
        self.max_running = min(max_batch_size, max_num_tokens // (1 + num_drafts))
        self._slots = list(range(self.max_running - 1, -1, -1))
        self._waiting: deque[TokenSequence] = deque()
        self._running: list[TokenSequence] = []
        self._num_added = 0
        self.num_preempted = 0

    @property
    def has_work(self) -> bool:
        return bool(self._running or self._waiting)

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    def sequences(self) -> list[TokenSequence]:
        return [*self._running, *self._waiting]

    def max_rows(self, sequence: TokenSequence) -> int:
        """Return the rows that a sequence needs at most: drafts may be written past its end."""
        return sequence.max_cached + self._extra_rows

    def fits(self, sequence: TokenSequence) -> bool:
        """Whether the sequence could run if it were alone."""
        return pages_for(self.max_rows(sequence), self.kv.page_size) <= self.kv.pool.num_pages

    def add(self, sequence: TokenSequence) -> None:
        sequence.order = self._num_added
        self._num_added += 1
        self._waiting.append(sequence)

    def schedule(self) -> StepPlan:
        """Return the next step, at most max_num_tokens tokens; admits what fits, preempts if it must."""
        plan = StepPlan()
        for sequence in list(self._running):
            if sequence.slot >= 0 and not sequence.prefilling:
                self._plan_decode(plan, sequence)
        budget = self._max_num_tokens - len(plan.decodes) * (1 + self._num_drafts)
        for sequence in list(self._running):
            if sequence.slot >= 0 and sequence.prefilling:
                budget -= self._plan_chunk(plan, sequence, budget)
        if not plan.num_preempted:
            self._admit(plan, budget)
        if not plan and not plan.num_preempted and self._is_stuck():
            self._preempt(plan, self._running[-1])
        for source, _ in plan.copies:
            self.kv.release_source(source)
        return plan

    def _plan_decode(self, plan: StepPlan, sequence: TokenSequence) -> None:
        most = sequence.num_tokens + sequence.in_flight_max
        if most >= sequence.max_total:
            return  # it ends, or may end, by what is under way
        max_rows = most + self._extra_rows
        while not self.kv.can_grow(sequence, max_rows):
            victim = self._running[-1]
            self._preempt(plan, victim)
            if victim is sequence:
                return
        self.kv.grow(sequence, max_rows)
        plan.decodes.append(Decode(sequence, max_rows, sequence.epoch))
        sequence.in_flight += 1
        sequence.in_flight_max += 1 + self._num_drafts

    def _plan_chunk(self, plan: StepPlan, sequence: TokenSequence, budget: int) -> int:
        """Add the next chunk of a prefill, if there is room; return its tokens."""
        begin = sequence.num_launched
        end = min(sequence.target, begin + budget)
        if end <= begin or (end < sequence.target and self._goes_whole(sequence)):
            return 0
        rows = end + self._extra_rows if end == sequence.target else end
        if not self.kv.can_grow(sequence, rows):
            return 0
        self.kv.grow(sequence, rows)
        samples = end == sequence.target
        plan.chunks.append(Chunk(sequence, begin, end, samples, sequence.epoch))
        sequence.num_launched = end
        if samples:
            sequence.in_flight += 1
            sequence.in_flight_max += 1
        return end - begin

    def _admit(self, plan: StepPlan, budget: int) -> None:
        while self._waiting and budget > 0 and len(self._running) < self.max_running:
            sequence = self._waiting[0]
            if sequence.in_flight:
                break  # preempted while a step was under way: its tokens are not all known yet
            if sequence.num_tokens > budget and self._goes_whole(sequence):
                break
            promised = self.max_rows(sequence) if self._promises else 0
            admitted = self.kv.admit(sequence, sequence.num_tokens + self._extra_rows, promised)
            if admitted is False:
                break
            self._waiting.popleft()
            if isinstance(admitted, tuple):
                plan.copies.append(admitted)
            sequence.slot = self._slots.pop()
            sequence.target = sequence.num_tokens
            sequence.num_launched = sequence.num_cached
            if sequence.first_scheduled_at is None:
                sequence.first_scheduled_at = time.perf_counter()
                sequence.num_reused = sequence.num_cached
            self._running.append(sequence)
            budget -= self._plan_chunk(plan, sequence, budget)

    def _goes_whole(self, sequence: TokenSequence) -> bool:
        """Whether it is run in one chunk; one that grew beyond a step before it was preempted is not."""
        return not self._chunked and sequence.num_tokens <= self._max_num_tokens

    def _is_stuck(self) -> bool:
        """Whether prefills hold all pages and none can go on: nothing under way will free any."""
        return bool(self._running) and not any(item.in_flight for item in self._running)

    def _preempt(self, plan: StepPlan, victim: TokenSequence) -> None:
        self._running.remove(victim)
        self._release(victim)
        victim.epoch += 1
        victim.num_launched = victim.target = 0
        position = 0
        while position < len(self._waiting) and self._waiting[position].order < victim.order:
            position += 1
        self._waiting.insert(position, victim)
        plan.num_preempted += 1
        self.num_preempted += 1

    def processed(self, item: Chunk | Decode) -> bool:
        """Note that a step's tokens for a sequence are known; False: its rows are no longer its own."""
        sequence = item.sequence
        if isinstance(item, Decode):
            sequence.in_flight -= 1
            sequence.in_flight_max -= 1 + self._num_drafts
        elif item.samples:
            sequence.in_flight -= 1
            sequence.in_flight_max -= 1
        return sequence.epoch == item.epoch and sequence.slot >= 0

    def remove(self, sequence: TokenSequence) -> None:
        """Take a finished or aborted sequence out and give its pages back; twice does no harm."""
        if sequence.slot >= 0:
            self._running.remove(sequence)
            self._release(sequence)
        elif sequence in self._waiting:
            self._waiting.remove(sequence)

    def _release(self, sequence: TokenSequence) -> None:
        self.kv.release(sequence)
        self._slots.append(sequence.slot)
        sequence.slot = -1
