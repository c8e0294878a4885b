"""Scalar and warp-level integer, bit and floating-point probes that compilers actually emit."""

from __future__ import annotations

import numpy as np

from tests.emulator.golden.probe import Array, Probe, elementwise, rng

COUNT = 1024


def _words(name: str, words: int) -> Array:
    """Random words mixed with the values at which integer code goes wrong."""
    source = rng(name)
    corners = np.array([0, 1, 2, 31, 32, 33, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF], np.uint32)
    values = source.integers(0, 2**32, (COUNT, words), np.uint32)
    picks = source.integers(0, 3 * len(corners), values.shape)
    return np.where(picks < len(corners), corners[picks % len(corners)], values)


INTEGER = (
    "mul.hi.s32 %o0, %a0, %a1;",
    "mul.hi.u32 %o0, %a0, %a1;",
    "mad.lo.s32 %o0, %a0, %a1, %a2;",
    "mad.hi.u32 %o0, %a0, %a1, %a2;",
    "min.s32 %o0, %a0, %a1;",
    "max.u32 %o0, %a0, %a1;",
    "abs.s32 %o0, %a0;",
    "neg.s32 %o0, %a0;",
    "sad.s32 %o0, %a0, %a1, %a2;",
    "shl.b32 %o0, %a0, %a1;",
    "shr.s32 %o0, %a0, %a1;",
    "shr.u32 %o0, %a0, %a1;",
    "shf.l.wrap.b32 %o0, %a0, %a1, %a2;",
    "shf.r.wrap.b32 %o0, %a0, %a1, %a2;",
    "shf.l.clamp.b32 %o0, %a0, %a1, %a2;",
    "shf.r.clamp.b32 %o0, %a0, %a1, %a2;",
    "and.b32 %t, %a1, 31;\nand.b32 %a2, %a2, 31;\nbfe.u32 %o0, %a0, %t, %a2;",
    "and.b32 %t, %a1, 31;\nand.b32 %a2, %a2, 31;\nbfe.s32 %o0, %a0, %t, %a2;",
    "and.b32 %t, %a1, 31;\nand.b32 %a1, %a2, 31;\nbfi.b32 %o0, %a0, %a2, %t, %a1;",
    "bfind.u32 %o0, %a0;",
    "bfind.s32 %o0, %a0;",
    "bfind.shiftamt.u32 %o0, %a0;",
    "brev.b32 %o0, %a0;",
    "popc.b32 %o0, %a0;",
    "clz.b32 %o0, %a0;",
    "not.b32 %o0, %a0;",
    "cnot.b32 %o0, %a0;",
    "prmt.b32 %o0, %a0, %a1, %a2;",
    "prmt.b32.f4e %o0, %a0, %a1, %a2;",
    "prmt.b32.b4e %o0, %a0, %a1, %a2;",
    "prmt.b32.rc8 %o0, %a0, %a1, %a2;",
    "prmt.b32.ecl %o0, %a0, %a1, %a2;",
    "prmt.b32.ecr %o0, %a0, %a1, %a2;",
    "prmt.b32.rc16 %o0, %a0, %a1, %a2;",
    "lop3.b32 %o0, %a0, %a1, %a2, 0x96;",
    "lop3.b32 %o0, %a0, %a1, %a2, 0xCA;",
    "dp4a.s32.s32 %o0, %a0, %a1, %a2;",
    "dp4a.u32.u32 %o0, %a0, %a1, %a2;",
    "slct.s32.s32 %o0, %a0, %a1, %a2;",
    "or.b32 %a1, %a1, 1;\ndiv.u32 %o0, %a0, %a1;",
    "or.b32 %a1, %a1, 1;\nrem.u32 %o0, %a0, %a1;",
    "or.b32 %a1, %a1, 2;\nand.b32 %a1, %a1, 0x7FFFFFFF;\ndiv.s32 %o0, %a0, %a1;",
    "or.b32 %a1, %a1, 2;\nand.b32 %a1, %a1, 0x7FFFFFFF;\nrem.s32 %o0, %a0, %a1;",
    "setp.lt.s32 %p0, %a0, %a1;\nselp.b32 %o0, %a1, %a2, %p0;",
    "setp.hs.u32 %p0, %a0, %a1;\nselp.b32 %o0, 1, 0, %p0;",
    "setp.lt.and.s32 %p0|%p1, %a0, %a1, %out;\nselp.b32 %o0, 1, 0, %p1;",
    "add.cc.u32 %o0, %a0, %a1;\naddc.u32 %o0, %a2, 0;",
    "vabsdiff4.u32.u32.u32 %o0, %a0, %a1, %a2;",
    "cvt.u16.u32 %h0, %a0;\ncvt.s32.s16 %o0, %h0;",
    "cvt.s32.s8 %o0, %a0;",
    "cvt.u32.u8 %o0, %a0;",
)
"""Three words in, one out."""

