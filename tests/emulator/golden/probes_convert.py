"""Conversion and arithmetic probes: exhaustive for 16-bit inputs, all rounding corners for fp32."""

from __future__ import annotations

import numpy as np

from tests.emulator.golden.probe import Array, Probe, elementwise, rng

LOW_BITS = (0x0000, 0x0001, 0x7FFF, 0x8000, 0x8001, 0xFFFF)
"""Below the upper half of an fp32: exact, just above, and on both sides of halfway."""


def _all_halves() -> Array:
    """Every 16-bit pattern, one a row."""
    return np.arange(2**16, dtype=np.uint32)[:, None]


def _pairs_of_halves() -> Array:
    """Every 16-bit pattern in either half of a word."""
    low = np.arange(2**15, dtype=np.uint32)
    return (low | (low + 2**15) << 16)[:, None]


def _rounding_floats() -> Array:
    """Every upper half of an fp32 with each of LOW_BITS, plus halfway points of 3- and 2-bit mantissas."""
    high = np.arange(2**16, dtype=np.uint32) << 16
    return np.concatenate([high | low for low in LOW_BITS])[:, None]


def _float_pairs(name: str, count: int) -> Array:
    """Random fp32 bit patterns over all exponents, with specials; two a row."""
    source = rng(name)
    bits = source.integers(0, 2**32, (count, 2), np.uint32)
    specials = np.array([0, 1 << 31, 0x7F800000, 0xFF800000, 0x7FC00000, 1, 0x007FFFFF], np.uint32)
    picks = source.integers(0, 16 * len(specials), (count, 2))
    return np.where(picks < len(specials), specials[picks % len(specials)], bits)


def _narrow() -> list[Probe]:
    """fp32 to fp8, bf16, f16, tf32."""
    floats = _rounding_floats()
    pairs = floats.reshape(-1, 2)
    flip = pairs[:, ::-1].copy()
    made = []
    for kind in ("e4m3x2", "e5m2x2"):
        body = f"cvt.rn.satfinite.{kind}.f32 %h0, %f1, %f0;\nmov.b32 %o0, {{%h0, %h0}};"
        load = "mov.b32 %f0, %a0;\nmov.b32 %f1, %a1;\n"
        made.append(elementwise(f"convert/{kind}.f32", load + body, pairs))
        made.append(elementwise(f"convert/{kind}.f32.swapped", load + body, flip))
        relu = body.replace("satfinite", "satfinite.relu")
        made.append(elementwise(f"convert/{kind}.f32.relu", load + relu, pairs[::7].copy()))
        made.append(
            elementwise(
                f"convert/{kind}.f16x2",
                f"cvt.rn.satfinite.{kind}.f16x2 %h0, %a0;\nmov.b32 %o0, {{%h0, %h0}};",
                _pairs_of_halves(),
            )
        )
        made.append(
            elementwise(
                f"convert/f16x2.{kind}",
                f"mov.b32 {{%h0, %h1}}, %a0;\ncvt.rn.f16x2.{kind} %o0, %h0;",
                _all_halves(),
            )
        )
    for kind in ("bf16", "f16"):
        load = "mov.b32 %f0, %a0;\n"
        for mode in ("rn", "rz", "rn.relu"):
            body = f"cvt.{mode}.{kind}.f32 %h0, %f0;\nmov.b32 %o0, {{%h0, %h0}};"
            # Every third of the bf16 inputs: their outputs do not compress.
            inputs = floats[::3].copy() if kind == "bf16" else floats
            made.append(elementwise(f"convert/{mode}.{kind}.f32", load + body, inputs))
        both = "mov.b32 %f0, %a0;\nmov.b32 %f1, %a1;\n"
        for mode in ("rn", "rz"):
            body = f"cvt.{mode}.{kind}x2.f32 %o0, %f1, %f0;"
            made.append(elementwise(f"convert/{mode}.{kind}x2.f32", both + body, pairs[::3].copy()))
        widen = f"mov.b32 {{%h0, %h1}}, %a0;\ncvt.f32.{kind} %f0, %h0;\nmov.b32 %o0, %f0;"
        made.append(elementwise(f"convert/f32.{kind}", widen, _all_halves()))
    tf32 = "mov.b32 %f0, %a0;\ncvt.rna.tf32.f32 %o0, %f0;"
    made.append(elementwise("convert/rna.tf32.f32", tf32, floats[::5].copy()))
    return made


