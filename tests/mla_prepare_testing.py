"""Launches of the kernels around the latent cache, on the emulator or a GPU."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import torch
from torch import Tensor

from seekernel import reference
from tests.emulator.launch import Array, Buffer, Device
from tests.kernel_testing import BuiltKernel, to_numpy
from tests.mla_testing import BF16, F32, cos_sin

FORMATS = {"float": 0, "bfloat16": 1, "blocks": 2, "flat": 3}
FLAT_SCALE = 0.0173
EPS = 1e-6


def scale_of(kind: str) -> Tensor | None:
    """kv_scale of a cache format."""
    return torch.tensor([FLAT_SCALE]) if kind == "flat" else None


def stored(values: Tensor, kind: str, kv_lora: int) -> Tensor:
    """Rows of float values as a cache of this format holds them."""
    if kind in ("blocks", "flat"):
        return reference.quantize_latent(values, kv_lora, scale_of(kind))
    return values.to(F32 if kind == "float" else BF16)


def as_bytes(tensor: Tensor) -> Array:
    """The bytes of a cache, [pages, page_size, row bytes]."""
    array: Array = tensor.contiguous().view(torch.uint8).numpy()
    return array


def pack_cache(
    data: int, stride_page: int, stride_row: int, scale: Buffer | None, kind: str, page_size: int,
    kv_lora: int, rope: int,
) -> bytes:  # fmt: skip
    """latent_cache_t; strides in bytes."""
    address = 0 if scale is None else scale.address
    return struct.pack("<QqqQiiii", data, stride_page, stride_row, address, FORMATS[kind], page_size, kv_lora, rope)  # fmt: skip


def prepare_inputs(
    kind: str, dtype: torch.dtype, s: int, q_lora: int, kv_lora: int, rope: int, page_size: int
) -> dict[str, Any]:
    """Arguments of mla_prepare: a third of the rows is not stored, and has an impossible position."""
    torch.manual_seed(0)
    num_pages = -(-(s + 5) // page_size)
    slots = torch.randperm(s + 5)[:s]
    slots[1::3] = -1
    positions = torch.randint(0, 99, (s,), dtype=torch.int32)
    positions[1::3] = 2**31 - 1
    growth = torch.exp2(torch.arange(kv_lora) // 128 * 4.0 - 4)
    empty = torch.zeros(num_pages, page_size, kv_lora + rope)
    return {
        "qkv_a": (torch.randn(s, q_lora + kv_lora + rope) * 3).to(dtype),
        "q_norm_weight": torch.randn(q_lora).to(BF16) if q_lora else None,
        "kv_norm_weight": torch.randn(kv_lora) * growth,
        "positions": positions,
        "cos_sin": cos_sin(99, rope),
        "slots": slots,
        "eps": EPS,
        "kv_cache": stored(empty, kind, kv_lora),
        "kv_scale": scale_of(kind),
    }


def launch_prepare(
    device: Device, kernel: BuiltKernel, kind: str, given: dict[str, Any], page_shift: int = 0
) -> tuple[Array, Array]:
    """Run it; returns q_latent and the cache's bytes. page_shift: the cache begins that many pages on."""
    x, cache = given["qkv_a"], given["kv_cache"]
    s, rope, kv_lora = x.shape[0], given["cos_sin"].shape[1], given["kv_norm_weight"].shape[0]
    q_lora = x.shape[1] - kv_lora - rope
    raw = as_bytes(cache)
    stride_row, stride_page = raw.shape[2], raw.shape[1] * raw.shape[2]
    buffers = {
        name: device.buffer(to_numpy(given[name]))
        for name in ("qkv_a", "kv_norm_weight", "positions", "cos_sin")
    }
    q_weight = device.buffer(to_numpy(given["q_norm_weight"])) if q_lora else None
    slots = given["slots"]
    d_slots = device.buffer(
        (torch.where(slots < 0, slots, slots + page_shift * cache.shape[1])).numpy()
    )
    q_latent = device.buffer(to_numpy(torch.full((s, max(8, q_lora)), float("nan"), dtype=x.dtype)))
    d_cache = device.buffer(raw)
    d_scale = None if given["kv_scale"] is None else device.buffer(given["kv_scale"].numpy())
    threads = [-(-size // 256) * 32 for size in (q_lora, kv_lora)]
    args = struct.pack(
        "<QQQQQQQ qqq",
        buffers["qkv_a"].address, q_weight.address if q_weight else 0, buffers["kv_norm_weight"].address,
        buffers["positions"].address, buffers["cos_sin"].address, d_slots.address, q_latent.address,
        x.shape[1], max(8, q_lora), rope,
    )  # fmt: skip
    args += pack_cache(
        d_cache.address - page_shift * stride_page, stride_page, stride_row, d_scale, kind,
        cache.shape[1], kv_lora, rope,
    )  # fmt: skip
    args += struct.pack(
        "<fiiiiii4x", EPS, q_lora, *threads,
        q_lora > 0 and given["q_norm_weight"].dtype == F32, given["kv_norm_weight"].dtype == F32,
        slots.dtype == torch.int64,
    )  # fmt: skip
    device.launch(kernel.on(device), grid=(s,), block=(sum(threads) + 32,), args=(args,))
    return q_latent.numpy(), d_cache.numpy()


def launch_gather(
    device: Device, kernel: BuiltKernel, kind: str, cache: Tensor, table: Tensor, cu: Tensor,
    kv_lora: int, rope: int, dtype: torch.dtype, page_shift: int = 0,
) -> tuple[Array, Array]:  # fmt: skip
    """Run mla_gather_latent; returns latent and k_pe."""
    raw = as_bytes(cache)
    stride_row, stride_page = raw.shape[2], raw.shape[1] * raw.shape[2]
    num_kv, scale = int(cu[-1]), scale_of(kind)
    d_cache, d_table, d_cu = (device.buffer(a) for a in (raw, table.numpy(), cu.numpy()))
    d_scale = None if scale is None else device.buffer(scale.numpy())
    latent, k_pe = (
        device.buffer(to_numpy(torch.full((num_kv, size + 8), float("nan"), dtype=dtype)))
        for size in (kv_lora, rope)
    )
    struct_bytes = pack_cache(
        d_cache.address - page_shift * stride_page, stride_page, stride_row, d_scale, kind,
        cache.shape[1], kv_lora, rope,
    )  # fmt: skip
    args = (
        struct_bytes, d_table, np.int64(table.shape[1]), d_cu, np.int32(len(cu) - 1), np.int32(num_kv),
        latent, np.int64(kv_lora + 8), k_pe, np.int64(rope + 8),
    )  # fmt: skip
    device.launch(kernel.on(device), grid=(-(-num_kv // 16),), block=(128,), args=args)
    return latent.numpy(), k_pe.numpy()


def launch_merge(
    device: Device, kernel: BuiltKernel, states: list[tuple[Tensor, Tensor]], dtype: torch.dtype,
    in_place: bool,
) -> tuple[Array, Array]:  # fmt: skip
    """Run merge_attention_states; in place: the result takes the place of the first state."""
    s, h, d_v = states[0][0].shape
    held = [tuple(device.buffer(to_numpy(t)) for t in state) for state in states]
    if in_place:
        result = held[0]
    else:
        result = (
            device.buffer(to_numpy(torch.full((s, h, d_v), float("nan"), dtype=dtype))),
            device.buffer(np.full((s, h), np.nan, np.float32)),
        )
    types = [*(state[0].dtype for state in states), dtype]
    args = b"".join(
        struct.pack("<QQqqii", out.address, lse.address, h * d_v, d_v, kind == F32, 0)
        for (out, lse), kind in zip([*held, result], types, strict=True)
    )
    args += struct.pack("<qii", s * h, h, d_v)
    device.launch(kernel.on(device), grid=(-(-s * h // 8),), block=(256,), args=(args,))
    return result[0].numpy(), result[1].numpy()


def launch_rope(
    device: Device, kernel: BuiltKernel, x: Tensor, rope: int, positions: Tensor
) -> Array:
    """Run rope_interleaved on the last `rope` columns of x."""
    s, h, row = x.shape
    d_x = device.buffer(to_numpy(x))
    table, d_positions = device.buffer(cos_sin(99, rope).numpy()), device.buffer(positions.numpy())
    start = np.uint64(d_x.address + (row - rope) * x.element_size())
    vectors = s * h * rope // 8
    args = (
        start, d_positions, table, np.int64(vectors), np.int32(h), np.int32(rope), np.int64(h * row),
        np.int64(row), np.int64(rope),
    )  # fmt: skip
    device.launch(kernel.on(device), grid=(-(-vectors // 256),), block=(256,), args=args)
    return d_x.numpy()
