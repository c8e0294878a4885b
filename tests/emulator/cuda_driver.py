"""The few CUDA driver calls the GPU back end needs, through ctypes: no CUDA package, no build step."""

from __future__ import annotations

import ctypes
from typing import Any, Final

LIBRARY: Final = "libcuda.so.1"

FUNC_MAX_DYNAMIC_SHARED: Final = 8
FUNC_REQUIRED_CLUSTER_WIDTH: Final = 11
FUNC_NON_PORTABLE_CLUSTER: Final = 14
LAUNCH_CLUSTER: Final = 4
LAUNCH_PROGRAMMATIC: Final = 6
JIT_INFO_LOG_BUFFER: Final = 3
JIT_ERROR_LOG_BUFFER: Final = 5
JIT_ERROR_LOG_BUFFER_BYTES: Final = 6

DATA_TYPES: Final = {
    "UINT8": 0,
    "UINT16": 1,
    "UINT32": 2,
    "INT32": 3,
    "UINT64": 4,
    "INT64": 5,
    "FLOAT16": 6,
    "FLOAT32": 7,
    "FLOAT64": 8,
    "BFLOAT16": 9,
}
"""CUtensorMapDataType by `ElementType` name."""

SWIZZLES: Final = {0: 0, 32: 1, 64: 2, 128: 3}
"""CUtensorMapSwizzle by span in bytes."""


class DriverMissing(Exception):
    """No CUDA driver, or a driver with no device."""

    def __init__(self, detail: str) -> None:
        super().__init__(f"CUDA driver: expected {LIBRARY} with a device, got {detail}")


class DriverError(Exception):
    """A driver call that returned an error code."""

    def __init__(self, call: str, code: int, name: str, detail: str = "") -> None:
        super().__init__(f"{call}: expected success, got {name} ({code}){detail}")
        self.code = code


class LaunchAttribute(ctypes.Structure):
    """CUlaunchAttribute: an id, padding to 8 bytes and a 64-byte union."""

    _fields_ = (("id", ctypes.c_int), ("pad", ctypes.c_int), ("value", ctypes.c_uint32 * 16))


class LaunchConfig(ctypes.Structure):
    """CUlaunchConfig."""

    _fields_ = (
        ("grid", ctypes.c_uint32 * 3),
        ("block", ctypes.c_uint32 * 3),
        ("shared_bytes", ctypes.c_uint32),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(LaunchAttribute)),
        ("num_attributes", ctypes.c_uint32),
    )


class Driver:
    """The driver with the first device's primary context current on this thread.

    Errors: DriverMissing where there is none.
    """

    def __init__(self) -> None:
        try:
            self._library = ctypes.CDLL(LIBRARY)
        except OSError as error:
            raise DriverMissing(str(error)) from error
        self._library.cuMemAlloc_v2.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
        self._library.cuMemFree_v2.argtypes = (ctypes.c_uint64,)
        copy = (ctypes.c_size_t,)
        self._library.cuMemcpyHtoD_v2.argtypes = (ctypes.c_uint64, ctypes.c_void_p, *copy)
        self._library.cuMemcpyDtoH_v2.argtypes = (ctypes.c_void_p, ctypes.c_uint64, *copy)
        self._library.cuMemsetD8_v2.argtypes = (ctypes.c_uint64, ctypes.c_uint8, *copy)
        code = self._library.cuInit(0)
        if code:
            raise DriverMissing(f"cuInit error {code}")
        device, context = ctypes.c_int(), ctypes.c_void_p()
        self.call("cuDeviceGet", ctypes.byref(device), 0)
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self.call("cuCtxSetCurrent", context)

    def call(self, name: str, *args: Any) -> None:
        """Call a driver function; DriverError unless it returns success."""
        code = getattr(self._library, name)(*args)
        if code:
            raise DriverError(name, code, self.error_name(code))

    def error_name(self, code: int) -> str:
        """CUDA_ERROR_* of a code."""
        text = ctypes.c_char_p()
        self._library.cuGetErrorName(code, ctypes.byref(text))
        return (text.value or b"unknown").decode()

    def load_module(self, image: bytes) -> ctypes.c_void_p:
        """Load PTX or a cubin; DriverError carries the assembler's log."""
        module, log = ctypes.c_void_p(), ctypes.create_string_buffer(8192)
        options = (ctypes.c_int * 2)(JIT_ERROR_LOG_BUFFER, JIT_ERROR_LOG_BUFFER_BYTES)
        values = (ctypes.c_void_p * 2)(ctypes.cast(log, ctypes.c_void_p), len(log))
        code = self._library.cuModuleLoadDataEx(
            ctypes.byref(module), ctypes.c_char_p(image), 2, options, values
        )
        if code:
            detail = "\n" + log.value.decode(errors="replace")
            raise DriverError("cuModuleLoadDataEx", code, self.error_name(code), detail)
        return module
