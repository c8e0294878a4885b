"""Every configuration of the wide FP8 GEMM kernel on a Hopper GPU: what the chooser takes against all others.

    python -m benchmarks.tune_fp8_gemm [--m 4096 1024] [--shapes q_b o] [--grouped 128 512] [--out DIR]

Dense shapes of benchmarks/shapes.py, then 32 experts (fc1 with SwiGLU, with and without gather; fc2) by tile
map and by offsets. Results are checked against float64 on some rows before anything is timed. A row of the table
that beats the chooser's by more than the noise belongs in the tuned table (csrc/heuristics/gemm.h).
"""

from __future__ import annotations

import argparse
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from benchmarks.shapes import DENSE, EXPERTS, PREFILL_M
from benchmarks.timing import Table, copies_beyond_cache, measure
from seekernel import _jit
from seekernel.jit.families import kernel_spec
from seekernel.jit.loader import default_jit
from tests.emulator.gpu_backend import GpuDevice
from tests.emulator.launch import Buffer, ElementType, Swizzle, TensorMap, encode_tensor_map

DENSE_KIND, OFFSETS_KIND, TILE_MAP_KIND = 0, 2, 5
NUM_EXPERTS = 32
SHARED_BYTES = 232448
TILES = (
    (64, 64, 0, False), (64, 128, 0, False), (128, 64, 0, False), (128, 128, 0, False),
    (128, 128, 1, False), (128, 128, 2, False), (256, 128, 0, False), (256, 128, 1, False),
    (256, 128, 2, False), (64, 128, 0, True), (64, 128, 1, True), (64, 128, 2, True),
)  # fmt: skip
"""BLOCK_M, BLOCK_N, multicast, ping-pong."""


class Memory:
    """A tensor's memory, of which a tensor map wants the address."""

    def __init__(self, tensor: Tensor) -> None:
        self.address = tensor.data_ptr()


def memory(tensor: Tensor) -> Buffer:
    """The tensor as a buffer of the launch API."""
    return cast(Buffer, Memory(tensor))


@dataclass
class Problem:
    """Operands on the GPU; `rows` of all groups together, `offsets` None where it is dense."""

    kind: int
    output: int
    gather: bool
    n: int
    k: int
    rows: int
    a: Tensor
    sfa: Tensor
    b: Tensor
    sfb: Tensor
    d: Tensor
    sfd: Tensor
    offsets: Tensor | None
    row_token: Tensor

    def config(
        self, block_m: int, block_n: int, multicast: int, ping_pong: bool
    ) -> _jit.GemmConfig | None:
        """With as many stages as fit, or None where the kernel does not have it."""
        if self.output == 2 and (block_n != 128 or block_m > 128):
            return None
        if ping_pong and (self.output == 2 or self.gather):
            return None
        if self.gather and multicast == 1:
            return None
        for stages in range(8, 2, -1):
            config = _jit.GemmConfig(
                False,
                block_m,
                block_n,
                stages,
                multicast,
                self.kind,
                self.output,
                self.gather,
                ping_pong,
            )
            if _jit.gemm_resources(config, self.k)[1] <= SHARED_BYTES:
                return config
        return None


