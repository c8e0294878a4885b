"""Which sequences run in the next step, and how many tokens of each."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from seekernel.engine.kv_pages import PagePool, pages_for
from seekernel.engine.request import TokenSequence


@dataclass(frozen=True)
class Chunk:
    """The next num_new tokens of a sequence; samples: they are its last ones, another follows."""

    sequence: TokenSequence
    num_new: int
    samples: bool


class Scheduler:
    """Continuous batching: decodes first, then prefills in order of arrival, in chunks.

    A sequence is admitted once the pages for its longest possible end are free, and keeps them:
    what was admitted always finishes. Sequences behind one that waits for pages wait too, so that
    a long one is not overtaken for ever.
    """

    def __init__(
        self, pool: PagePool, page_size: int, max_batch_size: int, max_num_tokens: int
    ) -> None:
        self._pool, self._page_size = pool, page_size
        self._max_num_tokens = max_num_tokens
        # Each running sequence decodes one token a step, within max_num_tokens too.
        self._max_running = min(max_batch_size, max_num_tokens)
        self._waiting: deque[TokenSequence] = deque()
        self._running: list[TokenSequence] = []

    @property
    def has_work(self) -> bool:
        return bool(self._running or self._waiting)

    @property
    def num_running(self) -> int:
        return len(self._running)

    def fits(self, sequence: TokenSequence) -> bool:
        """Whether the sequence could run if it were alone."""
        return pages_for(sequence.max_cached, self._page_size) <= self._pool.num_pages

    def add(self, sequence: TokenSequence) -> None:
        self._waiting.append(sequence)

    def schedule(self) -> list[Chunk]:
        """Return the chunks of the next step, at most max_num_tokens tokens; admits what fits."""
        chunks, prefills = [], []
        for item in self._running:
            uncached = item.num_uncached
            if uncached == 1:
                chunks.append(Chunk(item, 1, True))
            else:
                prefills.append((item, uncached))
        budget = self._max_num_tokens - len(chunks)
        for item, uncached in prefills:
            if budget > 0:
                chunks.append(_chunk(item, uncached, budget))
                budget -= chunks[-1].num_new
        while self._waiting and budget > 0 and len(self._running) < self._max_running:
            num_pages = pages_for(self._waiting[0].max_cached, self._page_size)
            if num_pages > self._pool.num_free:
                break
            item = self._waiting.popleft()
            item.pages = self._pool.allocate(num_pages)
            self._running.append(item)
            chunks.append(_chunk(item, item.num_uncached, budget))
            budget -= chunks[-1].num_new
        return chunks

    def remove(self, sequence: TokenSequence) -> None:
        """Take a finished or aborted sequence out and give its pages back; twice does no harm."""
        if sequence in self._running:
            self._running.remove(sequence)
            self._pool.release(sequence.pages)
            sequence.pages = []
        elif sequence in self._waiting:
            self._waiting.remove(sequence)


def _chunk(sequence: TokenSequence, uncached: int, budget: int) -> Chunk:
    return Chunk(sequence, min(uncached, budget), uncached <= budget)
