"""The wide FP8 GEMM kernel: every kind of problem, output and configuration, in nine schedules and on a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.emulator.launch import KernelFault
from tests.emulator.schedules import NINE_SCHEDULES, Schedule
from tests.fp8_gemm_testing import Config, Problem, check, launch, make_operands
from tests.kernel_testing import BACKENDS, devices
from tests.tile_testing import Source

Array = NDArray[Any]
FEW_SCHEDULES = NINE_SCHEDULES[1::3]
"""One random order under each kind of asynchrony; all nine are a slow test."""
ONE_SCHEDULE = NINE_SCHEDULES[4:5]


def offsets(*counts: int, start: int = 0) -> Array:
    """Offsets of groups of so many rows."""
    return np.cumsum([start, *counts]).astype(np.int32)


def contiguous(*groups: tuple[int, int]) -> Array:
    """m_indices of (group, rows), each padded to 128 rows with -1."""
    parts = [np.repeat([g, -1], [rows, -rows % 128]) for g, rows in groups]
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
    Problem(Source("dense", m=200), 72, 384, Config(64, 32, 4, ping_pong=True)),
    Problem(Source("offsets", groups=offsets(*RAGGED)), 136, 640,
            Config(64, 64, 3, "bf16", 2, ping_pong=True), num_ctas=4),
]  # fmt: skip


def run(problem: Problem, backend: str, schedules: Sequence[Schedule]) -> Array:
    """Right numbers, guards untouched, nothing to report, the same bits whatever the timing: D's bytes."""
    kernel = problem.config.kernel(problem.source.kind)
    x = make_operands(problem)
    results = []
    for device in devices(backend, schedules):
        results.append(launch(device, problem, kernel, x))
        check(problem, x, results[-1], short_sums=backend == "gpu")
    for result in results[1:]:
        assert np.array_equal(results[0].raw_d, result.raw_d)
        assert np.array_equal(results[0].raw_sfd, result.raw_sfd)
    return results[0].raw_d


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("problem", CASES, ids=str)
def test_every_kind_and_output(problem: Problem, backend: str) -> None:
    run(problem, backend, FEW_SCHEDULES)


@pytest.mark.slow
@pytest.mark.parametrize("problem", CASES, ids=str)
def test_every_kind_and_output_in_nine_schedules(problem: Problem) -> None:
    run(problem, "emulator", NINE_SCHEDULES)


