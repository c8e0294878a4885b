"""Locks between processes, one file per key, that vanish with the process that holds them."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

logger = logging.getLogger("seekernel.jit")

_open_files: set[int] = set()


def _close_in_child() -> None:
    # A forked child shares the lock: it would keep it when the parent dies.
    for file in list(_open_files):
        os.close(file)
    _open_files.clear()


os.register_at_fork(after_in_child=_close_in_child)


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold the lock file's exclusive flock; yields False where `wait` is off and it is taken.

    A file system without locks yields True after a log line: publishing is atomic without them too,
    only work may be done twice.
    Errors: OSError where the file cannot be made.
    """
    file = _acquire(path, wait)
    try:
        yield file is not None
    finally:
        if file is not None:
            # Unlock before closing: a child forked meanwhile may have the file open as well.
            fcntl.flock(file, fcntl.LOCK_UN)
            _open_files.discard(file)
            os.close(file)


def _acquire(path: Path, wait: bool) -> int | None:
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        _open_files.add(file)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            # Whoever clears the cache removes lock files: one that is gone protects nothing.
            if _same_file(file, path):
                return file
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES) and not wait:
                _drop(file)
                return None
            if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                logger.warning("%s: no file locks here (%s)", path, error.strerror)
                return file
            _drop(file)
            raise
        _drop(file)


def _drop(file: int) -> None:
    _open_files.discard(file)
    os.close(file)


def _same_file(file: int, path: Path) -> bool:
    try:
        named = os.stat(path)
    except FileNotFoundError:
        return False
    held = os.fstat(file)
    return (held.st_dev, held.st_ino) == (named.st_dev, named.st_ino)
