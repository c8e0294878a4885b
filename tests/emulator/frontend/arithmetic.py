"""Decoders of arithmetic, logic, conversion, moves and comparisons."""

from __future__ import annotations

from collections.abc import Callable

from tests.emulator.frontend.context import Context, integer
from tests.emulator.frontend.form import FLOAT_TYPES, GENERIC_SPACE, TYPE_BITS, Form, FormError
from tests.emulator.frontend.program import NO_OPERAND

Decoder = Callable[[Context, Form, list[str]], None]

_ROUNDINGS = {name: ord(name[1]) for name in ("rn", "rz", "rm", "rp")}
_COMPARISONS = {
    name: code
    for code, name in enumerate(
        ["eq", "ne", "lt", "le", "gt", "ge", "equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan"]
    )
}  # fmt: skip
_UNSIGNED_COMPARISONS = {"lo": 2, "ls": 3, "hi": 4, "hs": 5}
_COMBINE = {"and": 1, "or": 2, "xor": 3}


def _count(operands: list[str], *counts: int) -> None:
    if len(operands) not in counts:
        raise FormError(f"expected {' or '.join(map(str, counts))} operands, got {len(operands)}")


def _plain(ctx: Context, opcode: str, operands: list[str], type_name: str, args: list[int]) -> None:
    dest = ctx.dest(operands[0], type_name)
    sources = [ctx.value(text, type_name) for text in operands[1:]]
    ctx.emit(opcode, [dest, *sources], args, type_name)


def _float_args(form: Form) -> list[int]:
    return [
        int(form.flag("ftz")),
        int(form.flag("sat")),
        form.pick(_ROUNDINGS, ord("n")),
        int(form.flag("NaN")),
        int(form.flag("relu")),
    ]


def _add_sub(ctx: Context, form: Form, operands: list[str]) -> None:
    """add, sub, addc, subc: integers, carries, floats."""
    _count(operands, 3)
    type_name = form.type()
    if type_name in FLOAT_TYPES:
        _plain(ctx, f"f{form.base}", operands, type_name, _float_args(form))
        return
    reads_carry = form.base in ("addc", "subc")
    writes_carry = form.flag("cc")
    if reads_carry or writes_carry:
        args = [int(reads_carry), int(writes_carry), int(form.base.startswith("sub"))]
        _plain(ctx, "carry", operands, type_name, args)
    elif form.flag("sat"):
        if form.base != "add" or type_name != "s32":
            raise FormError(".sat exists for add.s32 only")
        _plain(ctx, "iadd_sat", operands, type_name, [])
    else:
        _plain(ctx, f"i{form.base}", operands, type_name, [])


_HALVES = {"lo": "lo", "hi": "hi", "wide": "wide"}


def _mul(ctx: Context, form: Form, operands: list[str]) -> None:
    _count(operands, 3)
    type_name = form.type()
    if type_name in FLOAT_TYPES:
        _plain(ctx, "fmul", operands, type_name, _float_args(form))
        return
    half = form.need(_HALVES, ".lo, .hi or .wide")
    _integer_product(ctx, "mul", half, operands, type_name)


def _integer_product(
    ctx: Context, stem: str, half: str, operands: list[str], type_name: str
) -> None:
    wide = half == "wide"
    result = type_name[0] + str(2 * TYPE_BITS[type_name]) if wide else type_name
    if result not in TYPE_BITS:
        raise FormError(f".wide does not exist for .{type_name}")
    dest = ctx.dest(operands[0], result)
    sources = [ctx.value(text, type_name) for text in operands[1:3]]
    sources += [ctx.value(text, result) for text in operands[3:]]
    ctx.emit(f"{stem}_{half}", [dest, *sources], [], type_name)


def _mad(ctx: Context, form: Form, operands: list[str]) -> None:
    _count(operands, 4)
    type_name = form.type()
    if type_name in FLOAT_TYPES:
        _plain(ctx, "fma", operands, type_name, _float_args(form))
        return
    half = form.need(_HALVES, ".lo, .hi or .wide")
    reads_carry, writes_carry = form.base == "madc", form.flag("cc")
    if reads_carry or writes_carry:
        args = [int(reads_carry), int(writes_carry), 0, int(half == "hi")]
        _plain(ctx, "mad_carry", operands, type_name, args)
        return
    _integer_product(ctx, "mad", half, operands, type_name)


