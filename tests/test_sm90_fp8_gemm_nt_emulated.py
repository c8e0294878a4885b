"""The wide FP8 GEMM kernel: every kind of problem, output and configuration, in nine schedules and on a GPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.fp8_gemm_testing import Config, Problem, check, launch, make_operands
from tests.kernel_testing import BACKENDS, devices
from tests.tile_testing import Source

Array = NDArray[Any]


def offsets(*counts: int, start: int = 0) -> Array:
    return np.cumsum([start, *counts]).astype(np.int32)


def contiguous(*groups: tuple[int, int], align: int = 128) -> Array:
    """m_indices of (group, rows), each padded to `align` rows with -1."""
    parts = [np.repeat([g, -1], [rows, -rows % align]) for g, rows in groups]
    return np.concatenate(parts).astype(np.int32)


RAGGED = (5, 0, 33, 64, 7, 0, 71)
CASES = [
    Problem(Source("dense", m=67), 72, 640, Config()),
    Problem(Source("dense", m=130), 200, 896, Config(128, 128, 5)),
    Problem(Source("dense", m=200), 72, 896, Config(64, 64, 4, "fp32")),
    Problem(Source("dense", m=300), 136, 640, Config(256, 128, 3), num_ctas=3),
    Problem(Source("dense", m=130), 200, 640, Config(128, 32, 3, "bf16", 1), num_ctas=4),
    Problem(Source("dense", m=300), 72, 640, Config(128, 64, 3, "bf16", 2), num_ctas=4),
    Problem(Source("batched", m=33, num_groups=3), 136, 512, Config(64, 64, 3)),
    Problem(Source("offsets", groups=offsets(*RAGGED)), 72, 640, Config(64, 32, 3)),
    Problem(Source("offsets", groups=offsets(*RAGGED, start=3).astype(np.int64)), 40, 640,
            Config(64, 32, 3, "fp32"), weighted=True),
    Problem(Source("offsets", groups=offsets(129, 0, 100)), 200, 512, Config(128, 64, 3, "bf16", 1),
            num_ctas=4, weighted=True),
    Problem(Source("contiguous", groups=contiguous((2, 100), (0, 128), (1, 1))), 72, 512,
            Config(128, 64, 3)),
    Problem(Source("masked", groups=np.array([0, 64, 5, 130, 0]), m=136), 72, 512, Config(64, 32, 3)),
    Problem(Source("tile_map", groups=offsets(*RAGGED)), 72, 640, Config(64, 32, 3)),
    Problem(Source("offsets", groups=offsets(*RAGGED)), 512, 640, Config(64, 128, 3, "swiglu")),
    Problem(Source("tile_map", groups=offsets(129, 0, 100), block_rows=128), 512, 512,
            Config(128, 128, 3, "swiglu", 1), num_ctas=2),
    Problem(Source("offsets", groups=offsets(*RAGGED)), 256, 640,
            Config(64, 128, 3, "swiglu", gather=True)),
    Problem(Source("tile_map", groups=offsets(*RAGGED), block_rows=64), 72, 640,
            Config(128, 32, 3, "bf16", 2, gather=True)),
]  # fmt: skip


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("problem", CASES, ids=str)
def test_right_in_every_schedule(problem: Problem, backend: str) -> None:
    """Right numbers, guards untouched, nothing to report, the same bits whatever the timing."""
    kernel = problem.config.kernel(problem.source.kind)
    x = make_operands(problem)
    first = None
    for device in devices(backend):
        result = launch(device, problem, kernel, x)
        check(problem, x, result)
        if first is None:
            first = result
        assert np.array_equal(first.raw_d, result.raw_d)
        assert np.array_equal(first.raw_sfd, result.raw_sfd)
