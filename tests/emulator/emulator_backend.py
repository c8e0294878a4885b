"""The emulator as a `launch.Device`."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from tests.emulator import build, tensor_map
from tests.emulator.frontend.decode import PtxModule, decode_kernel, parse_module
from tests.emulator.frontend.form import TYPE_BITS
from tests.emulator.frontend.program import Kernel
from tests.emulator.launch import (
    Argument,
    Array,
    Dim3,
    Function,
    KernelFault,
    LaunchError,
    LaunchResult,
    TensorMap,
    dim3,
    pack_arguments,
)
from tests.emulator.schedules import Schedule

_MAX_THREADS = 1024
_MAX_CLUSTER = 16


@functools.cache
def engine() -> ModuleType:
    """The engine module, built on first use; its types must be the front end's."""
    module = build.load()
    names = [name for name, _ in module.type_table()]
    if names != list(TYPE_BITS):
        raise build.BuildError(
            f"engine types {names} differ from the front end's {list(TYPE_BITS)}"
        )
    return module


class EmulatorBuffer:
    """Memory of one emulator, poisoned until written."""

    def __init__(self, machine: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self._machine = machine
        self._shape = shape
        self._dtype = dtype
        self._nbytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        self._address = int(machine.allocate(self._nbytes))

    @property
    def address(self) -> int:
        """Address of the first byte."""
        return self._address

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array it holds."""
        return self._shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Element type of the array it holds."""
        return self._dtype

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self._nbytes

    def numpy(self) -> Array:
        """A copy of the contents; bytes nothing wrote read as 0xff."""
        raw = self._machine.read(self._address, self._nbytes)
        array: Array = np.frombuffer(raw, np.uint8).view(self._dtype).reshape(self._shape).copy()
        return array

    def write(self, array: Array) -> None:
        """Replace the contents."""
        if array.shape != self._shape or array.dtype != self._dtype:
            raise LaunchError(
                "Buffer.write", f"{self._shape} {self._dtype}", f"{array.shape} {array.dtype}"
            )
        self._machine.write(self._address, np.ascontiguousarray(array).reshape(-1).view(np.uint8))

    def unwritten_bytes(self) -> int:
        """Bytes that neither the host nor a kernel has written."""
        return int(self._machine.count_uninitialised(self._address, self._nbytes))

    def free(self) -> None:
        """Give the memory back; any later use of it is out of bounds."""
        self._machine.release(self._address)


@dataclass(frozen=True)
class EmulatorFunction:
    """A decoded kernel bound to the engine."""

    name: str
    kernel: Kernel
    program: Any


class EmulatorModule:
    """PTX loaded into one emulator; kernels are decoded when they are asked for."""

    def __init__(self, machine: Any, module: PtxModule, key: str) -> None:
        self._module = module
        self._key = key
        self._addresses: dict[str, int] = {}
        for variable in module.variables:
            address = int(machine.allocate(variable.num_bytes))
            image = variable.data.ljust(variable.num_bytes, b"\0")
            machine.write(address, np.frombuffer(image, np.uint8))
            self._addresses[variable.name] = address

    def functions(self) -> Sequence[str]:
        """Mangled names of all kernels."""
        return self._module.kernel_names()

    def function(self, name: str) -> EmulatorFunction:
        """The kernel of that name, or the only one whose name contains it."""
        names = self._module.kernel_names()
        matches = [name] if name in names else [n for n in names if name in n]
        if len(matches) != 1:
            raise LaunchError("function", f"one of {names}", name)
        if not self._addresses:
            return _cached_function(self._key, matches[0])
        return _decode(self._module, matches[0], self._addresses)


# Programs without module variables do not depend on the device: a test that runs one kernel under
# nine schedules decodes it once.
_MODULES: dict[str, PtxModule] = {}


@functools.lru_cache(maxsize=64)
def _cached_function(key: str, name: str) -> EmulatorFunction:
    return _decode(_MODULES[key], name, {})


def _decode(module: PtxModule, name: str, addresses: dict[str, int]) -> EmulatorFunction:
    native = engine()
    kernel = decode_kernel(module, name, addresses, native.SHARED_START)
    type_index = {type_name: index for index, type_name in enumerate(TYPE_BITS)}
    program = native.Program(
        name, kernel.encode(type_index), kernel.constants, kernel.specials, kernel.sizes()
    )
    return EmulatorFunction(name, kernel, program)


class Emulator:
    """A device that runs PTX on the CPU and judges it.

    Args:
        schedule: how warps and asynchronous work interleave.
        check: judge races, proxies, initialisation and the rest; off, only faults are seen.
        hopper_accumulate: model the FP8 tensor core's short accumulator.
        max_instructions: warp instructions after which a launch counts as a livelock.
        resident_ctas: how many CTAs run at once; a grid that waits for all of its CTAs needs them.
    """

    name = "emulator"

    def __init__(
        self,
        schedule: Schedule | None = None,
        *,
        check: bool = True,
        hopper_accumulate: bool = False,
        max_instructions: int = 100_000_000,
        resident_ctas: int = 132,
    ) -> None:
        self.schedule = schedule or Schedule()
        self._options = {
            "random_order": self.schedule.random_order,
            "asynchrony": int(self.schedule.asynchrony),
            "seed": self.schedule.seed,
            "burst": self.schedule.burst,
            "checks": check,
            "hopper_accumulate": hopper_accumulate,
            "max_instructions": max_instructions,
            "resident_ctas": resident_ctas,
        }
        self._machine = engine().Machine()

    def load(self, ptx: str | Path) -> EmulatorModule:
        """Load PTX text, or the PTX file at a path.

        Errors: PtxError naming line and form.
        """
        is_text = isinstance(ptx, str) and ("\n" in ptx or ".version" in ptx)
        text = str(ptx) if is_text else Path(ptx).read_text(encoding="utf-8", errors="replace")
        key = hashlib.sha256(text.encode()).hexdigest()
        if key not in _MODULES:
            _MODULES[key] = parse_module(text)
        return EmulatorModule(self._machine, _MODULES[key], key)

    def buffer(self, array: Array) -> EmulatorBuffer:
        """Copy an array to the device."""
        result = EmulatorBuffer(self._machine, array.shape, array.dtype)
        result.write(array)
        return result

    def empty(self, shape: int | Sequence[int], dtype: DTypeLike) -> EmulatorBuffer:
        """Poisoned memory."""
        sizes = (shape,) if isinstance(shape, int) else tuple(shape)
        return EmulatorBuffer(self._machine, sizes, np.dtype(dtype))

    def encode(self, tensor_map_: TensorMap) -> bytes:
        """The emulator's tensor map."""
        return tensor_map.encode(tensor_map_)

    def launch(
        self,
        function: Function,
        *,
        grid: Dim3,
        block: Dim3,
        args: Sequence[Argument],
        cluster: Dim3 = (1,),
        shared_bytes: int = 0,
        pdl: bool = False,
    ) -> LaunchResult:
        """Run a kernel to its end; see `launch.Device.launch`."""
        if not isinstance(function, EmulatorFunction):
            raise LaunchError("function", "one of this device", type(function).__name__)
        kernel = function.kernel
        grid3, block3 = dim3(grid, "grid"), dim3(block, "block")
        cluster3 = kernel.cluster or dim3(cluster, "cluster")
        threads = int(np.prod(block3))
        if threads > min(_MAX_THREADS, kernel.max_threads or _MAX_THREADS):
            raise LaunchError(
                "block", f"at most {kernel.max_threads or _MAX_THREADS} threads", block3
            )
        if int(np.prod(cluster3)) > _MAX_CLUSTER:
            raise LaunchError("cluster", f"at most {_MAX_CLUSTER} CTAs", cluster3)
        if any(g % c for g, c in zip(grid3, cluster3, strict=True)):
            raise LaunchError("grid", f"a multiple of the cluster {cluster3}", grid3)
        params = self._parameters(kernel, args)
        finished, reports, counters = self._machine.launch(
            function.program, grid3, block3, cluster3, shared_bytes, pdl, params, self._options
        )
        if reports or not finished:
            raise KernelFault(function.name, reports)
        return LaunchResult(counters)

    def _parameters(self, kernel: Kernel, args: Sequence[Argument]) -> bytes:
        packed = pack_arguments(self, args)
        if len(packed) != len(kernel.parameters):
            raise LaunchError(kernel.name, f"{len(kernel.parameters)} arguments", len(packed))
        memory = bytearray(kernel.param_bytes)
        for parameter, data in zip(kernel.parameters, packed, strict=True):
            if len(data) != parameter.num_bytes:
                raise LaunchError(
                    f"{kernel.name} {parameter.name}", f"{parameter.num_bytes} bytes", len(data)
                )
            memory[parameter.offset : parameter.offset + len(data)] = data
        return bytes(memory)