WIDE = (
    "mul.lo.s64 %l2, %l0, %l1;",
    "mul.hi.s64 %l2, %l0, %l1;",
    "mul.hi.u64 %l2, %l0, %l1;",
    "shr.u32 %t, %a2, 25;\nshl.b64 %l2, %l0, %t;",
    "shr.u32 %t, %a2, 25;\nshr.s64 %l2, %l0, %t;",
    "shr.u32 %t, %a2, 25;\nshr.u64 %l2, %l0, %t;",
    "min.s64 %l2, %l0, %l1;",
    "max.u64 %l2, %l0, %l1;",
    "or.b64 %l1, %l1, 1;\ndiv.u64 %l2, %l0, %l1;",
    "or.b64 %l1, %l1, 1;\nrem.u64 %l2, %l0, %l1;",
    "mul.wide.s32 %l2, %a0, %a2;",
    "mul.wide.u32 %l2, %a0, %a2;",
    "mad.wide.u32 %l2, %a0, %a2, %l1;",
    "popc.b64 %t, %l0;\ncvt.u64.u32 %l2, %t;",
    "clz.b64 %t, %l0;\ncvt.u64.u32 %l2, %t;",
    "brev.b64 %l2, %l0;",
    "cvt.rn.f32.s64 %f0, %l0;\nmov.b32 %t, %f0;\ncvt.u64.u32 %l2, %t;",
    "cvt.rn.f32.u64 %f0, %l0;\nmov.b32 %t, %f0;\ncvt.u64.u32 %l2, %t;",
    "mov.b32 %f0, %a0;\ncvt.rzi.s64.f32 %l2, %f0;",
    "cvt.s64.s32 %l2, %a0;",
)
"""Two doublewords (words 0-1 and 2-3) in, one out."""

FLOAT = (
    "add.rz.f32 %f2, %f0, %f1;",
    "add.rm.f32 %f2, %f0, %f1;",
    "add.rp.f32 %f2, %f0, %f1;",
    "mul.rz.f32 %f2, %f0, %f1;",
    "fma.rz.f32 %f2, %f0, %f1, %f1;",
    "fma.rn.ftz.f32 %f2, %f0, %f1, %f1;",
    "fma.rn.sat.f32 %f2, %f0, %f1, %f1;",
    "sub.ftz.f32 %f2, %f0, %f1;",
    "abs.f32 %f2, %f0;",
    "neg.f32 %f2, %f0;",
    "copysign.f32 %f2, %f0, %f1;",
    "max.ftz.f32 %f2, %f0, %f1;",
    "max.xorsign.abs.f32 %f2, %f0, %f1;",
    "setp.lt.f32 %p0, %f0, %f1;\nselp.f32 %f2, %f0, %f1, %p0;",
    "setp.geu.f32 %p0, %f0, %f1;\nselp.f32 %f2, %f0, %f1, %p0;",
    "setp.num.f32 %p0, %f0, %f1;\nselp.f32 %f2, %f0, %f1, %p0;",
    "testp.normal.f32 %p0, %f0;\nselp.f32 %f2, 0f3F800000, 0f00000000, %p0;",
    "cvt.rni.f32.f32 %f2, %f0;",
    "cvt.rmi.f32.f32 %f2, %f0;",
    "cvt.sat.f32.f32 %f2, %f0;",
)
"""Two fp32 in, one out."""

