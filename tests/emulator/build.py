"""Builds the engine's extension module on first use and keeps it under build/.

    python -m tests.emulator.build          # build now, print where it is

The name carries a hash of the sources, the flags and the CPU's features, so a change of any of them
builds anew and nothing stale is ever loaded. Objects are cached one by one the same way.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import importlib.util
import os
import platform
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

import pybind11

HERE = Path(__file__).resolve().parent
SOURCES = HERE / "engine"
BUILD = HERE.parents[1] / "build" / "emulator"
# No contraction: PTX says where a product and a sum are fused, the compiler must not.
FLAGS = (
    "-std=c++20",
    "-O2",
    "-march=native",
    "-ftree-vectorize",
    "-ffp-contract=off",
    "-fvisibility=hidden",
    "-fPIC",
    "-Wall",
    "-Wextra",
    "-Werror",
)


class BuildError(Exception):
    """The C++ compiler refused a source file."""


def _fingerprint(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()[:16]


def _cpu_features() -> bytes:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return line.encode()
    return platform.machine().encode()


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BuildError(f"{' '.join(command)}\n{done.stderr}")


def _compile(source: Path, environment: bytes, compiler: str, module: str) -> Path:
    key = _fingerprint(environment, source.read_bytes(), module.encode())
    target = BUILD / "objects" / f"{source.stem}-{key}.o"
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(f".{os.getpid()}.tmp")
    includes = [f"-isystem{pybind11.get_include()}", f"-isystem{sysconfig.get_path('include')}"]
    defines = [f"-DEMULATOR_MODULE={module}"]
    _run([compiler, *FLAGS, *includes, *defines, "-c", str(source), "-o", str(partial)])
    partial.replace(target)
    return target


def build() -> Path:
    """The path of the extension module, compiled if need be.

    Errors: BuildError with the compiler's output.
    """
    module = "_emulator_engine"
    compiler = os.environ.get("CXX", "g++")
    headers = b"".join(path.read_bytes() for path in sorted(SOURCES.glob("*.h")))
    environment = _fingerprint(
        headers,
        " ".join((compiler, *FLAGS)).encode(),
        _cpu_features(),
        pybind11.__version__.encode(),
        sys.version.encode(),
    ).encode()
    sources = sorted(SOURCES.glob("*.cpp"))
    key = _fingerprint(environment, *(path.read_bytes() for path in sources))
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    target = BUILD / key / f"{module}{suffix}"
    if target.exists():
        return target
    with concurrent.futures.ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        jobs = [pool.submit(_compile, path, environment, compiler, module) for path in sources]
        objects = [str(job.result()) for job in jobs]
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(f".{os.getpid()}.tmp")
    _run([compiler, "-shared", "-o", str(partial), *objects])
    partial.replace(target)
    return target


def load() -> ModuleType:
    """The engine module, built first if need be."""
    path = build()
    name = path.name.split(".")[0]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise BuildError(f"cannot load {path}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    print(build())
