"""Runs one test body of a device kernel on the emulator, in every schedule, and on a Hopper GPU where there is one.

@pytest.mark.parametrize("backend", BACKENDS)
def test_scale(backend: str) -> None:
    kernel = build("seekernel/fused/scale.cuh", "scale<float>")
    for device in devices(backend):
        ...
        device.launch(kernel.on(device), grid=(4,), block=(128,), args=(x, y, np.int32(n)))
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import Tensor

from tests.emulator.compile import CompilerMissing, compile_ptx
from tests.emulator.launch import Array, Device, Function, open_device
from tests.emulator.schedules import NINE_SCHEDULES, Schedule

HEADERS = Path(__file__).resolve().parent.parent / "csrc" / "include"
HAS_HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability()[0] == 9
BACKENDS = (
    "emulator",
    pytest.param(
        "gpu",
        marks=[pytest.mark.gpu, pytest.mark.skipif(not HAS_HOPPER, reason="no Hopper GPU")],
    ),
)
_SOURCE = """#include <{header}>
template <auto kKernel> struct emit_t {{}};
namespace seekernel {{ template struct ::emit_t<&{instance}>; }}
"""


@dataclass(frozen=True)
class BuiltKernel:
    """PTX of one template instance."""

    ptx: Path

    def on(self, device: Device) -> Function:
        """Load it; it is the only kernel of its module."""
        module = device.load(self.ptx)
        (name,) = module.functions()
        return module.function(name)


def build(
    header: str,
    instance: str,
    *,
    edits: Mapping[str, Sequence[tuple[str, str]]] | None = None,
    defines: Sequence[str] = (),
) -> BuiltKernel:
    """Compile `seekernel::<instance>`, a kernel template of csrc/include/<header>.

    Args:
        instance: as in C++, such as "mla_combine<bfloat16_t, 512>".
        edits: header path to (old, new) texts: plants bugs in a copy of the headers; old must occur.
        defines: "NAME" or "NAME=VALUE".
    Skips the test where there is no CUDA compiler.
    """
    changed = tuple((name, tuple(pairs)) for name, pairs in (edits or {}).items())
    try:
        return BuiltKernel(_compile(header, instance, changed, tuple(defines)))
    except CompilerMissing as missing:
        pytest.skip(str(missing))


@lru_cache(maxsize=512)
def _compile(
    header: str,
    instance: str,
    edits: tuple[tuple[str, tuple[tuple[str, str], ...]], ...],
    defines: tuple[str, ...],
) -> Path:
    with TemporaryDirectory() as folder:
        root = Path(folder)
        for name, pairs in edits:
            text = (HEADERS / name).read_text()
            for old, new in pairs:
                assert old in text, f"{name} has no {old!r}"
                text = text.replace(old, new)
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)
        stem = instance.split("<")[0].split("::")[-1]
        source = root / f"{stem}.cu"
        source.write_text(_SOURCE.format(header=header, instance=instance))
        return compile_ptx(source, defines=defines, flags=[f"-I{root}", f"-I{HEADERS}"])


def devices(backend: str, schedules: Sequence[Schedule] = NINE_SCHEDULES) -> Iterator[Device]:
    """A fresh device per schedule on the emulator; the GPU, once."""
    if backend == "gpu":
        yield open_device("gpu")
        return
    for schedule in schedules:
        yield open_device("emulator", schedule=schedule)


def to_numpy(tensor: Tensor) -> Array:
    """As the launch API takes it; bfloat16 as ml_dtypes', float8 as bytes."""
    if tensor.dtype == torch.float8_e4m3fn:
        tensor = tensor.view(torch.uint8)
    if tensor.dtype == torch.bfloat16:
        array: Array = tensor.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        return array
    return tensor.contiguous().numpy()


def to_torch(array: Array) -> Tensor:
    """The inverse of to_numpy."""
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)
