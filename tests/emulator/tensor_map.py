"""The emulator's own tensor-map encoding; the layout is `TensorMap` in engine/tensor_map.h."""

from __future__ import annotations

import struct

from tests.emulator.launch import TENSOR_MAP_BYTES, ElementType, Swizzle, TensorMap

_MAGIC = 0x50414D54
_SWIZZLES = {Swizzle.NONE: 0, Swizzle.B32: 1, Swizzle.B64: 2, Swizzle.B128: 3}
_ELEMENTS = {element: index for index, element in enumerate(ElementType)}
_MAX_RANK = 5


def encode(tensor_map: TensorMap) -> bytes:
    """128 bytes for the emulator's TMA; `TensorMap` has checked what a driver would check."""
    missing = _MAX_RANK - len(tensor_map.dims)
    packed = struct.pack(
        "<I4BQ5Q5I5H5B",
        _MAGIC,
        len(tensor_map.dims),
        _ELEMENTS[tensor_map.element],
        _SWIZZLES[tensor_map.swizzle],
        int(tensor_map.nan_fill),
        tensor_map.address,
        *(tensor_map.element.num_bytes, *tensor_map.strides_bytes, *(0,) * missing),
        *(*(size - 1 for size in tensor_map.dims), *(0,) * missing),
        *(*tensor_map.box, *(1,) * missing),
        *(*tensor_map.element_strides, *(1,) * missing),
    )
    return packed.ljust(TENSOR_MAP_BYTES, b"\0")
