"""Launches the sampling kernels on a device of the emulator's API, with the arguments of the ops."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seekernel import ops
from tests.emulator.launch import Buffer, Device
from tests.kernel_testing import BuiltKernel, build, to_numpy

Edits = Mapping[str, Sequence[tuple[str, str]]]
Array = NDArray[Any]
FOLDER = "seekernel/sampling"
GUARD = 8  # elements behind each output that nothing may write


@dataclass
class Request:
    """Arguments of ops.sample; one value per row, or one for all."""

    logits: Tensor
    temperature: float | Sequence[float] = 1.0
    top_k: int | Sequence[int] = 0
    top_p: float | Sequence[float] = 1.0
    min_p: float | Sequence[float] = 0.0
    seeds: int | Sequence[int] = 1
    offsets: int | Sequence[int] | None = None
    penalties: ops.Penalties | None = None
    bias: ops.LogitBias | None = None
    mask: Tensor | None = None
    columns: dict[str, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        rows = self.logits.shape[0]
        offsets = list(range(rows)) if self.offsets is None else self.offsets

        def column(value: object, dtype: torch.dtype) -> Tensor:
            return torch.as_tensor(value, dtype=dtype).expand(rows).contiguous()

        self.columns = {
            "temperature": column(self.temperature, torch.float32),
            "top_k": column(self.top_k, torch.int32),
            "top_p": column(self.top_p, torch.float32),
            "min_p": column(self.min_p, torch.float32),
            "seeds": column(self.seeds, torch.int64),
            "offsets": column(offsets, torch.int64),
        }

    def on_cpu(self, want_probs: bool = False) -> tuple[Tensor, Tensor, Tensor | None]:
        """ids, status and, if wanted, probs of the CPU op."""
        probs = torch.empty(self.logits.shape) if want_probs else None
        ids, status = ops.sample(
            self.logits,
            *self.columns.values(),
            penalties=self.penalties,
            bias=self.bias,
            mask=self.mask,
            probs=probs,
        )
        return ids, status, probs


class Struct:
    """A kernel's argument struct by value: fields at their natural alignment."""

    def __init__(self) -> None:
        self._bytes = b""

    def add(self, *values: Buffer | np.generic | None) -> Struct:
        for value in values:
            if value is None:
                raw = np.uint64(0).tobytes()
            elif isinstance(value, np.generic):
                raw = value.tobytes()
            else:
                raw = np.uint64(value.address).tobytes()
            self._bytes += b"\0" * (-len(self._bytes) % len(raw)) + raw
        return self

    def bytes(self) -> bytes:
        return self._bytes + b"\0" * (-len(self._bytes) % 8)


