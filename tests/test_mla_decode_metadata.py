"""The plan of a decode step: every block of every row once, balanced, partial results side by side."""

from __future__ import annotations

import random
from collections import defaultdict

import numpy as np
import pytest
import torch

from seekernel import ops
from tests.emulator.launch import Array, Device
from tests.kernel_testing import BACKENDS, BuiltKernel, build, devices
from tests.mla_testing import int32, offsets
from tests.op_testing import assert_rejects, opcheck

UNIT_BLOCKS, MIN_BLOCKS = 2, 4


def blocks_of(length: int) -> int:
    return -(-length // 64)


def plan(
    device: Device, kernel: BuiltKernel, s_kv: list[int], s_q: list[int], h_q: int, rows: int,
    num_parts: int, split_blocks: int,
) -> tuple[Array, Array]:  # fmt: skip
    parts = device.empty((num_parts, 8), np.int32)
    items = device.empty((1 + sum(s_q), 8), np.int32)
    device.launch(
        kernel.on(device), grid=(1,), block=(256,), shared_bytes=16 * (len(s_kv) + 1),
        args=(
            device.buffer(int32(s_kv).numpy()), device.buffer(offsets(s_q).numpy()),
            *(np.int32(v) for v in (len(s_kv), h_q, rows, num_parts, UNIT_BLOCKS, MIN_BLOCKS, split_blocks)),
            parts, items,
        ),
    )  # fmt: skip
    return parts.numpy(), items.numpy()


def walk(parts: Array, items: Array) -> dict[int, list[tuple[int, int, int]]]:
    """Item to its units (begin, end, first partial row or -1), as mla_work_t walks them."""
    units: dict[int, list[tuple[int, int, int]]] = defaultdict(list)
    for item, block, end_item, end_block, piece, split_blocks, *_ in parts.tolist():
        while item < end_item or (item == end_item and block < end_block):
            _, _, num_rows, seq_len, _, first_partial, num_splits, _ = items[1 + item].tolist()
            end = end_block if item == end_item else blocks_of(seq_len)
            if split_blocks:
                end = min(end, block + split_blocks)
            index = block // split_blocks if split_blocks else piece if block else 0
            units[item].append((block, end, first_partial + index * num_rows if num_splits else -1))
            block = end
            if block >= blocks_of(seq_len):
                item, block = item + 1, 0
    return units


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("split_blocks", [0, 3])
def test_every_block_once(split_blocks: int, backend: str) -> None:
    kernel = build("seekernel/attention/mla_decode_metadata.cuh", "mla_decode_metadata<256>")
    generator = random.Random(split_blocks)
    device = next(iter(devices(backend)))
    for b, longest, num_parts in ((1, 9000, 132), (5, 300, 7), (300, 700, 66), (40, 0, 3), (3, 5000, 1), (17, 64, 78)):  # fmt: skip
        s_kv = [generator.choice((0, 1, generator.randint(0, longest))) for _ in range(b)]
        s_q = [generator.choice((1, 1, 0, 4)) for _ in range(b)]
        h_q, rows = generator.choice(((16, 64), (128, 128), (40, 64)))
        parts, items = plan(device, kernel, s_kv, s_q, h_q, rows, num_parts, split_blocks)
        units, cu = walk(parts, items), offsets(s_q).tolist()
        expected = [
            (request, cu[request] * h_q + first, min(rows, s_q[request] * h_q - first), s_kv[request], s_kv[request] + 1 - cu[request + 1])
            for request in range(b)
            for first in range(0, s_q[request] * h_q, rows)
        ]  # fmt: skip
        num_items, num_split_items = items[0, :2].tolist()
        assert [tuple(row[:5]) for row in items[1 : 1 + num_items].tolist()] == expected
        partial_rows: set[int] = set()
        split = []
        for item, (_, _, num_rows, length, _) in enumerate(expected):
            got = units[item]
            assert [begin for begin, _, _ in got] == [0, *(end for _, end, _ in got[:-1])]
            assert got[-1][1] == blocks_of(length)
            if len(got) == 1:
                assert got[0][2] == -1
                continue
            split.append(item)
            assert items[1 + item, 6] == len(got)
            for index, (_, end, first) in enumerate(got):
                assert first == items[1 + item, 5] + index * num_rows
                mine = set(range(first, first + num_rows))
                assert not mine & partial_rows
                partial_rows |= mine
                if split_blocks and end != blocks_of(length):
                    assert end % split_blocks == 0
        assert items[1 : 1 + num_split_items, 7].tolist() == split
        bound = 2 * num_parts * rows
        if split_blocks:
            bound = sum(s_q) * h_q * -(-max(blocks_of(n) for n in s_kv) // split_blocks)
        assert max(partial_rows, default=-1) < bound
        if not split_blocks:
            costs = [blocks_of(row[3]) + UNIT_BLOCKS for row in expected]
            fair = max(MIN_BLOCKS, sum(costs) / num_parts)
            for item, block, end_item, end_block, *_ in parts.tolist():
                cost = sum(costs[item:end_item]) - block + end_block + 2 * UNIT_BLOCKS
                assert cost <= 2 * fair + 3 * UNIT_BLOCKS + 4


def test_cpu_leaves_the_plan_alone() -> None:
    empty = ops.mla_decode_plan(3, 16, "cpu")
    assert ops.mla_decode_metadata(int32([5, 0]), int32([0, 1, 3]), 16, empty) is empty
    q, cache = torch.randn(3, 16, 576), torch.randn(2, 64, 576)
    arguments = (q, cache, int32([1, 0]).view(2, 1), int32([5, 0]), int32([0, 1, 3]), 0.1)
    assert torch.equal(ops.mla_decode(*arguments)[0], ops.mla_decode(*arguments, plan=empty)[0])
    opcheck("mla_decode_metadata", *arguments[3:5], 16, 0, empty.parts, empty.items)
    assert_rejects(
        "mla_decode_metadata: cu_seqlens_q: expected shape [3]",
        ops.mla_decode_metadata, int32([5, 0]), int32([0, 1]), 16, empty,
    )  # fmt: skip
