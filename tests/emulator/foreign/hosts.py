"""Host sides of the foreign kernels: inputs, parameter blocks, launch, comparison with float64."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.emulator.kernels.compare import BF16, E4M3, WrongResult, random_array, require_close
from tests.emulator.launch import (
    TENSOR_MAP_BYTES,
    Array,
    Buffer,
    Device,
    ElementType,
    LaunchResult,
    Swizzle,
    TensorMap,
    encode_tensor_map,
)

DATA_TYPES = {
    0: ElementType.UINT8,
    1: ElementType.UINT16,
    2: ElementType.UINT32,
    6: ElementType.FLOAT16,
    7: ElementType.FLOAT32,
    9: ElementType.BFLOAT16,
}
"""CUtensorMapDataType codes that the kernels here ask for."""
SWIZZLES = (Swizzle.NONE, Swizzle.B32, Swizzle.B64, Swizzle.B128)

_POINTER = ctypes.c_void_p
_ENCODE = ctypes.CFUNCTYPE(
    ctypes.c_int,
    _POINTER,
    ctypes.c_int,
    ctypes.c_uint,
    _POINTER,
    *[_POINTER] * 4,
    *[ctypes.c_int] * 4,
)


def _array(address: int, kind: Any, count: int) -> tuple[int, ...]:
    return tuple((kind * count).from_address(address)) if count else ()


def encoder(
    device: Device, buffers: Sequence[Buffer], errors: list[Exception]
) -> Callable[..., int]:
    """cuTensorMapEncodeTiled in terms of `device`: the address picks the buffer.

    Exceptions cannot cross the C frames in between: they are left in `errors`, and 1 is returned.
    """

    def encode(
        out: int,
        kind: int,
        rank: int,
        base: int,
        dims: int,
        strides: int,
        box: int,
        steps: int,
        interleave: int,
        swizzle: int,
        l2: int,
        fill: int,
    ) -> int:
        try:
            buffer = next(b for b in buffers if b.address <= base < b.address + b.nbytes)
            sizes = _array(dims, ctypes.c_uint64, rank)
            tile = _array(box, ctypes.c_uint32, rank)
            made = TensorMap(
                buffer,
                DATA_TYPES[kind],
                sizes,
                _array(strides, ctypes.c_uint64, rank - 1),
                tile,
                _array(steps, ctypes.c_uint32, rank),
                SWIZZLES[swizzle],
                nan_fill=bool(fill),
                offset_bytes=base - buffer.address,
            )
            ctypes.memmove(out, encode_tensor_map(device, made), TENSOR_MAP_BYTES)
        except Exception as error:
            errors.append(error)
            return 1
        return 0

    return encode


def _fill(
    device: Device, host: Path, buffers: Sequence[Buffer], *args: object
) -> tuple[bytes, list[int]]:
    """Call a host half's fill_params; returns the parameter bytes and the ten launch numbers.

    `args` are ctypes values after the callback; the output block and the launch array are appended.
    """
    errors: list[Exception] = []
    callback = _ENCODE(encoder(device, buffers, errors))
    block, launch = (ctypes.c_uint8 * 8192)(), (ctypes.c_int * 10)()
    size = ctypes.CDLL(str(host)).fill_params(
        callback, *args, ctypes.byref(block), ctypes.byref(launch)
    )
    if errors:
        raise errors[0]
    if not size:
        raise WrongResult("fill_params", "a problem that the kernel takes", "a refusal")
    return bytes(block[:size]), list(launch)


def cutlass_gemm(
    device: Device,
    ptx: Path,
    host: Path,
    *,
    fp8: bool,
    m: int = 256,
    n: int = 256,
    k: int = 1024,
    num_sms: int = 2,
    alpha: float = 0.5,
    beta: float = 2.0,
    seed: int = 0,
    outputs: list[Array] | None = None,
) -> LaunchResult:
    """D = alpha * A @ B^T + beta * C with a CUTLASS kernel; D is appended to `outputs`."""
    dtype = E4M3 if fp8 else BF16
    a, b = random_array((m, k), dtype, seed), random_array((n, k), dtype, seed + 1)
    c = random_array((m, n), BF16, seed + 2)
    buffers = [device.buffer(x) for x in (a, b, c)] + [device.empty((m, n), BF16)]
    addresses = [ctypes.c_uint64(buffer.address) for buffer in buffers]
    sizes = [ctypes.c_int(x) for x in (m, n, k)]
    scales = (ctypes.c_float(alpha), ctypes.c_float(beta), ctypes.c_int(num_sms))
    block, launch = _fill(device, host, buffers, *addresses, *sizes, *scales)
    result = device.launch(
        device.load(ptx).function("device_kernel"),
        grid=launch[0:3],
        block=launch[3:6],
        args=(block,),
        cluster=launch[6:9],
        shared_bytes=launch[9],
    )
    want = alpha * (a.astype(np.float64) @ b.astype(np.float64).T) + beta * c.astype(np.float64)
    got = buffers[3].numpy()
    if outputs is not None:
        outputs.append(got)
    require_close("cutlass_gemm d", got, want, 4e-3)
    return result


def deep_gemm(
    device: Device,
    ptx: Path,
    *,
    m: int = 256,
    n: int = 256,
    k: int = 768,
    stages: int = 4,
    cluster: int = 1,
    unit_scales: bool = False,
    seed: int = 0,
    outputs: list[Array] | None = None,
) -> LaunchResult:
    """D = sum over k blocks of sfa * sfb * (A @ B^T) with DeepGEMM's persistent kernel (two CTAs).

    With `unit_scales` all scales are 1. D is appended to `outputs`.
    """
    a, b = random_array((m, k), E4M3, seed), random_array((n, k), E4M3, seed + 1)
    source = np.random.default_rng(seed + 2)
    sfa = source.uniform(0.5, 2, (k // 128, m)).astype(np.float32)
    sfb = source.uniform(0.5, 2, (n // 128, k // 128)).astype(np.float32)
    if unit_scales:
        sfa[:], sfb[:] = 1, 1
    d = device.empty((m, n), BF16)
    byte = ElementType.UINT8
    maps = (
        TensorMap(device.buffer(a), byte, (k, m), (k,), (128, 128), swizzle=Swizzle.B128),
        TensorMap(device.buffer(b), byte, (k, n), (k,), (128, 128), swizzle=Swizzle.B128),
        TensorMap(d, ElementType.BFLOAT16, (n, m), (2 * n,), (64, 128), swizzle=Swizzle.B128),
        TensorMap(device.buffer(sfa), ElementType.FLOAT32, (m, k // 128), (4 * m,), (128, 1)),
    )
    shared = 128 * 128 * 2 + stages * (2 * 128 * 128 + 512) + k // 128 * 4 + 8 + stages * 16
    sizes = [np.uint32(x) for x in (m, n, k)]
    result = device.launch(
        device.load(ptx).function("sm90_fp8_gemm_1d2d"),
        grid=(2,),
        block=(384,),
        args=(device.buffer(sfb), np.uint64(0), *sizes, *maps),
        cluster=(cluster,),
        shared_bytes=(shared + 15) // 16 * 16,
    )
    want = np.zeros((m, n))
    for block in range(k // 128):
        part = slice(128 * block, 128 * block + 128)
        product = a[:, part].astype(np.float64) @ b[:, part].astype(np.float64).T
        want += sfa[block][:, None] * np.repeat(sfb[:, block], 128)[None, :] * product
    got = d.numpy()
    if outputs is not None:
        outputs.append(got)
    require_close("deep_gemm d", got, want, 4e-3)
    return result


def flashinfer_attention(
    device: Device,
    ptx: Path,
    host: Path,
    *,
    len_q: int = 128,
    len_kv: int = 320,
    heads: int = 2,
    seed: int = 0,
) -> LaunchResult:
    """O = softmax(scale * Q @ K^T) @ V and its base-2 LSE with FlashInfer's SM90 prefill kernel."""
    head = 128
    q = random_array((len_q, heads, head), BF16, seed)
    k, v = (random_array((len_kv, heads, head), BF16, seed + i) for i in (1, 2))
    o, lse = device.empty(q.shape, BF16), device.empty((len_q, heads), np.float32)
    buffers = [*(device.buffer(x) for x in (q, k, v)), o, lse]
    addresses = [ctypes.c_uint64(buffer.address) for buffer in buffers]
    shape = [ctypes.c_int(x) for x in (len_q, len_kv, heads)]
    scale = head**-0.5
    parts = (ctypes.c_int * 3)()
    errors: list[Exception] = []
    callback = _ENCODE(encoder(device, buffers, errors))
    out, launch = (ctypes.c_uint8 * 8192)(), (ctypes.c_int * 10)()
    ctypes.CDLL(str(host)).fill_params(
        callback,
        *addresses,
        *shape,
        ctypes.c_float(scale),
        ctypes.byref(out),
        ctypes.byref(parts),
        ctypes.byref(launch),
    )
    if errors:
        raise errors[0]
    raw, blocks, at = bytes(out), [], 0
    for size in parts:
        blocks.append(raw[at : at + size])
        at += size
    result = device.launch(
        device.load(ptx).function("PrefillWithKVCacheKernel"),
        grid=launch[0:3],
        block=launch[3:6],
        args=blocks,
        cluster=launch[6:9],
        shared_bytes=launch[9],
    )
    qd, kd, vd = (x.astype(np.float64).transpose(1, 0, 2) for x in (q, k, v))
    score = qd @ kd.transpose(0, 2, 1) * scale
    top = score.max(2, keepdims=True)
    weight = np.exp(score - top)
    total = weight.sum(2, keepdims=True)
    want = (weight / total @ vd).transpose(1, 0, 2)
    require_close("flashinfer_attention o", o.numpy(), want, 1e-2)
    want_lse = ((top + np.log(total))[..., 0] / np.log(2)).T
    require_close("flashinfer_attention lse", lse.numpy(), want_lse, 1e-3)
    return result
