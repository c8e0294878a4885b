"""Pages of sequences: reused where their tokens are known, taken one by one, found again afterwards."""

from __future__ import annotations

from dataclasses import dataclass

from seekernel.engine.kv_pages import PagePool, pages_for
from seekernel.engine.prefix_tree import Node, PrefixTree
from seekernel.engine.request import TokenSequence


@dataclass
class ReuseStats:
    """Counted since the start. Rates: reused_tokens / prompt_tokens."""

    num_admitted: int = 0
    prompt_tokens: int = 0
    reused_tokens: int = 0
    partial_copies: int = 0
    merged_pages: int = 0


class KVManager:
    """The page pool and the prefix tree, kept in step.

    A page that the tree knows is full and is never written again; a sequence writes pages that it
    alone holds. reserved: pages promised to running sequences and not yet taken.
    """

    def __init__(
        self,
        num_pages: int,
        page_size: int,
        enable_block_reuse: bool = True,
        enable_partial_reuse: bool = True,
        look_ahead: int = 0,
    ) -> None:
        self.page_size = page_size
        self.enable_block_reuse = enable_block_reuse
        self.enable_partial_reuse = enable_partial_reuse
        self.tree = PrefixTree(page_size, look_ahead)
        self.pool = PagePool(num_pages, self._evict)
        self.stats = ReuseStats()
        self.num_reserved = 0

    @property
    def num_unpromised(self) -> int:
        """Pages that can be taken without breaking a promise."""
        return self.pool.num_free - self.num_reserved

    def _evict(self, page: int) -> None:
        node = self.tree.node_of(page)
        if node is None or node.children:
            raise RuntimeError(f"page {page} was evicted before what depends on it")
        self.tree.remove(node)

    def admit(
        self, sequence: TokenSequence, rows_now: int, rows_promised: int
    ) -> tuple[int, int] | None | bool:
        """Give a sequence the pages whose tokens are known and promise the rest.

        Args: rows_now: rows that must be free to start with; rows_promised: rows promised to the
        end, 0: none (the sequence may be preempted).
        Returns: False if there is no room, and nothing changed. True, or (source, destination) of a
        page whose first rows must be copied before the forward; the source is held until
        release_source. Writes: the sequence's pages, nodes and num_cached.
        """
        tokens = sequence.tokens
        nodes: list[Node] = []
        partial, num_rows = None, 0
        if self.enable_block_reuse and sequence.may_reuse:
            nodes, partial, num_rows = self.tree.match(tokens, len(tokens) - 1)
            if not self.enable_partial_reuse:
                partial, num_rows = None, 0
        shared = [node.page for node in nodes]
        held = shared if partial is None else [*shared, partial.page]
        self.pool.share(held)
        wanted = pages_for(max(rows_now, rows_promised), self.page_size) - len(shared)
        if wanted > self.num_unpromised:
            # What is known may be what stands in the way: without it a page less is held.
            if partial is not None:
                self.pool.release([partial.page])
                partial, num_rows = None, 0
            if wanted > self.num_unpromised:
                self.pool.release(reversed(shared))
                return False
        sequence.pages, sequence.nodes = shared, nodes
        sequence.num_cached = len(shared) * self.page_size + num_rows
        sequence.num_reserved = wanted if rows_promised else 0
        self.num_reserved += sequence.num_reserved
        self.stats.num_admitted += 1
        self.stats.prompt_tokens += len(tokens)
        self.stats.reused_tokens += sequence.num_cached
        if partial is None:
            return True
        self.grow(sequence, sequence.num_cached)
        self.stats.partial_copies += 1
        return partial.page, sequence.pages[-1]

    def release_source(self, page: int) -> None:
        """Let go of the source of a copy that has been launched."""
        self.pool.release([page])

    def missing(self, sequence: TokenSequence, num_rows: int) -> int:
        """Return how many pages more the sequence needs to hold num_rows rows."""
        return max(pages_for(num_rows, self.page_size) - len(sequence.pages), 0)

    def can_grow(self, sequence: TokenSequence, num_rows: int) -> bool:
        missing = self.missing(sequence, num_rows)
        return missing <= sequence.num_reserved + max(self.num_unpromised, 0)

    def grow(self, sequence: TokenSequence, num_rows: int) -> None:
        """Take pages until the sequence holds num_rows rows. Errors: CapacityError if it cannot."""
        missing = self.missing(sequence, num_rows)
        if missing:
            sequence.pages += self.pool.allocate(missing)
            from_promise = min(missing, sequence.num_reserved)
            sequence.num_reserved -= from_promise
            self.num_reserved -= from_promise

    def publish(self, sequence: TokenSequence) -> list[int]:
        """Enter full pages of a sequence in the tree, up to its num_cached.

        Returns: indices of pages that were exchanged for equal ones that the tree knew already.
        """
        if not self.enable_block_reuse or not sequence.may_reuse:
            return []
        exchanged = []
        size, ahead = self.page_size, self.tree.look_ahead
        nodes = sequence.nodes
        known = min(sequence.num_cached, sequence.num_tokens - ahead)
        while (len(nodes) + 1) * size <= known:
            index = len(nodes)
            parent = nodes[-1] if nodes else None
            if parent is not None and not parent.attached:
                break  # a failed sequence shared it: what follows from it is not offered either
            page = sequence.pages[index]
            tokens = sequence.token_range(index * size, (index + 1) * size + ahead)
            node = self.tree.add(parent, tokens, page)
            if node.page == page:
                self.pool.keep(page)
            else:
                self.pool.share([node.page])
                self.pool.release([page])
                sequence.pages[index] = node.page
                self.stats.merged_pages += 1
                exchanged.append(index)
            nodes.append(node)
        return exchanged

    def release(self, sequence: TokenSequence) -> None:
        """Take all pages from a sequence, the last ones first: they are evicted before their parents."""
        self.pool.release(reversed(sequence.pages))
        self.num_reserved -= sequence.num_reserved
        sequence.pages, sequence.nodes, sequence.num_reserved = [], [], 0
        sequence.num_cached = 0

    def forget(self, sequence: TokenSequence) -> None:
        """Make sure that nobody reuses what a failed sequence computed."""
        if sequence.nodes and sequence.nodes[0].attached:
            for page in self.tree.remove(sequence.nodes[0]):
                self.pool.drop(page)

    def clear(self) -> None:
        """Forget all that is idle."""
        while self.pool.num_idle:
            self.pool.release(self.pool.allocate(self.pool.num_free))
