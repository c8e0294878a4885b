"""Reads tensors by slice from a mapped safetensors file, each byte once.

The safetensors package copies through pages that stay resident until the file is closed, which
doubles the memory of a one-file checkpoint; here every page is given back right after its copy.
Format: https://github.com/huggingface/safetensors (8-byte header length, JSON header, data).
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from seekernel.model.errors import WeightError

MAX_HEADER_BYTES = 100 << 20
DTYPES = {
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F8_E4M3": torch.float8_e4m3fn,
}
OTHER_DTYPE_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E8M0": 8, "I16": 16, "U16": 16,
    "I32": 32, "U32": 32, "F64": 64, "I64": 64, "U64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip


def dtype_bits(dtype: str) -> int:
    """Bits of one element of a dtype as the format spells it. Errors: KeyError."""
    return DTYPES[dtype].itemsize * 8 if dtype in DTYPES else OTHER_DTYPE_BITS[dtype]


@dataclass(frozen=True)
class TensorEntry:
    """Where one tensor lies in the file, already checked against the file's size."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class SafetensorsFile:
    """One open file. Errors: WeightError naming file and tensor."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except (OSError, ValueError) as error:
            raise WeightError(f"{path}: not readable: {error}") from None
        try:
            self.entries, self._data_begin = self._read_header()
        except WeightError:
            self._map.close()
            raise

    def _read_header(self) -> tuple[dict[str, TensorEntry], int]:
        size = len(self._map)
        if size < 8:
            raise WeightError(f"{self.path}: expected a safetensors file, got {size} bytes")
        header_bytes = int.from_bytes(self._map[:8], "little")
        if header_bytes > min(size - 8, MAX_HEADER_BYTES):
            raise WeightError(
                f"{self.path}: truncated or damaged: the header says {header_bytes} bytes, "
                f"{size - 8} follow"
            )
        try:
            header = json.loads(
                self._map[8 : 8 + header_bytes].decode("utf-8"), object_pairs_hook=_unique
            )
        except (ValueError, RecursionError) as error:
            raise WeightError(f"{self.path}: header is not valid JSON: {error}") from None
        if not isinstance(header, dict):
            raise WeightError(f"{self.path}: header: expected an object")
        metadata = header.pop("__metadata__", None)
        self.metadata = metadata if isinstance(metadata, dict) else {}
        begin = 8 + header_bytes
        entries = {name: self._entry(name, raw, size - begin) for name, raw in header.items()}
        covered = 0
        for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
            if entry.begin != covered:
                raise WeightError(
                    f"{self.path}: {name}: expected data at offset {covered}, got {entry.begin}"
                )
            covered = entry.end
        if covered != size - begin:
            raise WeightError(
                f"{self.path}: truncated or damaged: tensors take {covered} bytes, "
                f"the file holds {size - begin}"
            )
        return entries, begin

    def _entry(self, name: str, raw: Any, data_bytes: int) -> TensorEntry:
        def damaged(expected: str) -> WeightError:
            return WeightError(f"{self.path}: {name}: expected {expected}, got {raw!r:.200}")

        if not isinstance(raw, dict) or not {"dtype", "shape", "data_offsets"} <= raw.keys():
            raise damaged("dtype, shape and data_offsets")
        dtype, shape, offsets = raw["dtype"], raw["shape"], raw["data_offsets"]
        if not isinstance(dtype, str) or not (dtype in DTYPES or dtype in OTHER_DTYPE_BITS):
            raise damaged("a known dtype")
        if not isinstance(shape, list) or not all(_is_size(value) for value in shape):
            raise damaged("a shape of sizes")
        if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_size, offsets)):
            raise damaged("two data_offsets")
        begin, end = offsets
        bits = dtype_bits(dtype)
        count = 1
        for value in shape:
            count *= value
        if not begin <= end <= data_bytes or (end - begin) * 8 != count * bits:
            raise damaged(f"data_offsets of {count * bits // 8} bytes within {data_bytes}")
        return TensorEntry(dtype, tuple(shape), begin, end)

    def copy_to(self, name: str, destination: Tensor) -> None:
        """Copy a tensor into `destination` (same dtype and number of elements)."""
        entry = self.entries[name]
        if entry.begin == entry.end:
            return
        begin = self._data_begin + entry.begin
        raw = torch.frombuffer(
            memoryview(self._map), dtype=torch.uint8, count=entry.end - entry.begin, offset=begin
        )
        source = (
            raw.view(DTYPES[entry.dtype])
            if begin % 4 == 0
            else raw.clone().view(DTYPES[entry.dtype])
        )
        destination.copy_(source.view(entry.shape).view(destination.shape))
        self._give_back(begin, raw.numel())

    def chunks(self, name: str, chunk_bytes: int = 16 << 20) -> Iterator[bytes]:
        """The tensor's bytes in order, whatever its dtype, in pieces that are not kept in memory."""
        entry = self.entries[name]
        for begin in range(entry.begin, entry.end, chunk_bytes):
            first = self._data_begin + begin
            size = min(chunk_bytes, entry.end - begin)
            yield self._map[first : first + size]
            self._give_back(first, size)

    def _give_back(self, begin: int, num_bytes: int) -> None:
        """Drop the pages of a range from memory; the file has them."""
        first_page = begin // mmap.PAGESIZE * mmap.PAGESIZE
        if hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED, first_page, begin + num_bytes - first_page)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key stands twice")
    return result


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 60
