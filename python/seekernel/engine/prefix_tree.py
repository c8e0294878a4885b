"""Which pages hold which tokens: a radix tree over whole pages, so that a known prefix is not run again.

A node is one full page; the path to it spells the tokens before it. The rows of a page depend on
its own tokens and those before, and in the MTP module's layer also on the token that follows each
row's: with look_ahead 1 a node's key holds that token too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

MAX_COMPARED = 32  # children looked at for the longest common beginning: the youngest ones


@dataclass(eq=False)
class Node:
    """A page and what it holds. attached: it can still be found."""

    key: tuple[int, ...]
    page: int
    parent: Node | None
    children: dict[tuple[int, ...], Node] = field(default_factory=dict)
    attached: bool = True


class PrefixTree:
    """Finds and adds pages by the tokens they hold; knows nothing of who holds them."""

    def __init__(self, page_size: int, look_ahead: int = 0) -> None:
        self.page_size, self.look_ahead = page_size, look_ahead
        self._root = Node((), -1, None)
        self._by_page: dict[int, Node] = {}

    def __len__(self) -> int:
        return len(self._by_page)

    def node_of(self, page: int) -> Node | None:
        return self._by_page.get(page)

    def match(self, tokens: Sequence[int], limit: int) -> tuple[list[Node], Node | None, int]:
        """Find the longest known beginning of `tokens`, at most `limit` rows.

        Returns: the nodes of whole pages; a node of which only the first rows fit, or None; how many.
        """
        nodes: list[Node] = []
        node = self._root
        begin = 0
        while begin + self.page_size <= limit:
            key = tuple(tokens[begin : begin + self.page_size + self.look_ahead])
            child = node.children.get(key)
            if child is None:
                break
            nodes.append(child)
            node = child
            begin += self.page_size
        rows = min(limit - begin, self.page_size)
        if rows <= 0:
            return nodes, None, 0
        wanted = tuple(tokens[begin : begin + rows + self.look_ahead])
        best, best_rows = None, 0
        for key in list(reversed(node.children.keys()))[:MAX_COMPARED]:
            same = min(common(key, wanted) - self.look_ahead, rows)
            if same > best_rows:
                best, best_rows = node.children[key], same
        return nodes, best, best_rows

    def add(self, parent: Node | None, tokens: Sequence[int], page: int) -> Node:
        """Add a full page below `parent` (None: the first page), or return the node that is there.

        tokens: the page's own and look_ahead more.
        """
        above = self._root if parent is None else parent
        key = tuple(tokens)
        if len(key) != self.page_size + self.look_ahead:
            raise RuntimeError(f"a page's key has {len(key)} tokens")
        node = above.children.get(key)
        if node is None:
            node = Node(key, page, parent)
            above.children[key] = node
            self._by_page[page] = node
        return node

    def remove(self, node: Node) -> list[int]:
        """Take a node and all below it out; return their pages."""
        above = self._root if node.parent is None else node.parent
        above.children.pop(node.key, None)
        pages, pending = [], [node]
        while pending:
            item = pending.pop()
            pending += item.children.values()
            item.children = {}
            item.attached = False
            self._by_page.pop(item.page, None)
            pages.append(item.page)
        return pages


def common(a: Sequence[int], b: Sequence[int]) -> int:
    """Return how many leading items are equal."""
    count = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        count += 1
    return count
