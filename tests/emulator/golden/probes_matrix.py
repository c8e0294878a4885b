"""Warp-level matrix probes: ldmatrix, stmatrix, mma.sync fragments."""

from __future__ import annotations

import ml_dtypes
import numpy as np

from tests.emulator.golden.probe import (
    HEADER,
    Array,
    Probe,
    elementwise,
    registers,
    rng,
)
from tests.emulator.launch import Device

IMAGE = 4096


def _warp_kernel(name: str, declare: str, body: list[str], out_shape: tuple[int, ...]) -> Probe:
    """One warp over a 4 KB image; %row is the lane's shared address, from a table behind the image."""
    lines = [
        f"{HEADER}.visible .entry probe(.param .u64 src, .param .u64 dst)",
        "{",
        f".shared .align 128 .b8 smem[{IMAGE}];",
        ".reg .b64 %src, %dst, %at, %l<4>;",
        ".reg .b32 %base, %lane, %i, %s, %row, %v<4>;",
        ".reg .pred %more;",
        declare,
        "ld.param.u64 %src, [src];",
        "ld.param.u64 %dst, [dst];",
        "cvta.to.global.u64 %src, %src;",
        "cvta.to.global.u64 %dst, %dst;",
        "mov.u32 %base, smem;",
        "mov.u32 %lane, %tid.x;",
        "shl.b32 %i, %lane, 4;",
        "COPY:",
        f"setp.ge.u32 %more, %i, {IMAGE};",
        "@%more bra COPIED;",
        "cvt.u64.u32 %at, %i;",
        "add.u64 %at, %src, %at;",
        "ld.global.v4.b32 {%v0, %v1, %v2, %v3}, [%at];",
        "add.u32 %s, %base, %i;",
        "st.shared.v4.b32 [%s], {%v0, %v1, %v2, %v3};",
        "add.u32 %i, %i, 512;",
        "bra COPY;",
        "COPIED:",
        "bar.sync 0;",
        "mul.wide.u32 %at, %lane, 4;",
        "add.u64 %at, %src, %at;",
        f"ld.global.b32 %row, [%at+{IMAGE}];",
        "add.u32 %row, %row, %base;",
        *body,
        "ret;",
        "}",
    ]
    ptx = "\n".join(lines) + "\n"
    source = rng(name)
    image = source.integers(0, 256, IMAGE, np.uint8)
    rows = (source.permutation(IMAGE // 16)[:32] * 16).astype(np.uint32)
    inputs = np.concatenate([image, rows.view(np.uint8)])

    def run(device: Device) -> Array:
        out = device.empty(out_shape, np.uint32)
        device.launch(
            device.load(ptx).function("probe"),
            grid=(1,),
            block=(32,),
            args=(device.buffer(inputs), out),
        )
        return out.numpy()

    return Probe(name, run)


def _ldmatrix(count: int, trans: str) -> Probe:
    body = [
        f"ldmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 {registers('r', count)}, [%row];",
        f"mul.wide.u32 %at, %lane, {4 * count};",
        "add.u64 %dst, %dst, %at;",
        *(f"st.global.b32 [%dst+{4 * i}], %r{i};" for i in range(count)),
    ]
    return _warp_kernel(f"matrix/ldmatrix.x{count}{trans}", ".reg .b32 %r<4>;", body, (32, count))


def _stmatrix(count: int, trans: str) -> Probe:
    body = [
        # Registers hold distinct bytes: lane and register number.
        *(
            f"mad.lo.u32 %r{i}, %lane, 0x01030507, {0x10203040 * (i + 1) % 2**32};"
            for i in range(count)
        ),
        f"stmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 [%row], {registers('r', count)};",
        "bar.sync 0;",
        "shl.b32 %i, %lane, 4;",
        "DUMP:",
        f"setp.ge.u32 %more, %i, {IMAGE};",
        "@%more bra DUMPED;",
        "add.u32 %s, %base, %i;",
        "ld.shared.v4.b32 {%v0, %v1, %v2, %v3}, [%s];",
        "cvt.u64.u32 %at, %i;",
        "add.u64 %at, %dst, %at;",
        "st.global.v4.b32 [%at], {%v0, %v1, %v2, %v3};",
        "add.u32 %i, %i, 512;",
        "bra DUMP;",
        "DUMPED:",
    ]
    name = f"matrix/stmatrix.x{count}{trans}"
    return _warp_kernel(name, ".reg .b32 %r<4>;", body, (IMAGE // 4,))


FORMATS = {
    "bf16": np.dtype(ml_dtypes.bfloat16),
    "f16": np.dtype(np.float16),
    "e4m3": np.dtype(ml_dtypes.float8_e4m3fn),
    "e5m2": np.dtype(ml_dtypes.float8_e5m2),
}


def encode_values(kind: str, values: Array) -> Array:
    """Bytes of values in a tensor-core format."""
    return np.ascontiguousarray(values.astype(np.float32).astype(FORMATS[kind])).view(np.uint8)


def _mma(shape: str, kind: str, a_regs: int, b_regs: int, integers: bool) -> Probe:
    """One mma per warp of 32 rows: registers in, four fp32 out."""
    style = "integers" if integers else "normal"
    name = f"matrix/mma.{shape}.{kind}.{style}"
    source, warps = rng(name), 8
    size = FORMATS[kind].itemsize
    count = warps * 32 * (a_regs + b_regs) * 4 // size
    values = source.integers(-4, 5, count) if integers else source.standard_normal(count)
    operands = encode_values(kind, values).view(np.uint32).reshape(warps * 32, a_regs + b_regs)
    a = "{" + ", ".join(f"%m{i}" for i in range(a_regs)) + "}"
    b = "{" + ", ".join(f"%m{i}" for i in range(a_regs, a_regs + b_regs)) + "}"
    total = a_regs + b_regs
    # elementwise() reads at most 4 words a row, so the rest is loaded here.
    body = "\n".join(
        [
            ".reg .b32 %m<8>;",
            *(f"ld.global.b32 %m{w}, [%src+{4 * w}];" for w in range(total)),
            *(f"mov.f32 %f{i}, 0f00000000;" for i in range(4)),
            f"mma.sync.aligned.{shape}.row.col.f32.{kind}.{kind}.f32 {registers('f', 4)}, {a}, {b}, "
            f"{registers('f', 4)};",
            *(f"mov.b32 %o{i}, %f{i};" for i in range(4)),
        ]
    )
    return elementwise(name, body, operands, out_words=4)


def probes() -> list[Probe]:
    """All ldmatrix, stmatrix and mma probes."""
    made = [_ldmatrix(count, trans) for count in (1, 2, 4) for trans in ("", ".trans")]
    made += [_stmatrix(count, trans) for count in (1, 2, 4) for trans in ("", ".trans")]
    for integers in (True, False):
        for kind in ("bf16", "f16"):
            made.append(_mma("m16n8k16", kind, 4, 2, integers))
            made.append(_mma("m16n8k8", kind, 2, 1, integers))
        for kind in ("e4m3", "e5m2"):
            made.append(_mma("m16n8k32", kind, 4, 2, integers))
    return made
