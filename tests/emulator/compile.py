"""CUDA to PTX, through nvcc or NVRTC, kept under build/ptx by content."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

_BUILD = Path(__file__).resolve().parents[2] / "build" / "ptx"
_ARCH = "sm_90a"
_INCLUDE = re.compile(rb'^\s*#\s*include\s+["<]([^">]+)[">]', re.MULTILINE)


class CompilerMissing(Exception):
    """Neither nvcc nor NVRTC is there; tests skip with this text."""


class CompileError(Exception):
    """The CUDA compiler refused the source."""


def _contents(source: Path, folders: Sequence[Path], seen: dict[Path, bytes]) -> None:
    """The source and every include found beside it or in `folders`: a changed header compiles anew."""
    data = source.read_bytes()
    seen[source] = data
    for name in _INCLUDE.findall(data):
        for folder in (source.parent, *folders):
            header = (folder / name.decode()).resolve()
            if header.is_file():
                if header not in seen:
                    _contents(header, folders, seen)
                break


def _with_nvcc(nvcc: str, source: Path, options: Sequence[str], target: Path) -> None:
    command = [nvcc, f"-arch={_ARCH}", "-std=c++17", "-lineinfo", "-ptx", *options]
    done = subprocess.run(
        [*command, str(source), "-o", str(target)], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise CompileError(f"{source.name}: {done.stderr.strip()}")


def _with_nvrtc(source: Path, options: Sequence[str], target: Path) -> None:
    try:
        from cupy_backends.cuda.libs import nvrtc

        nvrtc.getVersion()
    except Exception as error:  # a missing package, library or symbol: each loader has its own
        raise CompilerMissing(f"no CUDA compiler: neither nvcc nor NVRTC ({error})") from error
    program = nvrtc.createProgram(source.read_text(), source.name, (), ())
    flags = [f"-arch={_ARCH}", "-std=c++17", "-lineinfo", f"-I{source.parent}", *options]
    try:
        nvrtc.compileProgram(program, tuple(flags))
    except nvrtc.NVRTCError as error:
        raise CompileError(f"{source.name}: {nvrtc.getProgramLog(program)}") from error
    target.write_bytes(nvrtc.getPTX(program))


def compile_ptx(source: Path, *, defines: Sequence[str] = (), flags: Sequence[str] = ()) -> Path:
    """Compile a .cu file for sm_90a with line information.

    Args:
        source: the file; its includes are found beside it and in -I folders (one word, `-Ipath`).
        defines: "NAME" or "NAME=VALUE", in order.
        flags: further compiler flags.
    Returns: the PTX file, from the cache where nothing changed.
    Errors: CompilerMissing, CompileError.
    """
    source = source.resolve()
    options = [f"-D{name}" for name in defines] + list(flags)
    seen: dict[Path, bytes] = {}
    folders = [Path(flag[2:]).resolve() for flag in flags if flag.startswith("-I")]
    _contents(source, folders, seen)
    digest = hashlib.sha256("\0".join(options).encode())
    for path in sorted(seen):
        digest.update(path.name.encode() + seen[path])
    target = _BUILD / f"{source.stem}-{digest.hexdigest()[:16]}.ptx"
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(f".{os.getpid()}.tmp")
    nvcc = shutil.which("nvcc")
    if nvcc is not None:
        _with_nvcc(nvcc, source, options, partial)
    else:
        _with_nvrtc(source, options, partial)
    partial.replace(target)
    return target
