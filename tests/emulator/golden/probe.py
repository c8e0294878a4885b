"""Probes: small generated PTX kernels whose outputs a GPU and the emulator must agree on.

A probe's inputs come from a seed, so that only outputs are stored. PTX is generated instead of
compiled: each probe shows exactly the instruction it is about, and needs no compiler.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.emulator.launch import Device

HEADER = ".version 8.6\n.target sm_90a\n.address_size 64\n"

Array = NDArray[Any]


@dataclass(frozen=True)
class Probe:
    """One golden vector.

    Args:
        name: unique; its first word (up to "/") is the file it is stored in.
        run: launches on a device and returns the output array.
        ulps: how far an fp32 output may be off in units in the last place; 0 means the same bits.
        limit: instead of ulps, the largest |difference| relative to the largest |golden value|.
        output: how the output is read where a tolerance applies: "f32", or "f16" for packed pairs.
    """

    name: str
    run: Callable[[Device], Array]
    ulps: int = 0
    limit: float = 0.0
    output: str = "f32"

    @property
    def family(self) -> str:
        """The file the vector is stored in."""
        return self.name.split("/")[0]


def rng(name: str) -> np.random.Generator:
    """A generator that depends on the probe's name alone."""
    return np.random.default_rng(zlib.crc32(name.encode()))


def elementwise(
    name: str, body: str, inputs: Array, *, out_words: int = 1, ulps: int = 0, limit: float = 0.0
) -> Probe:
    """A probe that applies `body` to each row of `inputs` [n, words] u32.

    `body` reads %a0, %a1, ... and writes %o0, ...; it may use %h0-3 (b16), %f0-3 (f32), %l0-3 (b64)
    and %p0-1 (pred). Threads map to rows in order, so a warp sees 32 neighbouring rows.
    """
    count, words = inputs.shape
    lines = [
        f"{HEADER}.visible .entry probe(.param .u64 src, .param .u64 dst, .param .u32 count)",
        "{",
        ".reg .b64 %src, %dst, %at, %l<4>;",
        ".reg .b32 %n, %i, %t, %a<4>, %o<4>;",
        ".reg .b16 %h<4>;",
        ".reg .f32 %f<4>;",
        ".reg .pred %out, %p<2>;",
        "ld.param.u64 %src, [src];",
        "ld.param.u64 %dst, [dst];",
        "ld.param.u32 %n, [count];",
        "cvta.to.global.u64 %src, %src;",
        "cvta.to.global.u64 %dst, %dst;",
        "mov.u32 %i, %ctaid.x;",
        "mov.u32 %t, %ntid.x;",
        "mul.lo.u32 %i, %i, %t;",
        "mov.u32 %t, %tid.x;",
        "add.u32 %i, %i, %t;",
        "setp.ge.u32 %out, %i, %n;",
        "@%out bra DONE;",
        f"mul.wide.u32 %at, %i, {4 * words};",
        "add.u64 %src, %src, %at;",
        *(f"ld.global.b32 %a{w}, [%src+{4 * w}];" for w in range(min(words, 4))),
        body,
        f"mul.wide.u32 %at, %i, {4 * out_words};",
        "add.u64 %dst, %dst, %at;",
        *(f"st.global.b32 [%dst+{4 * w}], %o{w};" for w in range(out_words)),
        "DONE:",
        "ret;",
        "}",
    ]
    ptx = "\n".join(lines) + "\n"

    def run(device: Device) -> Array:
        out = device.empty((count, out_words), np.uint32)
        device.launch(
            device.load(ptx).function("probe"),
            grid=((count + 255) // 256,),
            block=(256,),
            args=(device.buffer(inputs), out, np.uint32(count)),
        )
        return out.numpy()

    return Probe(name, run, ulps, limit)


def registers(prefix: str, count: int) -> str:
    """{%p0, %p1, ...}: a register list operand."""
    return "{" + ", ".join(f"%{prefix}{i}" for i in range(count)) + "}"


def shared_prologue(image_bytes: int, extra: Sequence[str] = ()) -> list[str]:
    """PTX that copies `image_bytes` of global memory at [src] to shared memory `smem`.

    Leaves %dst (global address of the output), %base (shared address), %thread, %lane. Ends with a
    proxy fence and a CTA barrier, so any proxy may read the image.
    """
    return [
        f"{HEADER}.extern .shared .align 1024 .b8 smem[];",
        ".visible .entry probe(.param .u64 src, .param .u64 dst, .param .u64 desc_a, .param .u64 desc_b)",
        "{",
        ".reg .b64 %src, %dst, %at, %da, %db, %l<4>;",
        ".reg .b32 %base, %thread, %lane, %i, %s, %v<4>, %w;",
        ".reg .pred %more, %p<2>;",
        *extra,
        "ld.param.u64 %src, [src];",
        "ld.param.u64 %dst, [dst];",
        "ld.param.u64 %da, [desc_a];",
        "ld.param.u64 %db, [desc_b];",
        "cvta.to.global.u64 %src, %src;",
        "cvta.to.global.u64 %dst, %dst;",
        "mov.u32 %base, smem;",
        "mov.u32 %thread, %tid.x;",
        "and.b32 %lane, %thread, 31;",
        "shl.b32 %i, %thread, 4;",
        "COPY:",
        f"setp.ge.u32 %more, %i, {image_bytes};",
        "@%more bra COPIED;",
        "cvt.u64.u32 %at, %i;",
        "add.u64 %at, %src, %at;",
        "ld.global.v4.b32 {%v0, %v1, %v2, %v3}, [%at];",
        "add.u32 %s, %base, %i;",
        "st.shared.v4.b32 [%s], {%v0, %v1, %v2, %v3};",
        "mov.u32 %w, %ntid.x;",
        "shl.b32 %w, %w, 4;",
        "add.u32 %i, %i, %w;",
        "bra COPY;",
        "COPIED:",
        "fence.proxy.async.shared::cta;",
        "bar.sync 0;",
    ]


def shared_dump(image_bytes: int) -> list[str]:
    """PTX that copies the shared image to [dst] + 0; every thread must get here."""
    return [
        "bar.sync 0;",
        "shl.b32 %i, %thread, 4;",
        "DUMP:",
        f"setp.ge.u32 %more, %i, {image_bytes};",
        "@%more bra DUMPED;",
        "add.u32 %s, %base, %i;",
        "ld.shared.v4.b32 {%v0, %v1, %v2, %v3}, [%s];",
        "cvt.u64.u32 %at, %i;",
        "add.u64 %at, %dst, %at;",
        "st.global.v4.b32 [%at], {%v0, %v1, %v2, %v3};",
        "mov.u32 %w, %ntid.x;",
        "shl.b32 %w, %w, 4;",
        "add.u32 %i, %i, %w;",
        "bra DUMP;",
        "DUMPED:",
        "ret;",
        "}",
    ]
