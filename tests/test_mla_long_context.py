"""Long contexts on the CPU: memory beside the inputs stays flat, sampled rows are those of float64 attention."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from seekernel import ops, reference
from tests.mla_testing import BF16, F32, cos_sin, int32

PAGE_SIZE, SCALE = 64, 0.11
FLAT_BYTES = 48 * 2**20
LENGTHS = [32768, pytest.param(131072, marks=pytest.mark.slow)]


def _status(field: str) -> int:
    (line,) = (x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(field))
    return int(line.split()[1]) * 1024


@contextmanager
def peak_memory() -> Iterator[Callable[[], int]]:
    """Gives a function that returns how far the resident set has been above where it began."""
    reset = Path("/proc/self/clear_refs")
    try:
        reset.write_text("5")
    except OSError:
        pytest.skip("no /proc/self/clear_refs here")
    before = _status("VmRSS")
    yield lambda: _status("VmHWM") - before


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("kind", ["bfloat16", "blocks"])
def test_decode(length: int, kind: str, record_property: Callable[[str, object], None]) -> None:
    torch.manual_seed(0)
    kv_lora, rope, h = 512, 64, 4
    values = torch.randn(length, kv_lora + rope)
    rows = values.to(BF16) if kind == "bfloat16" else reference.quantize_latent(values, kv_lora)
    order = torch.randperm(length // PAGE_SIZE)
    cache = torch.empty_like(rows).view(-1, PAGE_SIZE, rows.shape[1])
    cache[order] = rows.view(cache.shape)
    q = torch.randn(2, h, kv_lora + rope)
    arguments = (q, cache, order.int()[None], int32([length]), int32([0, 2]), SCALE)
    with peak_memory() as peak:
        out, lse = ops.mla_decode(*arguments)
        used = peak()
    print(f"decode of {length} tokens, {kind}: peak {used / 2**20:.1f} MiB above {cache.nbytes / 2**20:.0f} MiB of cache")  # fmt: skip
    record_property("peak_bytes", used)
    assert used < FLAT_BYTES
    keys = reference.latent_values(rows, kv_lora)
    for token, head in ((0, 1), (1, 3)):
        seen = keys[: length - 1 + token]
        scores = seen @ q[token, head].double() * SCALE
        want = scores.softmax(0) @ seen[:, :kv_lora]
        torch.testing.assert_close(out[token, head].double(), want, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            lse[token, head].double(), scores.logsumexp(0), rtol=1e-6, atol=1e-5
        )


@pytest.mark.parametrize("length", LENGTHS)
def test_chunked_prefill(length: int, record_property: Callable[[str, object], None]) -> None:
    """Append a chunk to an FP8 cache, then attend to all of it, 8192 keys at a time."""
    torch.manual_seed(0)
    kv_lora, rope, nope, d_v, h, chunk = 128, 16, 32, 32, 1, 8192
    cache = torch.zeros(
        length // PAGE_SIZE, PAGE_SIZE, kv_lora + kv_lora // 32 + 2 * rope, dtype=torch.uint8
    )
    table = torch.randperm(cache.shape[0]).int()[None]
    kv_b = torch.randn(kv_lora, h * (nope + d_v)) / 8
    weight, rope_table = torch.ones(kv_lora), cos_sin(length, rope)
    qkv_a = torch.randn(length, kv_lora + rope)
    q = torch.randn(length, h, nope + rope)
    sampled = torch.tensor([0, 1, 127, chunk - 1, chunk, length // 2 + 77, length - 1])
    results: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    token = torch.arange(length)
    slots = table[0, token // PAGE_SIZE].long() * PAGE_SIZE + token % PAGE_SIZE
    with peak_memory() as peak:
        for begin in range(0, length, chunk):
            new = slice(begin, begin + chunk)
            ops.mla_prepare(
                qkv_a[new], None, weight, token[new].int(), rope_table, slots[new], 1e-6, None, cache
            )  # fmt: skip
            out = torch.zeros(chunk, h, d_v)
            lse = torch.full((chunk, h), -math.inf)
            for first in range(0, begin + chunk, chunk):
                pages = table[:, first // PAGE_SIZE : (first + chunk) // PAGE_SIZE].contiguous()
                latent, k_pe = ops.mla_gather_latent(
                    cache, pages, int32([0, chunk]), chunk, kv_lora, F32
                )
                ops.mla_prefill(
                    q[new], (latent @ kv_b).view(chunk, h, -1), k_pe, int32([0, chunk]), int32([0, chunk]),
                    SCALE, first == begin, out, lse, previous_out=out, previous_lse=lse,
                )  # fmt: skip
            for row in sampled[(sampled >= begin) & (sampled < begin + chunk)].tolist():
                results[row] = (out[row - begin].clone(), lse[row - begin].clone())
        used = peak()
    print(f"chunked prefill of {length} tokens: peak {used / 2**20:.1f} MiB above {cache.nbytes / 2**20:.0f} MiB of cache")  # fmt: skip
    record_property("peak_bytes", used)
    assert used < FLAT_BYTES
    rows = cache[table[0].long()].flatten(0, 1)
    values = reference.latent_values(rows, kv_lora)
    kv = (values[:, :kv_lora] @ kv_b.double()).view(length, h, -1)
    for row, (got, got_lse) in results.items():
        keys = torch.cat([kv[: row + 1, 0, :nope], values[: row + 1, kv_lora:]], -1)
        scores = keys @ q[row, 0].double() * SCALE
        torch.testing.assert_close(got_lse[0].double(), scores.logsumexp(0), rtol=1e-6, atol=2e-5)
        want = scores.softmax(0) @ kv[: row + 1, 0, nope:]
        torch.testing.assert_close(got[0].double(), want, rtol=1e-4, atol=2e-5)
