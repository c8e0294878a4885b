"""Compile a foreign kernel to PTX, and its parameter-filling host half to a shared library.

CUTLASS takes over a minute, so both are kept under the build folder, keyed by everything that goes in.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.emulator.foreign.wheels import (
    CACHE,
    CUTLASS,
    DEEP_GEMM,
    FLASHINFER,
    Wheel,
)

FOLDER = Path(__file__).parent


class CompilerUnavailable(Exception):
    """No nvcc on this machine."""

    def __init__(self) -> None:
        super().__init__("nvcc: expected on PATH, got nothing")


class EditFailed(Exception):
    """A wheel whose text is not what the edit was written for."""

    def __init__(self, path: str, count: int) -> None:
        super().__init__(f"{path}: expected one match of the edit's pattern, got {count}")


@dataclass(frozen=True)
class Foreign:
    """One foreign kernel build.

    Args:
        source: file in this folder.
        wheel: whose headers it includes.
        defines: macros.
        standard: C++ standard the headers want.
        empty_headers: headers that the wheel includes but the kernel does not need, and that the
            toolkit may lack: empty files stand in for them.
        has_host: whether there is a host half to build.
        edits: (path in the wheel, pattern) of text that is cut out of a wheel's file, into a folder
            beside the build that mirrors the wheel; the wheel itself stays as it is.
    """

    source: str
    wheel: Wheel
    defines: tuple[str, ...] = ()
    standard: str = "c++17"
    empty_headers: tuple[str, ...] = ()
    has_host: bool = True
    edits: tuple[tuple[str, str], ...] = ()

    def build(self) -> tuple[Path, Path | None]:
        """PTX and host library, compiled unless they are kept from before.

        Errors: WheelUnavailable, CompilerUnavailable; CalledProcessError when nvcc fails.
        """
        nvcc = shutil.which("nvcc")
        if nvcc is None:
            raise CompilerUnavailable
        includes = self.wheel.include_flags()
        source = FOLDER / self.source
        version = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True)
        parts = (source.read_text(), self.wheel.sha256, str(self), version.stdout)
        digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
        final = CACHE / f"{source.stem}-{digest}"
        ptx, host = final / f"{source.stem}.ptx", final / "host.so"
        if not final.exists():
            self._compile(nvcc, source, includes, final)
        return ptx, host if self.has_host else None

    def _compile(self, nvcc: str, source: Path, includes: tuple[str, ...], final: Path) -> None:
        work = final.with_name(f"{final.name}.{os.getpid()}")
        work.mkdir(parents=True)
        for header in self.empty_headers:
            (work / "stand_in" / header).parent.mkdir(parents=True, exist_ok=True)
            (work / "stand_in" / header).touch()
        # Headers include each other relative to themselves, so an edited one needs its whole tree.
        for path, pattern in self.edits:
            root = next(i for i in self.wheel.includes if path.startswith(f"{i}/"))
            copy = work / "edited" / root
            if not copy.exists():
                shutil.copytree(self.wheel.folder / root, copy)
            edited = work / "edited" / path
            text, count = re.subn(pattern, "", edited.read_text())
            if count != 1:
                raise EditFailed(path, count)
            edited.write_text(text)
            includes = (f"-I{copy}", *includes)
        command = [nvcc, f"-std={self.standard}", "-lineinfo", "-w", "--expt-relaxed-constexpr"]
        command += ["--expt-extended-lambda", *(f"-D{define}" for define in self.defines)]
        command += [f"-I{work / 'stand_in'}", *includes, str(source)]
        # One pass of the front end serves both halves: --keep leaves the PTX behind.
        both = [
            "-gencode=arch=compute_90a,code=compute_90a",
            "-shared",
            "-Xcompiler=-fPIC",
            "--keep",
        ]
        both += [f"--keep-dir={work}", "-o", str(work / "host.so")]
        device = ["-arch=sm_90a", "-ptx", "-o", str(work / f"{source.stem}.ptx")]
        subprocess.run(
            command + (both if self.has_host else device),
            check=True,
            capture_output=True,
            text=True,
        )
        final.mkdir(parents=True, exist_ok=True)
        for name in (f"{source.stem}.ptx", "host.so"):
            if (work / name).exists():
                (work / name).replace(final / name)
        shutil.rmtree(work)


CUTLASS_FP8 = Foreign("cutlass_gemm.cu", CUTLASS, ("VARIANT=0",))
CUTLASS_BF16 = Foreign("cutlass_gemm.cu", CUTLASS, ("VARIANT=1",))
DEEP_GEMM_FP8 = Foreign("deep_gemm_fp8.cu", DEEP_GEMM, (), "c++20", has_host=False)
DEEP_GEMM_MULTICAST = Foreign(
    "deep_gemm_fp8.cu", DEEP_GEMM, ("MULTICAST=2", "STAGES=3"), "c++20", has_host=False
)
_NOT_NEEDED = ("cutlass/util/reference/device/tensor_fill.h",)
FLASHINFER_ATTENTION_AS_SHIPPED = Foreign(
    "flashinfer_attention.cu", FLASHINFER, empty_headers=_NOT_NEEDED
)
FLASHINFER_ATTENTION = Foreign(
    "flashinfer_attention.cu",
    FLASHINFER,
    empty_headers=_NOT_NEEDED,
    # Every warp arrives at the epilogue's barrier and then syncs on it, so it opens after half of the
    # warps have passed twice. Without the arrival the barrier means what its comment says.
    edits=(
        (
            "flashinfer/data/include/flashinfer/attention/hopper/epilogue.cuh",
            r"cutlass::arch::NamedBarrier::arrive\(NUM_MMA_THREADS,[^;]*;",
        ),
    ),
)
