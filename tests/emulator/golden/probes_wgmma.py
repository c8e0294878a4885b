"""wgmma probes: every shape, type and operand form we use, on random shared-memory images.

The images are random bytes of valid small integers, so whatever element a descriptor means, the sum
it enters is exact: the probe is about layout alone. A few probes on other values are about how the
chip aligns and truncates inside a sum; the README of this folder states the rule they follow.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tests.emulator.golden.probe import Array, Probe, registers, rng, shared_prologue
from tests.emulator.golden.probes_matrix import encode_values
from tests.emulator.launch import Device

OFFSET_B = 16384
IMAGE = OFFSET_B + 49152
SWIZZLE_CODE = {0: 0, 128: 1, 64: 2, 32: 3}
SMALLEST = {"e4m3": 2.0**-9, "e5m2": 2.0**-16, "bf16": 2.0**-130, "f16": 2.0**-24}
"""Smallest subnormal of each format (of bf16, one whose products do not all underflow fp32)."""
K_SIZE = {"e4m3": 32, "e5m2": 32, "bf16": 16, "f16": 16, "tf32": 8}


@dataclass(frozen=True)
class Operand:
    """Where a descriptor points: byte offset in its region, LBO, SBO and swizzle span in bytes."""

    offset: int = 0
    leading: int = 16
    stride: int = 1024
    swizzle: int = 128
    mn_major: bool = False

    def descriptor(self, region: int) -> int:
        """The 64-bit descriptor relative to shared address 0; the kernel adds its base."""
        start = (region + self.offset) >> 4
        return (
            start
            | (self.leading >> 4) << 16
            | (self.stride >> 4) << 32
            | SWIZZLE_CODE[self.swizzle] << 62
        )

    def __str__(self) -> str:
        major = "mn" if self.mn_major else "k"
        return f"{major}{self.swizzle}.{self.offset}.{self.leading}.{self.stride}"


@dataclass(frozen=True)
class Form:
    """One wgmma instruction form and its operands."""

    n: int
    kind_a: str
    kind_b: str
    accumulator: str = "f32"
    from_registers: bool = False
    a: Operand = Operand()
    b: Operand = Operand()
    steps: int = 1
    scale_a: int = 1
    scale_b: int = 1
    start_value: float | None = None
    style: str = "integers"

    @property
    def name(self) -> str:
        """Everything that distinguishes the probe."""
        a = "regs" if self.from_registers else str(self.a)
        signs = "" if (self.scale_a, self.scale_b) == (1, 1) else f"/s{self.scale_a}{self.scale_b}"
        start = "" if self.start_value is None else f"/start{self.start_value:g}"
        types = f"{self.accumulator}.{self.kind_a}.{self.kind_b}"
        return f"wgmma/n{self.n}.{types}/a.{a}/b.{self.b}/x{self.steps}/{self.style}{signs}{start}"


def _ptx(form: Form) -> str:
    """The kernel: load the image, run `steps` wgmmas that advance both start addresses by 32 bytes."""
    half = form.accumulator == "f16"
    regs = form.n // 4 if half else form.n // 2
    k = K_SIZE[form.kind_a]
    d = registers("d", regs)
    lines = shared_prologue(
        IMAGE, [f".reg .{'b32' if half else 'f32'} %d<{regs}>;", ".reg .b32 %r<4>, %lo, %hi;"]
    )
    lines += [
        "shr.u32 %s, %base, 4;",
        "cvt.u64.u32 %at, %s;",
        "add.u64 %da, %da, %at;",
        "add.u64 %db, %db, %at;",
    ]
    if form.from_registers:
        # Fragments come from the image: 16 bytes a thread.
        lines += [
            "shl.b32 %s, %thread, 4;",
            "add.u32 %s, %base, %s;",
            "ld.shared.v4.b32 {%r0, %r1, %r2, %r3}, [%s];",
        ]
    start = 0.0 if form.start_value is None else form.start_value
    if half:
        word = int(np.array([start, start], np.float16).view(np.uint32)[0])
    else:
        word = int(np.float32(start).view(np.uint32))
    literal = f"0x{word:08X}" if half else f"0f{word:08X}"
    lines += [f"mov.{'b32' if half else 'f32'} %d{i}, {literal};" for i in range(regs)]
    lines.append(f"setp.ne.u32 %p0, {int(form.start_value is not None)}, 0;")
    lines.append("setp.eq.u32 %p1, 0, 0;")
    lines.append("wgmma.fence.sync.aligned;")
    narrow = form.kind_a in ("e4m3", "e5m2", "tf32")
    for step in range(form.steps):
        a = registers("r", 4) if form.from_registers else "%da"
        flags = [f"{'%p0' if step == 0 else '%p1'}", str(form.scale_a), str(form.scale_b)]
        if not narrow:
            flags += [] if form.from_registers else [str(int(form.a.mn_major))]
            flags.append(str(int(form.b.mn_major)))
        lines.append(
            f"wgmma.mma_async.sync.aligned.m64n{form.n}k{k}.{form.accumulator}.{form.kind_a}.{form.kind_b} "
            f"{d}, {a}, %db, {', '.join(flags)};"
        )
        if step + 1 < form.steps:
            lines += ["add.u64 %da, %da, 2;", "add.u64 %db, %db, 2;"]
    lines += [
        "wgmma.commit_group.sync.aligned;",
        "wgmma.wait_group.sync.aligned 0;",
        f"mul.wide.u32 %at, %thread, {4 * regs};",
        "add.u64 %dst, %dst, %at;",
        *(f"st.global.{'b32' if half else 'f32'} [%dst+{4 * i}], %d{i};" for i in range(regs)),
        "ret;",
        "}",
    ]
    return "\n".join(lines) + "\n"


def image_of(form: Form) -> Array:
    """The shared-memory image: A's region, then B's."""
    source = rng(form.name)
    parts = []
    for kind, size in ((form.kind_a, OFFSET_B), (form.kind_b, IMAGE - OFFSET_B)):
        count = size // (4 if kind == "tf32" else 2 if kind in ("bf16", "f16") else 1)
        if form.style == "integers":
            values: Array = source.integers(-4, 5, count).astype(np.float64)
        elif form.style == "tiny":
            # Around the smallest normal: subnormal operands have to be normalised, not flushed.
            values = source.integers(-15, 16, count) * SMALLEST[kind]
        elif form.style == "special":
            values = source.integers(-4, 5, count).astype(np.float64)
            values[source.integers(0, 200, count) == 0] = np.nan
            if kind != "e4m3":
                values[source.integers(0, 200, count) == 0] = np.inf
        elif form.style == "wide":
            # Signed powers of two over the whole exponent range: shows what alignment drops.
            values = np.exp2(source.integers(-9, 9, count)) * source.choice((-1, 1), count)
        else:
            values = source.standard_normal(count)
        if kind == "tf32":
            parts.append(values.astype(np.float32).view(np.uint8))
        else:
            parts.append(encode_values(kind, values))
    return np.concatenate(parts)


def probe(form: Form) -> Probe:
    """The probe of one form; its output is [128 threads, registers]."""
    half = form.accumulator == "f16"
    regs = form.n // 4 if half else form.n // 2

    def run(device: Device) -> Array:
        out = device.empty((128, regs), np.uint32 if half else np.float32)
        device.launch(
            device.load(_ptx(form)).function("probe"),
            grid=(1,),
            block=(128,),
            args=(
                device.buffer(image_of(form)),
                out,
                np.uint64(form.a.descriptor(0)),
                np.uint64(form.b.descriptor(OFFSET_B)),
            ),
            shared_bytes=IMAGE,
        )
        return out.numpy()

    limit = 0.0
    return Probe(form.name, run, limit=limit, output="f16" if half else "f32")


def _k_major(kind: str) -> list[Form]:
    """All N with the 128B swizzle, all swizzles, advanced starts, both A sources."""
    forms = [Form(n, kind, kind) for n in (8, 16, 24, 32, 64, 96, 128, 192, 256)]
    forms += [Form(n, kind, kind, from_registers=True) for n in (8, 64, 96, 256)]
    forms += [Form(64, kind, kind, steps=4), Form(64, kind, kind, a=Operand(offset=4096 + 96))]
    for swizzle, stride in ((64, 512), (32, 256), (0, 256)):
        operand = Operand(leading=128 if swizzle == 0 else 16, stride=stride, swizzle=swizzle)
        forms.append(Form(64, kind, kind, a=operand, b=operand))
        forms.append(Form(32, kind, kind, a=Operand(), b=operand))
    wide = Operand(leading=1024, stride=128, swizzle=0)
    forms.append(Form(64, kind, kind, a=wide, b=wide))
    forms.append(Form(64, kind, kind, a=Operand(stride=2048)))
    return forms


def _mn_major(kind: str) -> list[Form]:
    """MN-major A, B and both; LBO and SBO differ, so that swapped meanings show."""
    forms = []
    for swizzle, leading, stride in (
        (128, 4096, 1024),
        (128, 1024, 8192),
        (64, 2048, 512),
        (64, 512, 4096),
        (32, 1024, 256),
        (32, 256, 2048),
        (0, 512, 128),
        (0, 128, 2048),
    ):
        operand = Operand(leading=leading, stride=stride, swizzle=swizzle, mn_major=True)
        small = Operand(
            leading=min(leading, 2048), stride=min(stride, 2048), swizzle=swizzle, mn_major=True
        )
        forms.append(Form(64, kind, kind, b=operand))
        forms.append(Form(8, kind, kind, b=operand))
        forms.append(Form(128, kind, kind, b=operand, from_registers=True))
        forms.append(Form(32, kind, kind, a=small))
        forms.append(Form(64, kind, kind, a=small, b=operand))
    forms.append(Form(256, kind, kind, b=Operand(0, 8192, 1024, 128, True), from_registers=True))
    forms.append(Form(96, kind, kind, b=Operand(2048, 8192, 1024, 128, True)))
    return forms


def _rounding() -> list[Form]:
    """Normal and wide-range values: what a sum loses inside one instruction and along a chain."""
    forms = []
    for kind in ("e4m3", "bf16", "f16"):
        forms += [
            Form(64, kind, kind, style="normal"),
            Form(64, kind, kind, steps=4, style="normal"),
        ]
        forms.append(Form(64, kind, kind, style="normal", start_value=1024.0))
    forms += [
        Form(64, "e4m3", "e4m3", style="wide"),
        Form(64, "e4m3", "e4m3", steps=4, style="wide"),
    ]
    forms.append(Form(64, "bf16", "bf16", style="wide"))
    forms.append(Form(64, "f16", "f16", "f16", style="normal"))
    forms.append(Form(64, "f16", "f16", "f16", steps=4, style="normal"))
    forms += [
        Form(64, "e4m3", "e4m3", "f16", steps=2, style="normal"),
        Form(64, "tf32", "tf32", style="normal"),
    ]
    forms += [Form(64, "e5m2", "e5m2", style="normal"), Form(64, "e5m2", "e4m3", style="wide")]
    for kind in ("e4m3", "e5m2", "f16"):
        forms.append(Form(64, kind, kind, style="tiny"))
        forms.append(Form(64, kind, kind, steps=4, style="tiny", start_value=2.0**-12))
    for kind in ("e4m3", "e5m2", "bf16", "f16"):
        forms.append(Form(64, kind, kind, style="special"))
    return forms


def forms() -> list[Form]:
    """All forms."""
    made = [*_k_major("e4m3"), *_k_major("bf16"), *_k_major("f16")[:13]]
    made += [*_mn_major("bf16"), *_mn_major("f16")[:10]]
    made += [Form(n, "f16", "f16", "f16") for n in (8, 64, 256)]
    made += [Form(64, "e4m3", "e4m3", "f16"), Form(64, "f16", "f16", "f16", from_registers=True)]
    made += [Form(64, "e5m2", "e5m2"), Form(64, "e4m3", "e5m2"), Form(64, "e5m2", "e4m3")]
    made += [Form(64, "tf32", "tf32")]
    for kind in ("e4m3", "bf16"):
        for scale_a, scale_b in ((-1, 1), (1, -1), (-1, -1)):
            made.append(Form(16, kind, kind, scale_a=scale_a, scale_b=scale_b, start_value=7.0))
    return [*made, *_rounding()]


def probes() -> list[Probe]:
    """All wgmma probes."""
    return [probe(form) for form in forms()]