WARP = (
    "shfl.sync.up.b32 %o0|%p0, %a0, 3, 0x0, 0xffffffff;",
    "shfl.sync.down.b32 %o0|%p0, %a0, 5, 0x1f, 0xffffffff;",
    "shfl.sync.bfly.b32 %o0|%p0, %a0, 9, 0x1f, 0xffffffff;",
    "shfl.sync.idx.b32 %o0|%p0, %a0, %a1, 0x1f, 0xffffffff;",
    "shfl.sync.idx.b32 %o0|%p0, %a0, %a1, 0x181f, 0xffffffff;",
    "shfl.sync.down.b32 %o0|%p0, %a0, 3, 0x1807, 0xffffffff;\nselp.b32 %o0, %o0, 7, %p0;",
    "shfl.sync.up.b32 %o0|%p0, %a0, 3, 0x1800, 0xffffffff;\nselp.b32 %o0, %o0, 7, %p0;",
    "setp.lt.s32 %p0, %a0, 0;\nvote.sync.ballot.b32 %o0, %p0, 0xffffffff;",
    "setp.lt.s32 %p0, %a0, 0;\nvote.sync.any.pred %p1, %p0, 0xffffffff;\nselp.b32 %o0, 1, 0, %p1;",
    "setp.ne.s32 %p0, %a0, 0;\nvote.sync.all.pred %p1, %p0, 0xffffffff;\nselp.b32 %o0, 1, 0, %p1;",
    "setp.lt.s32 %p0, %a0, 0;\nvote.sync.uni.pred %p1, %p0, 0xffffffff;\nselp.b32 %o0, 1, 0, %p1;",
    "and.b32 %t, %a0, 3;\nmatch.any.sync.b32 %o0, %t, 0xffffffff;",
    "and.b32 %t, %a0, 0;\nmatch.all.sync.b32 %o0|%p0, %t, 0xffffffff;",
    "redux.sync.add.u32 %o0, %a0, 0xffffffff;",
    "redux.sync.min.s32 %o0, %a0, 0xffffffff;",
    "redux.sync.max.u32 %o0, %a0, 0xffffffff;",
    "redux.sync.and.b32 %o0, %a0, 0xffffffff;",
    "redux.sync.or.b32 %o0, %a0, 0xffffffff;",
    "redux.sync.xor.b32 %o0, %a0, 0xffffffff;",
    "activemask.b32 %o0;",
    "elect.sync %o0|%p0, 0xffffffff;\nselp.b32 %t, 256, 0, %p0;\nadd.u32 %o0, %o0, %t;",
    "mov.u32 %o0, %lanemask_lt;",
    "mov.u32 %o0, %lanemask_ge;",
    "mov.u32 %o0, %laneid;",
    "movmatrix.sync.aligned.m8n8.trans.b16 %o0, %a0;",
)
"""Warp-wide operations; all lanes take part."""


UNUSED = ("sad.s32", "slct.s32.s32", "vabsdiff4.u32.u32.u32", "max.xorsign.abs.f32")
"""Opcodes that no compiler output of ours holds: the emulator leaves them out, and so do the probes.

They keep their place above, since a probe's inputs depend on its number.
"""


def _name(body: str, group: str, index: int) -> str:
    """The last opcode that is neither a select nor a move names the probe."""
    opcodes = [line.split()[0] for line in body.splitlines()]
    named = [op for op in opcodes if not op.startswith(("selp", "and.b32", "or.b", "cvt.u64"))]
    return f"alu/{group}{index:02}.{(named or opcodes)[-1]}"


def probes() -> list[Probe]:
    """All scalar and warp-level probes."""
    made = []
    for index, body in enumerate(INTEGER):
        name = _name(body, "i", index)
        made.append(elementwise(name, body, _words(name, 3)))
    join = "mov.b64 %l0, {%a0, %a1};\nmov.b64 %l1, {%a2, %a3};\n"
    for index, body in enumerate(WIDE):
        name = _name(body, "l", index)
        split = "\nmov.b64 {%o0, %o1}, %l2;"
        made.append(elementwise(name, join + body + split, _words(name, 4), out_words=2))
    load = "mov.b32 %f0, %a0;\nmov.b32 %f1, %a1;\n"
    for index, body in enumerate(FLOAT):
        name = _name(body, "f", index)
        made.append(elementwise(name, f"{load}{body}\nmov.b32 %o0, %f2;", _words(name, 2)))
    for index, body in enumerate(WARP):
        name = _name(body, "w", index)
        made.append(elementwise(name, body, _words(name, 2)))
    return [probe for probe in made if not probe.name.endswith(UNUSED)]
