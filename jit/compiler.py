"""Two compilers behind one interface: NVRTC (default) and nvcc. Both give cubin and PTX for sm_90a."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from seekernel import env
from seekernel.jit import nvrtc
from seekernel.jit.cubin import PtxasReport, kernel_name, read_ptxas
from seekernel.jit.errors import CompileError, CompilerMissing, StaticCheckError
from seekernel.jit.spec import ARCH, KernelSpec

logger = logging.getLogger("seekernel.jit")

LANGUAGE = "-std=c++20"
MIN_NVCC = (12, 3)
NVCC_TIMEOUT_S = 600


@dataclass(frozen=True)
class CompilerOutput:
    """What a compiler run left: the two artifacts, its messages, what was run."""

    cubin: bytes
    ptx: str
    log: str
    command: tuple[str, ...]


class Compiler(Protocol):
    """One compiler on this machine."""

    @property
    def identity(self) -> str:
        """Name and exact build: equal identities give equal code."""

    def options(self, spec: KernelSpec) -> tuple[str, ...]:
        """Everything that decides the code beyond source and headers."""

    def run(self, spec: KernelSpec, headers: Mapping[str, str]) -> CompilerOutput:
        """Compile. Errors: CompileError with the compiler's output."""


class Nvrtc:
    """NVRTC through CuPy: headers in memory, no toolkit, no GPU."""

    @property
    def identity(self) -> str:
        return nvrtc.identity()

    def options(self, spec: KernelSpec) -> tuple[str, ...]:
        # Without --no-source-include a folder 'seekernel' in the working directory could be read.
        fixed = (f"--gpu-architecture={ARCH}", LANGUAGE, "--no-source-include")
        return (*fixed, "--ptxas-options=-v", *spec.options)

    def run(self, spec: KernelSpec, headers: Mapping[str, str]) -> CompilerOutput:
        options = self.options(spec)
        result = nvrtc.compile_program(spec.source(), headers, options)
        if result.error:
            raise CompileError(spec.name, self.identity, result.log or result.error)
        return CompilerOutput(result.cubin, result.ptx, result.log, ("nvrtc", *options))


