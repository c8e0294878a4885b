"""The MLA tests once more under every instruction set that this machine has and did not choose."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from seekernel import _extension

TESTS = Path(__file__).parent
FILES = ["test_mla_decode.py", "test_mla_prefill.py", "test_mla_prepare.py"]


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_mla_under(isa: str) -> None:
    if isa == _extension.build_info()["cpu_isa"]:
        pytest.skip(f"{isa} is what the tests themselves run on")
    environment = {**os.environ, "SEEKERNEL_CPU_ISA": isa}
    probe = "from seekernel import _extension; _extension.build_info()"
    found = subprocess.run(
        [sys.executable, "-c", probe], env=environment, capture_output=True, text=True, check=False
    )
    if f"this machine has no {isa}" in found.stderr:
        pytest.skip(f"no {isa} here")
    command = [sys.executable, "-m", "pytest", "-x", "-k", "not opcheck and not rejects"]
    result = subprocess.run(
        [*command, *(str(TESTS / name) for name in FILES)],
        cwd=TESTS.parent,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
