"""How far two checkpoints lie apart, tensor by tensor, whatever formats they are in."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from seekernel.quantize.shard_writer import QuantizeError
from seekernel.quantize.source import SourceCheckpoint


@dataclass(frozen=True)
class Difference:
    """Of one tensor, a against b.

    Args:
        relative: ||b - a|| / ||a||.
        largest: max |b - a| / max |a|.
        formats: dtypes as stored.
    """

    name: str
    formats: tuple[str, str]
    relative: float
    largest: float


def difference(a: Tensor, b: Tensor) -> tuple[float, float]:
    """(relative, largest) as in `Difference`; 0 / 0 is 0, anything else over 0 is infinite."""
    wide_a, wide_b = a.double(), b.double()
    delta = wide_b - wide_a
    pairs = ((delta.norm(), wide_a.norm()), (_largest(delta), _largest(wide_a)))
    first, second = (
        float(x / y) if float(y) > 0 else (0.0 if float(x) == 0 else float("inf")) for x, y in pairs
    )
    return first, second


def _largest(x: Tensor) -> Tensor:
    return x.abs().max() if x.numel() else torch.zeros((), dtype=x.dtype)


def verify(dir_a: Path, dir_b: Path) -> Iterator[Difference]:
    """Compare all weights; scales are compared through the weights they belong to.

    Errors: QuantizeError for a tensor that only one side has or whose shapes differ.
    """
    a, b = SourceCheckpoint(dir_a), SourceCheckpoint(dir_b)
    names = [
        {n for n in side if not side.is_scale(n) and not n.endswith(".input_scale")}
        for side in (a, b)
    ]
    for missing, folder in ((names[0] - names[1], dir_b), (names[1] - names[0], dir_a)):
        if missing:
            raise QuantizeError(f"{min(missing)}: missing from {folder}")
    for name in (n for n in a if n in names[0]):
        values = a.read_float(name), b.read_float(name)
        if values[0].shape != values[1].shape:
            shapes = [list(v.shape) for v in values]
            raise QuantizeError(f"{name}: expected shape {shapes[0]}, got {shapes[1]}")
        yield Difference(name, (a.entry(name).dtype, b.entry(name).dtype), *difference(*values))