class Nvcc:
    """nvcc as a subprocess, never through a shell.

    Args: path: the compiler.  Errors: CompilerMissing if it does not run or is older than 12.3.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._identity = _nvcc_identity(path, _stamp(path))

    @property
    def identity(self) -> str:
        return self._identity

    def options(self, spec: KernelSpec) -> tuple[str, ...]:
        number = ARCH.removeprefix("sm_")
        target = f"-gencode=arch=compute_{number},code={ARCH}"
        return (target, LANGUAGE, "-O3", "--ptxas-options=-v", *spec.options)

    def run(self, spec: KernelSpec, headers: Mapping[str, str]) -> CompilerOutput:
        with tempfile.TemporaryDirectory(prefix="seekernel-nvcc-") as folder:
            for name, text in headers.items():
                path = Path(folder, "include", name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
            Path(folder, "kernel.cu").write_text(spec.source(), encoding="utf-8")
            # --keep leaves the PTX that the cubin was made from.
            command = [str(self.path), *self.options(spec), "-Iinclude", "-cubin", "--keep"]
            command += ["kernel.cu", "-o", "kernel.cubin"]
            try:
                done = subprocess.run(
                    command,
                    cwd=folder,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                    errors="replace",
                    timeout=NVCC_TIMEOUT_S,
                )
            except (OSError, subprocess.TimeoutExpired) as error:
                raise CompileError(spec.name, str(self.path), str(error)) from error
            if done.returncode != 0:
                raise CompileError(
                    spec.name, self.identity, f"exit status {done.returncode}\n{done.stdout}"
                )
            cubin = Path(folder, "kernel.cubin").read_bytes()
            ptx = Path(folder, "kernel.ptx").read_text(encoding="utf-8")
        return CompilerOutput(cubin, ptx, done.stdout, tuple(command))


def _stamp(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError as error:
        raise CompilerMissing(f"nvcc: {path}: {error.strerror}; {_NVCC_HELP}") from error
    return status.st_mtime_ns, status.st_size


_NVCC_HELP = (
    "install the CUDA toolkit 12.3 or newer, or name its compiler in TRTLLM_DG_NVCC_COMPILER, "
    "or unset TRTLLM_DG_JIT_USE_NVCC to use NVRTC"
)


@lru_cache(maxsize=8)
def _nvcc_identity(path: Path, stamp: tuple[int, int]) -> str:
    try:
        text = subprocess.run(
            [str(path), "--version"], capture_output=True, text=True, check=True, timeout=60
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise CompilerMissing(f"nvcc: '{path} --version' failed ({error}); {_NVCC_HELP}") from error
    version = re.search(r"V(\d+)\.(\d+)\.(\d+)", text)
    if version is None:
        raise CompilerMissing(f"nvcc: '{path} --version' names no version: {text!r}; {_NVCC_HELP}")
    if (int(version[1]), int(version[2])) < MIN_NVCC:
        raise CompilerMissing(f"nvcc: expected CUDA >= 12.3, got {version[0]}; {_NVCC_HELP}")
    return f"nvcc {version[0]} {hashlib.sha256(text.encode()).hexdigest()[:16]}"


def find_nvcc() -> Path:
    """TRTLLM_DG_NVCC_COMPILER, else $CUDA_HOME/bin/nvcc, else nvcc on PATH.

    Errors: CompilerMissing saying what to install.
    """
    named = env.TRTLLM_DG_NVCC_COMPILER.get()
    if named is not None:
        return named
    home = os.environ.get("CUDA_HOME")
    found = shutil.which("nvcc", path=f"{home}/bin") if home else None
    found = found or shutil.which("nvcc")
    if found is None:
        raise CompilerMissing(f"nvcc: not in CUDA_HOME/bin and not on PATH; {_NVCC_HELP}")
    return Path(found)


def compiler_from_env() -> Compiler:
    """The compiler that the environment asks for. Errors: CompilerMissing, EnvError."""
    if env.TRTLLM_DG_JIT_USE_NVCC.get():
        return Nvcc(find_nvcc())
    nvrtc.require()
    return Nvrtc()


@dataclass(frozen=True)
class CompiledKernel:
    """A compiled kernel that passed the static checks, and how it came to be."""

    cubin: bytes
    ptx: str
    symbol: str
    report: PtxasReport
    command: tuple[str, ...]
    seconds: float


def compile_kernel(
    spec: KernelSpec, compiler: Compiler, headers: Mapping[str, str]
) -> CompiledKernel:
    """Compile one kernel and check the code.

    Errors: CompileError; StaticCheckError for spills, local memory or serialised wgmma;
        ArtifactError for a cubin that is not whole.
    """
    verbose = env.TRTLLM_DG_PTXAS_VERBOSE.get()
    if env.TRTLLM_DG_JIT_PRINT_NVCC_COMMAND.get():
        print(f"seekernel.jit: {' '.join(compiler.options(spec))}", file=sys.stderr)
    start = time.perf_counter()
    output = compiler.run(spec, headers)
    seconds = time.perf_counter() - start
    logger.debug("%s: %s in %.2f s\n%s", spec.name, compiler.identity, seconds, spec.source())
    logger.debug("%s: %s\n%s", spec.name, " ".join(output.command), output.log)
    if verbose:
        print(f"seekernel.jit: {spec.name}\n{output.log}", file=sys.stderr)
    report = read_ptxas(output.log)
    if report.faults:
        raise StaticCheckError(spec.name, report.faults)
    symbol = kernel_name(output.cubin)
    return CompiledKernel(output.cubin, output.ptx, symbol, report, output.command, seconds)
