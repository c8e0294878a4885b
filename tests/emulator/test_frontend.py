"""The front end: what it reads, and that what it does not know is an error with line and form."""

from __future__ import annotations

import numpy as np
import pytest

from tests.emulator.emulator_backend import Emulator
from tests.emulator.frontend.decode import parse_module
from tests.emulator.frontend.statements import PtxError, split_module
from tests.emulator.launch import LaunchError
from tests.emulator.ptx_samples import STORE_R1, kernel, run_words


def _load(text: str) -> None:
    Emulator().load(text).function("probe")


@pytest.mark.parametrize(
    ("statement", "why"),
    [
        ("frobnicate.b32 %r1, %r2;", "unknown opcode frobnicate"),
        ("add.blue.u32 %r1, %r2, %r3;", "unknown modifier .blue"),
        ("add.u32 %r1, %r2;", "expected 3 operands"),
        ("add.u32 %r1, %r2, %nothing;", "unknown name %nothing"),
        ("add.u32 7, %r2, %r3;", "expected a register"),
        ("add.u64 %rd1, %r2, %rd3;", "too narrow"),
        ("add.u32 %r1, %rd2, %r3;", "too wide"),
        ("add.u32 %r1, %p2, %r3;", "wrong kind"),
        ("mov.pred %r1, %p1;", "wrong kind"),
        ("bra nowhere;", "unknown label"),
        ("ld.global.v3.u32 {%r1, %r2, %r3}, [%rd0];", "vector size does not match"),
        ("ld.global.u32 %r1, %rd0;", "expected an address"),
        ("@%r1 mov.u32 %r1, 0;", "no predicate"),
        ("mul.u32 %r1, %r2, %r3;", "lacks .lo, .hi or .wide"),
        ("tcgen05.fence::before_thread_sync;", "unknown opcode"),
        ("multimem.ld_reduce.global.add.f32 %f1, [%rd0];", "unknown opcode"),
        ("mad24.lo.u32 %r1, %r2, %r3, %r4;", "unknown opcode"),
        ("min.s8 %r1, %r2, %r3;", "unsupported form"),
    ],
)
def test_unknown_forms_name_line_and_form(statement: str, why: str) -> None:
    """Loading fails, and the message holds the line number and the statement."""
    text = kernel(f"    {statement}")
    line = next(i for i, row in enumerate(text.split("\n"), 1) if statement in row)
    with pytest.raises((PtxError, ValueError)) as caught:
        _load(text)
    assert f"line {line}:" in str(caught.value)
    assert why in str(caught.value)
    assert statement.split()[0].rstrip(";") in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        ".visible .entry probe() {",
        "}",
        ".visible .entry probe() { ret; } }",
        "add.u32 %r1, %r2, %r3;",
        ".visible .entry probe(.param .blob x) { ret; }",
        ".visible .entry probe() { .reg .b7 %r; ret; }",
        ".visible .entry probe() { A: A: ret; }",
        ".global .b8 x[99999999999];",
        ".visible .entry probe() { .reg .b32 %r<99999999999>; ret; }",
    ],
)
def test_broken_text_is_an_error(text: str) -> None:
    """Never a crash, never silence."""
    with pytest.raises(PtxError):
        _load(f".version 8.6\n{text}")


def test_nested_scopes_hide_names_and_labels() -> None:
    """Inline assembly repeats register and label names in blocks of its own."""
    block = "{ .reg .b32 t; mov.u32 t, 5; AGAIN: add.u32 t, t, %r2; add.u32 %r1, %r1, t; }"
    body = f"mov.u32 %r1, 0; mov.u32 %r2, 1;\n {block}\n {block}\n {STORE_R1}"
    assert (run_words(body) == 12).all()


def test_comments_locations_and_one_line_bodies() -> None:
    """Comments of both kinds, .loc and .file, several statements on a line."""
    body = "/* a; b { */ mov.u32 %r1, 3; // c }\n.loc 1 7 3\n add.u32 %r1, %r1, 4;\n" + STORE_R1
    text = kernel(body) + '.file 1 "somewhere/kernel.cu"\n'
    module = split_module(text)
    assert any(s.source == "kernel.cu:7" for s in module.functions[0].body)
    assert (run_words(body) == 7).all()


def test_line_directive_after_a_label() -> None:
    """The label belongs to the statement behind the .loc."""
    body = "mov.u32 %r1, 1; bra.uni DONE;\n mov.u32 %r1, 2;\nDONE:\n.loc 1 1 1\n" + STORE_R1
    assert (run_words(body) == 1).all()


