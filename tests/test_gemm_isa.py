"""The GEMM tests once more under every instruction set below the one this machine chooses."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from seekernel._extension import build_info

ROOT = Path(__file__).resolve().parent.parent
LOWER = {"avx512": ["avx2", "baseline"], "avx2": ["baseline"], "baseline": []}


@pytest.mark.parametrize("isa", LOWER[build_info()["cpu_isa"]])
def test_gemm_under(isa: str) -> None:
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", "tests/test_gemm.py"]
    environment = os.environ | {"SEEKERNEL_CPU_ISA": isa}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
