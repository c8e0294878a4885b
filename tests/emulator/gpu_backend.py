"""The launch API on a real GPU, through the driver: the same tests, the same PTX, the chip's verdict.

Launches are asynchronous; a fault surfaces at the next `Buffer.numpy()` or `synchronize()`, and
the context is lost with it: run cases that may fault in a process each.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from tests.emulator import cuda_driver as cu
from tests.emulator.launch import (
    TENSOR_MAP_BYTES,
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

POISON = 0xCB
"""What `empty` fills memory with: an unwritten output must not look right by luck."""


class GpuBuffer:
    """Device memory of one array."""

    def __init__(self, device: GpuDevice, shape: tuple[int, ...], dtype: DTypeLike) -> None:
        self._device = device
        self._shape = shape
        self._dtype = np.dtype(dtype)
        pointer = ctypes.c_uint64()
        # A byte at least, so that empty arrays have an address too.
        device.driver.call("cuMemAlloc_v2", ctypes.byref(pointer), max(self.nbytes, 1))
        self._address = pointer.value

    @property
    def address(self) -> int:
        """Device address of the first byte."""
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
        return int(np.prod(self._shape, dtype=np.int64)) * self._dtype.itemsize

    def numpy(self) -> Array:
        """Wait for all launches, then copy the contents to the host; KernelFault if one failed."""
        self._device.synchronize()
        raw = np.empty(self.nbytes, np.uint8)
        if raw.size:
            self._device.driver.call("cuMemcpyDtoH_v2", raw.ctypes.data, self._address, raw.size)
        return raw.view(self._dtype).reshape(self._shape)

    def write(self, array: Array) -> None:
        """Replace the contents; the array must have this buffer's shape and dtype."""
        if array.shape != self._shape or array.dtype != self._dtype:
            raise LaunchError(
                "GpuBuffer.write", f"{self._dtype}{self._shape}", f"{array.dtype}{array.shape}"
            )
        data = np.ascontiguousarray(array)
        if data.nbytes:
            self._device.driver.call(
                "cuMemcpyHtoD_v2", self._address, data.ctypes.data, data.nbytes
            )

    def unwritten_bytes(self) -> int:
        """Always 0: a GPU cannot tell."""
        return 0

    def __del__(self) -> None:
        if hasattr(self, "_address"):
            self._device.release(self._address)


class GpuFunction:
    """One kernel of a loaded module."""

    def __init__(self, name: str, handle: ctypes.c_void_p, module: GpuModule) -> None:
        self._name = name
        self.handle = handle
        # The handle dies with the module.
        self.module = module

    @property
    def name(self) -> str:
        """Mangled name."""
        return self._name


class GpuModule:
    """PTX that the driver has assembled."""

    def __init__(self, driver: cu.Driver, text: str) -> None:
        self._driver = driver
        self._names = tuple(re.findall(r"\.entry\s+([\w$]+)", text))
        self._handle = driver.load_module(text.encode() + b"\0")

    def functions(self) -> Sequence[str]:
        """Mangled names of all kernels."""
        return self._names

    def function(self, name: str) -> GpuFunction:
        """The kernel whose mangled name is `name` or the only one that contains it."""
        found = [n for n in self._names if n == name] or [n for n in self._names if name in n]
        if len(found) != 1:
            raise LaunchError("function", f"one kernel named {name}", found)
        handle = ctypes.c_void_p()
        self._driver.call(
            "cuModuleGetFunction", ctypes.byref(handle), self._handle, found[0].encode()
        )
        return GpuFunction(found[0], handle, self)


