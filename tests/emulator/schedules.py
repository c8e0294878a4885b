"""Schedules: the order in which warps run, and when asynchronous work lands."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class Asynchrony(IntEnum):
    """When copies and wgmma take effect after they are issued; mirrors the engine."""

    EAGER = 0
    RANDOM = 1
    LATE = 2


@dataclass(frozen=True)
class Schedule:
    """One reproducible way to run a launch: the same schedule gives the same bits and reports.

    Args:
        random_order: warps run in random bursts instead of round robin.
        asynchrony: when asynchronous work lands.
        seed: of all random choices.
        burst: instructions a warp runs before another may, the most of them if random.
    """

    random_order: bool = False
    asynchrony: Asynchrony = Asynchrony.EAGER
    seed: int = 1
    burst: int = 64

    def __str__(self) -> str:
        order = f"random{self.seed}" if self.random_order else "round_robin"
        return f"{order}-{self.asynchrony.name.lower()}"


# Two random seeds with short and long bursts, and round robin, under each kind of asynchrony.
NINE_SCHEDULES = tuple(
    Schedule(random_order, asynchrony, seed, burst)
    for asynchrony in Asynchrony
    for random_order, seed, burst in ((False, 1, 64), (True, 2, 16), (True, 3, 200))
)
