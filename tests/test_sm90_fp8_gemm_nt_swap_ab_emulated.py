"""sm90_fp8_gemm_nt_swap_ab on the emulator in nine schedules, or on a Hopper GPU: every layout, every token tile."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest

from tests.emulator.launch import Device, KernelFault, open_device
from tests.emulator.schedules import NINE_SCHEDULES, Asynchrony, Schedule
from tests.kernel_testing import BACKENDS, BuiltKernel, devices
from tests.swap_ab_testing import (
    Config,
    Problem,
    SwapAb,
    make_problem,
    relative_error,
    run_swap_ab,
    tokens_per_tile,
)

Edits = dict[str, list[tuple[str, str]]]
RING = "seekernel/gemm/swap_ab_ring.cuh"
CONSUMER = "seekernel/gemm/swap_ab_consumer.cuh"
RUN = "seekernel/gemm/swap_ab_run.cuh"
KERNEL = "seekernel/gemm/sm90_fp8_gemm_nt_swap_ab.cuh"
ONE_PER_ASYNCHRONY = (NINE_SCHEDULES[0], NINE_SCHEDULES[4], NINE_SCHEDULES[8])
EVERY_M = (1, 7, 8, 9, 31, 32, 33, 63, 64, 65, 127, 128, 129)
WIDE_F32 = Config("float", 128, 128)


def limit(backend: str, config: Config) -> float:
    """Of the error relative to the sum of the terms' magnitudes.

    The emulator adds in fp32. A chip's tensor cores drop what lies 13 bits below the largest of the
    32 products and the sum so far, four times per block: 4 * 33 * 2**-14 of the largest at worst,
    which a sum of 128 magnitudes exceeds many times over; half a bf16 rounding of the result.
    """
    exact = 1e-6 if backend == "emulator" else 2.0**-10
    return exact + (2.0**-8 if config.output == "bfloat16_t" else 0.0)


def check(
    backend: str,
    config: Config,
    problem: Problem,
    *,
    block_rows: int,
    num_stages: int = 3,
    splits: int = 1,
    ctas: int = 3,
    schedules: Sequence[Schedule] = ONE_PER_ASYNCHRONY,
) -> None:
    """Right numbers, nothing written outside, the same bits in every schedule and a second run."""
    kernel = config.build()
    seen: set[bytes] = set()
    for device in devices(backend, schedules):
        for _ in range(2 if backend == "gpu" else 1):
            got = run_swap_ab(
                device,
                kernel,
                config,
                problem,
                block_rows=block_rows,
                num_stages=num_stages,
                splits=splits,
                ctas=ctas,
            )
            seen.add(got[problem.used >= 0].tobytes())
    assert len(seen) == 1, "other bits in another run"
    error = relative_error(got, problem)
    assert error <= limit(backend, config), f"error {error:.3e}"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("m", EVERY_M)
def test_every_token_tile(backend: str, m: int) -> None:
    """Two column blocks, the second with 8 columns of 128; seven K blocks through a ring of three."""
    rows = tokens_per_tile(m)
    problem = make_problem("dense", [m], 136, 896, block_rows=rows)
    schedules = NINE_SCHEDULES if m in (9, 64) else ONE_PER_ASYNCHRONY
    check(backend, WIDE_F32, problem, block_rows=rows, schedules=schedules)


@pytest.mark.slow
@pytest.mark.parametrize("m", EVERY_M)
@pytest.mark.parametrize("block_n", [64, 128])
def test_every_token_tile_in_all_schedules(block_n: int, m: int) -> None:
    rows = tokens_per_tile(m)
    problem = make_problem("dense", [m], 200, 1024, block_rows=rows, seed=m)
    config = Config("bfloat16_t", block_n, 128)
    check("emulator", config, problem, block_rows=rows, schedules=NINE_SCHEDULES)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("n", [64, 576, 2112])
def test_columns_of_the_model(backend: str, n: int) -> None:
    problem = make_problem("dense", [3], n, 256, block_rows=8)
    check(backend, Config("bfloat16_t", 64, 64), problem, block_rows=8, ctas=5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("splits", [2, 3, 4, 8])
@pytest.mark.parametrize("m", [1, 20, 57])
def test_split_k(backend: str, splits: int, m: int) -> None:
    """Nine K blocks over the ranks, unevenly; fewer token groups than ranks and more."""
    rows = tokens_per_tile(m)
    problem = make_problem("dense", [m], 72, 1152, block_rows=rows)
    config = Config("bfloat16_t" if m == 20 else "float", 64, 64)
    schedules = NINE_SCHEDULES if (m, splits) == (20, 3) else ONE_PER_ASYNCHRONY
    check(
        backend,
        config,
        problem,
        block_rows=rows,
        splits=splits,
        num_stages=4,
        schedules=schedules,
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_split_k_of_two_warpgroups_and_token_blocks(backend: str) -> None:
    problem = make_problem("dense", [40], 136, 640, block_rows=16)
    check(backend, WIDE_F32, problem, block_rows=16, splits=4, num_stages=3)


def test_split_k_adds_in_the_order_of_the_ranks() -> None:
    """As a float32 sum of the slices' float32 products, to the last bit."""
    problem = make_problem("dense", [6], 64, 640, block_rows=8)
    config = Config("float", 64, 64)
    kernel = config.build()
    device = open_device("emulator")
    whole = run_swap_ab(device, kernel, config, problem, block_rows=8, splits=3)
    want = np.zeros_like(whole)
    for rank in range(3):
        blocks = range(5 * rank // 3, 5 * (rank + 1) // 3)
        columns = slice(128 * blocks.start, 128 * blocks.stop)
        part = replace(
            problem,
            a=np.ascontiguousarray(problem.a[:, columns]),
            b=np.ascontiguousarray(problem.b[:, :, columns]),
            sfa=np.ascontiguousarray(problem.sfa[:, blocks.start : blocks.stop]),
            sfb=np.ascontiguousarray(problem.sfb[:, :, blocks.start : blocks.stop]),
        )
        want += run_swap_ab(device, kernel, config, part, block_rows=8)
    assert (whole == want).all()


COUNTS = {
    "residues": [3, 0, 17, 1, 0, 8, 6, 15, 4, 5, 18, 9],
    "one_has_all": [0, 0, 0, 45, 0],
    "nobody": [0, 0, 0],
    "first_and_last": [1, *[0] * 70, 2],
    "alone": [33],
}
GROUPED = {
    "offsets": Config("float", 128, 64, "offsets"),
    "contiguous": Config("bfloat16_t", 64, 64, "contiguous"),
    "masked": Config("float", 64, 64, "masked"),
    "tile_map": Config("bfloat16_t", 128, 64, "tile_map"),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", GROUPED)
@pytest.mark.parametrize("counts", COUNTS)
def test_grouped(backend: str, kind: str, counts: str) -> None:
    """Rows of NaN between and behind the groups, scales over ten decades, router weights."""
    rows = 16 if counts == "residues" else 8
    if kind == "contiguous" and counts == "nobody":
        pytest.skip("no rows at all: the caller has nothing to launch")
    problem = make_problem(
        kind,
        COUNTS[counts],
        72,
        384,
        block_rows=rows,
        adversarial=True,
        row_weight=counts == "residues",
        offset_bytes=8 if counts == "alone" else 4,
        first_row=5 if counts == "residues" else 0,
    )
    schedules = NINE_SCHEDULES if counts == "residues" else ONE_PER_ASYNCHRONY
    check(backend, GROUPED[kind], problem, block_rows=rows, num_stages=4, schedules=schedules)


@pytest.mark.parametrize("backend", BACKENDS)
def test_256_experts_in_clusters(backend: str) -> None:
    """Surplus clusters leave at once."""
    counts = [(7 * i) % 11 if i % 9 == 0 else 0 for i in range(256)]
    problem = make_problem("offsets", counts, 64, 256, block_rows=16, slack=0)
    config = GROUPED["offsets"]
    check(backend, config, problem, block_rows=16, schedules=ONE_PER_ASYNCHRONY[1:2], ctas=7)
    kernel = config.build()
    for device in devices(backend, ONE_PER_ASYNCHRONY[1:2]):
        got = run_swap_ab(
            device, kernel, config, problem, block_rows=16, splits=2, surplus_clusters=3
        )
        assert relative_error(got, problem) <= limit(backend, config)


def test_random_schedules_give_the_same_bits() -> None:
    """Also guards the emulator: a landing cp.async must not let one wgmma overtake another."""
    config = GROUPED["contiguous"]
    kernel = config.build()
    problem = make_problem("contiguous", [0, 0, 20], 136, 512, block_rows=8, adversarial=True)
    seen = {
        run_swap_ab(
            open_device("emulator", schedule=Schedule(True, Asynchrony.RANDOM, seed, 16)),
            kernel,
            config,
            problem,
            block_rows=8,
            num_stages=6,
        )[problem.used >= 0].tobytes()
        for seed in range(36)
    }
    assert len(seen) == 1


def chain(device: Device, edits: Edits | None = None) -> None:
    """Two dependent launches: the second takes the first one's D as its activation scales."""
    config = Config("float", 64, 64)
    kernel = config.build(edits)
    first = make_problem("dense", [4], 8, 128, block_rows=8)
    second = make_problem("dense", [8], 64, 512, block_rows=8)
    before = SwapAb(device, kernel, config, first, block_rows=8)
    after = SwapAb(
        device,
        kernel,
        config,
        second,
        block_rows=8,
        num_stages=3,
        sfa=(before.address, before.d_stride),
    )
    before.launch()
    after.launch()
    second = replace(second, sfa=before.result()[None].copy())
    assert relative_error(after.result(), second) < 2.0**-10


@pytest.mark.parametrize("backend", BACKENDS)
def test_dependent_launch(backend: str) -> None:
    for device in devices(backend):
        chain(device)


BUGS = {
    "bytes announced too few": (RING, "columns * 128);", "columns * 128 - 128);"),
    "ring overwritten while it is read": (
        RING,
        "slot.parity ^ 1);\n    return",
        "slot.parity);\n    return",
    ),
    "scales not awaited": (RING, "2 * Config::kHalves + 1 + 32", "2 * Config::kHalves + 1"),
    "a foreign row's scale": (RING, "valid ? sfa + rows[i] : args.sfa, valid)", "sfa + rows[i], true)"),
    "token blocks from the wrong row": (RING, "first_row + 8 * lane", "first_row + 7 * lane"),
    "another group's weights": (RING, "const int row = tile.group * args.n", "const int row = args.n"),
    "products not awaited": (CONSUMER, "ptx::wgmma_wait_group<kPending>();", ""),
    "one product too many in flight": (
        CONSUMER,
        "promote<1>(total, odd, second",
        "promote<2>(total, odd, second",
    ),
    "rows overwritten while they leave": (KERNEL, "    ptx::bulk_wait_group_read<0>();\n", ""),
    "no fence before the bulk copy": (KERNEL, "    ptx::fence_proxy_async_shared();\n", ""),
    "rows of the next group": (KERNEL, "if (token < tile.rows && token / 8", "if (token < 16 && token / 8"),
    "columns of the guard": (KERNEL, "min(64, args.n - column)", "64"),
    "weights of foreign rows": (KERNEL, "first_row(tile) + token] : 0.0f", "tile.row] : 0.0f"),
    "a bank too few": (RUN, "total[Config::kHalves][kN / 2] = {}", "total[Config::kHalves][kN / 2]"),
}  # fmt: skip


@pytest.mark.parametrize("bug", BUGS)
def test_planted_bugs(bug: str) -> None:
    """Each is caught by a report or by wrong bits in one of the nine schedules."""
    header, old, new = BUGS[bug]
    config = Config("bfloat16_t", 64, 32, "offsets")
    problem = make_problem(
        "offsets", [3, 0, 17, 9], 72, 768, block_rows=16, row_weight=True, slack=0
    )

    def outputs(kernel: BuiltKernel) -> Iterator[bytes]:
        for schedule in NINE_SCHEDULES:
            device = open_device("emulator", schedule=schedule)
            got = run_swap_ab(device, kernel, config, problem, block_rows=16, num_stages=3, ctas=2)
            yield got[problem.used >= 0].tobytes()

    want = next(outputs(config.build()))
    with pytest.raises((KernelFault, AssertionError)):
        assert all(got == want for got in outputs(config.build({header: [(old, new)]})))


SPLIT_BUGS = {
    "ring overwritten by partial sums": (
        CONSUMER,
        "    ptx::bar_sync(kBarrierAllConsumers, 128 * Config::kConsumers);\n#pragma unroll\n    for (int half",
        "#pragma unroll\n    for (int half",
    ),
    "gathered before they are there": (CONSUMER, "    cluster_sync();\n  }", "  }"),
    "leaves while others read": (RUN, "      cluster_sync();\n    }\n  }\n}", "    }\n  }\n}"),
    "a rank forgotten": (CONSUMER, "if (peer < splits) {\n          t[0]", "if (peer + 1 < splits) {\n          t[0]"),
    "a rank's own slice": (RING, "const int rank = static_cast<int>(ptx::cluster_ctarank());", "const int rank = 0;"),
}  # fmt: skip


@pytest.mark.parametrize("bug", SPLIT_BUGS)
def test_planted_bugs_of_split_k(bug: str) -> None:
    header, old, new = SPLIT_BUGS[bug]
    config = Config("float", 128, 32)
    problem = make_problem("dense", [20], 136, 640, block_rows=24)

    def errors(kernel: BuiltKernel) -> Iterator[float]:
        for schedule in NINE_SCHEDULES:
            device = open_device("emulator", schedule=schedule)
            got = run_swap_ab(device, kernel, config, problem, block_rows=24, splits=3)
            yield relative_error(got, problem)

    assert max(errors(config.build())) < 1e-6
    edits = {header: [(old, new)]}
    if bug == "leaves while others read":
        # Both roles must leave early, or those that stay wait for ever, which also is caught.
        edits = {
            header: [
                (old, new),
                ("      cluster_sync();\n      cluster_sync();", "      cluster_sync();"),
            ]
        }
    with pytest.raises((KernelFault, AssertionError)):
        assert max(errors(config.build(edits))) < 1e-6


def test_only_weights_are_read_before_the_wait() -> None:
    with pytest.raises(KernelFault, match="PDL"):
        chain(
            open_device("emulator"),
            {
                RING: [
                    (
                        "bring_tokens(const tensor_map_t* map_a) const {\n    ptx::griddepcontrol_wait();",
                        "bring_tokens(const tensor_map_t* map_a) const {",
                    )
                ]
            },
        )
