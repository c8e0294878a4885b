"""Host sides of the kernels without tensor cores: reductions, exchanges, barriers, bulk copies."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.emulator.kernels.compare import (
    BF16,
    E4M3,
    WrongResult,
    random_array,
    require_close,
    require_equal,
)
from tests.emulator.launch import Device, ElementType, LaunchResult, TensorMap


def _integers(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Small integers as fp32: sums of them are exact in any order."""
    return np.random.default_rng(seed).integers(-50, 50, shape).astype(np.float32)


def rms_norm_quantize(
    device: Device,
    ptx: str | Path,
    *,
    rows: int = 4,
    hidden: int = 1024,
    grid_extra: int = 0,
    seed: int = 0,
) -> LaunchResult:
    """Normalise and quantise rows; at most 2 codes in 1000 may round the other way."""
    x = random_array((rows, hidden), BF16, seed)
    w = (1 + 0.1 * np.random.default_rng(seed + 1).standard_normal(hidden)).astype(BF16)
    q = device.empty((rows, hidden), E4M3)
    s = device.empty((rows, hidden // 128), np.float32)
    result = device.launch(
        device.load(ptx).function("rms_norm_quantize"),
        grid=(rows + grid_extra,),
        block=(128,),
        args=(device.buffer(x), device.buffer(w), q, s, np.int32(hidden), np.float32(1e-6)),
    )
    if s.unwritten_bytes():
        raise WrongResult("rms_norm_quantize s", "every scale written", "unwritten bytes")
    xd = x.astype(np.float64)
    y = xd / np.sqrt((xd**2).mean(1, keepdims=True) + 1e-6) * w.astype(np.float64)
    groups = y.reshape(rows, -1, 128)
    scale = np.maximum(np.abs(groups).max(2), 1e-4) / 448
    require_close("rms_norm_quantize s", s.numpy(), scale, 1e-5)
    want = (groups / scale[..., None]).astype(np.float32).astype(E4M3).reshape(rows, hidden)
    differing = float((q.numpy().view(np.uint8) != want.view(np.uint8)).mean())
    if differing > 2e-3:
        raise WrongResult("rms_norm_quantize q", "0.2 % differing codes", f"{differing:.2%}")
    return result


def split_k(
    device: Device, ptx: str | Path, *, splits: int = 4, rows: int = 64, seed: int = 0
) -> LaunchResult:
    """Sum rows over CTAs through global memory; twice, since the counter must come back to zero."""
    x = _integers((rows, 128), seed)
    partial = device.empty((splits, 128), np.float32)
    counter = device.buffer(np.zeros(1, np.uint32))
    y = device.empty((128,), np.float32)
    function = device.load(ptx).function("split_k")
    buffer = device.buffer(x)
    for _ in range(2):
        result = device.launch(
            function,
            grid=(splits,),
            block=(128,),
            args=(buffer, partial, counter, y, np.int32(rows)),
        )
    require_equal("split_k y", y.numpy(), x.sum(0))
    require_equal("split_k counter", counter.numpy(), np.zeros(1, np.uint32))
    return result


def pdl_pair(device: Device, ptx: str | Path, *, blocks: int = 3, seed: int = 0) -> LaunchResult:
    """Launch the pair, the second kernel with programmatic stream serialisation."""
    x = _integers((128 * blocks,), seed)
    buffer, y, z = device.buffer(x), device.empty(x.shape, np.float32), device.empty(x.shape, "f4")
    module = device.load(ptx)
    for name, args, pdl in (("pdl_first", (buffer, y), False), ("pdl_second", (y, z), True)):
        result = device.launch(
            module.function(name), grid=(blocks,), block=(128,), args=args, pdl=pdl
        )
    require_equal("pdl_pair z", z.numpy(), 2 * (x + 1))
    return result


def cluster_reduce(
    device: Device, ptx: str | Path, *, clusters: int = 2, seed: int = 0
) -> LaunchResult:
    """Sum the rows of each cluster of four CTAs."""
    x = _integers((4 * clusters, 128), seed)
    y = device.empty((clusters, 128), np.float32)
    result = device.launch(
        device.load(ptx).function("cluster_reduce"),
        grid=(4 * clusters,),
        block=(128,),
        args=(device.buffer(x), y),
        cluster=(4,),
    )
    require_equal("cluster_reduce y", y.numpy(), x.reshape(clusters, 4, 128).sum(1))
    return result


def warp_exchange(
    device: Device, ptx: str | Path, *, blocks: int = 2, rounds: int = 3, seed: int = 0
) -> LaunchResult:
    """Reverse runs of 32 values `rounds` times."""
    x = np.random.default_rng(seed).integers(0, 2**32, 128 * blocks, np.uint32)
    y = device.empty(x.shape, np.uint32)
    result = device.launch(
        device.load(ptx).function("warp_exchange"),
        grid=(blocks,),
        block=(128,),
        args=(device.buffer(x), y, np.int32(rounds)),
    )
    want = x.reshape(-1, 32)[:, ::-1].reshape(-1) if rounds % 2 else x
    require_equal("warp_exchange y", y.numpy(), want)
    return result


def subword(device: Device, ptx: str | Path, *, seed: int = 0) -> LaunchResult:
    """Mirror 256 bytes and 256 halves whose neighbours belong to other warps."""
    x = np.random.default_rng(seed).integers(0, 256, 256, np.uint8)
    out8, out16 = device.empty((256,), np.uint8), device.empty((256,), np.uint16)
    result = device.launch(
        device.load(ptx).function("subword"),
        grid=(1,),
        block=(256,),
        args=(device.buffer(x), out8, out16),
    )
    require_equal("subword out8", out8.numpy(), x[::-1])
    require_equal("subword out16", out16.numpy(), x[::-1].astype(np.uint16) * 257)
    return result


def _chunked(
    device: Device, ptx: str | Path, name: str, chunks: int, seed: int, exact: np.ndarray | None
) -> LaunchResult:
    """Run a two-warp hand-off over chunks of 32 values; y = 3 x unless `exact` is added instead."""
    x = _integers((chunks, 32), seed)
    y = device.empty(x.shape, np.float32)
    result = device.launch(
        device.load(ptx).function(name),
        grid=(1,),
        block=(64,),
        args=(device.buffer(x), y, np.int32(chunks)),
    )
    require_equal(f"{name} y", y.numpy(), 3 * x if exact is None else x + exact)
    return result


def phases(device: Device, ptx: str | Path, *, chunks: int = 9, seed: int = 0) -> LaunchResult:
    """The mbarrier ring between two warps."""
    return _chunked(device, ptx, "phases", chunks, seed, None)


def named_barriers(
    device: Device, ptx: str | Path, *, chunks: int = 5, seed: int = 0
) -> LaunchResult:
    """The bar.arrive / bar.sync hand-off between two warps."""
    add = np.arange(chunks, dtype=np.float32)[:, None]
    return _chunked(device, ptx, "named_barriers", chunks, seed, add)


def tma_reduce(device: Device, ptx: str | Path, *, blocks: int = 4, seed: int = 0) -> LaunchResult:
    """Sum tiles into y by a tensor map and into z by a pointer."""
    x = _integers((blocks, 16, 32), seed)
    y, z = (device.buffer(np.zeros((16, 32), np.float32)) for _ in range(2))
    seen = device.empty((blocks,), np.float32)
    tile = TensorMap(y, ElementType.FLOAT32, (32, 16), (128,), (32, 16))
    result = device.launch(
        device.load(ptx).function("tma_reduce"),
        grid=(blocks,),
        block=(128,),
        args=(device.buffer(x), tile, y, z, seen),
    )
    require_equal("tma_reduce y", y.numpy(), x.sum(0))
    require_equal("tma_reduce z", z.numpy(), x.sum(0))
    return result


def bulk_copy(
    device: Device,
    ptx: str | Path,
    *,
    chunks: int = 7,
    blocks: int = 2,
    add: int = 0,
    seed: int = 0,
) -> LaunchResult:
    """Copy chunks of 1 KB with the bulk engine; `add` is what the kernel variant adds to each byte."""
    x = np.random.default_rng(seed).integers(0, 256, 1024 * chunks, np.uint8)
    y = device.empty(x.shape, np.uint8)
    result = device.launch(
        device.load(ptx).function("bulk_copy"),
        grid=(blocks,),
        block=(128,),
        args=(device.buffer(x), y, np.int32(chunks)),
    )
    require_equal("bulk_copy y", y.numpy(), (x + np.uint8(add)).astype(np.uint8))
    return result
