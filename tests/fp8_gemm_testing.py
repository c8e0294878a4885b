"""Problems for the wide FP8 GEMM kernel: operands with dead rows of NaN, the launch, the truth in float64."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from tests.emulator.launch import Buffer, Device, ElementType, Swizzle, TensorMap, encode_tensor_map
from tests.kernel_testing import BuiltKernel, build
from tests.tile_testing import KINDS, Source

Array = NDArray[Any]
E4M3, BF16 = np.dtype(ml_dtypes.float8_e4m3fn), np.dtype(ml_dtypes.bfloat16)
HEADER = "seekernel/gemm/sm90_fp8_gemm_nt.cuh"
OUTPUTS = {"bf16": (0, BF16), "fp32": (1, np.dtype(np.float32)), "swiglu": (2, E4M3)}
GUARD_ROWS = 3
PATTERN = 0xA5
"""Bytes of D and of its scales that nothing may touch."""


@dataclass(frozen=True)
class Config:
    """What the kernel is compiled for; see csrc/include/seekernel/gemm/sm90_fp8_gemm_nt.cuh."""

    block_m: int = 64
    block_n: int = 32
    stages: int = 3
    output: str = "bf16"
    multicast: int = 0
    gather: bool = False
    ping_pong: bool = False

    def kernel(
        self, kind: str, edits: Mapping[str, Sequence[tuple[str, str]]] | None = None
    ) -> BuiltKernel:
        """Compile it for sizes known at run time."""
        values = (0, 0, self.block_m, self.block_n, self.stages, KINDS[kind],
                  OUTPUTS[self.output][0], self.multicast, int(self.gather), int(self.ping_pong))  # fmt: skip
        text = ", ".join(map(str, values))
        return build(HEADER, f"sm90_fp8_gemm_nt<sm90_fp8_gemm_nt_config<{text}>>", edits=edits)

    @property
    def threads(self) -> int:
        """Of a CTA."""
        return 256 if self.block_m == 64 and not self.ping_pong else 384

    @property
    def cluster(self) -> int:
        """CTAs that share a tile of A or B."""
        return 2 if self.multicast else 1

    @property
    def shared_bytes(self) -> int:
        """Dynamic shared memory."""
        swiglu = self.output == "swiglu"
        scales = {64: 384, 128: 640, 256: 1280}[self.block_m]
        stage = 128 * (self.block_m + self.block_n * (2 if swiglu else 1)) + scales + 32
        row = {"bf16": 2 * self.block_n, "fp32": 0, "swiglu": 128}[self.output]
        copies = 2 if self.ping_pong else 1
        return self.stages * stage + self.block_m * row * copies + 16 * self.ping_pong


@dataclass(frozen=True)
class Problem:
    """One launch.

    Args:
        source: whose rows belong to which group.
        n, k: of B; n counts gate and up together.
        num_ctas: the grid: fewer than tiles, so that CTAs take several.
        weighted: multiply rows by a weight.
        spread: exponents of ten by which the scales of K blocks differ, up and down.
        hostile: scales of 1e-6 to 1e4 drawn for every row and block instead.
    """

    source: Source
    n: int
    k: int
    config: Config
    num_ctas: int = 2
    weighted: bool = False
    spread: int = 2
    hostile: bool = False

    def __str__(self) -> str:
        c = self.config
        return (f"{self.source.kind}-n{self.n}-k{self.k}-{c.block_m}x{c.block_n}x{c.stages}-{c.output}"
                f"-multicast{c.multicast}{'-gather' * c.gather}{'-ping-pong' * c.ping_pong}")  # fmt: skip


@dataclass(frozen=True)
class Operands:
    """A problem's numbers; `real_*` are the dequantised values in float64.

    A is [batches, rows, k], sfa [batches, k / 128, round_up(rows, 4)]; rows of no group hold NaN.
    """

    a: Array
    sfa: Array
    real_a: Array
    b: Array
    sfb: Array
    real_b: Array
    row_weight: Array
    row_token: Array
    exact_a: Array
    exact_b: Array


def quantize(x: Array, rows: int) -> tuple[Array, Array, Array]:
    """e4m3 values, fp32 scales of blocks of rows x 128, and what they stand for in float64."""
    m, k = x.shape
    padded = np.zeros((-(-m // rows) * rows, k), np.float32)
    padded[:m] = x
    blocks = padded.reshape(-1, rows, k // 128, 128)
    scales = np.maximum(np.abs(blocks).max(axis=(1, 3)), 1e-4).astype(np.float32) / np.float32(448)
    values = (blocks / scales[:, None, :, None]).reshape(-1, k)[:m].astype(E4M3)
    per_row = np.repeat(scales, rows, axis=0)[:m]
    real = values.astype(np.float64) * np.repeat(per_row.astype(np.float64), 128, axis=1)
    return values, scales, real


def make_operands(problem: Problem) -> Operands:
    """Random operands whose scales differ by powers of ten between K blocks."""
    source, n, k = problem.source, problem.n, problem.k
    rng = np.random.default_rng(n * 7 + k)
    blocks = source.row_blocks(128)
    num_groups = max([b[3] + 1 for b in blocks], default=1)
    batches = num_groups if source.kind in ("batched", "masked") else 1
    if source.kind in ("dense", "batched", "masked"):
        rows = source.m + (0 if source.kind == "masked" else GUARD_ROWS)
    elif source.kind == "contiguous":
        assert source.groups is not None
        rows = len(source.groups)
    else:
        assert source.groups is not None
        rows = int(source.groups[-1]) + GUARD_ROWS
    alive = np.zeros((batches, rows), bool)
    for row, count, batch, _ in blocks:
        alive[batch, row : row + count] = True

    spread = 10.0 ** rng.integers(-problem.spread, problem.spread + 1, size=(1, k // 128))
    spread = spread.repeat(128, axis=1)
    row_token = np.full(rows, 1 << 30, np.int32)
    tokens = rows
    if problem.config.gather:
        tokens = 37
        row_token[alive[0]] = rng.integers(0, tokens, int(alive.sum()))
        alive = np.ones((1, tokens), bool)
    exact_a = rng.standard_normal((batches * tokens, k)) * spread
    a, scale_a, real_a = quantize(exact_a.astype(np.float32), 1)
    if problem.hostile:
        new = (10.0 ** rng.uniform(-6, 4, scale_a.shape)).astype(np.float32)
        real_a *= (new.astype(np.float64) / scale_a).repeat(128, axis=1)
        exact_a = real_a
        scale_a = new
    dead = ~alive.reshape(-1)
    a[dead] = np.float32(np.nan)
    scale_a[dead] = np.nan
    sfa = np.full((batches, k // 128, -(-tokens // 4) * 4), np.nan, np.float32)
    sfa[:, :, :tokens] = scale_a.reshape(batches, tokens, -1).transpose(0, 2, 1)

    exact_b = (
        rng.standard_normal((num_groups, n, k))
        / spread
        * (1 if problem.config.output != "swiglu" else k**-0.5)
    )
    parts = [quantize(w.astype(np.float32), 128) for w in exact_b]
    weights = rng.uniform(0.1, 1.0, rows).astype(np.float32)
    weights[~alive[0] if not problem.config.gather else row_token == 1 << 30] = np.nan
    return Operands(
        a.reshape(batches, tokens, k), sfa, real_a.reshape(batches, tokens, k),
        np.stack([p[0] for p in parts]), np.stack([p[1] for p in parts]),
        np.stack([p[2] for p in parts]), weights, row_token,
        exact_a.reshape(batches, tokens, k), exact_b,
    )  # fmt: skip


@dataclass(frozen=True)
class Result:
    """D [batches, rows, columns] and sfd [columns / 128, rows] as written, and their untouched mask."""

    d: Array
    sfd: Array
    raw_d: Array
    raw_sfd: Array


def launch(
    device: Device, problem: Problem, kernel: BuiltKernel, x: Operands, times: int = 1
) -> Result:
    """Run the kernel; D has GUARD_ROWS rows and 16 columns around it filled with PATTERN.

    Args:
        times: launches one after the other, each allowed to start before the last one's end.
    """
    source, config, n, k = problem.source, problem.config, problem.n, problem.k
    element = OUTPUTS[config.output][1]
    columns = n // 2 if config.output == "swiglu" else n
    batches = x.a.shape[0]
    rows = x.row_token.shape[0]
    m = source.m if source.kind in ("dense", "batched") else rows
    stride_d = columns + 16
    raw_d = np.full((batches, rows, stride_d * element.itemsize), PATTERN, np.uint8)
    sfd_stride = -(-rows // 4) * 4 + 4
    raw_sfd = np.full((-(-columns // 128), sfd_stride * 4), PATTERN, np.uint8)
    keep: list[Buffer] = []

    def buffer(array: Array) -> Buffer:
        keep.append(device.buffer(array))
        return keep[-1]

    a, sfa, b, d = buffer(x.a), buffer(x.sfa), buffer(x.b), buffer(raw_d)
    byte = ElementType.UINT8
    tokens = x.a.shape[1]
    map_rows = m if source.kind in ("dense", "batched") else tokens
    half_a, half_b = 1 + (config.multicast == 1), 1 + (config.multicast == 2)
    map_a = TensorMap(a, byte, (k, map_rows, batches), (k, tokens * k),
                      (128, config.block_m // half_a, 1), swizzle=Swizzle.B128)  # fmt: skip
    map_b = TensorMap(b, byte, (k, n, x.b.shape[0]), (k, n * k),
                      (128, config.block_n // half_b, 1), swizzle=Swizzle.B128)  # fmt: skip
    sfa_stride = x.sfa.shape[2]
    map_sfa = TensorMap(sfa, ElementType.FLOAT32, (map_rows, k // 128, batches),
                        (4 * sfa_stride, 4 * sfa_stride * (k // 128)),
                        (min(config.block_m, 128) + 4, 1, 1))  # fmt: skip
    maps = [map_a, map_b, map_sfa]
    encoded: list[TensorMap | bytes] = list(maps)
    if config.output == "fp32":
        encoded.append(bytes(128))
    else:
        swiglu = config.output == "swiglu"
        slab = 128 if swiglu else min(config.block_n, 64)
        width = slab * element.itemsize
        encoded.append(
            TensorMap(d, byte if swiglu else ElementType.BFLOAT16, (columns, m, batches),
                      (stride_d * element.itemsize, rows * stride_d * element.itemsize),
                      (slab, 16, 1), swizzle=Swizzle(width))
        )  # fmt: skip
    if config.gather:
        encoded[0] = encoded[2] = bytes(128)
    tiles = source.pack(device, keep)
    sfd = buffer(raw_sfd)
    args = tiles + struct.pack(
        "<QqQqqQqQQQqQqii",
        buffer(x.sfb).address, x.sfb[0].size, d.address, stride_d, rows * stride_d, sfd.address,
        sfd_stride, buffer(x.row_weight).address if problem.weighted else 0,
        buffer(x.row_token).address, a.address, k, sfa.address, sfa_stride, n, k,
    )  # fmt: skip
    function = kernel.on(device)
    packed = [m if isinstance(m, bytes) else encode_tensor_map(device, m) for m in encoded]
    for _ in range(times):
        device.launch(
            function,
            grid=(problem.num_ctas,),
            block=(config.threads,),
            args=(*packed, args),
            cluster=(config.cluster,),
            shared_bytes=config.shared_bytes,
            pdl=True,
        )
    out = d.numpy()
    scales = sfd.numpy()
    return Result(out.view(element)[:, :, :columns], scales.view(np.float32), out, scales)


def expected(
    problem: Problem, x: Operands, exact: bool = False, magnitude: bool = False
) -> tuple[Array, Array]:
    """D in float64 and which of its rows are written.

    Args:
        exact: of the operands before they were quantised.
        magnitude: of their absolute values, which bounds what rounding may do to a sum.
    """
    batches, rows = x.a.shape[0], x.row_token.shape[0]
    want = np.zeros((batches, rows, problem.n))
    written = np.zeros((batches, rows), bool)
    real_a, real_b = (x.exact_a, x.exact_b) if exact else (x.real_a, x.real_b)
    if magnitude:
        real_a, real_b = np.abs(real_a), np.abs(real_b)
    for row, count, batch, group in problem.source.row_blocks(128):
        at = np.arange(row, row + count)
        from_rows = x.row_token[at] if problem.config.gather else at
        want[batch, at] = real_a[batch, from_rows] @ real_b[group].T
        written[batch, at] = True
    if problem.weighted:
        want[:, :] *= np.where(written, x.row_weight, 0.0)[:, :, None]
    return want, written


def check(problem: Problem, x: Operands, result: Result, short_sums: bool = False) -> None:
    """Right numbers where there are rows, PATTERN everywhere else.

    Args:
        short_sums: the tensor cores kept 14 bits of a sum, as a chip's do; else fp32.
    """
    want, written = expected(problem, x)
    columns = result.d.shape[2]
    body = columns * result.d.dtype.itemsize
    assert (result.raw_d[:, :, body:] == PATTERN).all(), "wrote beyond the columns"
    assert (result.raw_d[~written] == PATTERN).all(), "wrote rows that belong to nobody"
    got = result.d.astype(np.float64)[written]
    if problem.config.output == "swiglu":
        check_swiglu(want, written, got, result, short_sums)
        return
    assert np.isfinite(got).all(), "something dead leaked into the result"
    if not got.size:
        return
    want = want[written]
    rounding = 0.0 if problem.config.output == "fp32" else 2.0**-8
    # A K block is four sums of 32 products, each cut off below 2^-13 of its largest product.
    sums = 2.0**-11 if short_sums else 1e-5
    allowed = rounding * np.abs(want) + sums * expected(problem, x, magnitude=True)[0][written]
    excess = (np.abs(got - want) / allowed).max()
    assert excess < 1, f"an error of {excess:.2f} times what rounding allows"
    if problem.config.output == "fp32":
        error = np.abs(got - want).max() / np.abs(want).max()
        assert error < (1e-3 if short_sums else 1e-5), (
            f"largest error {error:.2e} of the largest value"
        )
    if got.size < 1000 or problem.hostile:
        return  # too few numbers for a mean error, or nothing was quantised
    exact = expected(problem, x, exact=True)[0][written]
    diff = 1 - 2 * (got * exact).sum() / (got**2 + exact**2).sum()
    assert diff < 1e-3, f"calc_diff {diff:.2e}"


def check_swiglu(want: Array, written: Array, got: Array, result: Result, short_sums: bool) -> None:
    """Scales as the quantiser would make them, codes right but for ties that rounding breaks."""
    gate, up = np.split(want, 2, axis=-1)
    h = (gate / (1 + np.exp(-gate)) * up)[0]
    blocks = h.reshape(h.shape[0], -1, 128)
    scale = np.maximum(np.abs(blocks).max(-1), 1e-4) / 448
    got_scale = result.sfd[:, : h.shape[0]].T
    untouched = result.raw_sfd.view(np.uint32) == PATTERN * 0x01010101
    assert untouched[:, : h.shape[0]][:, ~written[0]].all(), "wrote scales that belong to nobody"
    assert untouched[:, h.shape[0] :].all(), "wrote scales beyond the rows"
    got_scale, scale, blocks = got_scale[written[0]], scale[written[0]], blocks[written[0]]
    assert np.allclose(got_scale, scale, rtol=1e-2 if short_sums else 3e-5, atol=0), "scales differ"
    codes = (blocks / got_scale[:, :, None]).clip(-448, 448).astype(np.float32).astype(E4M3)
    same = codes.astype(np.float64).reshape(got.shape) == got
    assert same.mean() > (0.95 if short_sums else 0.998), (
        f"{(~same).mean():.2e} of the codes differ"
    )
    # Half a step of e4m3, 2^-4 of the value or half a subnormal, and what the sums were off.
    value = np.abs(blocks / got_scale[:, :, None])
    off = np.abs(blocks / got_scale[:, :, None] - got.reshape(blocks.shape))
    assert (off <= value / 15 + 2.0**-9 + (2.0 if short_sums else 0.0)).all()
