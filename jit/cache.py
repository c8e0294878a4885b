"""The kernel cache: build once per key over all processes, keep on disk, evict what is not used."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from seekernel import env
from seekernel.jit.locks import locked
from seekernel.jit.store import (
    MARKER,
    Artifact,
    Damaged,
    mark_used,
    read_entry,
    remove_entry,
    require_trusted,
    sweep_temporaries,
    write_entry,
)

logger = logging.getLogger("seekernel.jit")


class CacheWarning(UserWarning):
    """The cache on disk cannot be used; kernels live in this process only."""


@dataclass(frozen=True)
class Built:
    """What a build gives the cache: the artifact and further files to keep beside it."""

    artifact: Artifact
    extra: Mapping[str, bytes]


@dataclass(frozen=True)
class Entry:
    """One line of `seekernel jit ls`."""

    key: str
    bytes: int
    last_used: float
    artifact: Artifact | None


def default_root() -> Path:
    """TRTLLM_DG_CACHE_DIR, else $XDG_CACHE_HOME/seekernel, else ~/.cache/seekernel."""
    named = env.TRTLLM_DG_CACHE_DIR.get()
    if named is not None:
        return named
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "seekernel"


class KernelCache:
    """A cache root of our own and further ones that are only read.

    Args:
        root: made when first written to.
        read_only_roots: looked into after `root`, in order.
        max_bytes: size above which the least recently used entries go; 0 for no limit.
    Errors: CacheRefused if other users may write to a root.
    """

    def __init__(
        self, root: Path, read_only_roots: Sequence[Path] = (), max_bytes: int = 0
    ) -> None:
        self.root = root
        self.read_only_roots = tuple(read_only_roots)
        self.max_bytes = max_bytes
        for path in (root, *self.read_only_roots):
            for folder in (path, path / "kernels"):
                if _exists(folder):
                    require_trusted(folder)

    @classmethod
    def from_env(cls) -> KernelCache:
        """The cache that the environment describes. Errors: EnvError, CacheRefused."""
        read_only = env.SEEKERNEL_JIT_READ_ONLY_DIRS.get()
        return cls(default_root(), read_only, env.SEEKERNEL_JIT_CACHE_MAX_MB.get() << 20)

    def get(self, key: str) -> Artifact | None:
        """The entry, from the own root or a read-only one; None for a miss or a damaged entry."""
        for root in (self.root, *self.read_only_roots):
            try:
                found = read_entry(root / "kernels" / key)
            except Damaged as error:
                logger.warning("%s/kernels/%s: damaged (%s)", root, key, error)
            except OSError as error:
                logger.warning("%s/kernels/%s: unreadable (%s)", root, key, error.strerror)
            else:
                if found is not None:
                    logger.debug("%s: found in %s", key, root)
                    if root == self.root:
                        mark_used(root / "kernels" / key)
                    return found
        return None

    def get_or_build(self, key: str, build: Callable[[], Built]) -> Artifact:
        """The entry, built and published if there is none; one process builds, the others wait.

        A root that cannot be written is a CacheWarning, and the kernel is kept in memory only.
        Errors: what `build` raises; seekernel.jit.ArtifactError for a cubin that is not whole;
            CacheRefused.
        """
        found = self.get(key)
        if found is not None:
            return found
        with ExitStack() as stack:
            try:
                self._make_root()
                stack.enter_context(locked(self.root / "locks" / key))
            except OSError as error:
                self._warn(error)
                return build().artifact
            return self._build_locked(key, build)

    def _build_locked(self, key: str, build: Callable[[], Built]) -> Artifact:
        found = self.get(key)
        if found is not None:
            return found
        built = build()
        try:
            remove_entry(self.root, key)
            sweep_temporaries(self.root, key)
            write_entry(self.root, key, built.artifact, built.extra)
        except OSError as error:
            self._warn(error)
        else:
            self._evict(keep=key)
        return built.artifact

    def _make_root(self) -> None:
        for folder in (self.root, *(self.root / name for name in ("kernels", "tmp", "locks"))):
            if not _exists(folder):
                folder.mkdir(mode=0o755, parents=True, exist_ok=True)
            require_trusted(folder)

    def _warn(self, error: OSError) -> None:
        code = errno.errorcode.get(error.errno or 0, "?")
        warnings.warn(
            f"kernel cache {self.root}: {error.strerror} ({code}); kernels are compiled for this "
            "process only. Make room or make it writable, or set TRTLLM_DG_CACHE_DIR",
            CacheWarning,
            stacklevel=4,
        )

    def entries(self) -> list[Entry]:
        """All entries of the own root, the most recently used first; damaged ones have no artifact."""
        found = []
        for folder in _children(self.root / "kernels"):
            try:
                artifact = read_entry(folder)
            except (Damaged, OSError):
                artifact = None
            found.append(Entry(folder.name, *_size_and_use(folder), artifact))
        return sorted(found, key=lambda entry: -entry.last_used)

    def clear(self) -> int:
        """Remove every entry of the own root and what killed processes left; how many entries."""
        removed = 0
        for folder in _children(self.root / "kernels"):
            removed += self._remove(folder.name, wait=True)
        for leftover in _children(self.root / "tmp"):
            key = leftover.name.rpartition(".")[0]
            with locked(self.root / "locks" / key, wait=False) as held:
                if held:
                    shutil.rmtree(leftover, ignore_errors=True)
        return removed

    def _remove(self, key: str, *, wait: bool) -> bool:
        lock_file = self.root / "locks" / key
        with locked(lock_file, wait=wait) as held:
            if held:
                remove_entry(self.root, key)
                lock_file.unlink(missing_ok=True)
            return held

    def _evict(self, keep: str) -> None:
        """Remove the least recently used entries until the rest takes 9/10 of the limit."""
        if not self.max_bytes:
            return
        sized = [(folder, *_size_and_use(folder)) for folder in _children(self.root / "kernels")]
        total = sum(size for _, size, _ in sized)
        if total <= self.max_bytes:
            return
        for folder, size, _ in sorted(sized, key=lambda item: item[2]):
            if total <= self.max_bytes * 9 // 10:
                return
            # An entry whose lock is taken is being written: it is in use by definition.
            if folder.name != keep and self._remove(folder.name, wait=False):
                total -= size
                logger.debug("%s: evicted", folder.name)


def _exists(path: Path) -> bool:
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return False
    return True


def _children(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return []


def _size_and_use(folder: Path) -> tuple[int, float]:
    """Bytes of an entry and when it was last used; zeros for one that is going away."""
    try:
        size = sum(path.stat().st_size for path in _children(folder))
        marker = folder / MARKER
        return size, (marker if marker.exists() else folder).stat().st_mtime
    except OSError:
        return 0, 0.0