def _fma(ctx: Context, form: Form, operands: list[str]) -> None:
    _count(operands, 4)
    type_name = form.type()
    if type_name not in FLOAT_TYPES:
        raise FormError("fma needs a floating-point type")
    _plain(ctx, "fma", operands, type_name, _float_args(form))


def _int_or_float(ctx: Context, form: Form, operands: list[str]) -> None:
    """div, rem, min, max, abs, neg."""
    type_name = form.type()
    unary = form.base in ("abs", "neg")
    _count(operands, *((2,) if unary else (3, 4)))
    if type_name in FLOAT_TYPES:
        form.flag("approx", "full")
        _plain(ctx, f"f{form.base}", operands, type_name, _float_args(form))
    else:
        relu = [int(form.flag("relu"))] if form.base in ("min", "max") else []
        _count(operands, 2 if unary else 3)
        _plain(ctx, f"i{form.base}", operands, type_name, relu)


def _special_function(ctx: Context, form: Form, operands: list[str]) -> None:
    """rcp, sqrt, rsqrt, ex2, lg2, sin, cos, tanh, copysign."""
    _count(operands, 3 if form.base == "copysign" else 2)
    form.flag("approx")
    args = _float_args(form)
    _plain(ctx, form.base, operands, form.type(), args)


_TESTS = {
    name: code
    for code, name in enumerate(
        ["finite", "infinite", "number", "notanumber", "normal", "subnormal"]
    )
}


def _testp(ctx: Context, form: Form, operands: list[str]) -> None:
    _count(operands, 2)
    test = form.need(_TESTS, "a test")
    type_name = form.type()
    ctx.emit(
        "testp",
        [ctx.dest(operands[0], "pred"), ctx.value(operands[1], type_name)],
        [test],
        type_name,
    )


def _logic(ctx: Context, form: Form, operands: list[str]) -> None:
    """and, or, xor, not, cnot on registers and predicates."""
    _count(operands, 2 if form.base in ("not", "cnot") else 3)
    type_name = form.type()
    if type_name == "pred":
        sources = [ctx.predicate(text) for text in operands[1:]]
        ctx.emit(f"p{form.base}", [ctx.dest(operands[0], "pred"), *sources], type="pred")
    else:
        _plain(ctx, form.base, operands, type_name, [])


def _shift(ctx: Context, form: Form, operands: list[str]) -> None:
    _count(operands, 3)
    type_name = form.type()
    ctx.emit(
        form.base,
        [
            ctx.dest(operands[0], type_name),
            ctx.value(operands[1], type_name),
            ctx.value(operands[2], "u32"),
        ],
        [],
        type_name,
    )


def _funnel(ctx: Context, form: Form, operands: list[str]) -> None:
    _count(operands, 4)
    direction = form.need({"l": "l", "r": "r"}, ".l or .r")
    clamp = form.need({"clamp": 1, "wrap": 0}, ".clamp or .wrap")
    _plain(ctx, f"shf_{direction}", operands, form.type(), [clamp])


def _field(ctx: Context, form: Form, operands: list[str]) -> None:
    """bfe d, a, pos, len and bfi d, a, b, pos, len: positions are always 32 bits."""
    type_name = form.type()
    num_wide = 1 if form.base == "bfe" else 2
    _count(operands, num_wide + 3)
    sources = [ctx.value(text, type_name) for text in operands[1 : 1 + num_wide]]
    sources += [ctx.value(text, "u32") for text in operands[1 + num_wide :]]
    ctx.emit(form.base, [ctx.dest(operands[0], type_name), *sources], [], type_name)


def _count_bits(ctx: Context, form: Form, operands: list[str]) -> None:
    """popc, clz, bfind give 32 bits; brev keeps the width."""
    _count(operands, 2)
    args = [int(form.flag("shiftamt"))] if form.base == "bfind" else []
    type_name = form.type()
    result = type_name if form.base == "brev" else "u32"
    ctx.emit(
        form.base,
        [ctx.dest(operands[0], result), ctx.value(operands[1], type_name)],
        args,
        type_name,
    )


