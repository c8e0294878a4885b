"""Mutated PTX never crashes or hangs: it is refused, reported, or runs clean.

Every batch runs in a process of its own, so that a crash is a failed test and not the end of all.
"""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.emulator.compile import CompilerMissing, compile_ptx
from tests.emulator.emulator_backend import Emulator
from tests.emulator.frontend.statements import PtxError
from tests.emulator.kernels.cases import CONTROLS
from tests.emulator.launch import Argument, KernelFault, LaunchError
from tests.emulator.ptx_samples import STORE_R1, kernel

_TEXTS = 10_000
_BATCHES = 8
_ROOT = Path(__file__).resolve().parents[2]
_TOKENS = (
    "%r1", "%rd1", "%p1", "%f1", "0", "-1", "0xffffffff", "99999999999999999999", "{", "}", "[", "]",
    "(", ")", ";", ",", ":", "@", "!", "+", ".", "bra", "ret;", "bar.sync 0;", "call.uni x;", "trap;",
    "shfl.sync.idx.b32 %r1, %r1, %r1, %r1, %r1;", "mbarrier.try_wait.parity.shared.b64 %p1, [%r1], 0;",
    ".reg .b32 %q<5>;", ".shared .b8 s[64];", "wgmma.wait_group.sync.aligned 0;", "\0", "\xff", "//", "/*",
)  # fmt: skip


def _seeds() -> list[str]:
    """Small kernels of every kind; big ones would only make the run slow."""
    seeds = [kernel(f"mov.u32 %r1, %tid.x; {STORE_R1}")]
    for case in CONTROLS:
        text = compile_ptx(case.source, defines=case.defines).read_text()
        if len(text) < 16_000:
            seeds.append(text)
    return seeds


def _mutate(text: str, rng: random.Random) -> str:
    lines = text.split("\n")
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(lines))
        line = lines[at]
        kind = rng.randrange(7)
        if kind == 0:
            del lines[at]
        elif kind == 1:
            lines.insert(at, lines[rng.randrange(len(lines))])
        elif kind == 2:
            other = rng.randrange(len(lines))
            lines[at], lines[other] = lines[other], lines[at]
        elif kind == 3 and line:
            cut = rng.randrange(len(line))
            lines[at] = line[:cut] + rng.choice(_TOKENS) + line[cut:]
        elif kind == 4 and line:
            cut = rng.randrange(len(line))
            lines[at] = line[:cut] + line[cut + 1 :]
        elif kind == 5:
            words = line.split()
            if words:
                words[rng.randrange(len(words))] = rng.choice(_TOKENS)
            lines[at] = " ".join(words)
        else:
            digits = [i for i, char in enumerate(line) if char.isdigit()]
            if digits:
                cut = rng.choice(digits)
                lines[at] = line[:cut] + rng.choice("0123456789") + line[cut + 1 :]
        if not lines:
            return ""
    return "\n".join(lines)


def _try(text: str, index: int) -> str:
    """Load and run one text; the outcome's name."""
    device = Emulator(max_instructions=3_000)
    try:
        module = device.load(f"\n{text}")
        names = module.functions()
        if not names:
            return "empty"
        function = module.function(names[0])
        args: list[Argument] = []
        for parameter in function.kernel.parameters:
            if parameter.num_bytes == 8:
                args.append(device.buffer(np.zeros(4096, np.float32)))
            else:
                args.append(bytes([index % 7] * parameter.num_bytes))
        device.launch(function, grid=(2,), block=(64,), cluster=(1,), args=args, shared_bytes=4096)
    except PtxError:
        return "refused"
    except KernelFault:
        return "reported"
    except (LaunchError, ValueError):
        return "rejected"
    return "clean"


def _run_batch(batch: int) -> None:
    rng = random.Random(batch)
    seeds = _seeds()
    outcomes: dict[str, int] = {}
    for index in range(_TEXTS // _BATCHES):
        outcome = _try(_mutate(rng.choice(seeds), rng), index)
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
    print(outcomes)


@pytest.mark.parametrize("batch", range(_BATCHES))
def test_mutated_texts_never_crash_or_hang(batch: int) -> None:
    """1,250 texts a batch; the limit is for hangs, a batch takes seconds."""
    try:
        _seeds()
    except CompilerMissing as missing:
        pytest.skip(str(missing))
    done = subprocess.run(
        [sys.executable, "-m", "tests.emulator.test_fuzz", str(batch)],
        cwd=_ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "refused" in done.stdout
    assert "clean" in done.stdout


if __name__ == "__main__":
    _run_batch(int(sys.argv[1]))
