"""sm90_fp8_gemm_swiglu_nt_swap_ab on the emulator or a Hopper GPU: layouts, gathered rows, split K."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest

from tests.emulator.launch import Device, KernelFault, open_device
from tests.emulator.schedules import NINE_SCHEDULES, Schedule
from tests.kernel_testing import BACKENDS, BuiltKernel, build, devices
from tests.swap_ab_testing import (
    E4M3,
    GUARD,
    NAN,
    UNTOUCHED,
    Array,
    Problem,
    byte_map,
    ceil_div,
    make_problem,
    pack_args,
    scales,
    values,
)

NAME = "sm90_fp8_gemm_swiglu_nt_swap_ab"
HEADER = f"seekernel/gemm/{NAME}.cuh"
ONE_PER_ASYNCHRONY = (NINE_SCHEDULES[0], NINE_SCHEDULES[4], NINE_SCHEDULES[8])


@dataclass(frozen=True)
class Gathered:
    """Tokens [t, k] with scales [k / 128, t], and which of them each row of the problem is."""

    a: Array
    sfa: Array
    row_token: Array


def gathered(problem: Problem, num_tokens: int, seed: int = 3) -> tuple[Problem, Gathered]:
    """The problem with rows drawn from tokens; token 0 is NaN and never drawn, dead rows point far off."""
    rng = np.random.default_rng(seed)
    live = problem.used >= 0
    row_token = rng.integers(1, num_tokens, problem.used.size).astype(np.int32)
    a = values(rng, (num_tokens, problem.k))
    sfa = scales(rng, (problem.k // 128, num_tokens), adversarial=False)
    a.view(np.uint8)[0], sfa[:, 0] = NAN, np.nan
    rows_a, rows_sfa = problem.a.copy(), problem.sfa.copy()
    rows_a[live] = a[row_token[live]]
    rows_sfa[0][:, : live.size][:, live] = sfa[:, row_token[live]]
    row_token[~live] = 1_000_000_007
    return replace(problem, a=rows_a, sfa=rows_sfa), Gathered(a, sfa, row_token)


def kernel_of(
    kind: str, gather: bool, edits: dict[str, list[tuple[str, str]]] | None = None
) -> BuiltKernel:
    config = f"{NAME}_config<32, {str(gather).lower()}>"
    return build(HEADER, f"{NAME}<{config}, tile_kind::{kind}>", edits=edits)


def run(
    device: Device,
    kernel: BuiltKernel,
    problem: Problem,
    tokens: Gathered | None = None,
    *,
    block_rows: int,
    num_stages: int = 3,
    splits: int = 1,
    ctas: int = 3,
) -> tuple[Array, Array]:
    """D [rows, n / 2] e4m3 and its scales [n / 256, rows]; checks what must not be written."""
    rows, columns, groups = problem.a.shape[0], problem.n // 2, problem.b.shape[0]
    image = np.full((rows + 2 * GUARD, columns + 16), UNTOUCHED, np.uint8)
    scale_image = np.full((columns // 128 + 2, rows + 5), -7.0, np.float32)
    d, d_scale = device.buffer(image), device.buffer(scale_image)
    tiles = (
        columns
        // 128
        * sum(ceil_div(int((problem.used == group).sum()), block_rows) for group in range(groups))
    )
    a = problem.a if tokens is None else tokens.a
    sfa = None
    if tokens is not None:
        sfa = (device.buffer(tokens.sfa).address, tokens.sfa.shape[1])
    args = pack_args(
        device,
        problem,
        d=d.address + GUARD * image.shape[1],
        d_stride=image.shape[1],
        block_rows=block_rows,
        num_stages=num_stages,
        d_scale=d_scale.address + 4 * scale_image.shape[1],
        d_scale_stride=scale_image.shape[1],
        row_token=0 if tokens is None else device.buffer(tokens.row_token).address,
        sfa=sfa,
    )
    device.launch(
        kernel.on(device),
        grid=(splits * tiles if splits > 1 else ctas,),
        block=(384,),
        cluster=(splits,),
        args=(
            byte_map(device.buffer(a), a.shape[0], problem.k, 8 if tokens is None else 1),
            byte_map(device.buffer(problem.b), groups * problem.n, problem.k, 64),
            args,
        ),
        shared_bytes=1024 + num_stages * (32768 + block_rows * 132 + 16) + block_rows * 176,
        pdl=True,
    )
    live = problem.used >= 0
    after, after_scale = d.numpy(), d_scale.numpy()
    written = np.zeros(image.shape, bool)
    written[GUARD : GUARD + rows, :columns][live] = True
    assert (after[~written] == UNTOUCHED).all(), "wrote outside the rows of D"
    scale_written = np.zeros(scale_image.shape, bool)
    scale_written[1:-1, :rows][:, live] = True
    assert (after_scale[~scale_written] == -7.0).all(), "wrote outside the scales of D"
    return after[GUARD : GUARD + rows, :columns].view(E4M3), after_scale[1:-1, :rows]


def check(
    backend: str,
    problem: Problem,
    kind: str,
    tokens: Gathered | None = None,
    *,
    block_rows: int,
    schedules: Sequence[Schedule] = ONE_PER_ASYNCHRONY,
    splits: int = 1,
    num_stages: int = 3,
) -> None:
    """Dequantised D against float64: half a step of e4m3 beside what float32 and ex2.approx lose."""
    kernel = kernel_of(kind, tokens is not None)
    live = problem.used >= 0
    seen = set()
    for device in devices(backend, schedules):
        q, scale = run(
            device,
            kernel,
            problem,
            tokens,
            block_rows=block_rows,
            splits=splits,
            num_stages=num_stages,
        )
        seen.add(q[live].tobytes() + scale[:, live].tobytes())
    assert len(seen) == 1, "other bits in another run"
    if not live.any():
        return
    both = problem.want()[live]
    gate, up = both[:, : problem.n // 2], both[:, problem.n // 2 :]
    with np.errstate(over="ignore"):
        want = gate / (1 + np.exp(-gate)) * up
    blocks = np.abs(want).reshape(len(want), -1, 128).max(2)
    want_scale = np.maximum(blocks, 1e-4) / 448
    tolerance = 1e-5 if backend == "emulator" else 2.0**-8
    np.testing.assert_allclose(scale[:, live].T, want_scale, rtol=tolerance)
    per_column = scale[:, live].T.astype(np.float64).repeat(128, 1)
    error = np.abs(q[live].astype(np.float64) * per_column - want)
    # e4m3: 3 bits of mantissa, subnormals in steps of 2^-9.
    step = np.maximum(np.abs(want) * 2.0**-4, per_column * 2.0**-10)
    assert (error <= step * 1.001 + tolerance * blocks.repeat(128, 1)).all()


COUNTS = [3, 0, 17, 1, 8, 0]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["offsets", "masked", "tile_map"])
def test_layouts(backend: str, kind: str) -> None:
    """Two column blocks; five K blocks through a ring of three."""
    problem = make_problem(kind, COUNTS, 512, 640, block_rows=16)
    check(
        backend,
        problem,
        kind,
        block_rows=16,
        schedules=NINE_SCHEDULES if kind == "offsets" else ONE_PER_ASYNCHRONY,
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rows", [8, 24, 32])
def test_gathered_rows(backend: str, rows: int) -> None:
    problem = make_problem("offsets", [2, 0, 29, 1], 256, 512, block_rows=rows, first_row=2)
    problem, tokens = gathered(problem, 11)
    check(
        backend,
        problem,
        "offsets",
        tokens,
        block_rows=rows,
        schedules=NINE_SCHEDULES if rows == 24 else ONE_PER_ASYNCHRONY,
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("splits", [2, 3, 5])
def test_split_k(backend: str, splits: int) -> None:
    problem = make_problem("offsets", [1, 0, 20], 256, 768, block_rows=24)
    problem, tokens = gathered(problem, 9)
    check(backend, problem, "offsets", tokens, block_rows=24, splits=splits)


def test_nobody_has_a_token() -> None:
    problem = make_problem("offsets", [0, 0], 256, 256, block_rows=8)
    check("emulator", problem, "offsets", block_rows=8)


BUGS = {
    "maxima read before they are there": ("    meet();\n#pragma unroll\n    for (int j = 0; j < kN / 8; ++j) quantise", "#pragma unroll\n    for (int j = 0; j < kN / 8; ++j) quantise"),
    "rows overwritten while they leave": ("    ptx::bulk_wait_group_read<0>();\n", ""),
    "no fence before the bulk copy": ("    ptx::fence_proxy_async_shared();\n", ""),
    "a row of another group": ("token < tile.rows && token / 8", "token < 8 && token / 8"),
    "a scale of another group": ("self.warpgroup == 0 && token < tile.rows)", "self.warpgroup == 0)"),
    "the maximum of one warpgroup": ("warp < 8; warp += 2", "warp < 4; warp += 2"),
    "up for gate": ("1.0f + __expf(-gate[i])) * up[i]", "1.0f + __expf(-up[i])) * gate[i]"),
}  # fmt: skip


@pytest.mark.parametrize("bug", BUGS)
def test_planted_bugs(bug: str) -> None:
    problem = make_problem("offsets", COUNTS, 512, 256, block_rows=16)
    kernel = kernel_of("offsets", False, {HEADER: [BUGS[bug]]})
    good = run(open_device("emulator"), kernel_of("offsets", False), problem, block_rows=16, ctas=2)
    live = problem.used >= 0

    def attempt() -> None:
        for schedule in NINE_SCHEDULES:
            device = open_device("emulator", schedule=schedule)
            q, scale = run(device, kernel, problem, block_rows=16, ctas=2)
            assert q[live].tobytes() == good[0][live].tobytes()
            assert scale[:, live].tobytes() == good[1][:, live].tobytes()

    with pytest.raises((KernelFault, AssertionError)):
        attempt()
