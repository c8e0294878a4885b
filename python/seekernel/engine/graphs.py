"""CUDA graphs of decode steps, one per batch size; on a CPU the same step, run anew each time."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Protocol

import torch
from torch import Tensor

Function = Callable[[], tuple[Tensor, ...]]
DEFAULT_SIZES = (
    1,
    2,
    4,
    8,
    16,
    24,
    32,
    40,
    48,
    56,
    64,
    80,
    96,
    112,
    128,
    160,
    192,
    224,
    256,
    384,
    512,
)


class Replay(Protocol):
    """A recorded function: the same work on the same buffers, and the outputs it writes again."""

    outputs: tuple[Tensor, ...]

    def replay(self) -> None: ...


class CudaReplay:
    """A CUDA graph of a function that reads and writes fixed buffers alone."""

    def __init__(self, function: Function) -> None:
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # what is initialised lazily must not be captured
            function()
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self.outputs = function()

    def replay(self) -> None:
        self._graph.replay()


class EagerReplay:
    """No recording: the function runs each time."""

    def __init__(self, function: Function) -> None:
        self._function = function
        self.outputs: tuple[Tensor, ...] = ()

    def replay(self) -> None:
        self.outputs = self._function()


class GraphSet:
    """Recorded steps by kind and batch size, made when first needed.

    sizes: batch sizes to record; those above max_batch_size are cut off.
    padding: a batch between two sizes takes the larger one; else it is not recorded.
    """

    def __init__(
        self,
        sizes: Sequence[int] | None,
        padding: bool,
        max_batch_size: int,
        record: Callable[[Function], Replay],
    ) -> None:
        wanted = DEFAULT_SIZES if sizes is None else sizes
        clipped = {size for size in wanted if size <= max_batch_size}
        if sizes is None or len(clipped) < len(set(wanted)):
            clipped.add(max_batch_size)
        self.sizes = sorted(clipped)
        self.num_replays = 0
        self._padding, self._record = padding, record
        self._recorded: dict[Hashable, Replay] = {}

    def size_for(self, batch_size: int) -> int | None:
        """Return the recorded batch size to use, None: run without a graph."""
        for size in self.sizes:
            if size == batch_size or (size > batch_size and self._padding):
                return size
        return None

    def knows(self, key: Hashable) -> bool:
        return key in self._recorded

    def record(self, key: Hashable, function: Function) -> None:
        """Record a function. It may run while it is recorded: its inputs must be harmless then."""
        self._recorded[key] = self._record(function)

    def replay(self, key: Hashable) -> tuple[Tensor, ...]:
        """Replay what was recorded under `key`; return its outputs, which the next replay overwrites."""
        recorded = self._recorded[key]
        recorded.replay()
        self.num_replays += 1
        return recorded.outputs

    def outputs(self, key: Hashable) -> tuple[Tensor, ...]:
        return self._recorded[key].outputs
