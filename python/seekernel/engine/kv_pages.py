"""Pages of the KV cache: who holds which, what a free one still holds, and how many there can be.

A page is free (its rows mean nothing), held (by one or more sequences), or idle (held by none, but
its rows stay findable in the prefix tree until the page is needed). Idle pages are taken in the
order in which they were let go.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Iterable
from pathlib import Path

from seekernel.errors import CapacityError

MIB = 1 << 20


class PagePool:
    """Hands out page numbers 0..num_pages-1, each with a count of its holders.

    on_evict: called with an idle page before it is handed out again.
    """

    def __init__(self, num_pages: int, on_evict: Callable[[int], None] | None = None) -> None:
        self.num_pages = num_pages
        self.num_evicted = 0
        self._on_evict = on_evict
        self._free = list(range(num_pages - 1, -1, -1))
        self._num_holders = [0] * num_pages
        self._keeps = [False] * num_pages
        self._idle: OrderedDict[int, None] = OrderedDict()

    @property
    def num_free(self) -> int:
        """Pages that can be handed out: free and idle ones."""
        return len(self._free) + len(self._idle)

    @property
    def num_idle(self) -> int:
        return len(self._idle)

    def num_holders(self, page: int) -> int:
        return self._num_holders[page]

    def keeps(self, page: int) -> bool:
        """Whether the page becomes idle instead of free when its last holder lets go."""
        return self._keeps[page]

    def allocate(self, count: int) -> list[int]:
        """Take `count` pages, one holder each. Errors: CapacityError, and nothing is taken."""
        if count > self.num_free:
            raise CapacityError(f"KV cache: {count} pages wanted, {self.num_free} are free")
        pages = []
        for _ in range(count):
            if self._free:
                page = self._free.pop()
            else:
                page, _ = self._idle.popitem(last=False)
                self._keeps[page] = False
                self.num_evicted += 1
                if self._on_evict is not None:
                    self._on_evict(page)
            self._num_holders[page] = 1
            pages.append(page)
        return pages

    def share(self, pages: Iterable[int]) -> None:
        """Add a holder to pages that are held or idle."""
        for page in pages:
            if self._num_holders[page] == 0:
                if page not in self._idle:
                    raise RuntimeError(f"page {page} is free and cannot be shared")
                del self._idle[page]
            self._num_holders[page] += 1

    def release(self, pages: Iterable[int]) -> None:
        """Take one holder away; a page without holders is idle if it keeps its rows, else free."""
        for page in pages:
            if self._num_holders[page] == 0:
                raise RuntimeError(f"page {page} is released twice")
            self._num_holders[page] -= 1
            if self._num_holders[page] == 0:
                if self._keeps[page]:
                    self._idle[page] = None
                else:
                    self._free.append(page)

    def keep(self, page: int) -> None:
        """Let a held page become idle, not free, later on."""
        if self._num_holders[page] == 0:
            raise RuntimeError(f"page {page} is not held and cannot be kept")
        self._keeps[page] = True

    def drop(self, page: int) -> None:
        """Undo keep: the page is free once nobody holds it."""
        self._keeps[page] = False
        if page in self._idle:
            del self._idle[page]
            self._free.append(page)


def pages_for(num_tokens: int, page_size: int) -> int:
    return -(-num_tokens // page_size)


def size_pool(
    bytes_per_page: int,
    page_size: int,
    max_batch_size: int,
    max_seq_len: int | None,
    max_position_embeddings: int,
    limit_bytes: int,
    extra_rows: int = 0,
) -> tuple[int, int]:
    """Choose (num_pages, max_seq_len): room for a full batch of full length, within limit_bytes.

    max_seq_len None: the model's own limit, or less if the memory holds less.
    extra_rows: rows past max_seq_len that a sequence may write (drafts).
    Errors: CapacityError with the numbers, if one request of max_seq_len can never fit.
    """
    affordable = limit_bytes // bytes_per_page
    if max_seq_len is None:
        max_seq_len = min(max_position_embeddings, affordable * page_size - extra_rows)
    pages_each = pages_for(max_seq_len + extra_rows, page_size)
    if max_seq_len < 1 or pages_each > affordable:
        pages_each = max(pages_each, 1)
        raise CapacityError(
            f"kv_cache_bytes: one request of {max(max_seq_len, 1)} tokens needs {pages_each} pages of "
            f"{page_size}, {pages_each * bytes_per_page / MIB:.1f} MiB; the limit is "
            f"{limit_bytes / MIB:.1f} MiB"
        )
    return min(max_batch_size * pages_each, affordable), max_seq_len


def available_memory_bytes() -> int:
    """Memory this process can still get: the machine's, or its control group's if that is less."""
    available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for line in _lines(Path("/proc/meminfo")):
        if line.startswith("MemAvailable:"):
            available = int(line.split()[1]) * 1024
    group = Path("/sys/fs/cgroup")
    limit, used = _lines(group / "memory.max"), _lines(group / "memory.current")
    if limit and used and limit[0].isdigit():
        available = min(available, max(int(limit[0]) - int(used[0]), 0))
    return available


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return []