class GpuDevice:
    """The first GPU of the machine.

    Errors: `cuda_driver.DriverMissing` where there is none.
    """

    def __init__(self) -> None:
        self.driver = cu.Driver()
        self._last = "no kernel"

    @property
    def name(self) -> str:
        """ "gpu"."""
        return "gpu"

    def load(self, ptx: str | Path) -> GpuModule:
        """Load PTX text, or the PTX file at a path."""
        return GpuModule(self.driver, ptx.read_text() if isinstance(ptx, Path) else ptx)

    def buffer(self, array: Array) -> GpuBuffer:
        """Copy an array to the device."""
        made = GpuBuffer(self, array.shape, array.dtype)
        made.write(array)
        return made

    def empty(self, shape: int | Sequence[int], dtype: DTypeLike) -> GpuBuffer:
        """Device memory filled with a poison byte."""
        sizes = (shape,) if isinstance(shape, int) else tuple(shape)
        made = GpuBuffer(self, sizes, dtype)
        if made.nbytes:
            self.driver.call("cuMemsetD8_v2", made.address, POISON, made.nbytes)
        return made

    def encode(self, tensor_map: TensorMap) -> bytes:
        """The driver's encoding; LaunchError for a map that it refuses."""
        rank = len(tensor_map.dims)
        # The driver wants the map on a 64-byte boundary.
        storage = (ctypes.c_uint8 * (TENSOR_MAP_BYTES + 64))()
        offset = -ctypes.addressof(storage) % 64
        strides = tensor_map.strides_bytes or (0,)
        try:
            self.driver.call(
                "cuTensorMapEncodeTiled",
                ctypes.c_void_p(ctypes.addressof(storage) + offset),
                cu.DATA_TYPES[tensor_map.element.value[0]],
                rank,
                ctypes.c_void_p(tensor_map.address),
                (ctypes.c_uint64 * rank)(*tensor_map.dims),
                (ctypes.c_uint64 * len(strides))(*strides),
                (ctypes.c_uint32 * rank)(*tensor_map.box),
                (ctypes.c_uint32 * rank)(*tensor_map.element_strides),
                0,
                cu.SWIZZLES[tensor_map.swizzle.value],
                0,
                int(tensor_map.nan_fill),
            )
        except cu.DriverError as error:
            raise LaunchError("TensorMap", "one that the driver takes", error) from error
        return bytes(storage)[offset : offset + TENSOR_MAP_BYTES]

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
        """Start a kernel; see `launch.Device.launch`. Faults surface later (see the module)."""
        if not isinstance(function, GpuFunction):
            raise LaunchError("function", "one of this device's modules", function)
        attributes = (cu.LaunchAttribute * 2)()
        count = 0
        sizes = dim3(cluster, "cluster")
        if sizes != (1, 1, 1) and not self._has_fixed_cluster(function):
            attributes[count].id = cu.LAUNCH_CLUSTER
            attributes[count].value[:3] = sizes
            count += 1
        if pdl:
            attributes[count].id = cu.LAUNCH_PROGRAMMATIC
            attributes[count].value[0] = 1
            count += 1
        self.driver.call(
            "cuFuncSetAttribute", function.handle, cu.FUNC_MAX_DYNAMIC_SHARED, shared_bytes
        )
        config = cu.LaunchConfig(
            grid=dim3(grid, "grid"),
            block=dim3(block, "block"),
            shared_bytes=shared_bytes,
            stream=None,
            attributes=attributes,
            num_attributes=count,
        )
        values = [ctypes.create_string_buffer(raw, len(raw)) for raw in pack_arguments(self, args)]
        pointers = (ctypes.c_void_p * max(len(values), 1))(*map(ctypes.addressof, values))
        self._last = function.name
        try:
            self.driver.call(
                "cuLaunchKernelEx", ctypes.byref(config), function.handle, pointers, None
            )
        except cu.DriverError as error:
            raise LaunchError(function.name, "a launch that the driver takes", error) from error
        return LaunchResult()

    def synchronize(self) -> None:
        """Wait for all launches; KernelFault, naming the last one, if one failed."""
        try:
            self.driver.call("cuCtxSynchronize")
        except cu.DriverError as error:
            raise KernelFault(self._last, [str(error)]) from error

    def release(self, address: int) -> None:
        """Free memory; a context lost to a fault has nothing left to free."""
        try:
            self.driver.call("cuMemFree_v2", ctypes.c_uint64(address))
        except cu.DriverError:
            self._last += " (memory not freed: context lost)"

    def _has_fixed_cluster(self, function: GpuFunction) -> bool:
        value = ctypes.c_int()
        self.driver.call(
            "cuFuncGetAttribute",
            ctypes.byref(value),
            cu.FUNC_REQUIRED_CLUSTER_WIDTH,
            function.handle,
        )
        return value.value > 0
