"""A decode step through its kernels: metadata, attention, combine, on the emulator or a GPU."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from seekernel import reference
from seekernel.reference.attention import quantize_latent
from tests.emulator.launch import Buffer, Device, ElementType, Swizzle, TensorMap
from tests.kernel_testing import BuiltKernel, build, to_numpy, to_torch
from tests.mla_testing import BF16, HUGE, int32, offsets, paged, paged_fp8
from tests.op_testing import assert_error_within

SCALE = 0.0721
KV_SCALE = 0.0137
D_QK, D_V, BLOCK = 576, 512, 64
SHARED_BYTES = 232448
Edits = Mapping[str, Sequence[tuple[str, str]]]
FOLDER = "seekernel/attention"


@dataclass(frozen=True)
class Case:
    """One decode step.

    Args:
        s_kv, s_q: lengths by request.
        parts: CTAs along the plan; split_tokens: 0 is balanced.
        cache: "values" of dtype, or FP8 "blocks" (656 bytes) or "flat" (576).
        ramp: keys grow with their position, so that the running maximum keeps moving.
    """

    s_kv: tuple[int, ...]
    s_q: tuple[int, ...] = ()
    h_q: int = 64
    page_size: int = 64
    parts: int = 2
    causal: bool = True
    split_tokens: int = 0
    ramp: bool = False
    row_blocks: int = 0
    dtype: torch.dtype = BF16
    cache: str = "values"

    @property
    def queries(self) -> tuple[int, ...]:
        """s_q, one each when not given."""
        return self.s_q or (1,) * len(self.s_kv)

    def __str__(self) -> str:
        s_q = f"-q{self.s_q}" if self.s_q else ""
        flags = "-full" * (not self.causal) + "-ramp" * self.ramp + "-fp16" * (self.dtype != BF16)
        split = f"-f{self.split_tokens}" if self.split_tokens else ""
        cache = f"-{self.cache}" if self.cache != "values" else ""
        blocks = f"-g{self.row_blocks}" if self.row_blocks else ""
        return f"kv{self.s_kv}{s_q}-h{self.h_q}-p{self.page_size}-{self.parts}parts{split}{blocks}{flags}{cache}".replace(
            " ", ""
        )


@dataclass(frozen=True)
class Kernels:
    """The three kernels of a step."""

    metadata: BuiltKernel
    decode: BuiltKernel
    combine: BuiltKernel


FORMATS = {"blocks": "kBlocks", "flat": "kFlat"}


def kernels(
    dtype: torch.dtype = BF16, cache: str = "values", edits: Edits | None = None
) -> Kernels:
    """Compile them, with bugs planted by header name under csrc/include/seekernel/attention."""
    edits = {f"{FOLDER}/{name}": pairs for name, pairs in (edits or {}).items()}
    element = "bfloat16_t" if dtype == BF16 else "float16_t"
    name, argument = "sm90_mla_decode", element
    if cache != "values":
        name, argument = "sm90_mla_decode_fp8", f"latent_format_t::{FORMATS[cache]}"
    return Kernels(
        build(f"{FOLDER}/mla_decode_metadata.cuh", "mla_decode_metadata<256>", edits=edits),
        build(f"{FOLDER}/{name}.cuh", f"{name}<{argument}>", edits=edits),
        build(f"{FOLDER}/mla_combine.cuh", f"mla_combine<{element}>", edits=edits),
    )


@dataclass(frozen=True)
class Inputs:
    """What the op takes."""

    q: Tensor
    kv_cache: Tensor
    block_table: Tensor
    seq_lens: Tensor
    cu_seqlens_q: Tensor
    kv_scale: Tensor | None = None

    def truth(self, causal: bool, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
        """The reference's (out, lse)."""
        return reference.mla_decode(
            self.q,
            self.kv_cache,
            self.block_table,
            self.seq_lens,
            self.cu_seqlens_q,
            SCALE,
            causal,
            D_V,
            dtype=dtype,
            kv_scale=self.kv_scale,
        )


