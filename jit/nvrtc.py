"""NVRTC through CuPy's binding: finds the library, names its exact build, compiles in memory."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from seekernel.jit.cubin import missing_bytes
from seekernel.jit.errors import CompilerMissing

HELP = (
    "install CuPy with NVRTC: pip install 'seekernel[cuda13]' (or 'seekernel[cuda12]'), which needs "
    "the wheel nvidia-cuda-nvrtc or a CUDA toolkit; or set TRTLLM_DG_JIT_USE_NVCC=1 to use nvcc"
)
_CUPY = {"cupy-cuda13x": 13, "cupy-cuda12x": 12}


@dataclass(frozen=True)
class NvrtcResult:
    """Outcome of one compilation; `error` is empty on success."""

    cubin: bytes
    ptx: str
    log: str
    error: str


@lru_cache(maxsize=1)
def _cuda_major() -> int:
    for distribution, major in _CUPY.items():
        try:
            version(distribution)
        except PackageNotFoundError:
            continue
        return major
    raise CompilerMissing(f"NVRTC: no CuPy here; {HELP}")


@lru_cache(maxsize=1)
def _wheel_library() -> Path | None:
    """libnvrtc of the nvidia wheels, found without loading anything."""
    spec = find_spec("nvidia")
    for location in (spec.submodule_search_locations or ()) if spec else ():
        for path in sorted(Path(location).glob(f"*/lib/libnvrtc.so.{_cuda_major()}")):
            return path
    return None


@lru_cache(maxsize=1)
def _binding() -> Any:
    """CuPy's NVRTC module with the library loaded, the wheel's one if there is one."""
    library = _wheel_library()
    try:
        if library is not None:
            # NVRTC opens its builtins by bare name: they must be in the process already.
            for builtins in library.parent.glob("libnvrtc-builtins.so.*"):
                ctypes.CDLL(str(builtins), mode=ctypes.RTLD_GLOBAL)
            ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
        nvrtc: Any = import_module("cupy_backends.cuda.libs.nvrtc")
        nvrtc.getVersion()
    except Exception as error:  # CuPy's own exception types exist only once it is imported.
        raise CompilerMissing(f"NVRTC: cannot be loaded ({error}); {HELP}") from error
    return nvrtc


def _loaded_library() -> Path:
    _binding()
    for line in Path("/proc/self/maps").read_text().splitlines():
        path = Path(line.split(maxsplit=5)[-1])
        if path.name.startswith("libnvrtc.so"):
            return path
    raise CompilerMissing(f"NVRTC: the loaded library has no file; {HELP}")


def _build_id(library: Path) -> str:
    """The GNU build id in the notes of a 64-bit ELF file."""
    with library.open("rb") as file:
        header = file.read(64)
        table, size, count = (
            struct.unpack_from(f, header, o)[0] for f, o in (("<Q", 32), ("<H", 54), ("<H", 56))
        )
        file.seek(table)
        programs = file.read(size * count)
        for index in range(count):
            kind, _, offset, _, _, length = struct.unpack_from("<IIQQQQ", programs, index * size)
            if kind != 4:
                continue
            file.seek(offset)
            notes = file.read(length)
            at = notes.find(b"\x04\0\0\0\x14\0\0\0\x03\0\0\0GNU\0")
            if at >= 0:
                return notes[at + 16 : at + 36].hex()
    raise CompilerMissing(f"NVRTC: {library} has no build id; {HELP}")


def require() -> None:
    """Errors: CompilerMissing, saying what to install, if NVRTC cannot be used here."""
    identity()


@lru_cache(maxsize=1)
def identity() -> str:
    """Name and build of the NVRTC in use; does not load a wheel's library, so it is cheap."""
    library = _wheel_library() or _loaded_library()
    return f"nvrtc {_cuda_major()} {_build_id(library)}"


def compile_program(source: str, headers: Mapping[str, str], options: Sequence[str]) -> NvrtcResult:
    """Compile one translation unit whose includes are all in `headers` (path to text)."""
    nvrtc = _binding()
    program = nvrtc.createProgram(
        source, "kernel.cu", [text.encode() for text in headers.values()],
        [name.encode() for name in headers],
    )  # fmt: skip
    try:
        error = ""
        try:
            nvrtc.compileProgram(program, tuple(options))
        except nvrtc.NVRTCError as failure:
            error = str(failure)
        log = nvrtc.getProgramLog(program).rstrip("\0")
        if error:
            return NvrtcResult(b"", "", log, error)
        ptx = bytes(nvrtc.getPTX(program)).rstrip(b"\0").decode()
        # CuPy cuts off the last byte, as if it ended a string; in an ELF file it is a zero too, the
        # top of the last program header's alignment.
        cubin = bytes(nvrtc.getCUBIN(program))
        return NvrtcResult(cubin + bytes(missing_bytes(cubin) == 1), ptx, log, "")
    finally:
        nvrtc.destroyProgram(program)
