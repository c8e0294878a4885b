"""What a GEMM's rows belong to, as csrc/include/seekernel/scheduler/tiles.cuh takes it, and the tiles that follow."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.emulator.launch import Buffer, Device

Array = NDArray[Any]
KINDS = {"dense": 0, "batched": 1, "offsets": 2, "contiguous": 3, "masked": 4, "tile_map": 5}


@dataclass(frozen=True)
class Source:
    """A tile_source_t.

    Args:
        kind: of KINDS.
        m: rows (dense, batched: of each; masked: room of each group).
        num_groups: of a batched problem; of the others it follows from `groups`.
        groups: offsets (also for a tile map, which is made from them), m_indices or masked_m.
        band, band_n: raster.
        block_rows: rows per tile of the tile map.
    """

    kind: str
    m: int = 0
    num_groups: int = 1
    groups: Array | None = None
    band: int = 8
    band_n: bool = False
    block_rows: int = 64

    def row_blocks(self, rows: int) -> list[tuple[int, int, int, int]]:
        """(row, rows, batch, group) of every block of at most `rows` rows."""
        if self.kind == "dense" or self.kind == "batched":
            return [
                (row, min(rows, self.m - row), batch, batch)
                for batch in range(self.num_groups)
                for row in range(0, self.m, rows)
            ]
        assert self.groups is not None
        if self.kind == "contiguous":
            return [
                (row, int((self.groups[row : row + rows] == group).sum()), 0, int(group))
                for row in range(0, len(self.groups), rows)
                if (group := self.groups[row]) >= 0
            ]
        if self.kind == "masked":
            return [
                (row, min(rows, int(count) - row), group, group)
                for group, count in enumerate(self.groups)
                for row in range(0, int(count), rows)
            ]
        block = self.block_rows if self.kind == "tile_map" else rows
        return [
            (row, min(block, int(end) - row), 0, group)
            for group, (begin, end) in enumerate(pairwise(self.groups))
            for row in range(int(begin), int(end), block)
        ]

    def pack(self, device: Device, keep: list[Buffer]) -> bytes:
        """The kernel's parameter. The group list goes to the device, with int32 entries unless it is of
        int64 offsets; `keep` takes the buffers, which must outlive the launch."""
        address = count_address = 0
        num_groups, m, offset_bytes = self.num_groups, self.m, 0
        if self.groups is not None:
            wide = self.kind == "offsets" and self.groups.dtype == np.int64
            table = self.groups if wide else self.groups.astype(np.int32)
            offset_bytes = table.dtype.itemsize
            num_groups = len(table) - (self.kind in ("offsets", "tile_map"))
            m = len(table) if self.kind == "contiguous" else m
            if self.kind == "tile_map":
                blocks = self.row_blocks(self.block_rows)
                table = np.full((len(blocks) + 3, 4), 1 << 30, np.int32)  # rows that do not count
                for i, (row, rows, _, group) in enumerate(blocks):
                    table[i] = (group, row, rows, 0)
                keep.append(device.buffer(np.array([len(blocks)], np.int32)))
                count_address = keep[-1].address
            keep.append(device.buffer(table))
            address = keep[-1].address
        return struct.pack(
            "<QQ6i", address, count_address, m, num_groups, offset_bytes, self.band, self.band_n, 0
        )