def _integers() -> list[Probe]:
    """fp32 to and from integers."""
    floats = _rounding_floats()[::3].copy()
    made = []
    for mode, kind in (
        ("rni", "s32"),
        ("rzi", "s32"),
        ("rmi", "s32"),
        ("rpi", "s32"),
        ("rni", "u32"),
        ("rzi", "u32"),
    ):
        body = f"mov.b32 %f0, %a0;\ncvt.{mode}.{kind}.f32 %o0, %f0;"
        made.append(elementwise(f"convert/{mode}.{kind}.f32", body, floats))
    words = rng("convert/words").integers(0, 2**32, (8192, 1), np.uint32)
    for mode in ("rn", "rz"):
        for kind in ("s32", "u32"):
            body = f"cvt.{mode}.f32.{kind} %f0, %a0;\nmov.b32 %o0, %f0;"
            made.append(elementwise(f"convert/{mode}.f32.{kind}", body, words))
    for kind in ("s8", "u8", "s16", "u16"):
        body = f"cvt.sat.{kind}.s32 %o0, %a0;"
        small = rng(kind).integers(-(2**17), 2**17, (4096, 1)).astype(np.int32).view(np.uint32)
        made.append(elementwise(f"convert/sat.{kind}.s32", body, small))
    return made


def _packed() -> list[Probe]:
    """bf16x2 and f16x2 arithmetic, NaN and infinities included."""
    made = []
    for kind in ("bf16x2", "f16x2"):
        inputs = rng(kind).integers(0, 2**32, (4096, 3), np.uint32)
        for op in ("add", "sub", "mul"):
            body = f"{op}.rn.{kind} %o0, %a0, %a1;"
            made.append(elementwise(f"convert/{op}.{kind}", body, inputs))
        made.append(
            elementwise(f"convert/fma.{kind}", f"fma.rn.{kind} %o0, %a0, %a1, %a2;", inputs)
        )
        for op in ("min", "max", "min.NaN", "max.NaN"):
            body = f"{op}.{kind} %o0, %a0, %a1;"
            made.append(elementwise(f"convert/{op}.{kind}", body, inputs))
    return made


def _approximate() -> list[Probe]:
    """Approximate fp32 functions; ulps are what the chip's answers differ from correct rounding."""
    made = []
    for op, low, high, ulps in (
        ("ex2.approx.ftz", -130.0, 130.0, 2),
        ("ex2.approx", -150.0, 130.0, 2),
        ("lg2.approx.ftz", 1e-30, 1e30, 0),
        ("rcp.approx.ftz", 1e-30, 1e30, 1),
        ("rsqrt.approx.ftz", 1e-30, 1e30, 2),
        ("sqrt.approx.ftz", 1e-30, 1e30, 2),
        ("tanh.approx", -10.0, 10.0, 0),
        ("rcp.rn", 1e-30, 1e30, 0),
        ("sqrt.rn", 1e-30, 1e30, 0),
    ):
        source = rng(op)
        if low > 0:
            values = 10 ** source.uniform(np.log10(low), np.log10(high), 4096)
        else:
            values = source.uniform(low, high, 4096)
        bits = values.astype(np.float32).view(np.uint32)[:, None]
        body = f"mov.b32 %f0, %a0;\n{op}.f32 %f0, %f0;\nmov.b32 %o0, %f0;"
        limit = 1e-3 if op == "tanh.approx" else 2e-7 if op.startswith("lg2") else 0.0
        made.append(elementwise(f"convert/{op}.f32", body, bits, ulps=ulps, limit=limit))
    pairs = _float_pairs("convert/pairs", 8192)
    for op in (
        "add.rn",
        "mul.rn",
        "div.rn",
        "add.rn.ftz",
        "mul.rn.ftz",
        "min",
        "max",
        "min.NaN",
        "max.NaN",
    ):
        body = f"mov.b32 %f0, %a0;\nmov.b32 %f1, %a1;\n{op}.f32 %f0, %f0, %f1;\nmov.b32 %o0, %f0;"
        made.append(elementwise(f"convert/{op}.f32", body, pairs))
    fused = (
        "mov.b32 %f0, %a0;\nmov.b32 %f1, %a1;\nfma.rn.f32 %f0, %f0, %f1, %f1;\nmov.b32 %o0, %f0;"
    )
    made.append(elementwise("convert/fma.rn.f32", fused, pairs))
    return made


def probes() -> list[Probe]:
    """All conversion and arithmetic probes."""
    return [*_narrow(), *_integers(), *_packed(), *_approximate()]
