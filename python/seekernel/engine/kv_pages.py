"""Pages of the KV cache: who holds which, and how many there can be."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from seekernel.errors import CapacityError

MIB = 1 << 20


class PagePool:
    """Hands out page numbers 0..num_pages-1, each with a count of its holders."""

    def __init__(self, num_pages: int) -> None:
        self.num_pages = num_pages
        self._free = list(range(num_pages - 1, -1, -1))
        self._num_holders = [0] * num_pages

    @property
    def num_free(self) -> int:
        return len(self._free)

    def allocate(self, count: int) -> list[int]:
        """Take `count` free pages, one holder each. Errors: CapacityError, and nothing is taken."""
        if count > len(self._free):
            raise CapacityError(f"KV cache: {count} pages wanted, {len(self._free)} are free")
        pages = [self._free.pop() for _ in range(count)]
        for page in pages:
            self._num_holders[page] = 1
        return pages

    def share(self, pages: Iterable[int]) -> None:
        """Add a holder to pages that are held already."""
        for page in pages:
            if self._num_holders[page] == 0:
                raise RuntimeError(f"page {page} is free and cannot be shared")
            self._num_holders[page] += 1

    def release(self, pages: Iterable[int]) -> None:
        """Take one holder away; a page without holders is free."""
        for page in pages:
            if self._num_holders[page] == 0:
                raise RuntimeError(f"page {page} is released twice")
            self._num_holders[page] -= 1
            if self._num_holders[page] == 0:
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
) -> tuple[int, int]:
    """Choose (num_pages, max_seq_len): room for a full batch of full length, within limit_bytes.

    max_seq_len None: the model's own limit, or less if the memory holds less.
    Errors: CapacityError with the numbers, if one request of max_seq_len can never fit.
    """
    affordable = limit_bytes // bytes_per_page
    if max_seq_len is None:
        max_seq_len = min(max_position_embeddings, affordable * page_size)
    pages_each = pages_for(max_seq_len, page_size)
    if pages_each < 1 or pages_each > affordable:
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
