"""sm90_w4a8_gemm_nt_swap_ab on the emulator or a Hopper GPU: token tiles, layouts, split K, planted bugs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from seekernel import ops, reference
from tests.emulator.launch import Device, KernelFault, open_device
from tests.emulator.schedules import NINE_SCHEDULES, Schedule
from tests.kernel_testing import BACKENDS, BuiltKernel, build, devices
from tests.swap_ab_testing import (
    BF16,
    GUARD,
    UNTOUCHED,
    Array,
    Problem,
    byte_map,
    ceil_div,
    make_problem,
    pack_args,
    tokens_per_tile,
)

NAME = "sm90_w4a8_gemm_nt_swap_ab"
HEADER = f"seekernel/gemm/{NAME}.cuh"
CONSUMER = "seekernel/gemm/swap_ab_consumer.cuh"
RING = "seekernel/gemm/swap_ab_ring.cuh"
STORE = "seekernel/gemm/swap_ab_store.cuh"
ONE_PER_ASYNCHRONY = (NINE_SCHEDULES[0], NINE_SCHEDULES[4], NINE_SCHEDULES[8])
ALPHA = np.float32(0.37)


@dataclass(frozen=True)
class Int4:
    """The problem's weights in int4: packed for the kernel, and their values in float64."""

    packed: Array
    values: Array


def int4_weights(problem: Problem, *, adversarial: bool = False) -> Int4:
    """Random codes, all 15 of them, and scales over ten decades where they are adversarial."""
    groups, n, k = problem.b.shape
    generator = torch.Generator().manual_seed(5)
    codes = torch.randint(-7, 8, (groups, n, k), generator=generator, dtype=torch.int8)
    nibbles = codes.view(torch.uint8) & 15
    b = nibbles[..., ::2] | nibbles[..., 1::2] << 4
    spread = torch.rand(groups, n, k // 128, generator=generator)
    scale = 10 ** (spread * 10 - 6) if adversarial else spread + 0.01
    packed = ops.repack_int4_for_sm90(b, scale)
    return Int4(packed.numpy(), reference.dequantize_int4_g128(b, scale).numpy())


def expected(problem: Problem, weights: Int4) -> tuple[Array, Array]:
    """The float64 product, and the sum of its terms' magnitudes."""
    a = problem.a.astype(np.float64)
    rows = problem.used.size
    want, magnitude = np.zeros((2, rows, problem.n))
    for group in range(problem.b.shape[0]):
        mine = problem.used == group
        if mine.any():
            want[mine] = a[mine] @ weights.values[group].T * float(ALPHA)
            magnitude[mine] = np.abs(a[mine]) @ np.abs(weights.values[group]).T * float(ALPHA)
    if problem.row_weight is not None:
        weight = np.nan_to_num(problem.row_weight.astype(np.float64))[:, None]
        want, magnitude = want * weight, magnitude * np.abs(weight)
    return want, magnitude


def kernel_of(
    kind: str,
    output: str,
    block_n: int,
    max_tokens: int,
    edits: Mapping[str, Sequence[tuple[str, str]]] | None = None,
) -> BuiltKernel:
    config = f"{NAME}_config<{output}, {block_n}, {max_tokens}>"
    return build(HEADER, f"{NAME}<{config}, tile_kind::{kind}>", edits=edits)


def run(
    device: Device,
    kernel: BuiltKernel,
    problem: Problem,
    weights: Int4,
    *,
    output: str,
    block_n: int,
    block_rows: int,
    num_stages: int = 3,
    splits: int = 1,
    ctas: int = 3,
) -> Array:
    """D [rows, n]; fails if a byte beyond the rows in use was written."""
    dtype = np.dtype(np.float32) if output == "float" else BF16
    rows, n = problem.a.shape[0], problem.n
    image = np.zeros((rows + 2 * GUARD, n + 8), dtype)
    image.view(np.uint8)[:] = UNTOUCHED
    d = device.buffer(image)
    tiles = ceil_div(n, block_n) * sum(
        ceil_div(int((problem.used == group).sum()), block_rows)
        for group in range(problem.b.shape[0])
    )
    args = pack_args(
        device,
        problem,
        d=d.address + GUARD * (n + 8) * dtype.itemsize,
        d_stride=n + 8,
        block_rows=block_rows,
        num_stages=num_stages,
        sfa=(device.buffer(np.array([ALPHA])).address, 0),
        packed=device.buffer(weights.packed).address,
    )
    out_bytes = block_n // 64 * block_rows * (64 * dtype.itemsize + 16)
    device.launch(
        kernel.on(device),
        grid=(splits * tiles if splits > 1 else ctas,),
        block=(128 + 2 * block_n,),
        cluster=(splits,),
        args=(byte_map(device.buffer(problem.a), rows, problem.k, 8), args),
        shared_bytes=1024 + num_stages * (block_n * 68 + block_rows * 128) + out_bytes,
        pdl=True,
    )
    after = d.numpy()
    written = np.zeros(after.shape, bool)
    written[GUARD : GUARD + rows, :n][problem.used >= 0] = True
    same = (after.view(np.uint8) == UNTOUCHED).reshape(*after.shape, -1).all(-1)
    assert same[~written].all(), "wrote outside the rows of D"
    return after[GUARD : GUARD + rows, :n]


def check(
    backend: str,
    problem: Problem,
    weights: Int4,
    *,
    kind: str = "dense",
    output: str = "float",
    block_n: int = 128,
    max_tokens: int = 128,
    block_rows: int,
    num_stages: int = 3,
    splits: int = 1,
    schedules: Sequence[Schedule] = ONE_PER_ASYNCHRONY,
) -> None:
    kernel = kernel_of(kind, output, block_n, max_tokens)
    live = problem.used >= 0
    seen = set()
    for device in devices(backend, schedules):
        got = run(
            device,
            kernel,
            problem,
            weights,
            output=output,
            block_n=block_n,
            block_rows=block_rows,
            num_stages=num_stages,
            splits=splits,
        )
        seen.add(got[live].tobytes())
    assert len(seen) == 1, "other bits in another run"
    want, magnitude = expected(problem, weights)
    error = np.abs(got[live].astype(np.float64) - want[live])
    limit = (1e-6 if backend == "emulator" else 2.0**-10) + (2.0**-8 if output != "float" else 0.0)
    assert (error <= limit * magnitude[live]).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("m", [1, 8, 9, 31, 33, 63, 65, 127, 129])
def test_every_token_tile(backend: str, m: int) -> None:
    """Three blocks of 64 rows: half of the last column block lies outside. Seven K blocks."""
    rows = tokens_per_tile(m)
    problem = make_problem("dense", [m], 192, 896, block_rows=rows)
    schedules = NINE_SCHEDULES if m in (9, 63) else ONE_PER_ASYNCHRONY
    check(backend, problem, int4_weights(problem), block_rows=rows, schedules=schedules)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["offsets", "masked"])
