"""The launch API that the emulator and a GPU both implement, so that one test body runs on either.

    device = open_device("emulator")              # or "gpu"
    scale = device.load(ptx_path).function("scale")
    x, y = device.buffer(array), device.empty(array.shape, array.dtype)
    device.launch(scale, grid=(4,), block=(128,), args=(x, y, np.int32(array.size)))
    result = y.numpy()

Arguments are typed by their Python type, never guessed: `Buffer` is a pointer, a numpy scalar
keeps its own width, `TensorMap` is a 128-byte `__grid_constant__ CUtensorMap`, `bytes` is a struct
by value.
A launch that faults, or that the emulator's checker objects to, raises `KernelFault`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import DTypeLike, NDArray

TENSOR_MAP_BYTES = 128

Array: TypeAlias = NDArray[Any]
Dim3: TypeAlias = Sequence[int]
"""One to three sizes, x first; missing ones are 1."""


class LaunchError(Exception):
    """A launch or tensor map that no device would accept."""

    def __init__(self, name: str, expected: str, got: object) -> None:
        super().__init__(f"{name}: expected {expected}, got {got}")


class KernelFault(Exception):
    """The kernel faulted, or the emulator's checker has reports about it (one per line)."""

    def __init__(self, kernel: str, reports: Sequence[str]) -> None:
        super().__init__("\n".join((f"{kernel}: {len(reports)} report(s)", *reports)))
        self.kernel = kernel
        self.reports = tuple(reports)


class Swizzle(Enum):
    """Shared-memory swizzle of a tensor map; the value is the span in bytes."""

    NONE = 0
    B32 = 32
    B64 = 64
    B128 = 128


class ElementType(Enum):
    """Tensor-map element types: the name of CU_TENSOR_MAP_DATA_TYPE_* and the size in bytes."""

    UINT8 = ("UINT8", 1)
    UINT16 = ("UINT16", 2)
    UINT32 = ("UINT32", 4)
    INT32 = ("INT32", 4)
    UINT64 = ("UINT64", 8)
    INT64 = ("INT64", 8)
    FLOAT16 = ("FLOAT16", 2)
    FLOAT32 = ("FLOAT32", 4)
    FLOAT64 = ("FLOAT64", 8)
    BFLOAT16 = ("BFLOAT16", 2)

    @property
    def num_bytes(self) -> int:
        """Size of one element."""
        return int(self.value[1])


class Buffer(Protocol):
    """Device memory with the shape and dtype of a numpy array (ml_dtypes for fp8 and bf16)."""

    @property
    def address(self) -> int:
        """Device address of the first byte."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array it holds."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Element type of the array it holds."""

    @property
    def nbytes(self) -> int:
        """Size in bytes."""

    def numpy(self) -> Array:
        """Wait for all launches, then copy the contents to the host."""

    def write(self, array: Array) -> None:
        """Replace the contents; the array must have this buffer's shape and dtype."""

    def unwritten_bytes(self) -> int:
        """Bytes that nothing has written so far; always 0 on a GPU, which cannot tell."""


@dataclass(frozen=True)
class TensorMap:
    """A tiled tensor map, in the order of cuTensorMapEncodeTiled: innermost dimension first.

    Args:
        buffer: the tensor's memory.
        element: element type.
        dims: [rank] sizes in elements, 1 to 5 of them.
        strides_bytes: [rank - 1] bytes between neighbours in dimensions 1.., multiples of 16.
        box: [rank] tile sizes in elements, each 1 to 256.
        element_strides: [rank] traversal strides, all 1 by default.
        swizzle: shared-memory swizzle; the box's inner row must fit its span.
        nan_fill: out-of-bounds floating-point elements read as NaN instead of zero.
        offset_bytes: where in the buffer the tensor starts (16-byte aligned).
    Errors: LaunchError for what the driver would refuse.
    """

    buffer: Buffer
    element: ElementType
    dims: tuple[int, ...]
    strides_bytes: tuple[int, ...]
    box: tuple[int, ...]
    element_strides: tuple[int, ...] = ()
    swizzle: Swizzle = Swizzle.NONE
    nan_fill: bool = False
    offset_bytes: int = 0

    def __post_init__(self) -> None:
        rank = len(self.dims)
        if not 1 <= rank <= 5:
            raise LaunchError("TensorMap.dims", "1 to 5 dimensions", self.dims)
        if not self.element_strides:
            object.__setattr__(self, "element_strides", (1,) * rank)
        if len(self.strides_bytes) != rank - 1:
            raise LaunchError("TensorMap.strides_bytes", f"{rank - 1} strides", self.strides_bytes)
        if len(self.box) != rank or any(not 1 <= size <= 256 for size in self.box):
            raise LaunchError("TensorMap.box", f"{rank} sizes of 1 to 256", self.box)
        if len(self.element_strides) != rank or any(not 1 <= s <= 8 for s in self.element_strides):
            raise LaunchError(
                "TensorMap.element_strides", f"{rank} of 1 to 8", self.element_strides
            )
        if any(not 1 <= size <= 2**32 for size in self.dims):
            raise LaunchError("TensorMap.dims", "sizes of 1 to 2**32", self.dims)
        if any(stride % 16 or not 0 <= stride < 2**40 for stride in self.strides_bytes):
            raise LaunchError(
                "TensorMap.strides_bytes",
                "multiples of 16 below 2**40",
                self.strides_bytes,
            )
        if self.address % 16:
            raise LaunchError("TensorMap address", "16-byte alignment", hex(self.address))
        row_bytes = self.box[0] * self.element.num_bytes
        if row_bytes % 16:
            raise LaunchError("TensorMap.box", "an inner row of a multiple of 16 bytes", row_bytes)
        if self.swizzle is not Swizzle.NONE and row_bytes > self.swizzle.value:
            raise LaunchError(
                "TensorMap.box",
                f"an inner row within {self.swizzle.value} bytes",
                row_bytes,
            )

    @property
    def address(self) -> int:
        """Global address of element zero."""
        return self.buffer.address + self.offset_bytes


