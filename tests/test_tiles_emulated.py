"""The GEMM scheduler: every tile of every kind once, whoever walks, empty groups cost nothing."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.emulator.compile import CompilerMissing, compile_ptx
from tests.emulator.launch import Buffer
from tests.kernel_testing import BACKENDS, HEADERS, devices
from tests.tile_testing import KINDS, Source

Array = NDArray[Any]
ROWS, NUM_CTAS = 64, 5
SOURCE = """#include <seekernel/scheduler/tiles.cuh>
extern "C" __global__ void list_tiles(const __grid_constant__ seekernel::tile_source_t source,
                                      int num_n_blocks, int room, int* out) {{
  seekernel::tile_walker_t<{kind}, {rows}> walker(source, num_n_blocks, blockIdx.x, gridDim.x);
  int* mine = out + (blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32) * room * 5;
  for (seekernel::tile_t tile; walker.next(tile); mine += 5) {{
    if (threadIdx.x % 32 == 0) {{
      mine[0] = tile.row;
      mine[1] = tile.rows;
      mine[2] = tile.n_block;
      mine[3] = tile.batch;
      mine[4] = tile.group;
    }}
  }}
}}
"""


@lru_cache(maxsize=16)
def _ptx(kind: str, edit: tuple[str, str] | None = None) -> Path:
    with TemporaryDirectory() as folder:
        text = SOURCE.format(kind=KINDS[kind], rows=ROWS)
        if edit is not None:
            header = (HEADERS / "seekernel" / "scheduler" / "tiles.cuh").read_text()
            assert edit[0] in header
            text = text.replace("#include <seekernel/scheduler/tiles.cuh>", header.replace(*edit))
        source = Path(folder) / "list_tiles.cu"
        source.write_text(text)
        try:
            return compile_ptx(source, flags=[f"-I{HEADERS}"])
        except CompilerMissing as missing:
            pytest.skip(str(missing))


def _walk(
    source: Source, num_n: int, backend: str = "emulator", edit: tuple[str, str] | None = None
) -> list[list[tuple[int, ...]]]:
    """The tiles of each CTA, in order: (row, rows, n_block, batch, group)."""
    room, num_warps = 400, 2
    for device in devices(backend):
        out = device.buffer(np.full((NUM_CTAS, num_warps, room, 5), -7, np.int32))
        keep: list[Buffer] = []
        device.launch(
            device.load(_ptx(source.kind, edit)).function("list_tiles"),
            grid=(NUM_CTAS,),
            block=(32 * num_warps,),
            args=(source.pack(device, keep), np.int32(num_n), np.int32(room), out),
        )
        lists = out.numpy()
        assert np.array_equal(lists[:, 0], lists[:, 1]), "two warps disagree"
        return [[tuple(map(int, t)) for t in warp[0] if t[1] != -7] for warp in lists]
    raise AssertionError("no device")


def _check(source: Source, num_n: int, lists: list[list[tuple[int, ...]]]) -> None:
    """Every tile once; CTAs take turns."""
    want = sorted(
        (*tile[:2], n, *tile[2:]) for tile in source.row_blocks(ROWS) for n in range(num_n)
    )
    assert sorted(tile for tiles in lists for tile in tiles) == want
    if source.kind != "contiguous":  # whose skipped tiles leave gaps
        counts = [len(tiles) for tiles in lists]
        assert counts == [-(-(len(want) - i) // NUM_CTAS) for i in range(NUM_CTAS)]


def _offsets(*counts: int, start: int = 0) -> Array:
    return np.cumsum([start, *counts]).astype(np.int32)


MANY = [int(c) for c in np.random.default_rng(3).integers(0, 5, 256) ** 2 * 7]
SOURCES = {
    "dense": Source("dense", m=300),
    "dense, n bands": Source("dense", m=1200, band=8, band_n=True),
    "dense, m bands": Source("dense", m=1200, band=8),
    "dense, empty": Source("dense", m=0),
    "batched": Source("batched", m=130, num_groups=6),
    "offsets": Source("offsets", groups=_offsets(1, 0, 0, 63, 64, 65, 200, 0)),
    "offsets, int64, from 5": Source("offsets", groups=_offsets(7, 8, start=5).astype(np.int64)),
    "offsets, empty": Source("offsets", groups=_offsets(*[0] * 256)),
    "offsets, last only": Source("offsets", groups=_offsets(*[0] * 255, 700), band=4),
    "offsets, 256 groups": Source("offsets", groups=_offsets(*MANY)),
    "contiguous": Source("contiguous", groups=np.repeat([3, 3, -1, 0, 7, -1], [64, 10, 54, 128, 1, 63])),
    "masked": Source("masked", groups=np.array([0, 64, 1, 200, 0]), m=256),
    "masked, 40 groups": Source("masked", groups=np.arange(40) * 3, m=128),
    "tile map": Source("tile_map", groups=_offsets(1, 0, 0, 63, 64, 65, 200, 0)),
    "tile map, empty": Source("tile_map", groups=_offsets(0, 0)),
}  # fmt: skip


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", SOURCES)
def test_every_tile_once(name: str, backend: str) -> None:
    source = SOURCES[name]
    for num_n in (1, 3) if name == "offsets, 256 groups" else (1, 3, 17):
        _check(source, num_n, _walk(source, num_n, backend))


def test_tiles_that_run_together_share_operands() -> None:
    """In bands of eight row blocks, 64 tiles at a time touch 8 + 8 blocks instead of 1 + 64."""
    tiles = _walk(SOURCES["dense, m bands"], 17)
    order = [tiles[i % NUM_CTAS][i // NUM_CTAS] for i in range(64)]
    assert (len({t[0] for t in order}), len({t[2] for t in order})) == (8, 8)
    tiles = _walk(SOURCES["dense, n bands"], 17)
    order = [tiles[i % NUM_CTAS][i // NUM_CTAS] for i in range(64)]
    assert (len({t[0] for t in order}), len({t[2] for t in order})) == (8, 8)


PLANTED = {
    "a chunk of groups is lost": ("offsets, 256 groups", ("chunk_ += 32;", "chunk_ += 64;")),
    "rows beyond the group": ("offsets", ("min(kRows, rows - cell.m_block * kRows)", "kRows")),
    "rows of -1": ("contiguous", ("rows += ids[i] == tile.group", "rows += 1")),
    "the last band is full": ("dense, m bands", ("min(band, across - first)", "band")),
    "batch of its own": ("masked", ("kKind == tile_kind::masked ? tile.group : 0", "0")),
}  # fmt: skip


@pytest.mark.parametrize("bug", PLANTED)
def test_planted_bugs_are_seen(bug: str) -> None:
    name, edit = PLANTED[bug]
    with pytest.raises(AssertionError):
        _check(SOURCES[name], 3, _walk(SOURCES[name], 3, edit=edit))
