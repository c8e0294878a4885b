"""Host sides of the matrix kernels: fp8_gemm, cp_async_mma, attention, matrix_transpose."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.emulator.kernels.compare import BF16, E4M3, random_array, require_close, require_equal
from tests.emulator.launch import Array, Device, ElementType, LaunchResult, Swizzle, TensorMap

FP8_LIMIT = 4e-3
"""bf16 output rounding (2**-9) plus the tensor core's short fp8 sums within one 128-wide k block."""


def fp8_gemm(
    device: Device,
    ptx: str | Path,
    *,
    m: int = 128,
    n: int = 128,
    k: int = 1024,
    cluster: int = 1,
    swizzle_a: Swizzle = Swizzle.B128,
    box_a: int = 128,
    stage_bytes: int = 0,
    seed: int = 0,
    outputs: list[Array] | None = None,
) -> LaunchResult:
    """Run D = A @ B^T on 128x128 tiles and compare with float64; D is appended to `outputs`.

    Args:
        swizzle_a, box_a: the tensor map of A, wrong ones being planted bugs.
        stage_bytes: bytes by which the dynamic shared memory is cut short.
    """
    a, b = random_array((m, k), E4M3, seed), random_array((n, k), E4M3, seed + 1)
    buffer_a, buffer_b, d = device.buffer(a), device.buffer(b), device.empty((m, n), BF16)
    byte = ElementType.UINT8
    maps = (
        TensorMap(buffer_a, byte, (k, m), (k,), (box_a, 128), swizzle=swizzle_a),
        TensorMap(buffer_b, byte, (k, n), (k,), (128, 128 // cluster), swizzle=Swizzle.B128),
        TensorMap(d, ElementType.BFLOAT16, (n, m), (2 * n,), (64, 64), swizzle=Swizzle.B128),
    )
    result = device.launch(
        device.load(ptx).function("fp8_gemm"),
        grid=(m // 128, n // 128),
        block=(384,),
        args=(*maps, np.int32(k)),
        cluster=(cluster,),
        shared_bytes=4 * 2 * 128 * 128 + 128 * 128 * 2 + 64 - stage_bytes,
    )
    want = a.astype(np.float64) @ b.astype(np.float64).T
    got = d.numpy()
    if outputs is not None:
        outputs.append(got)
    require_close("fp8_gemm d", got, want, FP8_LIMIT)
    return result


def cp_async_mma(
    device: Device,
    ptx: str | Path,
    *,
    n: int = 64,
    k: int = 128,
    grid_extra: int = 0,
    seed: int = 0,
) -> LaunchResult:
    """Run D = A @ B^T with 16 rows and compare with float64; `grid_extra` CTAs too many is a bug."""
    a, b = random_array((16, k), BF16, seed), random_array((n, k), BF16, seed + 1)
    d = device.empty((16, n), np.float32)
    result = device.launch(
        device.load(ptx).function("cp_async_mma"),
        grid=(n // 32 + grid_extra,),
        block=(128,),
        args=(device.buffer(a), device.buffer(b), d, np.int32(k), np.int32(n)),
    )
    require_close("cp_async_mma d", d.numpy(), a.astype(np.float64) @ b.astype(np.float64).T, 1e-5)
    return result


def attention(
    device: Device, ptx: str | Path, *, tiles: int = 2, s_kv: int = 256, seed: int = 0
) -> LaunchResult:
    """Run O = softmax(scale * Q @ K^T) @ V and compare O and the base-2 LSE with float64."""
    rows, head = 64 * tiles, 64
    q = random_array((rows, head), BF16, seed)
    k, v = (random_array((s_kv, head), BF16, seed + i) for i in (1, 2))
    o, lse = device.empty((rows, head), np.float32), device.empty((rows,), np.float32)

    def tiled(x: np.ndarray) -> TensorMap:
        return TensorMap(
            device.buffer(x),
            ElementType.BFLOAT16,
            (head, x.shape[0]),
            (2 * head,),
            (head, 64),
            swizzle=Swizzle.B128,
        )

    scale_log2 = np.float32(head**-0.5 * np.log2(np.e))
    result = device.launch(
        device.load(ptx).function("attention"),
        grid=(tiles,),
        block=(160,),
        args=(tiled(q), tiled(k), tiled(v), o, lse, np.int32(s_kv), scale_log2),
        shared_bytes=8192 + 2 * 2 * 8192 + 64,
    )
    score = q.astype(np.float64) @ k.astype(np.float64).T * float(scale_log2)
    top = score.max(1, keepdims=True)
    weight = np.exp2(score - top)
    total = weight.sum(1, keepdims=True)
    require_close("attention o", o.numpy(), weight / total @ v.astype(np.float64), 1e-2)
    require_close("attention lse", lse.numpy(), (top + np.log2(total))[:, 0], 1e-5)
    return result


def matrix_transpose(
    device: Device, ptx: str | Path, *, tiles: int = 8, seed: int = 0
) -> LaunchResult:
    """Transpose 16x16 tiles of 16-bit words and compare bit for bit."""
    x = np.random.default_rng(seed).integers(0, 2**16, (tiles, 16, 16), np.uint16)
    y = device.empty(x.shape, np.uint16)
    result = device.launch(
        device.load(ptx).function("matrix_transpose"),
        grid=(tiles // 4,),
        block=(128,),
        args=(device.buffer(x), y),
    )
    require_equal("matrix_transpose y", y.numpy(), x.transpose(0, 2, 1).copy())
    return result