def make(case: Case, seed: int = 0) -> Inputs:
    """Random queries and shuffled pages, NaN in what is dead, huge indices in dead slots."""
    torch.manual_seed(seed)
    rows = []
    for length in case.s_kv:
        row = torch.randn(length, D_QK)
        if case.ramp:
            row *= torch.linspace(0.2, 3.0, max(length, 1))[:length, None]
        rows.append(row.to(case.dtype))
    scale = torch.tensor([KV_SCALE]) if case.cache == "flat" else None
    if case.cache == "values":
        kv_cache, block_table = paged(rows, case.page_size, D_QK, case.dtype)
    else:
        rows = [quantize_latent(row, D_V, scale) for row in rows]
        kv_cache, block_table = paged_fp8(rows, case.page_size)
    # Not a column more than the longest request needs.
    pages = max(-(-length // case.page_size) for length in case.s_kv)
    block_table = block_table[:, : max(pages, 1)].contiguous()
    q = torch.randn(sum(case.queries), case.h_q, D_QK) * (3.0 if case.ramp else 1.0)
    return Inputs(
        q.to(case.dtype), kv_cache, block_table, int32(case.s_kv), offsets(case.queries), scale
    )


@dataclass(frozen=True)
class Plan:
    """Device tensors that the metadata kernel writes."""

    parts: Buffer
    items: Buffer


class Step:
    """Fixed device buffers of a decode step, so that it can run again on other lengths."""

    def __init__(self, device: Device, built: Kernels, case: Case, inputs: Inputs) -> None:
        self.device, self.case = device, case
        self.metadata, self.decode, self.combine = (
            kernel.on(device) for kernel in (built.metadata, built.decode, built.combine)
        )
        s, h_q = inputs.q.shape[:2]
        b = len(case.s_kv)
        mean_rows = -(-max(s, 1) // max(b, 1)) * h_q
        self.row_blocks = case.row_blocks or -(-max(mean_rows, h_q) // BLOCK)
        rows_per_item = BLOCK * self.row_blocks
        pieces = -(-max(case.s_kv, default=0) // case.split_tokens) if case.split_tokens else 0
        partial_rows = max(2 * case.parts * rows_per_item, s * h_q * pieces)
        self.q, self.kv = (device.buffer(to_numpy(t)) for t in (inputs.q, inputs.kv_cache))
        self.table, self.seq_lens, self.cu = (
            device.buffer(to_numpy(t))
            for t in (inputs.block_table, inputs.seq_lens, inputs.cu_seqlens_q)
        )
        self.parts = device.empty((case.parts, 8), np.int32)
        self.items = device.empty((1 + s, 8), np.int32)
        self.partial_out = device.empty((partial_rows, D_V), np.float32)
        self.partial_lse = device.empty((partial_rows,), np.float32)
        self.kv_scale = device.buffer(np.full(1, KV_SCALE, np.float32))
        pad = np.full((1, h_q, D_V), np.nan, to_numpy(inputs.q).dtype)
        self.out = device.buffer(np.repeat(pad, s + 1, axis=0))
        self.lse = device.buffer(np.full((s + 1, h_q), np.nan, np.float32))
        self.s, self.num_pages, self.table_width = (
            s,
            inputs.kv_cache.shape[0],
            inputs.block_table.shape[1],
        )

    def write(self, inputs: Inputs) -> None:
        """Replace all inputs by others of at most the same size; everything beyond them is poison."""
        cache = np.full(self.kv.shape, np.nan, self.kv.dtype)
        cache[: len(inputs.kv_cache)] = to_numpy(inputs.kv_cache)
        table = np.full(self.table.shape, HUGE, np.int32)
        width = min(self.table_width, inputs.block_table.shape[1])
        table[:, :width] = to_numpy(inputs.block_table)[:, :width]
        for buffer, array in (
            (self.q, to_numpy(inputs.q)),
            (self.kv, cache),
            (self.table, table),
            (self.seq_lens, to_numpy(inputs.seq_lens)),
            (self.cu, to_numpy(inputs.cu_seqlens_q)),
        ):
            buffer.write(array)

    def plan(self) -> None:
        """Launch the metadata kernel."""
        case = self.case
        b = len(case.s_kv)
        self.device.launch(
            self.metadata,
            grid=(1,),
            block=(256,),
            shared_bytes=16 * (b + 1),
            args=(
                self.seq_lens,
                self.cu,
                *(
                    np.int32(v)
                    for v in (
                        b,
                        case.h_q,
                        BLOCK * self.row_blocks,
                        case.parts,
                        2,
                        4,
                        case.split_tokens // BLOCK,
                    )
                ),
                self.parts,
                self.items,
            ),
            pdl=True,
        )

    def attend(self) -> None:
        """Launch attention, then the combine kernel."""
        case = self.case
        element = ElementType.BFLOAT16 if case.dtype == BF16 else ElementType.FLOAT16
        rows = self.s * case.h_q
        map_q = TensorMap(
            self.q, element, (D_QK, rows), (2 * D_QK,), (64, 64), swizzle=Swizzle.B128
        )
        if case.cache == "values":
            cache: TensorMap | bytes = TensorMap(
                self.kv,
                element,
                (D_QK, case.page_size, self.num_pages),
                (2 * D_QK, 2 * D_QK * case.page_size),
                (64, min(case.page_size, BLOCK), 1),
                swizzle=Swizzle.B128,
            )
        else:
            row_bytes = self.kv.shape[2]
            cache = struct.pack(
                "<QqqQ",
                self.kv.address,
                row_bytes * case.page_size,
                row_bytes,
                self.kv_scale.address,
            )
        arguments = struct.pack(
            "<QqQQQQQQfiiiixxxx",
            self.table.address,
            self.table_width,
            self.parts.address,
            self.items.address,
            self.out.address,
            self.lse.address,
            self.partial_out.address,
            self.partial_lse.address,
            SCALE * 1.4426950408889634,
            case.h_q,
            case.page_size,
            self.num_pages,
            int(case.causal),
        )
        self.device.launch(
            self.decode,
            grid=(self.row_blocks, case.parts),
            block=(384,),
            shared_bytes=SHARED_BYTES,
            args=(map_q, cache, arguments),
            pdl=True,
        )
        self.device.launch(
            self.combine,
            grid=(3,),
            block=(256,),
            args=(
                self.items,
                self.partial_out,
                self.partial_lse,
                self.out,
                self.lse,
                np.int32(BLOCK * self.row_blocks),
            ),
            pdl=True,
        )

    def results(self) -> tuple[Tensor, Tensor]:
        """Return (out, lse), having seen that nothing behind them was written."""
        out, lse = to_torch(self.out.numpy()), to_torch(self.lse.numpy())
        assert out[self.s :].isnan().all(), "wrote beyond out"
        assert lse[self.s :].isnan().all(), "wrote beyond lse"
        return out[: self.s], lse[: self.s]


def run(device: Device, built: Kernels, case: Case, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """One step: (out, lse)."""
    step = Step(device, built, case, inputs)
    step.plan()
    step.attend()
    return step.results()


def check(got: tuple[Tensor, Tensor], inputs: Inputs, causal: bool) -> None:
    """Fail unless out and lse are as near to float64 as twice a naive 16-bit attention."""
    truths, naive = inputs.truth(causal), inputs.truth(causal, inputs.q.dtype)
    for result, truth, budget in zip(got, truths, naive, strict=True):
        assert_error_within(result, truth, budget)
    finite = truths[1].isfinite()
    error = (got[1].double() - truths[1])[finite].abs()
    assert not error.numel() or error.max() < 1e-4 * max(1.0, truths[1][finite].abs().max().item())
