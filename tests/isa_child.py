"""Runs recorded op calls in the compiled library without Python's torch or numpy: stdlib only.

tests/test_isa.py starts it under an emulated CPU on which importing torch already dies of an illegal
instruction (numpy's), so the ops are reached through libtorch's C functions.

    python isa_child.py LIBTORCH_DIR EXTENSION < calls.json > results.json
"""

from __future__ import annotations

import base64
import ctypes
import importlib.machinery
import importlib.util
import json
import os
import sys
from typing import Any

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]


class Libtorch:
    def __init__(self, folder: str) -> None:
        ctypes.CDLL(f"{folder}/libc10.so", ctypes.RTLD_GLOBAL)
        self.lib = ctypes.CDLL(f"{folder}/libtorch_cpu.so", ctypes.RTLD_GLOBAL)
        self.lib.torch_exception_get_what_without_backtrace.restype = ctypes.c_char_p
        self.keep: list[Any] = []

    def check(self, status: int) -> None:
        if status != 0:
            raise RuntimeError(self.lib.torch_exception_get_what_without_backtrace().decode())

    def tensor(self, spec: dict[str, Any], data: Any) -> int:
        shape = spec["shape"]
        strides = [1] * len(shape)
        for i in range(len(shape) - 2, -1, -1):
            strides[i] = strides[i + 1] * max(shape[i + 1], 1)
        sizes = (ctypes.c_int64 * len(shape))(*shape)
        steps = (ctypes.c_int64 * len(shape))(*strides)
        handle = ctypes.c_void_p()
        create = self.lib.aoti_torch_create_tensor_from_blob
        zero, dtype = ctypes.c_int64(0), ctypes.c_int32(spec["dtype"])
        rank = ctypes.c_int64(len(shape))
        self.check(create(data, rank, sizes, steps, zero, dtype, 0, 0, ctypes.byref(handle)))
        return handle.value or 0

    def stable_value(self, spec: dict[str, Any], data: Any) -> int:
        """Encode one argument as libtorch's stable ABI does: 64 bits each."""
        kind, value = spec["kind"], spec.get("value")
        if kind == "tensor":
            return self.tensor(spec, data)
        if kind == "none":
            return 0
        if kind == "some":  # an optional is a pointer from new, which libtorch deletes
            pointer = libc.malloc(8)
            ctypes.c_uint64.from_address(pointer).value = self.stable_value(spec["of"], data)
            return int(pointer)
        if kind == "float":
            return ctypes.c_uint64.from_buffer(ctypes.c_double(value)).value
        if kind == "str":
            handle = ctypes.c_void_p()
            text = str(value).encode()
            length = ctypes.c_size_t(len(text))
            self.check(self.lib.torch_new_string_handle(text, length, ctypes.byref(handle)))
            return handle.value or 0
        return int(value or 0) & 0xFFFFFFFFFFFFFFFF

    def call(self, op: str, args: list[dict[str, Any]]) -> list[str | None]:
        """Call torch.ops.seekernel.<op>; return every tensor argument's bytes after the call."""
        buffers: list[Any] = []
        for spec in args:
            tensor = spec["of"] if spec["kind"] == "some" else spec
            raw = base64.b64decode(tensor["data"]) if tensor["kind"] == "tensor" else None
            buffers.append(ctypes.create_string_buffer(raw, len(raw)) if raw is not None else None)
        self.keep.append(buffers)
        values = [self.stable_value(spec, data) for spec, data in zip(args, buffers, strict=True)]
        stack = (ctypes.c_uint64 * len(values))(*values)
        self.check(self.lib.aoti_torch_call_dispatcher(f"seekernel::{op}".encode(), b"", stack))
        return [None if b is None else base64.b64encode(b.raw).decode() for b in buffers]


def main() -> None:
    folder, extension = sys.argv[1:]
    libtorch = Libtorch(folder)
    loader = importlib.machinery.ExtensionFileLoader("_C", extension)
    spec = importlib.util.spec_from_loader("_C", loader)
    if spec is None:
        raise ImportError(extension)
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    refusal = ""
    os.environ["SEEKERNEL_CPU_ISA"] = "avx512"
    try:
        module.build_info()
    except RuntimeError as error:
        refusal = str(error)
    del os.environ["SEEKERNEL_CPU_ISA"]
    calls = json.load(sys.stdin)
    results = [libtorch.call(call["op"], call["args"]) for call in calls]
    answer = {"info": module.build_info(), "refusal": refusal, "results": results}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