def make_problem(
    m: int, n: int, k: int, kind: int = DENSE_KIND, output: int = 0, gather: bool = False
) -> Problem:
    """Random-normal codes and scales near one; m rows, or m per expert on average."""
    cuda = torch.device("cuda")
    groups = 1 if kind == DENSE_KIND else NUM_EXPERTS
    offsets = None
    rows = m
    if kind != DENSE_KIND:
        counts = (torch.rand(groups) * 0.6 + 0.7) * m
        offsets = torch.cat([torch.zeros(1), counts.round().cumsum(0)]).int().cuda()
        rows = int(offsets[-1])
    tokens = max(1, rows // 8) if gather else rows
    a = torch.randn(tokens, k, device=cuda).to(torch.float8_e4m3fn)
    b = torch.empty(groups, n, k, device=cuda, dtype=torch.float8_e4m3fn)
    for i in range(groups):
        b[i] = torch.randn(n, k, device=cuda).to(torch.float8_e4m3fn)
    sfa = torch.rand(k // 128, -(-tokens // 4) * 4, device=cuda) + 0.5
    sfb = (torch.rand(groups, -(-n // 128), k // 128, device=cuda) + 0.5) * k**-0.5
    columns = n // 2 if output == 2 else n
    dtype = torch.float8_e4m3fn if output == 2 else torch.bfloat16
    d = torch.zeros(rows, columns, device=cuda, dtype=dtype)
    sfd = torch.zeros(-(-columns // 128), -(-rows // 4) * 4, device=cuda)
    row_token = torch.randint(tokens, (rows,), device=cuda, dtype=torch.int32)
    return Problem(kind, output, gather, n, k, rows, a, sfa, b, sfb, d, sfd, offsets, row_token)


def make_launch(
    p: Problem, config: _jit.GemmConfig, encode: Callable[[TensorMap], bytes], num_sms: int
) -> Callable[[], None]:
    """Compile, describe the tensors, and return a call that only launches."""
    artifact = default_jit().artifact(kernel_spec("sm90_fp8_gemm_nt", config.parameters))
    threads, shared_bytes, _, _ = _jit.gemm_resources(config, p.k)
    cluster = 2 if config.multicast else 1
    kernel = _jit.Kernel(
        artifact.cubin, artifact.meta.symbol, threads, SHARED_BYTES, (cluster, 1, 1), True
    )
    byte, k, n = ElementType.UINT8, p.k, p.n
    half_a, half_b = 1 + (config.multicast == 1), 1 + (config.multicast == 2)
    tokens, columns = p.a.shape[0], p.d.shape[1]
    sfa_bytes = p.sfa.stride(0) * 4
    d_bytes = columns * p.d.element_size()
    slab = 128 if p.output == 2 else min(config.block_n, 64)
    maps = [
        TensorMap(memory(p.a), byte, (k, tokens, 1), (k, k),
                  (128, config.block_m // half_a, 1), swizzle=Swizzle.B128),
        TensorMap(memory(p.b), byte, (k, n, p.b.shape[0]), (k, n * k),
                  (128, config.block_n // half_b, 1), swizzle=Swizzle.B128),
        TensorMap(memory(p.sfa), ElementType.FLOAT32, (tokens, k // 128, 1),
                  (sfa_bytes, sfa_bytes), (min(config.block_m, 128) + 4, 1, 1)),
        TensorMap(memory(p.d), byte if p.output == 2 else ElementType.BFLOAT16,
                  (columns, p.rows, 1), (d_bytes, d_bytes), (slab, 16, 1),
                  swizzle=Swizzle(slab * p.d.element_size())),
    ]  # fmt: skip
    groups = num_tiles = 0
    keep = []
    if p.offsets is not None:
        keep.append(p.offsets)
        if p.kind == TILE_MAP_KIND:
            step = config.block_m * half_b
            bounds = p.offsets.tolist()
            tiles = [
                (g, row, min(step, end - row), 0)
                for g, (begin, end) in enumerate(pairwise(bounds))
                for row in range(begin, end, step)
            ]
            keep.append(torch.tensor(tiles, dtype=torch.int32, device="cuda"))
            keep.append(torch.tensor([len(tiles)], dtype=torch.int32, device="cuda"))
            num_tiles = keep[2].data_ptr()
        groups = keep[-2 if p.kind == TILE_MAP_KIND else -1].data_ptr()
    at_once = num_sms // cluster * cluster
    tiles_n = -(-columns // (config.block_n * half_a))
    tiles_m = -(-p.rows // (config.block_m * half_b))
    grid = min(at_once, tiles_m * tiles_n * cluster) if p.offsets is None else at_once
    args = struct.pack(
        "<QQ6iQqQqqQqQQQqQqii",
        groups, num_tiles, p.rows, p.b.shape[0], 4, 8, 0, 0,
        p.sfb.data_ptr(), p.sfb[0].numel(), p.d.data_ptr(), columns, 0, p.sfd.data_ptr(),
        p.sfd.stride(0), 0, p.row_token.data_ptr(), p.a.data_ptr(), k, p.sfa.data_ptr(),
        p.sfa.stride(0), n, k,
    )  # fmt: skip
    arguments = [*map(encode, maps), args]

    def launch() -> None:
        _ = keep
        kernel.launch(
            (grid, 1, 1), shared_bytes, arguments, torch.cuda.current_stream().cuda_stream
        )

    return launch


def check(p: Problem, launch: Callable[[], None]) -> None:
    """Some rows of D against float64; ValueError if they differ by more than the output's rounding."""
    p.d.zero_()
    p.sfd.zero_()
    launch()
    torch.cuda.synchronize()
    picks = torch.randint(p.rows, (16,)).tolist()
    for row in [0, p.rows - 1, *picks]:
        group = 0
        if p.offsets is not None:
            group = int((p.offsets[1:] <= row).sum())
        token = int(p.row_token[row]) if p.gather else row
        a = p.a[token].double() * p.sfa[:, token].double().repeat_interleave(128)
        scale = p.sfb[group].double().repeat_interleave(128, 0)[: p.n].repeat_interleave(128, 1)
        want = (p.b[group].double() * scale) @ a
        got = p.d[row].double()
        limit = 2.0**-7
        if p.output == 2:
            gate, up = want.chunk(2)
            want = torch.nn.functional.silu(gate) * up
            got = got * p.sfd[:, row].double().repeat_interleave(128)
            limit = 0.08
        error = float((got - want).abs().max() / want.abs().max())
        if not error < limit:
            raise ValueError(f"row {row}: expected an error below {limit}, got {error}")


def variants(p: Problem) -> Iterator[_jit.GemmConfig]:
    """All configurations of TILES that the kernel has for a problem."""
    for tile in TILES:
        config = p.config(*tile)
        if config is not None:
            yield config


def run(name: str, m: int, make: Callable[[], Problem], table: Table, num_sms: int) -> None:
    """Check and time all configurations of one problem, interleaved."""
    first = make()
    device = GpuDevice()
    encode = lambda tensor_map: encode_tensor_map(device, tensor_map)
    num_bytes = first.a.numel() + first.b.numel() + first.d.numel() * first.d.element_size()
    problems = [
        first,
        *(make() for _ in range(min(3, copies_beyond_cache(num_bytes, first.a.device)) - 1)),
    ]
    calls = {}
    grouped = first.kind != DENSE_KIND
    chosen = _jit.choose_gemm(
        m, first.n, first.k, NUM_EXPERTS if grouped else 1, grouped, num_sms, False, first.kind,
        first.output, first.gather,
    )  # fmt: skip
    for config in {*variants(first), chosen}:
        launches = [make_launch(p, config, encode, num_sms) for p in problems]
        check(first, launches[0])
        calls[config] = launches
    times = measure({repr(c): launches for c, launches in calls.items()}, torch.device("cuda"))
    flops = 2.0 * first.rows * first.n * first.k
    best = min(t.median_us for t in times.values())
    for config in sorted(calls, key=lambda c: times[repr(c)].median_us):
        t = times[repr(config)]
        tile = f"{config.block_m}x{config.block_n}x{config.num_stages} multicast {config.multicast}{' ping-pong' * config.ping_pong}"
        mark = "chosen" if config == chosen else ""
        table.add(name, first.rows, tile, str(t), flops / t.median_us / 1e6,
                  num_bytes / t.median_us / 1e3, best / t.median_us, mark)  # fmt: skip


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--m", type=int, nargs="*", default=[*PREFILL_M, 256])
    parser.add_argument("--grouped", type=int, nargs="*", default=[64, 128, 512])
    parser.add_argument("--shapes", nargs="*", default=[shape.name for shape in DENSE])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.manual_seed(0)
    num_sms = torch.cuda.get_device_properties(0).multi_processor_count
    table = Table(("problem", "rows", "tile", "us", "TFLOPS", "GB/s", "of best", ""))
    for shape in DENSE:
        for m in options.m if shape.name in options.shapes else []:
            run(shape.name, m, partial(make_problem, m, shape.n, shape.k), table, num_sms)
    fc1, fc2 = EXPERTS
    for m in options.grouped:
        for name, s, kind, output, gather in (
            ("fc1 bf16 offsets", fc1, OFFSETS_KIND, 0, False),
            ("fc1 bf16 tile map", fc1, TILE_MAP_KIND, 0, False),
            ("fc1 swiglu tile map", fc1, TILE_MAP_KIND, 2, False),
            ("fc1 swiglu gather tile map", fc1, TILE_MAP_KIND, 2, True),
            ("fc2 offsets", fc2, OFFSETS_KIND, 0, False),
            ("fc2 tile map", fc2, TILE_MAP_KIND, 0, False),
        ):
            make = partial(make_problem, m, s.n, s.k, kind, output, gather)
            run(name, m, make, table, num_sms)
    if options.out is not None:
        table.write(options.out / "tune_fp8_gemm.csv")


if __name__ == "__main__":
    main()