def tokens_per_warp(v: int, num_ctas: int, num_warps: int) -> int:
    share = -(-v // (num_ctas * num_warps))
    return -(-share // 128) * 128


def row_shared_bytes(v: int, num_ctas: int, num_warps: int) -> int:
    scratch = 8 * (16 * 8 + 2 * 8 * 8)
    return tokens_per_warp(v, num_ctas, num_warps) * num_warps * 4 + scratch


def guarded(shape: Sequence[int], dtype: Any, device: Device) -> Buffer:
    """An output buffer, poisoned, with a guard behind it."""
    size = int(np.prod(shape)) + GUARD
    array = np.full(size, np.nan if np.dtype(dtype).kind == "f" else -77, dtype)
    return device.buffer(array)


def unguarded(buffer: Buffer, shape: Sequence[int]) -> Array:
    """Its contents; fails if the guard was touched."""
    array = buffer.numpy()
    size = int(np.prod(shape))
    guard = array[size:]
    intact = np.isnan(guard) if guard.dtype.kind == "f" else guard == -77
    assert intact.all(), "wrote beyond the output"
    return np.asarray(array[:size].reshape(tuple(shape)))


def build_row_kernel(name: str, logits: Tensor, aligned: bool, edits: Edits | None) -> BuiltKernel:
    element = "float" if logits.dtype == torch.float32 else "uint16_t"
    instance = f"{name}<{element}, {str(aligned).lower()}>"
    return build(f"{FOLDER}/{name}.cuh", instance, edits=edits)


def launch_sample(
    device: Device,
    request: Request,
    *,
    num_ctas: int,
    num_warps: int,
    want_probs: bool = False,
    edits: Edits | None = None,
) -> tuple[Array, Array, Array | None]:
    """ids, status, probs of the kernel. logits: contiguous."""
    logits = request.logits
    r, v = logits.shape
    kernel = build_row_kernel("sample", logits, v % 4 == 0, edits)
    put = lambda tensor: None if tensor is None else device.buffer(to_numpy(tensor))
    penalties = request.penalties or (None,) * 6
    bias = request.bias or (None, None)
    ids, status = guarded([r], np.int32, device), guarded([r], np.int32, device)
    probs = guarded([r, v], np.float32, device) if want_probs else None
    counts, extra = penalties[3], penalties[5]
    args = (
        Struct()
        .add(put(logits), np.int64(v))
        .add(*map(put, request.columns.values()))
        .add(*map(put, penalties), *map(put, bias), put(request.mask), ids, status, probs)
        .add(np.int32(v), np.int32(num_ctas))
        .add(np.int32(0 if counts is None else counts.shape[0]))
        .add(np.int32(0 if extra is None else extra.shape[1]))
        .add(np.int32(0 if bias[0] is None else bias[0].shape[1]), np.int32(0))
    )
    device.launch(
        kernel.on(device),
        grid=(r * num_ctas,),
        block=(32 * num_warps,),
        cluster=(num_ctas,),
        args=(args.bytes(),),
        shared_bytes=row_shared_bytes(v, num_ctas, num_warps),
    )
    return (
        unguarded(ids, [r]),
        unguarded(status, [r]),
        None if probs is None else unguarded(probs, [r, v]),
    )


def launch_token_logprobs(
    device: Device,
    logits: Tensor,
    ids: Tensor,
    num_top: int,
    *,
    num_ctas: int,
    num_warps: int,
    edits: Edits | None = None,
) -> tuple[Array, Array, Array, Array]:
    """The fields of ops.Logprobs. logits: contiguous."""
    r, v = logits.shape
    kernel = build_row_kernel("token_logprobs", logits, v % 4 == 0, edits)
    outputs = [
        guarded([r], np.float32, device),
        guarded([r], np.int32, device),
        guarded([r, num_top], np.int32, device),
        guarded([r, num_top], np.float32, device),
    ]
    args = (
        Struct()
        .add(device.buffer(to_numpy(logits)), np.int64(v), device.buffer(to_numpy(ids)), *outputs)
        .add(np.int32(v), np.int32(num_ctas), np.int32(num_top), np.int32(0))
    )
    device.launch(
        kernel.on(device),
        grid=(r * num_ctas,),
        block=(32 * num_warps,),
        cluster=(num_ctas,),
        args=(args.bytes(),),
        shared_bytes=row_shared_bytes(v, num_ctas, num_warps) + 8 * (8 * 64 + 8 + 64 + 1),
    )
    shapes = ([r], [r], [r, num_top], [r, num_top])
    a, b, c, d = (unguarded(o, s) for o, s in zip(outputs, shapes, strict=True))
    return a, b, c, d


def chi_square_fits(ids: Tensor, probabilities: Tensor) -> bool:
    """Whether draws come from a distribution: false for one true one in a million.

    ids: [n] drawn tokens.  probabilities: [v] float64; a token of probability 0 must not be drawn.
    Tokens expected fewer than five times are counted as one. The limit is that of Wilson and
    Hilferty (1931).
    """
    counts = torch.bincount(ids.long(), minlength=len(probabilities)).double()
    expected = probabilities * len(ids)
    if counts[expected == 0].any():
        return False
    rare = expected < 5
    groups = torch.cat((expected[~rare], expected[rare].sum()[None]))
    seen = torch.cat((counts[~rare], counts[rare].sum()[None]))
    seen, groups = seen[groups > 0], groups[groups > 0]
    statistic = float(((seen - groups) ** 2 / groups).sum())
    freedom = len(groups) - 1
    if freedom == 0:
        return True
    spread = 2 / (9 * freedom)
    return bool(statistic <= freedom * (1 - spread + 4.75 * spread**0.5) ** 3)


def launch_mtp(
    device: Device,
    name: str,
    tensors: Mapping[str, Tensor],
    *,
    num_ctas: int = 1,
    num_warps: int = 4,
    edits: Edits | None = None,
) -> tuple[Array, Array, Array | None]:
    """out_ids, num_out and (relaxed) slot_delta of mtp_verify_<name>; arguments as the ops name them."""
    kernel = build(f"{FOLDER}/mtp_verify.cuh", f"mtp_verify_{name}<{32 * num_warps}>", edits=edits)
    b, n = tensors["draft_ids"].shape
    out, num = guarded([b, n + 1], np.int32, device), guarded([b], np.int32, device)
    put = lambda key: device.buffer(to_numpy(tensors[key])) if key in tensors else None
    slot_delta: Buffer | None = None
    grid, args, shared = -(-b // (32 * num_warps)), (), 0
    if name == "strict":
        args = (put("target_ids"), put("draft_ids"), out, num, np.int32(b), np.int32(n))
    elif name == "relaxed":
        slot_delta = put("slot_delta")
        num_slots, num_top = len(tensors["slot_delta"]), tensors["top_ids"].shape[2]
        struct = (
            Struct()
            .add(put("top_ids"), put("top_logprobs"), put("draft_ids"), put("slots"), slot_delta)
            .add(out, num, np.int64(RELAXED[1]), np.int64(RELAXED[2]), np.int32(b), np.int32(n))
            .add(np.int32(num_top), np.int32(num_slots), np.float32(RELAXED[0]), np.int32(0))
        )
        args = (struct.bytes(),)
    else:
        v = tensors["target_probs"].shape[2]
        struct = (
            Struct()
            .add(put("target_probs"), put("draft_probs"), put("draft_ids"), put("seeds"))
            .add(put("offsets"), out, num)
            .add(np.int32(v), np.int32(num_ctas), np.int32(n), np.int32(0))
        )
        args, grid, shared = (struct.bytes(),), b * num_ctas, row_shared_bytes(0, 1, 1)
    device.launch(
        kernel.on(device),
        grid=(grid,),
        block=(32 * num_warps,),
        cluster=(num_ctas,),
        args=args,
        shared_bytes=shared,
    )
    delta = None if slot_delta is None else slot_delta.numpy()
    return unguarded(out, [b, n + 1]), unguarded(num, [b]), delta


RELAXED = (0.375, 3, 4)  # relaxed_delta, begin_thinking_id, end_thinking_id