Argument: TypeAlias = Buffer | TensorMap | np.generic | bytes


@dataclass(frozen=True)
class LaunchResult:
    """What a launch can tell besides its outputs; counters are empty on a GPU."""

    counters: Mapping[str, int] = field(default_factory=dict)


class Function(Protocol):
    """One kernel of a module."""

    @property
    def name(self) -> str:
        """Mangled name."""


class Module(Protocol):
    """Loaded PTX."""

    def function(self, name: str) -> Function:
        """The kernel whose mangled name is `name` or the only one that contains it."""

    def functions(self) -> Sequence[str]:
        """Mangled names of all kernels."""


class Device(Protocol):
    """A back end: the emulator, or a GPU through the driver."""

    @property
    def name(self) -> str:
        """ "emulator" or "gpu"."""

    def load(self, ptx: str | Path) -> Module:
        """Load PTX text, or the PTX file at a path."""

    def buffer(self, array: Array) -> Buffer:
        """Copy an array to the device."""

    def empty(self, shape: int | Sequence[int], dtype: DTypeLike) -> Buffer:
        """Device memory with no defined contents."""

    def encode(self, tensor_map: TensorMap) -> bytes:
        """The 128 bytes a kernel takes for `tensor_map`; call `encode_tensor_map` instead."""

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
        """Run a kernel; with `pdl` it may start before the launch before it has finished.

        Args:
            function: from this device's module.
            grid, block, cluster: sizes in CTAs, threads, CTAs; a cluster fixed by the kernel wins.
            args: one per kernel parameter, in order.
            shared_bytes: dynamic shared memory.
            pdl: programmatic stream serialisation.
        Errors: LaunchError for a launch no device accepts, KernelFault for one that went wrong.
        """


def dim3(sizes: Dim3, name: str) -> tuple[int, int, int]:
    """Pad one to three sizes to three; LaunchError unless all are positive."""
    padded = tuple(int(size) for size in sizes) + (1,) * (3 - len(sizes))
    if len(padded) != 3 or any(size < 1 for size in padded):
        raise LaunchError(name, "1 to 3 positive sizes", tuple(sizes))
    return padded[0], padded[1], padded[2]


def encode_tensor_map(device: Device, tensor_map: TensorMap) -> bytes:
    """The one way to encode a tensor map: the device's own format, always 128 bytes."""
    encoded = device.encode(tensor_map)
    if len(encoded) != TENSOR_MAP_BYTES:
        raise LaunchError(f"{device.name} tensor map", f"{TENSOR_MAP_BYTES} bytes", len(encoded))
    return encoded


def pack_arguments(device: Device, args: Sequence[Argument]) -> list[bytes]:
    """The bytes of each argument, in order, as the kernel's parameter memory holds them."""
    packed: list[bytes] = []
    for index, arg in enumerate(args):
        if isinstance(arg, TensorMap):
            packed.append(encode_tensor_map(device, arg))
        elif isinstance(arg, (bytes, np.generic)):
            packed.append(bytes(arg) if isinstance(arg, bytes) else arg.tobytes())
        elif hasattr(arg, "address"):
            packed.append(np.uint64(arg.address).tobytes())
        else:
            raise LaunchError(
                f"argument {index}",
                "Buffer, TensorMap, numpy scalar or bytes",
                f"{type(arg).__name__} {arg!r}",
            )
    return packed


def open_device(name: str, **options: Any) -> Device:
    """A fresh device: "emulator" (options: see `emulator_backend.Emulator`) or "gpu"."""
    if name == "emulator":
        from tests.emulator.emulator_backend import Emulator

        return Emulator(**options)
    if name == "gpu":
        from tests.emulator.gpu_backend import GpuDevice

        return GpuDevice(**options)
    raise LaunchError("device", '"emulator" or "gpu"', name)