def test_grouped(backend: str, kind: str) -> None:
    problem = make_problem(
        kind, [3, 0, 17, 1, 0, 8], 128, 384, block_rows=16, row_weight=True, first_row=2
    )
    check(
        backend,
        problem,
        int4_weights(problem, adversarial=True),
        kind=kind,
        output="bfloat16_t",
        block_n=64,
        max_tokens=32,
        block_rows=16,
        schedules=NINE_SCHEDULES if kind == "offsets" else ONE_PER_ASYNCHRONY,
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("splits", [2, 3, 8])
def test_split_k(backend: str, splits: int) -> None:
    problem = make_problem("dense", [20], 128, 1152, block_rows=24)
    check(backend, problem, int4_weights(problem), block_rows=24, splits=splits, num_stages=4)


BUGS = {
    "the odd register turned the other way": (CONSUMER, "__funnelshift_r(w[i], w[i], 4)", "__funnelshift_l(w[i], w[i], 4)"),
    "a mask that keeps the other nibble": (CONSUMER, "0x87878787u", "0x8f8f8f8fu"),
    "halves of a block swapped": (CONSUMER, "address + half * 2048", "address + (1 - half) * 2048"),
    "one scale for both rows": (CONSUMER, "load_shared_f32(row + 32)", "load_shared_f32(row)"),
    "bytes announced too few": (RING, "Config::kConsumers * kInt4BlockBytes);", "Config::kConsumers * kInt4Bytes);"),
    "products not awaited": (CONSUMER, "ptx::wgmma_wait_group<kPending>();", ""),
    "no alpha": (STORE, "d[i] *= *args.sfa", "d[i] *= 1.0f"),
}  # fmt: skip


@pytest.mark.parametrize("bug", BUGS)
def test_planted_bugs(bug: str) -> None:
    header, old, new = BUGS[bug]
    problem = make_problem("offsets", [3, 0, 9], 128, 512, block_rows=16)
    weights = int4_weights(problem)
    want, magnitude = expected(problem, weights)
    live = problem.used >= 0

    def attempt(kernel: BuiltKernel) -> None:
        for schedule in ONE_PER_ASYNCHRONY:
            device = open_device("emulator", schedule=schedule)
            got = run(device, kernel, problem, weights, output="float", block_n=64, block_rows=16)
            error = np.abs(got[live].astype(np.float64) - want[live])
            assert (error <= 1e-6 * magnitude[live]).all()

    attempt(kernel_of("offsets", "float", 64, 16))
    with pytest.raises((KernelFault, AssertionError)):
        attempt(kernel_of("offsets", "float", 64, 16, {header: [(old, new)]}))


def test_float32_error_is_that_of_float32() -> None:
    """Scales over ten decades: relative to the largest result of the row, within 1e-5."""
    problem = make_problem("dense", [5], 64, 2048, block_rows=8)
    weights = int4_weights(problem, adversarial=True)
    kernel = kernel_of("dense", "float", 64, 32)
    got = run(
        open_device("emulator"),
        kernel,
        replace(problem),
        weights,
        output="float",
        block_n=64,
        block_rows=8,
    )
    want, _ = expected(problem, weights)
    error = np.abs(got.astype(np.float64) - want).max(1) / np.abs(want).max(1)
    assert (error < 1e-5).all()
