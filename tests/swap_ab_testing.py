"""Host side of the swapAB kernels' tests: operands, launch, and the float64 product."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from tests.emulator.launch import Buffer, Device, ElementType, Swizzle, TensorMap
from tests.kernel_testing import BuiltKernel, build

Array = NDArray[Any]
BF16 = np.dtype(ml_dtypes.bfloat16)
E4M3 = np.dtype(ml_dtypes.float8_e4m3fn)
NAN = 0x7F
"""An e4m3 NaN."""
SHARED_BYTES = 232448
"""Most dynamic shared memory of one CTA on sm_90."""
KINDS = ("dense", "batched", "offsets", "contiguous", "masked", "tile_map")
GUARD = 64
"""Rows before and behind those of D."""
UNTOUCHED = 0xA5
"""Every byte around D, and of D before it is written."""


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def tokens_per_tile(rows: int) -> int:
    """The smallest wgmma N that holds `rows`, at most 128."""
    sizes = (8, 16, 24, 32, 48, 64, 96, 128)
    return next((size for size in sizes if size >= rows), 128)


@dataclass(frozen=True)
class Config:
    """Compile-time choices of sm90_fp8_gemm_nt_swap_ab."""

    output: str = "bfloat16_t"
    block_n: int = 128
    max_tokens: int = 128
    kind: str = "dense"

    def build(self, edits: dict[str, list[tuple[str, str]]] | None = None) -> BuiltKernel:
        name = "sm90_fp8_gemm_nt_swap_ab"
        instance = (
            f"{name}<{name}_config<{self.output}, {self.block_n}, {self.max_tokens}>, "
            f"tile_kind::{self.kind}>"
        )
        return build(f"seekernel/gemm/{name}.cuh", instance, edits=edits)

    @property
    def dtype(self) -> np.dtype[Any]:
        return BF16 if self.output == "bfloat16_t" else np.dtype(np.float32)

    def shared_bytes(self, tile_tokens: int, num_stages: int) -> int:
        """As the header states it."""
        stage = self.block_n * 128 + tile_tokens * 132 + 16
        out = self.block_n // 64 * tile_tokens * (64 * self.dtype.itemsize + 16)
        return 1024 + num_stages * stage + out


@dataclass(frozen=True)
class Problem:
    """Operands; rows of A that no group uses hold NaN, and so do their scales.

    Args:
        a: [rows, k] e4m3, all groups' rows.
        sfa: [matrices, k / 128, padded rows of a matrix] float32.
        b: [groups, n, k] e4m3; sfb: [groups, ceil(n / 128), k / 128] float32.
        used: [rows] group of each row or -1.
        matrix_rows, groups, num_tiles, offset_bytes: for tile_source_t.
    """

    a: Array
    sfa: Array
    b: Array
    sfb: Array
    used: Array
    matrix_rows: int
    groups: Array | None = None
    num_tiles: Array | None = None
    row_weight: Array | None = None
    offset_bytes: int = 4

    @property
    def n(self) -> int:
        return int(self.b.shape[1])

    @property
    def k(self) -> int:
        return int(self.b.shape[2])

    def want(self) -> Array:
        """Float64 product of the dequantised operands; rows nobody uses are 0."""
        rows = self.a.shape[0]
        num_matrices = self.sfa.shape[0]
        scale = self.sfa[:, :, : rows // num_matrices].astype(np.float64)
        scale = scale.transpose(0, 2, 1).reshape(rows, -1).repeat(128, 1)
        a = self.a.astype(np.float64) * scale
        sfb = self.sfb.astype(np.float64).repeat(128, 1)[:, : self.n].repeat(128, 2)
        out = np.zeros((rows, self.n))
        for group in range(self.b.shape[0]):
            mine = self.used == group
            if mine.any():
                out[mine] = a[mine] @ (self.b[group].astype(np.float64) * sfb[group]).T
        if self.row_weight is not None:
            live = self.used >= 0
            out[live] *= self.row_weight[live, None].astype(np.float64)
        return out


def values(rng: np.random.Generator, shape: Sequence[int]) -> Array:
    return rng.standard_normal(tuple(shape), np.float32).astype(E4M3)


def scales(rng: np.random.Generator, shape: Sequence[int], adversarial: bool) -> Array:
    low, high = (-6.0, 4.0) if adversarial else (-2.0, -1.0)
    return np.asarray(10.0 ** rng.uniform(low, high, tuple(shape)), np.float32)


def make_problem(
    kind: str,
    counts: Sequence[int],
    n: int,
    k: int,
    *,
    block_rows: int,
    seed: int = 0,
    adversarial: bool = False,
    row_weight: bool = False,
    offset_bytes: int = 4,
    first_row: int = 0,
    slack: int = 3,
) -> Problem:
    """Random operands for `counts` rows per group in one of the layouts of scheduler/tiles.cuh.

    Args:
        block_rows: tokens per tile, which also aligns the contiguous layout.
        first_row: offsets[0]. slack: NaN rows behind the last group.
    """
    rng = np.random.default_rng(seed)
    num_groups = len(counts)
    used: list[int] = []
    groups: Array | None = None
    num_tiles: Array | None = None
    if kind in ("dense", "offsets", "tile_map"):
        used = [-1] * first_row
        starts = []
        for group, count in enumerate(counts):
            starts.append(len(used))
            used += [group] * count
        end = len(used)
        if kind != "dense":
            used += [-1] * slack
        if kind == "offsets":
            groups = np.array([*starts, end], np.int32 if offset_bytes == 4 else np.int64)
        if kind == "tile_map":
            tiles = [
                (group, starts[group] + row, min(block_rows, count - row), 0)
                for group, count in enumerate(counts)
                for row in range(0, count, block_rows)
            ]
            groups = np.array([*tiles, (7, -1, 2**30, 0)], np.int32)
            num_tiles = np.array([len(tiles)], np.int32)
    elif kind == "contiguous":
        for group, count in enumerate(counts):
            used += [group] * count + [-1] * (-count % block_rows)
        groups = np.array(used, np.int32)
    else:
        matrix_rows = max(*counts, 1) + slack
        for group, count in enumerate(counts):
            used += [group] * count + [-1] * (matrix_rows - count)
        groups = np.array(counts, np.int32)
    rows = len(used)
    matrices = num_groups if kind in ("masked", "batched") else 1
    matrix_rows = rows // matrices
    dead = np.array(used) < 0
    a = values(rng, (rows, k))
    a.view(np.uint8)[dead] = NAN
    sfa = scales(rng, (matrices, k // 128, ceil_div(matrix_rows, 4) * 4), adversarial)
    sfa[:, :, matrix_rows:] = np.nan
    for matrix in range(matrices):
        sfa[matrix][:, :matrix_rows][:, dead.reshape(matrices, -1)[matrix]] = np.nan
    weight = rng.uniform(-2, 2, rows).astype(np.float32) if row_weight else None
    if weight is not None:
        weight[dead] = np.nan
    return Problem(
        a,
        sfa,
        values(rng, (num_groups, n, k)),
        scales(rng, (num_groups, ceil_div(n, 128), k // 128), adversarial),
        np.array(used),
        matrix_rows,
        groups,
        num_tiles,
        weight,
        offset_bytes,
    )


def byte_map(buffer: Buffer, rows: int, k: int, box_rows: int) -> TensorMap:
    """Rows of 128 bytes swizzled by 128 bytes: of A and of B."""
    return TensorMap(
        buffer, ElementType.UINT8, (k, rows), (k,), (128, box_rows), swizzle=Swizzle.B128
    )


def pack_args(
    device: Device,
    problem: Problem,
    *,
    d: int,
    d_stride: int,
    block_rows: int,
    num_stages: int,
    d_scale: int = 0,
    d_scale_stride: int = 0,
    row_token: int = 0,
    sfa: tuple[int, int] | None = None,
    packed: int = 0,
) -> bytes:
    """swap_ab_args_t; every array of `problem` but A and B goes to the device.

    Args:
        d, d_scale, row_token, packed: device addresses. sfa: address and stride instead of the problem's.
    """

    def address(array: Array | None) -> int:
        return 0 if array is None else device.buffer(array).address

    matrices, blocks, stride = problem.sfa.shape
    sfa_address, sfa_stride = sfa or (address(problem.sfa), stride)
    return struct.pack(
        "<QqqQQqQqQQQ4iQQ6i",
        sfa_address,
        sfa_stride,
        sfa_stride * blocks if matrices > 1 else 0,
        address(problem.sfb),
        d,
        d_stride,
        d_scale,
        d_scale_stride,
        row_token,
        address(problem.row_weight),
        packed,
        problem.n,
        problem.k,
        num_stages,
        0,
        address(problem.groups),
        address(problem.num_tiles),
        problem.matrix_rows,
        problem.b.shape[0],
        problem.offset_bytes,
        8,
        0,
        block_rows,
    )


class SwapAb:
    """One launch of sm90_fp8_gemm_nt_swap_ab with its buffers; D stands amid guard bytes.

    Args:
        ctas: of a persistent grid (splits 1); a split grid is as large as it must be.
        surplus_clusters: more than it must be.
        sfa: device address and stride of scales to use instead of the problem's.
    """

    def __init__(
        self,
        device: Device,
        kernel: BuiltKernel,
        config: Config,
        problem: Problem,
        *,
        block_rows: int,
        num_stages: int = 4,
        splits: int = 1,
        ctas: int = 3,
        surplus_clusters: int = 0,
        sfa: tuple[int, int] | None = None,
    ) -> None:
        rows, n, groups = problem.a.shape[0], problem.n, problem.b.shape[0]
        self.problem, self.device, self.function = problem, device, kernel.on(device)
        self.d_stride = n + 8
        image = np.zeros((rows + 2 * GUARD, self.d_stride), config.dtype)
        image.view(np.uint8)[:] = UNTOUCHED
        self.d = device.buffer(image)
        self.address = self.d.address + GUARD * self.d_stride * config.dtype.itemsize
        tiles = ceil_div(n, config.block_n) * sum(
            ceil_div(int((problem.used == group).sum()), block_rows) for group in range(groups)
        )
        self.grid = splits * (tiles + surplus_clusters) if splits > 1 else ctas
        self.splits = splits
        self.block = 128 + 2 * config.block_n
        self.shared_bytes = config.shared_bytes(block_rows, num_stages)
        self.args = (
            byte_map(device.buffer(problem.a), rows, problem.k, 8),
            byte_map(device.buffer(problem.b), groups * n, problem.k, 64),
            pack_args(
                device,
                problem,
                d=self.address,
                d_stride=self.d_stride,
                block_rows=block_rows,
                num_stages=num_stages,
                sfa=sfa,
            ),
        )

    def launch(self) -> None:
        """With programmatic dependent launch, as the op does."""
        self.device.launch(
            self.function,
            grid=(self.grid,),
            block=(self.block,),
            cluster=(self.splits,),
            args=self.args,
            shared_bytes=self.shared_bytes,
            pdl=True,
        )

    def result(self) -> Array:
        """D [rows, n]; fails if a byte beyond the rows in use was written."""
        after = self.d.numpy()
        rows, n = self.problem.a.shape[0], self.problem.n
        written = np.zeros(after.shape, bool)
        written[GUARD : GUARD + rows, :n][self.problem.used >= 0] = True
        same = (after.view(np.uint8) == UNTOUCHED).reshape(*after.shape, -1).all(-1)
        assert same[~written].all(), "wrote outside the rows of D"
        return after[GUARD : GUARD + rows, :n]


def run_swap_ab(
    device: Device, kernel: BuiltKernel, config: Config, problem: Problem, **options: Any
) -> Array:
    """Launch (options: see SwapAb) and return D."""
    run = SwapAb(device, kernel, config, problem, **options)
    run.launch()
    return run.result()


def relative_error(got: Array, problem: Problem) -> float:
    """Largest error of the used rows, relative to the sum of the terms' magnitudes of its element."""
    live = problem.used >= 0
    want = problem.want()[live]
    weight = problem.row_weight
    positive = replace(
        problem,
        a=np.abs(problem.a.astype(np.float32)).astype(E4M3),
        b=np.abs(problem.b.astype(np.float32)).astype(E4M3),
        row_weight=None if weight is None else np.abs(weight),
    )
    magnitude = positive.want()[live]
    if not live.any():
        return 0.0
    error: float = np.max(np.abs(got[live].astype(np.float64) - want) / magnitude)
    return error