_PERMUTES = {name: code for code, name in enumerate(["f4e", "b4e", "rc8", "ecl", "ecr", "rc16"], 1)}


def _prmt(ctx: Context, form: Form, operands: list[str]) -> None:
    _count(operands, 4)
    mode = form.pick(_PERMUTES, 0)
    _plain(ctx, "prmt", operands, form.type(), [mode])


def _lop3(ctx: Context, form: Form, operands: list[str]) -> None:
    _count(operands, 5)
    _plain(ctx, "lop3", operands[:4], form.type(), [integer(operands[4]) & 255])


def _dp4a(ctx: Context, form: Form, operands: list[str]) -> None:
    _count(operands, 4)
    types = form.types()
    if len(types) != 2:
        raise FormError("dp4a needs two types")
    sources = [ctx.value(text, "b32") for text in operands[1:]]
    ctx.emit("dp4a", [ctx.dest(operands[0]), *sources], [], types[0], types[1])


def _mov(ctx: Context, form: Form, operands: list[str]) -> None:
    _count(operands, 2)
    type_name = form.type()
    if type_name == "pred":
        source = ctx.predicate(operands[1])
        ctx.emit("mov", [ctx.dest(operands[0], "pred"), source], type="pred")
    elif operands[1].startswith("{"):
        parts = ctx.vector(operands[1])
        part_type = f"b{TYPE_BITS[type_name] // max(1, len(parts))}"
        if len(parts) < 2 or part_type not in TYPE_BITS:
            raise FormError("vector does not fit the register")
        sources = [ctx.value(text, part_type) for text in parts]
        ctx.emit("pack", [ctx.dest(operands[0], type_name), *sources], [], type_name)
    elif operands[0].startswith("{"):
        parts = ctx.vector(operands[0])
        part_type = f"b{TYPE_BITS[type_name] // max(1, len(parts))}"
        if len(parts) < 2 or part_type not in TYPE_BITS:
            raise FormError("vector does not fit the register")
        dests = [ctx.dest(text, part_type) for text in parts]
        source = ctx.value(operands[1], type_name)
        ctx.emit("unpack", [*dests, source], [], type_name, num_dests=len(dests))
    else:
        _plain(ctx, "mov", operands, type_name, [])


def _selp(ctx: Context, form: Form, operands: list[str]) -> None:
    _count(operands, 4)
    type_name = form.type()
    sources = [ctx.value(text, type_name) for text in operands[1:3]]
    choice = ctx.predicate(operands[3])
    ctx.emit("selp", [ctx.dest(operands[0], type_name), *sources, choice], [], type_name)


def _comparison(form: Form) -> int:
    return form.need({**_COMPARISONS, **_UNSIGNED_COMPARISONS}, "a comparison")


def _setp(ctx: Context, form: Form, operands: list[str]) -> None:
    code = _comparison(form)
    combine = form.pick(_COMBINE, 0)
    form.flag("ftz")
    type_name = form.type()
    _count(operands, 4 if combine else 3)
    p, _, q = operands[0].partition("|")
    dests = [
        ctx.dest(p.strip(), "pred"),
        ctx.dest(q.strip(), "pred") if q else NO_OPERAND,
    ]
    sources = [ctx.value(text, type_name) for text in operands[1:3]]
    if combine:
        sources.append(ctx.predicate(operands[3]))
    ctx.emit("setp", [*dests, *sources], [code, combine], type_name, num_dests=2)


def _set(ctx: Context, form: Form, operands: list[str]) -> None:
    _count(operands, 3)
    code = _comparison(form)
    form.flag("ftz")
    types = form.types()
    if len(types) != 2:
        raise FormError("set needs two types")
    sources = [ctx.value(text, types[1]) for text in operands[1:]]
    ctx.emit("set", [ctx.dest(operands[0], types[0]), *sources], [code, 0], types[0], types[1])


