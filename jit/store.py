"""Entries on disk: how one is written so that it is whole or absent, and how it is read and judged.

    <root>/kernels/<family>.<digest>/{kernel.cubin, meta.json, .committed [, kernel.cu, kernel.ptx]}
    <root>/tmp/<entry>.<random>/      entries being written, or on their way out
    <root>/locks/<entry>              one lock file per key

An entry is written in tmp, synced, and renamed. `.committed` holds the digest of meta.json, which
holds the digest of the cubin: a reader needs no lock and still never takes half an entry.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import stat
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from seekernel.jit.compiler import CompiledKernel
from seekernel.jit.cubin import kernel_name
from seekernel.jit.errors import ArtifactError, CacheRefused

CUBIN, META, MARKER = "kernel.cubin", "meta.json", ".committed"
_TOUCH_AFTER_S = 3600.0


@dataclass(frozen=True)
class Meta:
    """What is known of a compiled kernel, as meta.json holds it."""

    name: str
    symbol: str
    compiler: str
    command: tuple[str, ...]
    seconds: float
    registers: int
    stack_bytes: int
    spill_store_bytes: int
    spill_load_bytes: int
    cubin_sha256: str
    cubin_bytes: int

    @classmethod
    def of(cls, name: str, compiler: str, kernel: CompiledKernel) -> Meta:
        """Describe a fresh kernel."""
        return cls(
            name=name,
            symbol=kernel.symbol,
            compiler=compiler,
            command=kernel.command,
            seconds=round(kernel.seconds, 3),
            registers=kernel.report.registers,
            stack_bytes=kernel.report.stack_bytes,
            spill_store_bytes=kernel.report.spill_store_bytes,
            spill_load_bytes=kernel.report.spill_load_bytes,
            cubin_sha256=hashlib.sha256(kernel.cubin).hexdigest(),
            cubin_bytes=len(kernel.cubin),
        )


@dataclass(frozen=True)
class Artifact:
    """A whole, checked entry."""

    cubin: bytes
    meta: Meta


class Damaged(Exception):
    """The entry exists but is not whole."""


def require_trusted(path: Path) -> None:
    """Refuse a directory in which another user could plant a kernel that we would run.

    Errors: CacheRefused if everyone may write there, or its group may and another user owns it.
    """
    status = os.stat(path)
    foreign = status.st_uid != os.geteuid()
    if status.st_mode & (stat.S_IWOTH | (stat.S_IWGRP if foreign else 0)):
        owner = f"owned by user {status.st_uid}" if foreign else "ours"
        raise CacheRefused(
            f"kernel cache {path}: expected a directory that only we can write, got mode "
            f"{stat.S_IMODE(status.st_mode):o}, {owner}; 'chmod go-w' it, or set TRTLLM_DG_CACHE_DIR"
        )


def read_entry(folder: Path) -> Artifact | None:
    """Read and check an entry; None if there is none. Errors: Damaged; OSError if unreadable."""
    try:
        os.stat(folder)
    except FileNotFoundError:
        return None
    try:
        meta_text = (folder / META).read_bytes()
        marker = (folder / MARKER).read_text().strip()
        cubin = (folder / CUBIN).read_bytes()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, UnicodeDecodeError) as error:
        raise Damaged(str(error)) from error
    if hashlib.sha256(meta_text).hexdigest() != marker:
        raise Damaged("the marker does not match meta.json")
    try:
        values = json.loads(meta_text)
        meta = Meta(**{f.name: values[f.name] for f in fields(Meta)})
    except (ValueError, KeyError, TypeError) as error:
        raise Damaged(f"meta.json: {error!r}") from error
    if hashlib.sha256(cubin).hexdigest() != meta.cubin_sha256:
        raise Damaged("the cubin does not match meta.json")
    return Artifact(cubin, meta)


def mark_used(folder: Path) -> None:
    """Note an entry's time of use for eviction, at most once an hour; failing to is no error."""
    marker = folder / MARKER
    try:
        if time.time() - marker.stat().st_mtime > _TOUCH_AFTER_S:
            os.utime(marker)
    except OSError:
        return


def write_entry(root: Path, entry: str, artifact: Artifact, extra: Mapping[str, bytes]) -> None:
    """Publish an entry by one rename; a whole one that is already there stays.

    Errors: OSError (disk full, read-only, ...), ArtifactError; nothing is left behind but the
        temporary directory of a process that was killed.
    """
    if kernel_name(artifact.cubin) != artifact.meta.symbol:
        raise ArtifactError(f"{entry}: expected kernel {artifact.meta.symbol}")
    meta_text = (json.dumps(asdict(artifact.meta), indent=1) + "\n").encode()
    marker = hashlib.sha256(meta_text).hexdigest().encode() + b"\n"
    temporary = root / "tmp" / f"{entry}.{secrets.token_hex(8)}"
    target = root / "kernels" / entry
    os.mkdir(temporary, 0o755)
    try:
        for name, data in {CUBIN: artifact.cubin, **extra, META: meta_text, MARKER: marker}.items():
            _write_synced(temporary / name, data)
        _sync_folder(temporary)
        try:
            os.rename(temporary, target)
        except OSError:
            # Without working locks two processes may publish the same key: the first one stays.
            if read_entry(target) is None:
                raise
            shutil.rmtree(temporary, ignore_errors=True)
        _sync_folder(target.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def remove_entry(root: Path, entry: str) -> None:
    """Take an entry out by one rename, then delete it; the caller holds its lock."""
    temporary = root / "tmp" / f"{entry}.{secrets.token_hex(8)}"
    try:
        os.rename(root / "kernels" / entry, temporary)
    except FileNotFoundError:
        return
    if temporary.is_dir():
        shutil.rmtree(temporary, ignore_errors=True)
    else:
        temporary.unlink(missing_ok=True)


def sweep_temporaries(root: Path, entry: str) -> None:
    """Delete what killed processes left of an entry; the caller holds its lock."""
    for leftover in (root / "tmp").glob(f"{entry}.*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _write_synced(path: Path, data: bytes) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(file, view) :]
        os.fsync(file)
    finally:
        os.close(file)


def _sync_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
