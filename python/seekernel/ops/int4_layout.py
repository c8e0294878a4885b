"""Int4 weights in the order in which a Hopper kernel's registers take them.

The order is written down in csrc/include/seekernel/gemm/sm90_w4a8_gemm_nt_swap_ab.cuh. It is made once,
when weights are loaded, from the checkpoint's order (quantize_int4_g128), and holds the same information.
"""

from __future__ import annotations

import torch
from torch import Tensor

_ROWS, _GROUP = 64, 128
_NIBBLE_BYTES = _ROWS * _GROUP // 2
_BLOCK_BYTES = _NIBBLE_BYTES + 4 * _ROWS
_SUBNORMAL = 512.0
"""A magnitude as the last bits of an e4m3 is worth 1 / 512 of it."""
# [row: warp, register's low bit, lane / 4] x [column: half, step, register's high bit, lane % 4, byte]
_NATURAL = (4, 2, 8, 2, 2, 2, 4, 4)
# half, warp, lane / 4, lane % 4, step, register's high bit, register's low bit, byte
_ORDER = (3, 0, 2, 6, 4, 5, 1, 7)


def repack_int4_for_sm90(b: Tensor, b_scale: Tensor) -> Tensor:
    """Return int4 weights and their scales as blocks of 64 rows by 128 columns, fit for wgmma.

        packed[i, t, c] = 4096 bytes of sign-magnitude nibbles, then 64 float32 scales times 512

    Args:
        b: [g, n, k / 2] uint8, even column in the low nibble, values -7 to 7 in two's complement.
        b_scale: [g, n, k / 128] float32.
    Returns: [g, n / 64, k / 128, 4352] uint8, on b's device.
    Errors: ValueError for a shape, a dtype, or a value of -8, which has no sign-magnitude form.
    """
    groups, n, half_k = _three_sizes("b", b, torch.uint8)
    num_blocks = half_k // (_GROUP // 2)
    if n % _ROWS or half_k % (_GROUP // 2) or 0 in (n, half_k):
        raise ValueError(
            f"b: expected [g, a multiple of 64, a multiple of 64], got {list(b.shape)}"
        )
    if b_scale.dtype != torch.float32 or b_scale.shape != (groups, n, num_blocks):
        raise ValueError(
            f"b_scale: expected float32 {[groups, n, num_blocks]}, "
            f"got {b_scale.dtype} {list(b_scale.shape)}"
        )
    packed = b.new_empty(groups, n // _ROWS, num_blocks, _BLOCK_BYTES)
    for i in range(groups):  # one at a time: the intermediate steps are four times as large
        nibbles = torch.stack([b[i] & 15, b[i] >> 4], dim=-1).flatten(1)
        if bool((nibbles == 8).any()):
            raise ValueError(f"b: expected values from -7 to 7, got -8 in group {i}")
        codes = torch.where(nibbles > 7, (16 - nibbles) | 0x80, nibbles)
        blocks = codes.view(n // _ROWS, _ROWS, num_blocks, _GROUP).transpose(1, 2)
        ordered = blocks.reshape(-1, *_NATURAL).permute(0, *(1 + axis for axis in _ORDER))
        even, odd = ordered.unbind(-2)
        # A word with its odd register turned left by four bits.
        words = even | odd << 4 | odd.roll(1, -1) >> 4
        packed[i, ..., :_NIBBLE_BYTES] = words.reshape(n // _ROWS, num_blocks, -1)
        scale = b_scale[i].view(-1, _ROWS, num_blocks).transpose(1, 2) * _SUBNORMAL
        packed[i, ..., _NIBBLE_BYTES:] = scale.contiguous().view(torch.uint8)
    return packed


def unpack_int4_from_sm90(packed: Tensor) -> tuple[Tensor, Tensor]:
    """Return (b, b_scale) of repack_int4_for_sm90, bit for bit.

    Args: packed: [g, n / 64, k / 128, 4352] uint8.  Errors: ValueError.
    """
    if packed.dtype != torch.uint8 or packed.dim() != 4 or packed.shape[-1] != _BLOCK_BYTES:
        raise ValueError(
            f"packed: expected uint8 [g, n / 64, k / 128, {_BLOCK_BYTES}], "
            f"got {packed.dtype} {list(packed.shape)}"
        )
    groups, tiles, num_blocks, _ = packed.shape
    sizes = [_NATURAL[axis] for axis in _ORDER if axis != 1]
    words = packed[..., :_NIBBLE_BYTES].reshape(-1, *sizes)
    odd = words >> 4 | words.roll(-1, -1) << 4
    ordered = torch.stack([words, odd], dim=-2) & 0x87
    inverse = [1 + _ORDER.index(axis) for axis in range(len(_ORDER))]
    codes = ordered.permute(0, *inverse).reshape(groups, tiles, num_blocks, _ROWS, _GROUP)
    nibbles = torch.where(codes > 7, 16 - (codes & 7), codes) & 15
    flat = nibbles.transpose(2, 3).reshape(groups, tiles * _ROWS, num_blocks * _GROUP)
    scale = packed[..., _NIBBLE_BYTES:].contiguous().view(torch.float32) / _SUBNORMAL
    return (
        flat[..., ::2] | flat[..., 1::2] << 4,
        scale.transpose(2, 3).reshape(groups, tiles * _ROWS, num_blocks),
    )


def _three_sizes(name: str, x: Tensor, dtype: torch.dtype) -> tuple[int, int, int]:
    if x.dtype != dtype or x.dim() != 3:
        raise ValueError(f"{name}: expected {dtype} [g, n, k / 2], got {x.dtype} {list(x.shape)}")
    return x.shape[0], x.shape[1], x.shape[2]
