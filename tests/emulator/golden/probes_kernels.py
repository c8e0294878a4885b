"""Whole kernels: every output of the sample kernels' controls, as the chip computed it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from tests.emulator.compile import compile_ptx
from tests.emulator.golden.probe import Array, Probe
from tests.emulator.kernels.cases import CONTROLS, Case
from tests.emulator.launch import Buffer, Device


class OutputRecorder:
    """A device that remembers the buffers a host side allocates without contents: its outputs."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._outputs: list[Buffer] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._device, name)

    def empty(self, shape: int | Sequence[int], dtype: DTypeLike) -> Buffer:
        """As `Device.empty`."""
        made = self._device.empty(shape, dtype)
        self._outputs.append(made)
        return made

    def outputs(self) -> Array:
        """The bytes of all outputs, in order of allocation."""
        return np.concatenate(
            [buffer.numpy().reshape(-1).view(np.uint8) for buffer in self._outputs]
        )


def _probe(case: Case) -> Probe:
    def run(device: Device) -> Array:
        recorder = OutputRecorder(device)
        case.run(recorder, compile_ptx(case.source, defines=case.defines))
        return recorder.outputs()

    # Softmax goes through ex2.approx, whose last bit the emulator does not promise.
    limit = 1e-5 if case.kernel == "attention" else 0.0
    return Probe(f"kernels/{case}", run, limit=limit)


def probes() -> list[Probe]:
    """One probe per control."""
    return [_probe(case) for case in CONTROLS]
