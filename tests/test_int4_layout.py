"""repack_int4_for_sm90: every code, there and back, and what the kernel makes of a word."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from seekernel import ops, reference


def random_int4(groups: int, n: int, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(groups, n, k, generator=generator)
    pairs = [reference.quantize_int4_g128(x) for x in w]
    return torch.stack([q for q, _ in pairs]), torch.stack([scale for _, scale in pairs])


def test_sign_and_magnitude_are_an_e4m3() -> None:
    """All 16 codes: the byte with the sign in bit 7 and the magnitude in bits 0 to 2."""
    codes = torch.arange(16)
    sign, magnitude = codes >> 3, codes & 7
    values = (sign << 7 | magnitude).to(torch.uint8).view(torch.float8_e4m3fn).float()
    assert torch.equal(values * 512, magnitude * (1 - 2 * sign.float()))
    assert torch.signbit(values).equal(sign.bool())


@pytest.mark.parametrize("shape", [(1, 64, 128), (3, 192, 384)], ids=str)
def test_there_and_back(shape: tuple[int, int, int]) -> None:
    b, b_scale = random_int4(*shape)
    packed = ops.repack_int4_for_sm90(b, b_scale)
    assert packed.shape == (shape[0], shape[1] // 64, shape[2] // 128, 4352)
    back, scale = ops.unpack_int4_from_sm90(packed)
    assert torch.equal(back, b)
    assert torch.equal(scale, b_scale)


def test_words_hold_what_the_kernel_takes_out() -> None:
    """The kernel's two masks and one rotation, on every word, against the documented positions."""
    b, b_scale = random_int4(1, 64, 128)
    values = (reference.dequantize_int4_g128(b, torch.ones_like(b_scale))[0]).numpy()
    block = ops.repack_int4_for_sm90(b, b_scale)[0, 0, 0].numpy()
    words = block[:4096].view(np.uint32).reshape(2, 128, 4)
    even = words & 0x87878787
    odd = (words >> 4 | words << 28) & 0x87878787
    registers = np.stack([even, odd], -1).reshape(2, 128, 2, 4)  # half, thread, step, register
    for half, thread, step, register in np.ndindex(registers.shape):
        warp, lane = divmod(thread, 32)
        row = 16 * warp + lane // 4 + 8 * (register % 2)
        first = 32 * (2 * half + step) + 4 * (lane % 4) + 16 * (register // 2)
        word = registers[half, thread, step, register]
        got = torch.from_numpy(np.array([word]).view(np.uint8)).view(torch.float8_e4m3fn)
        assert (got.double().numpy() * 512 == values[row, first : first + 4]).all()
    assert (block[4096:].view(np.float32) == b_scale[0, :, 0].numpy() * 512).all()


def test_rejects() -> None:
    b, b_scale = random_int4(1, 64, 128)
    bad = b.clone()
    bad[0, 3, 4] = 0x83
    with pytest.raises(ValueError, match="from -7 to 7, got -8 in group 0"):
        ops.repack_int4_for_sm90(bad, b_scale)
    with pytest.raises(ValueError, match="a multiple of 64"):
        ops.repack_int4_for_sm90(b[:, :63], b_scale[:, :63])
    with pytest.raises(ValueError, match=r"b_scale: expected float32 \[1, 64, 1\]"):
        ops.repack_int4_for_sm90(b, b_scale[:, :1])
    with pytest.raises(ValueError, match=r"b: expected torch\.uint8"):
        ops.repack_int4_for_sm90(b.char(), b_scale)
    with pytest.raises(ValueError, match="packed: expected uint8"):
        ops.unpack_int4_from_sm90(b)
