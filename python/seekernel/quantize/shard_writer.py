"""Writes one safetensors file tensor by tensor: atomic, resumable, in flat memory.

The file grows as `<name>.partial` beside its place and is renamed when it is whole and on disk, so a file
under its final name is never half-written. A journal beside it says how many tensors are safely on disk; a
later run with the same inputs goes on from there and ends with the same bytes.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from seekernel.errors import SeekernelError
from seekernel.model.errors import WeightError
from seekernel.model.safetensors_file import SafetensorsFile, dtype_bits

FINGERPRINT = "seekernel.fingerprint"
JOURNAL_BYTES = 256 << 20  # a killed run repeats at most this much


class QuantizeError(SeekernelError):
    """A conversion that cannot be done, or cannot go on; the text names the file and what to do."""


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor of the file to be.

    Args:
        dtype: as safetensors spells it, such as "I8".
        chunks: gives its bytes in order; called when its turn comes.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    chunks: Callable[[], Iterable[bytes | memoryview]]

    @property
    def num_bytes(self) -> int:
        """Size in the file."""
        count = 1
        for size in self.shape:
            count *= size
        return count * dtype_bits(self.dtype) // 8


@dataclass(frozen=True)
class _Journal:
    fingerprint: str
    num_tensors: int
    num_bytes: int

    def write(self, path: Path) -> None:
        temporary = path.with_name(path.name + ".tmp")
        with temporary.open("w") as file:
            json.dump(self.__dict__, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)

    @staticmethod
    def read(path: Path) -> _Journal | None:
        try:
            raw = json.loads(path.read_text())
            return _Journal(str(raw["fingerprint"]), int(raw["num_tensors"]), int(raw["num_bytes"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None


def header_bytes(tensors: Sequence[PlannedTensor], fingerprint: str) -> bytes:
    """The length word and the JSON header, padded with spaces to a multiple of 8."""
    header: dict[str, object] = {"__metadata__": {"format": "pt", FINGERPRINT: fingerprint}}
    offset = 0
    for tensor in tensors:
        if tensor.name in header:
            raise QuantizeError(f"{tensor.name}: planned twice")
        end = offset + tensor.num_bytes
        header[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def fingerprint_of(tensors: Sequence[PlannedTensor], inputs: Iterable[str]) -> str:
    """Digest of what the file will hold and of what it is made from (names, sizes, options)."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.name} {tensor.dtype} {tensor.shape}\n".encode())
    for text in inputs:
        digest.update(text.encode() + b"\n")
    return digest.hexdigest()


def is_complete(path: Path, fingerprint: str) -> bool:
    """Whether the file is there, whole, and made from the same inputs.

    Errors: QuantizeError if it was made from others.
    """
    if not path.exists():
        return False
    try:
        found = SafetensorsFile(path).metadata.get(FINGERPRINT)
    except WeightError as error:
        raise QuantizeError(f"{error}; remove it to write it anew") from None
    if found != fingerprint:
        raise QuantizeError(f"{path}: was made from other inputs or options; remove it to go on")
    return True


def write_shard(
    path: Path,
    tensors: Sequence[PlannedTensor],
    inputs: Iterable[str],
    progress: Callable[[int], None] = lambda num_bytes: None,
) -> None:
    """Write the tensors to `path`, or finish what an interrupted run began.

    Args:
        inputs: what the bytes depend on besides the plan; part of the fingerprint.
        progress: called with the number of bytes written or found written.
    Errors: QuantizeError naming the file: disk full, a producer that gives another size than planned.
    """
    fingerprint = fingerprint_of(tensors, inputs)
    total = sum(tensor.num_bytes for tensor in tensors)
    if is_complete(path, fingerprint):
        progress(total)
        return
    partial, journal_path = (
        path.with_name(path.name + ".partial"),
        path.with_name(path.name + ".journal"),
    )
    header = header_bytes(tensors, fingerprint)
    first, begin = _resume_point(partial, journal_path, fingerprint, header, tensors)
    _require_space(path, len(header) + total - begin)
    try:
        with partial.open("r+b" if first else "wb") as file:
            file.truncate(begin if first else 0)
            file.seek(0, os.SEEK_END)
            if not first:
                file.write(header)
            progress(sum(tensor.num_bytes for tensor in tensors[:first]))
            since_journal = 0
            for index in range(first, len(tensors)):
                tensor = tensors[index]
                written = 0
                for chunk in tensor.chunks():
                    written += file.write(chunk)
                if written != tensor.num_bytes:
                    raise QuantizeError(
                        f"{path}: {tensor.name}: expected {tensor.num_bytes} bytes, got {written}"
                    )
                progress(written)
                since_journal += written
                if since_journal >= JOURNAL_BYTES:
                    file.flush()
                    os.fsync(file.fileno())
                    _Journal(fingerprint, index + 1, file.tell()).write(journal_path)
                    since_journal = 0
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        journal_path.unlink(missing_ok=True)
        sync_folder(path.parent)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise QuantizeError(
                f"{path}: {error.strerror}; make room and run the same command to go on"
            ) from error
        raise QuantizeError(f"{path}: {error}") from error


def _resume_point(
    partial: Path,
    journal_path: Path,
    fingerprint: str,
    header: bytes,
    tensors: Sequence[PlannedTensor],
) -> tuple[int, int]:
    """(tensors done, bytes done) of an interrupted run with the same inputs, else (0, 0)."""
    journal = _Journal.read(journal_path)
    if journal is None or journal.fingerprint != fingerprint or not partial.exists():
        return 0, 0
    expected = len(header) + sum(t.num_bytes for t in tensors[: journal.num_tensors])
    if journal.num_bytes != expected or partial.stat().st_size < expected:
        return 0, 0
    with partial.open("rb") as file:
        if file.read(len(header)) != header:
            return 0, 0
    return journal.num_tensors, expected


def _require_space(path: Path, num_bytes: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if num_bytes > free:
        raise QuantizeError(f"{path}: expected {num_bytes} bytes free on its disk, got {free}")


def sync_folder(folder: Path) -> None:
    """Make renames in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a small file by one rename."""
    temporary = path.with_name(path.name + ".partial")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