def test_immediates() -> None:
    """Decimal, hexadecimal, binary, negative, float bits, and float literals."""
    cases = {
        "mov.u32 %r1, 0x1F;": 31,
        "mov.u32 %r1, 0b101;": 5,
        "mov.s32 %r1, -2;": 0xFFFFFFFE,
        "mov.f32 %f1, 0f3F800000; mov.b32 %r1, %f1;": 0x3F800000,
        "mov.f32 %f1, 2.0; mov.b32 %r1, %f1;": 0x40000000,
        "mov.u32 %r1, WARP_SZ;": 32,
    }
    for text, value in cases.items():
        assert (run_words(text + STORE_R1) == value).all(), text


def test_functions_calls_and_local_parameters() -> None:
    """A .func with parameters and a result, called twice and from divergent lanes."""
    declarations = """
.func (.param .b32 result) twice(.param .b32 x)
{
    .reg .b32 %a;
    ld.param.b32 %a, [x];
    add.u32 %a, %a, %a;
    st.param.b32 [result], %a;
    ret;
}"""
    call = (
        "{ .param .b32 p; .param .b32 q; st.param.b32 [p], %r1;"
        " call.uni (q), twice, (p); ld.param.b32 %r1, [q]; }"
    )
    body = f"""
    mov.u32 %r1, %tid.x;
    {call}
    setp.gt.u32 %p1, %r1, 20;
    @%p1 bra AGAIN;
    bra DONE;
AGAIN:
    {call}
DONE:
    {STORE_R1}"""
    twice = np.arange(32) * 2
    want = np.where(twice > 20, 2 * twice, twice)
    assert (run_words(body, declarations=declarations) == want).all()


def test_recursion_is_reported_not_followed() -> None:
    """Frames are static, so a call chain without an end is a fault."""
    declarations = ".func deep() { call.uni deep; ret; }"
    text = kernel("call.uni deep;", declarations=declarations)
    device = Emulator()
    out = device.empty(1, np.uint32)
    with pytest.raises(Exception, match="calls nest deeper"):
        device.launch(device.load(text).function("probe"), grid=(1,), block=(32,), args=(out,))


def test_module_variables_and_jump_tables() -> None:
    """.const tables with initialisers and brx.idx through .branchtargets."""
    body = f"""
    mov.u32 %r2, %tid.x;
    and.b32 %r3, %r2, 1;
    mul.wide.u32 %rd1, %r3, 4;
    mov.u64 %rd2, table;
    add.u64 %rd2, %rd2, %rd1;
    ld.const.u32 %r1, [%rd2];
    TARGETS: .branchtargets ZERO, ONE;
    brx.idx %r3, TARGETS;
ZERO:
    add.u32 %r1, %r1, 100;
    bra DONE;
ONE:
    add.u32 %r1, %r1, 200;
DONE:
    {STORE_R1}"""
    got = run_words(body, declarations=".const .align 4 .u32 table[2] = {7, 9};")
    assert (got == np.where(np.arange(32) % 2, 209, 107)).all()


def test_function_lookup() -> None:
    """By part of a name, only if one kernel fits."""
    device = Emulator()
    module = device.load(kernel("", ()) + kernel("", ()).replace("probe", "other"))
    assert module.function("oth").name == "other"
    with pytest.raises(LaunchError, match="expected one of"):
        module.function("o")
    assert parse_module(kernel("")).kernel_names() == ["probe"]


def test_arguments_are_checked() -> None:
    """Number and size of arguments must be those of the kernel."""
    device = Emulator()
    function = device.load(kernel("")).function("probe")
    with pytest.raises(LaunchError, match="expected 1 arguments, got 0"):
        device.launch(function, grid=(1,), block=(32,), args=())
    with pytest.raises(LaunchError, match="expected 8 bytes, got 4"):
        device.launch(function, grid=(1,), block=(32,), args=(np.int32(1),))
    with pytest.raises(LaunchError, match="Buffer, TensorMap, numpy scalar or bytes"):
        device.launch(function, grid=(1,), block=(32,), args=(1,))
    out = device.empty(1, np.uint32)
    with pytest.raises(LaunchError, match="at most 1024 threads"):
        device.launch(function, grid=(1,), block=(2048,), args=(out,))
    with pytest.raises(LaunchError, match="a multiple of the cluster"):
        device.launch(function, grid=(3,), block=(32,), cluster=(2,), args=(out,))