_CVT_ROUNDINGS = {
    **{name: ord(name[1]) for name in ("rn", "rz", "rm", "rp", "rna")},
    **{name: ord(name[1]) for name in ("rni", "rzi", "rmi", "rpi")},
    "rna": ord("a"),
}


def _cvt(ctx: Context, form: Form, operands: list[str]) -> None:
    if form.flag("pack"):
        form.flag("sat")
        types = form.types()
        _count(operands, 3, 4)
        sources = [ctx.value(text, "b32") for text in operands[1:]]
        ctx.emit("cvt_pack", [ctx.dest(operands[0]), *sources], [], types[0])
        return
    _count(operands, 2, 3)
    rounding = form.pick(_CVT_ROUNDINGS, 0)
    sat = form.flag("sat", "satfinite")
    args = [rounding, int(sat), int(form.flag("ftz")), int(form.flag("relu"))]
    types = form.types()
    if len(types) != 2:
        raise FormError("cvt needs two types")
    to, source_type = types
    if to in ("e4m3x2", "e5m2x2", "f16x2", "bf16x2"):
        args[1] = 0  # .satfinite is what those conversions always do
    dest_type = "b16" if TYPE_BITS[to] < 32 else to
    wide = "b16" if TYPE_BITS[source_type] < 32 else source_type
    sources = [ctx.value(text, wide, True) for text in operands[1:]]
    ctx.emit("cvt", [ctx.dest(operands[0], dest_type, True), *sources], args, to, source_type)


def _cvta(ctx: Context, form: Form, operands: list[str]) -> None:
    _count(operands, 2)
    to_space = int(form.flag("to"))
    space = form.space()
    if space == GENERIC_SPACE:
        raise FormError("cvta needs a state space")
    type_name = form.type()
    dest, source = ctx.dest(operands[0], type_name), ctx.value(operands[1], type_name)
    ctx.emit("cvta", [dest, source], [space, to_space], type_name)


def _isspacep(ctx: Context, form: Form, operands: list[str]) -> None:
    _count(operands, 2)
    ctx.emit(
        "isspacep",
        [ctx.dest(operands[0], "pred"), ctx.value(operands[1], "b64")],
        [form.space()],
    )


def _mapa(ctx: Context, form: Form, operands: list[str]) -> None:
    _count(operands, 3)
    form.space()
    type_name = form.type()
    ctx.emit(
        "mapa",
        [
            ctx.dest(operands[0], type_name),
            ctx.value(operands[1], type_name),
            ctx.value(operands[2], "u32"),
        ],
        [],
        type_name,
    )


def _getctarank(ctx: Context, form: Form, operands: list[str]) -> None:
    _count(operands, 2)
    form.space()
    type_name = form.type()
    ctx.emit(
        "getctarank", [ctx.dest(operands[0]), ctx.value(operands[1], type_name)], [], type_name
    )


DECODERS: dict[str, Decoder] = {
    **dict.fromkeys(("add", "sub", "addc", "subc"), _add_sub),
    "mul": _mul,
    **dict.fromkeys(("mad", "madc"), _mad),
    "fma": _fma,
    **dict.fromkeys(("div", "rem", "min", "max", "abs", "neg"), _int_or_float),
    **dict.fromkeys(
        ("rcp", "sqrt", "rsqrt", "ex2", "lg2", "sin", "cos", "tanh", "copysign"),
        _special_function,
    ),
    "testp": _testp,
    **dict.fromkeys(("and", "or", "xor", "not", "cnot"), _logic),
    **dict.fromkeys(("shl", "shr"), _shift),
    "shf": _funnel,
    **dict.fromkeys(("bfe", "bfi"), _field),
    **dict.fromkeys(("popc", "clz", "brev", "bfind"), _count_bits),
    "prmt": _prmt,
    "lop3": _lop3,
    "dp4a": _dp4a,
    "mov": _mov,
    "selp": _selp,
    "setp": _setp,
    "set": _set,
    "cvt": _cvt,
    "cvta": _cvta,
    "isspacep": _isspacep,
    "mapa": _mapa,
    "getctarank": _getctarank,
}