SIZES = (0, 1, 7, 8, 9, 31, 33, 63, 64, 65, 127, 129, 200)
SMALL = Config(64, 32, 3)
LARGE = Config(128, 128, 3)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["offsets", "tile_map", "masked"])
def test_group_sizes(kind: str, backend: str) -> None:
    """Every size of a group, one after the other: ends at all residues modulo 8."""
    rows = np.array(SIZES) if kind == "masked" else offsets(*SIZES)
    run(
        Problem(Source(kind, m=200, groups=rows), 64, 256, SMALL, num_ctas=5), backend, ONE_SCHEDULE
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_many_groups(backend: str) -> None:
    """256 experts of which most have nothing; then one with everything; then nothing at all."""
    counts = np.zeros(256, int)
    counts[[0, 3, 31, 32, 100, 255]] = 5, 70, 1, 64, 9, 33
    for groups in (offsets(*counts), offsets(*[0] * 255, 150), offsets(*[0] * 256)):
        run(Problem(Source("offsets", groups=groups), 64, 128, SMALL), backend, ONE_SCHEDULE)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("output", ["bf16", "fp32"])
def test_hostile_scales(output: str, backend: str) -> None:
    """Scales of 1e-6 to 1e4, drawn for every row and block."""
    config = replace(SMALL, output=output)
    problem = Problem(Source("offsets", groups=offsets(*RAGGED)), 72, 640, config, hostile=True)
    run(problem, backend, ONE_SCHEDULE)


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("m", SIZES[1:])
def test_dense_sizes(m: int, backend: str) -> None:
    for n in (64, 576):
        run(Problem(Source("dense", m=m), n, 256, SMALL, num_ctas=3), backend, FEW_SCHEDULES)
    run(Problem(Source("dense", m=m), 2112, 128, LARGE, num_ctas=5), backend, ONE_SCHEDULE)


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_more_than_32_blocks_of_k(backend: str) -> None:
    """The weight scales come 32 blocks at a time; 35 need a second fetch."""
    for output in ("bf16", "swiglu"):
        config = Config(64, 128, 3, output)
        run(Problem(Source("dense", m=65), 256, 35 * 128, config), backend, ONE_SCHEDULE)


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_configuration_gives_the_same_bits(backend: str) -> None:
    """The order of sums is that of K, whatever the tile, the multicast and the number of CTAs."""
    problem = Problem(Source("dense", m=150), 136, 640, SMALL)
    want = run(problem, backend, ONE_SCHEDULE)
    for config in (
        LARGE, Config(256, 128, 3), Config(64, 64, 3, ping_pong=True), Config(128, 128, 4, "bf16", 1), Config(256, 128, 3, "bf16", 2)
    ):  # fmt: skip
        got = run(replace(problem, config=config, num_ctas=4), backend, ONE_SCHEDULE)
        assert np.array_equal(got, want)


DENSE = Problem(Source("dense", m=67), 72, 640, SMALL, num_ctas=1)
GROUPED = replace(DENSE, source=Source("offsets", groups=offsets(*RAGGED)), weighted=True)
PAIRED = Problem(Source("dense", m=130), 72, 640, Config(128, 32, 3, "bf16", 1), num_ctas=2)
SWIGLU = Problem(Source("offsets", groups=offsets(5, 33)), 256, 512,
                 Config(64, 128, 3, "swiglu", gather=True), num_ctas=1)  # fmt: skip
PINGED = replace(DENSE, config=Config(64, 32, 3, ping_pong=True), k=384)
PIPED = Problem(Source("offsets", groups=offsets(5, 33)), 72, 640, replace(SMALL, gather=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_launches_that_overlap(backend: str) -> None:
    """Two launches into the same D, the second allowed to start early: it waits before it writes."""
    for problem in (DENSE, GROUPED):
        kernel = problem.config.kernel(problem.source.kind)
        x = make_operands(problem)
        for device in devices(backend, FEW_SCHEDULES):
            result = launch(device, problem, kernel, x, times=2)
            check(problem, x, result, short_sums=backend == "gpu")


CONSUMER, PRODUCER, EPILOGUE, MAIN = (
    f"seekernel/gemm/sm90_fp8_gemm_nt{part}.cuh" for part in ("_consumer", "_producer", "_epilogue", "")
)  # fmt: skip
PLANTED: dict[str, tuple[Problem, str, str, str]] = {
    "one scale for two rows": (DENSE, CONSUMER, "(i & 2 ? high : low)", "low"),
    "weight scale of another block": (DENSE, CONSUMER, "weights.of(block));", "weights.of(0));"),
    "weight scale of another group": (GROUPED, CONSUMER, "tile.group * args.sfb_stride_g", "0"),
    "scales read where the box starts": (GROUPED, CONSUMER, "first_row & 3", "0"),
    "step along K": (DENSE, CONSUMER, "b + 2 * step", "b"),
    "no wait for the product": (DENSE, CONSUMER, "ptx::wgmma_wait_group<1>();\n        finish(odd", "finish(odd"),
    "slot given back early": (DENSE, CONSUMER, "ptx::wgmma_wait_group<1>();\n        finish(even, even_scales, block);\n        wait_full",
                              "finish(even, even_scales, block);\n        ptx::wgmma_wait_group<1>();\n        wait_full"),
    "no wait for a full slot": (DENSE, CONSUMER, "        wait_full(issued);\n        start(odd, odd_scales);",
                                "        start(odd, odd_scales);"),
    "no wait for an empty slot": (DENSE, PRODUCER, "ptx::mbarrier_wait_parity(smem + P::kEmpty + 8 * slot.stage, slot.parity ^ 1);\n    write_tile<Config>(smem, slot.stage, tile);",
                                  "write_tile<Config>(smem, slot.stage, tile);"),
    "bytes miscounted": (DENSE, PRODUCER, "P::kBytesStage", "P::kBytesB"),
    "tile told too late": (DENSE, PRODUCER, "write_tile<Config>(smem, slot.stage, {0, 0, 0, 0, 0});\n      ptx::mbarrier_arrive(smem + P::kFull + 8 * slot.stage);",
                           "ptx::mbarrier_arrive(smem + P::kFull + 8 * slot.stage);\n      write_tile<Config>(smem, slot.stage, {0, 0, 0, 0, 0});"),
    "output not swizzled": (DENSE, EPILOGUE, "(offset ^ mask << 4)", "offset"),
    "no fence before the store": (DENSE, EPILOGUE, "ptx::fence_proxy_async_shared();", ""),
    "staging used again early": (DENSE, EPILOGUE, "if (lane == 0) ptx::bulk_wait_group_read<0>();", ""),
    "rows of the next group stored": (GROUPED, EPILOGUE, "kMapClips || rows >= 16", "true"),
    "columns beyond n stored": (GROUPED, EPILOGUE, "if (at >= num) continue;", ""),
    "weight of another row": (GROUPED, EPILOGUE, "args.row_weight[row + r + 8]", "args.row_weight[row + r]"),
    "slot given back to one CTA": (PAIRED, CONSUMER, "lane < Config::kCluster", "lane < 1"),
    "gone before the other CTA": (PAIRED, MAIN, "if constexpr (Config::kCluster > 1) {", "if constexpr (false) {"),
    "both fetch the same half": (PAIRED, PRODUCER, "rank * (Config::BLOCK_M / 2)", "0"),
    "gathered rows not fenced": (PIPED, PRODUCER, "    ptx::fence_proxy_async_shared();\n", ""),
    "gathered rows not landed": (PIPED, PRODUCER, "ptx::cp_async_wait_group<kLag>();", ""),
    "gathered rows not swizzled": (PIPED, PRODUCER, "(chunk ^ row % 8)", "chunk"),
    "too many stages left open": (PIPED, PRODUCER, "Config::kStages > 3 ? 2 : 1;\n  static_assert(kLag <= Config::kStages - 2",
                                  "2;\n  static_assert(true"),
    "maximum of half the columns": (SWIGLU, EPILOGUE, "__shfl_xor_sync(0xffffffffu, amax, 2)", "amax"),
    "scales of nobody's rows": (SWIGLU, EPILOGUE, "lane % 4 == 0 && r < rows", "lane % 4 == 0"),
    "turns not taken": (PINGED, CONSUMER, "      await_turn();\n", ""),
    "stages of the other tile not skipped": (PINGED, CONSUMER, "issued.skip(num_blocks);", ""),
    "gate for up": (SWIGLU, CONSUMER, "Config::kSwiglu ? wave * P::kBytesTileB : 0", "0"),
}  # fmt: skip
QUICK = (
    "turns not taken",
    "scales read where the box starts", "slot given back early", "staging used again early",
    "rows of the next group stored", "gathered rows not fenced", "slot given back to one CTA",
)  # fmt: skip


@pytest.mark.parametrize(
    "bug", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in PLANTED]
)  # fmt: skip
def test_planted_bugs_are_seen(bug: str) -> None:
    """Each is a fault or a wrong result in at least one of the nine schedules."""
    problem, header, old, new = PLANTED[bug]
    kernel = problem.config.kernel(problem.source.kind, edits={header: [(old, new)]})
    x = make_operands(problem)
    for device in devices("emulator"):
        try:
            check(problem, x, launch(device, problem, kernel, x))
        except (AssertionError, KernelFault):
            return
    pytest.fail("nobody noticed")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("problem", "header", "old"),
    [
        (DENSE, PRODUCER, "      ptx::griddepcontrol_wait();\n"),
        (GROUPED, MAIN, "if constexpr (!Producer::kKnowsTiles) ptx::griddepcontrol_wait();"),
        (PIPED, MAIN, "      ptx::griddepcontrol_wait();\n"),
    ],
    ids=["dense", "grouped", "gather"],
)
def test_a_launch_that_does_not_wait_is_seen(problem: Problem, header: str, old: str) -> None:
    kernel = problem.config.kernel(problem.source.kind, edits={header: [(old, "")]})
    x = make_operands(problem)
    reports = []
    for device in devices("emulator"):
        try:
            launch(device, problem, kernel, x, times=2)
        except KernelFault as fault:
            reports.append(str(fault))
    assert reports
    assert all("PDL" in report for report in reports)
