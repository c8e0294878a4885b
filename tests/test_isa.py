"""Instruction sets: every one gives results within budget, and none is used where the CPU lacks it."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from seekernel import _C, _extension
from tests.op_examples import example_calls

TESTS = Path(__file__).resolve().parent
ISAS = ["baseline", "avx2", "avx512"]
DTYPE_CODES = {
    torch.uint8: 0,
    torch.int32: 3,
    torch.int64: 4,
    torch.float32: 6,
    torch.bfloat16: 15,
    torch.float8_e4m3fn: 24,
}
Call = tuple[str, list[Any], list[Tensor | None]]  # op, arguments before, tensors after
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}


def run_python(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *args],
        env={**os.environ, **env},
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
    )


def test_bad_value_names_the_variable() -> None:
    code = "from seekernel import _extension; _extension.build_info()"
    done = run_python("-c", code, SEEKERNEL_CPU_ISA="sse9")
    assert done.returncode != 0
    message = "SEEKERNEL_CPU_ISA: expected baseline, avx2 or avx512, got 'sse9'"
    assert done.stderr.strip().endswith(message)


def test_bad_value_is_an_error_of_the_op() -> None:
    code = "import torch; from seekernel import ops; ops.silu_mul(torch.ones(1, 2))"
    done = run_python("-c", code, SEEKERNEL_CPU_ISA="AVX2")
    assert done.returncode == 1, "an exception, not a crash"
    assert "RuntimeError: SEEKERNEL_CPU_ISA: expected baseline, avx2 or avx512, got 'AVX2'" in (
        done.stderr
    )


def op_test_files() -> list[Path]:
    """The op families' tests: those that use what such tests share."""
    files = [path for path in TESTS.glob("test_*.py") if path != Path(__file__)]
    return sorted(path for path in files if "from tests.op_testing import" in path.read_text())


@pytest.mark.parametrize("isa", ISAS)
def test_every_op_family_within_budget(isa: str) -> None:
    """The op tests themselves, in a process that is told which instruction set to use."""
    in_use = _extension.build_info()["cpu_isa"]
    if isa == in_use:
        pytest.skip(f"{isa} is what the op tests themselves run with")
    if ISAS.index(isa) > ISAS.index(in_use):
        pytest.skip(f"beyond {in_use}, which is in use here")
    paths = [str(path) for path in op_test_files()]
    assert len(paths) >= 7, "the op tests were not found"
    options = ["-m", "not slow and not gpu", "-k", "not opcheck and not rejects", "-x"]
    done = run_python("-m", "pytest", *paths, *options, SEEKERNEL_CPU_ISA=isa)
    assert done.returncode == 0, done.stdout[-4000:]


class Recorder(TorchDispatchMode):
    """Records calls of our ops: name, arguments before, tensors after."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func.namespace != "seekernel":
            return func(*args, **(kwargs or {}))
        before = [arg.clone() if isinstance(arg, Tensor) else arg for arg in args]
        func(*args)
        after = [arg.clone() if isinstance(arg, Tensor) else None for arg in args]
        self.calls.append((func._schema.name.split("::")[1], before, after))
        return None


def tensor_bytes(tensor: Tensor) -> bytes:
    return bytes(tensor.contiguous().view(-1).view(torch.uint8).tolist())


def argument_spec(value: Any, optional: bool) -> dict[str, Any]:
    if value is None:
        return {"kind": "none"}
    if isinstance(value, Tensor):
        spec = {
            "kind": "tensor",
            "dtype": DTYPE_CODES[value.dtype],
            "shape": list(value.shape),
            "data": base64.b64encode(tensor_bytes(value)).decode(),
        }
        return {"kind": "some", "of": spec} if optional else spec
    kinds = {bool: "bool", int: "int", float: "float", str: "str"}
    return {"kind": kinds[type(value)], "value": value}


def call_spec(name: str, args: list[Any]) -> dict[str, Any]:
    schema = getattr(torch.ops.seekernel, name).default._schema
    # The dispatcher leaves out trailing arguments that have their default values.
    args = [*args, *(a.default_value for a in schema.arguments[len(args) :])]
    optional = [isinstance(a.type, torch.OptionalType) for a in schema.arguments]
    specs = [argument_spec(v, o) for v, o in zip(args, optional, strict=True)]
    return {"op": name, "args": specs}


@pytest.fixture(scope="module")
def recorded() -> list[Call]:
    calls = example_calls()
    with Recorder() as recorder:
        for call in calls:
            call()
    recorded_calls: list[Call] = recorder.calls
    return recorded_calls


def test_examples_cover_every_op(recorded: list[Call]) -> None:
    names = [name for name in torch._C._dispatch_get_all_op_names() if "seekernel::" in name]
    assert {name.split("::")[1] for name in names} == {name for name, _, _ in recorded}


@pytest.mark.parametrize(("cpu", "isa"), [("Nehalem", "baseline"), ("Haswell", "avx2")])
def test_no_illegal_instruction(cpu: str, isa: str, recorded: list[Call]) -> None:
    """The real library on an emulated CPU without AVX, and on one without AVX-512."""
    qemu = shutil.which("qemu-x86_64") or shutil.which("qemu-x86_64-static")
    if qemu is None:
        pytest.skip("qemu-x86_64 (Debian: qemu-user) is not installed")
    libtorch = Path(torch.__file__).parent / "lib"
    environment = {k: v for k, v in os.environ.items() if k != "SEEKERNEL_CPU_ISA"}
    done = subprocess.run(
        [
            qemu,
            "-cpu",
            cpu,
            sys.executable,
            str(TESTS / "isa_child.py"),
            str(libtorch),
            _C.__file__,
        ],
        input=json.dumps([call_spec(name, before) for name, before, _ in recorded]),
        env={**environment, "OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answer = json.loads(done.stdout)
    assert answer["info"]["cpu_isa"] == isa
    assert answer["refusal"] == "SEEKERNEL_CPU_ISA: this machine has no avx512"
    for (name, _, after), results in zip(recorded, answer["results"], strict=True):
        for want, result in zip(after, results, strict=False):  # defaults come last
            if want is None:
                continue
            data = torch.frombuffer(bytearray(base64.b64decode(result)), dtype=torch.uint8)
            got = data.view(want.dtype).view(want.shape)
            if want.dtype in TOLERANCE:
                limit = TOLERANCE[want.dtype]
                torch.testing.assert_close(
                    got, want, rtol=limit, atol=limit, equal_nan=True, msg=name
                )
            else:
                assert torch.equal(got.view(torch.uint8), want.view(torch.uint8)), name
