"""One launch of sm90_mla_prefill on the emulator or a GPU, checked against the reference."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from seekernel import reference
from tests.emulator.launch import Array, Device, ElementType, Swizzle, TensorMap
from tests.kernel_testing import BuiltKernel, build, to_numpy, to_torch
from tests.mla_testing import BF16, F32, offsets
from tests.op_testing import assert_error_within

SCALE = 0.1352
HEADER = "seekernel/attention/sm90_mla_prefill.cuh"
SHARED_BYTES = 3 * 16384 + 2 * 5 * 16384 + 8 * 11
_PAD = 16  # columns of out behind every row that nothing may write


@dataclass(frozen=True)
class Case:
    """One prefill.

    Args:
        s_q, s_kv: lengths by request; rows of a request without queries are NaN.
        ctas, section: grid, heads per section.
        previous: dtype of the previous result; None: there is none.
        ramp: keys grow with their position, so that the running maximum keeps moving.
    """

    s_q: tuple[int, ...]
    s_kv: tuple[int, ...]
    h: int = 1
    ctas: int = 1
    section: int = 1
    causal: bool = True
    out: torch.dtype = BF16
    previous: torch.dtype | None = None
    ramp: int = 0

    def __str__(self) -> str:
        shape = lambda lengths: ",".join(map(str, lengths)) if len(lengths) < 8 else len(lengths)
        merge = f"-merge{str(self.previous)[6:]}" if self.previous else ""
        flags = "-full" * (not self.causal) + f"-ramp{self.ramp}" * (self.ramp != 0)
        return f"q{shape(self.s_q)}-kv{shape(self.s_kv)}-h{self.h}-s{self.section}-g{self.ctas}-{str(self.out)[6:]}{merge}{flags}"


@dataclass(frozen=True)
class Inputs:
    """What the op takes, with the truth and the naive result that sets the error budget."""

    q: Tensor
    kv: Tensor
    k_pe: Tensor
    cu_q: Tensor
    cu_kv: Tensor
    previous: tuple[Tensor, Tensor] | None
    want: tuple[Tensor, Tensor]
    naive: tuple[Tensor, Tensor]


def make(case: Case) -> Inputs:
    """Random inputs in bfloat16; the previous result has rows of no weight, which hold NaN."""
    torch.manual_seed(0)
    s_q, s_kv, h = sum(case.s_q), sum(case.s_kv), case.h
    q = torch.randn(s_q, h, 192)
    kv, k_pe = torch.randn(s_kv, h, 256), torch.randn(s_kv, 64)
    cu_q, cu_kv = offsets(case.s_q), offsets(case.s_kv)
    for request in range(len(case.s_q)):
        part = slice(int(cu_kv[request]), int(cu_kv[request + 1]))
        if case.ramp:
            growth = torch.linspace(0.2, 3.0, max(1, case.s_kv[request]))[: case.s_kv[request]]
            growth = growth if case.ramp > 0 else growth.flip(0)
            kv[part] *= growth[:, None, None]
            k_pe[part] *= growth[:, None]
        if case.s_q[request] == 0:
            kv[part] = k_pe[part] = math.nan
    q, kv, k_pe = q.to(BF16), kv.to(BF16), k_pe.to(BF16)
    previous = None
    if case.previous is not None:
        previous_out = torch.randn(s_q, h, 128).to(case.previous)
        previous_lse = torch.randn(s_q, h) * 3 + 3
        previous_lse[::5] = -math.inf
        previous_out[::5] = math.nan
        previous = (previous_out, previous_lse)
    more = {} if previous is None else dict(previous_out=previous[0], previous_lse=previous[1])
    want, naive = (
        reference.mla_prefill(q, kv, k_pe, cu_q, cu_kv, SCALE, case.causal, dtype=dtype, **more)
        for dtype in (torch.float64, BF16)
    )
    return Inputs(q, kv, k_pe, cu_q, cu_kv, previous, want, naive)


def built(case: Case, edits: Sequence[tuple[str, str]] = ()) -> BuiltKernel:
    """Compile the kernel for the case's output; `edits` plants bugs in its headers."""
    element = "bfloat16_t" if case.out == BF16 else "float"
    found: dict[str, list[tuple[str, str]]] = {}
    for old, new in edits:
        name = "mla_prefill_tiles.cuh" if old.startswith("tile") else "sm90_mla_prefill.cuh"
        found.setdefault(f"seekernel/attention/{name}", []).append((old, new))
    return build(HEADER, f"sm90_mla_prefill<{element}>", edits=found)


def launch(device: Device, kernel: BuiltKernel, case: Case, inputs: Inputs) -> tuple[Array, Array]:
    """Run it; returns out with its padding, and lse, both poisoned with NaN beforehand."""
    s_q, h = inputs.q.shape[:2]
    s_kv = max(1, inputs.kv.shape[0])
    q, kv, k_pe = (
        device.buffer(to_numpy(t if len(t) else torch.zeros(1, *t.shape[1:], dtype=BF16)))
        for t in (inputs.q, inputs.kv, inputs.k_pe)
    )
    cu_q, cu_kv = device.buffer(inputs.cu_q.numpy()), device.buffer(inputs.cu_kv.numpy())
    out = device.buffer(to_numpy(torch.full((s_q, h, 128 + _PAD), math.nan, dtype=case.out)))
    lse = device.buffer(np.full((s_q, h), np.nan, np.float32))
    previous = [device.buffer(to_numpy(t)) for t in inputs.previous or ()]
    maps = (
        TensorMap(q, ElementType.BFLOAT16, (192, h, s_q), (384, 384 * h), (64, 1, 128), swizzle=Swizzle.B128),
        TensorMap(kv, ElementType.BFLOAT16, (256, h, s_kv), (512, 512 * h), (64, 1, 128), swizzle=Swizzle.B128),
        TensorMap(k_pe, ElementType.BFLOAT16, (64, s_kv), (128,), (64, 128), swizzle=Swizzle.B128),
    )  # fmt: skip
    pitch = 128 + _PAD
    args = struct.pack(
        "<QQiiii QQQQ qqqq fi",
        cu_q.address, cu_kv.address, len(case.s_q), h, case.section, case.causal,
        out.address, lse.address, *((b.address for b in previous) if previous else (0, 0)),
        pitch * h, pitch, 128 * h, 128,
        SCALE * math.log2(math.e), case.previous == F32,
    )  # fmt: skip
    device.launch(
        kernel.on(device), grid=(case.ctas,), block=(384,), args=(*maps, args), shared_bytes=SHARED_BYTES
    )  # fmt: skip
    return out.numpy(), lse.numpy()


def check(case: Case, inputs: Inputs, got: tuple[Array, Array]) -> None:
    """Out and lse within twice the naive error, nothing written beside them."""
    out, lse = to_torch(got[0]), to_torch(got[1])
    assert out[..., 128:].isnan().all(), "wrote beyond the rows"
    assert_error_within(out[..., :128].to(case.out), inputs.want[0], inputs.naive[0])
    assert_error_within(lse, inputs.want[1], inputs.naive[1])


def alone(case: Case, request: int) -> Case:
    """The case of one of its requests."""
    return replace(case, s_q=(case.s_q[request],), s_kv=(case.s_kv[request],))
