"""What the build may contain: SEEKERNEL_CUDA, what the library needs to load, where AVX may appear."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from seekernel import _extension

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = str(sys.modules["seekernel._C"].__file__)
CUDA_VERSION = _extension.build_info()["cuda_version"]

needs_setup_py = pytest.mark.skipif(
    not (ROOT / "setup.py").exists(), reason="needs the source tree"
)


def output_of(*command: str) -> str:
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} (Debian: binutils) is not installed")
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def setup_py() -> dict[str, Any]:
    with patch("setuptools.setup"):
        return runpy.run_path(str(ROOT / "setup.py"))


@needs_setup_py
def test_seekernel_cuda_chooses(
    setup_py: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    find = setup_py["find_toolkit"]
    monkeypatch.setenv("SEEKERNEL_CUDA", "2")
    with pytest.raises(SystemExit, match="SEEKERNEL_CUDA: expected 0, 1 or auto, got '2'"):
        find()
    monkeypatch.setenv("SEEKERNEL_CUDA", "0")
    assert find() == "SEEKERNEL_CUDA=0"

    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setenv("SEEKERNEL_CUDA", "auto")
    assert find() == "no nvcc on PATH or in CUDA_HOME/bin"
    monkeypatch.setenv("SEEKERNEL_CUDA", "1")
    with pytest.raises(SystemExit, match="SEEKERNEL_CUDA=1: no nvcc on PATH"):
        find()

    nvcc = tmp_path / "nvcc"
    nvcc.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 12.1, V12.1.105'\n")
    nvcc.chmod(0o755)
    with pytest.raises(SystemExit, match=r"expected CUDA >= 12\.3, got 12\.1"):
        find()
    monkeypatch.setenv("SEEKERNEL_CUDA", "auto")
    assert "expected CUDA >= 12.3" in find(), "an old toolkit never fails an automatic build"


@needs_setup_py
def test_bad_seekernel_cuda_stops_the_build(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--build-temp", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "SEEKERNEL_CUDA": "2"},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert done.stderr.strip().endswith("SEEKERNEL_CUDA: expected 0, 1 or auto, got '2'")


def test_loads_without_cuda() -> None:
    """Whatever was built, the library asks the loader for nothing that a CPU-only machine lacks."""
    needed = re.findall(r"\(NEEDED\).*\[(.*?)\]", output_of("readelf", "-d", LIBRARY))
    assert needed, "readelf was misread"
    assert not [name for name in needed if re.search(r"cuda|cudart|nvidia|c10_cuda", name)]
    undefined = output_of("nm", "-D", "--undefined-only", LIBRARY)
    assert "aoti_torch" in undefined, "nm was misread"
    assert not re.findall(r".*(?:cuda|\bcu[A-Z]).*", undefined)


def test_static_runtime_is_not_exported() -> None:
    """An exported cudaMalloc could be bound to by, or bind to, another version of the runtime."""
    defined = output_of("nm", "-D", "--defined-only", LIBRARY)
    assert "PyInit__C" in defined, "nm was misread"
    assert not re.findall(r".* (?:cuda|__cuda|cu[A-Z]).*", defined)


@pytest.mark.skipif(not CUDA_VERSION, reason="built without CUDA")
def test_cuda_kernels_are_for_hopper() -> None:
    assert re.fullmatch(r"\d+\.\d+", CUDA_VERSION)
    embedded = output_of("readelf", "-SW", LIBRARY)
    assert ".nv_fatbin" in embedded
    assert b"sm_90a" in Path(LIBRARY).read_bytes()


def wide_instructions(disassembly: str) -> dict[str, set[str]]:
    """Return the functions that use AVX registers or encodings, with what they use."""
    found: dict[str, set[str]] = {}
    function = ""
    for line in disassembly.splitlines():
        if heading := re.match(r"[0-9a-f]+ <(.*)>:$", line):
            function = heading[1]
        elif wide := re.search(r"%[yz]mm\d+|\tv[a-z0-9]+ .*%xmm", line):
            found.setdefault(function, set()).add(wide[0].strip())
    return found


def test_avx_stays_in_its_namespaces() -> None:
    """A function shared between ISA translation units would bring AVX to machines without it."""
    disassembly = output_of("objdump", "-d", "--no-show-raw-insn", LIBRARY)
    found = wide_instructions(disassembly)
    guarded = re.compile(r"seekernel.*(?:4avx2|6avx512)")
    assert any("4avx2" in name for name in found), "objdump was misread"
    assert any("6avx512" in name for name in found), "objdump was misread"
    assert not {name: uses for name, uses in found.items() if not guarded.search(name)}
