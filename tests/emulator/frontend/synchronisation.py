"""Decoders of control flow, warp operations, barriers, fences and tensor-core instructions."""

from __future__ import annotations

import re

from tests.emulator.frontend.arithmetic import Decoder
from tests.emulator.frontend.context import Context, integer
from tests.emulator.frontend.form import SCOPES, TYPE_BITS, Form, FormError
from tests.emulator.frontend.program import NO_OPERAND, Operand


def _branch(ctx: Context, form: Form, operands: list[str]) -> None:
    form.flag("uni")
    ctx.emit("bra", [], target=ctx.label(operands[0]))


def _exit(ctx: Context, form: Form, operands: list[str]) -> None:
    form.flag("uni")
    ctx.emit(form.base, [])


def _trap(ctx: Context, form: Form, operands: list[str]) -> None:
    ctx.emit("trap", [])


def _nothing(ctx: Context, form: Form, operands: list[str]) -> None:
    form.flag("u32")
    ctx.emit("yield" if form.base == "nanosleep" else "nop", [])


_REDUCTIONS = {"popc": 1, "and": 2, "or": 3}


def _barrier(ctx: Context, form: Form, operands: list[str]) -> None:
    """bar and barrier: CTA, warp and cluster level."""
    if form.flag("cluster"):
        form.flag("aligned", "acquire", "release")
        relaxed = form.flag("relaxed")
        action = form.need({"arrive": "cluster_arrive", "wait": "cluster_wait"}, ".arrive or .wait")
        ctx.emit(action, [], [int(relaxed)])
        return
    if form.flag("warp"):
        form.need({"sync": True}, ".sync")
        ctx.emit("bar_warp", [ctx.value(operands[0], "b32")], num_dests=0)
        return
    form.flag("cta", "aligned")
    if form.flag("red"):
        op = form.need(_REDUCTIONS, "a reduction")
        is_count = form.type() == "u32"
        if len(operands) not in (3, 4) or is_count != (op == 1):
            raise FormError("expected result, barrier, optional count, predicate")
        ids = [ctx.value(text, "u32") for text in operands[1:-1]]
        vote = ctx.predicate(operands[-1])
        result = ctx.dest(operands[0], "u32" if is_count else "pred")
        ctx.emit("bar", [*ids, vote, result], [1, op, int(len(ids) == 2)], num_dests=0)
        return
    waits = form.need({"sync": 1, "arrive": 0}, ".sync or .arrive")
    if len(operands) not in (1, 2) or (not waits and len(operands) != 2):
        raise FormError("expected a barrier and a thread count")
    ids = [ctx.value(text, "u32") for text in operands]
    ctx.emit("bar", ids, [waits, 0, int(len(ids) == 2)], num_dests=0)


_SHUFFLES = {"up": 0, "down": 1, "bfly": 2, "idx": 3}
_VOTES = {"all": 0, "any": 1, "uni": 2, "ballot": 3}
_REDUX = {"add": 0, "min": 1, "max": 2, "and": 3, "or": 4, "xor": 5}


def _warp_operation(ctx: Context, form: Form, operands: list[str]) -> None:
    """shfl, vote, match, redux, elect; the engine wants the member mask last."""
    form.need({"sync": True}, ".sync")
    if form.base == "shfl":
        mode = form.need(_SHUFFLES, "a mode")
        form.flag("b32")
        if len(operands) != 5:
            raise FormError("expected 5 operands")
        dest, pred = ctx.dest_and_pred(operands[0], "b32")
        sources = [ctx.value(text, "b32") for text in operands[1:]]
        ctx.emit("shfl", [dest, pred, *sources], [mode], num_dests=2)
    elif form.base == "vote":
        mode = form.need(_VOTES, "a mode")
        type_name = form.type()
        if len(operands) != 3 or (type_name == "b32") != (mode == _VOTES["ballot"]):
            raise FormError("expected 3 operands")
        dest = ctx.dest(operands[0], type_name)
        ctx.emit("vote", [dest, ctx.predicate(operands[1]), ctx.value(operands[2], "b32")], [mode])
    elif form.base == "match":
        is_all = form.need({"any": 0, "all": 1}, ".any or .all")
        type_name = form.type()
        if len(operands) != 3:
            raise FormError("expected 3 operands")
        dest, pred = ctx.dest_and_pred(operands[0], "b32")
        sources = [ctx.value(operands[1], type_name), ctx.value(operands[2], "b32")]
        ctx.emit("match", [dest, pred, *sources], [is_all], type_name, num_dests=2)
    elif form.base == "redux":
        op = form.need(_REDUX, "an operation")
        type_name = form.type()
        if len(operands) != 3 or TYPE_BITS[type_name] != 32 or type_name == "f32":
            raise FormError("expected 3 operands of 32-bit integers")
        sources = [ctx.value(text, "b32") for text in operands[1:]]
        ctx.emit("redux", [ctx.dest(operands[0]), *sources], [op], type_name)
    else:
        if len(operands) != 2:
            raise FormError("expected 2 operands")
        dest, pred = ctx.dest_and_pred(operands[0], "b32")
        ctx.emit("elect", [dest, pred, ctx.value(operands[1], "b32")], num_dests=2)


def _active_mask(ctx: Context, form: Form, operands: list[str]) -> None:
    form.flag("b32")
    ctx.emit("activemask", [ctx.dest(operands[0])])


def _fence(ctx: Context, form: Form, operands: list[str]) -> None:
    if form.flag("proxy"):
        form.need({"async": True, "async::generic": True}, ".async")
        form.flag("acquire", "release", "sync_restrict::shared::cluster", "cluster")
        form.flag("sync_restrict::shared::cta")
        form.space()
        ctx.emit("fence_proxy", [])
    elif form.flag("mbarrier_init"):
        form.flag("release", "cluster")
        ctx.emit("fence_mbarrier_init", [])
    else:
        form.flag("sc", "acq_rel", "acquire", "release", "gl", *SCOPES)
        ctx.emit("fence", [])


def _mbarrier(ctx: Context, form: Form, operands: list[str]) -> None:
    action = form.need(
        {
            name: name
            for name in (
                "init", "inval", "arrive", "arrive_drop", "expect_tx", "try_wait", "test_wait",
                "pending_count", "complete_tx",
            )
        },
        "an action",
    )  # fmt: skip
    expects = form.flag("expect_tx") or action == "expect_tx"
    parity = form.flag("parity")
    form.flag("release", "acquire", "relaxed", "noComplete", *SCOPES)
    form.space()
    form.flag("b64")
    if action == "init":
        ctx.emit(
            "mbarrier_init",
            [ctx.address(operands[0]), ctx.value(operands[1], "u32")],
            num_dests=0,
        )
    elif action == "inval":
        ctx.emit("mbarrier_inval", [ctx.address(operands[0])], num_dests=0)
    elif action == "expect_tx":
        ops = [NO_OPERAND, ctx.address(operands[0]), ctx.value(operands[1], "u32")]
        ctx.emit("mbarrier_arrive", ops, [0, 1])
    elif action == "arrive":
        if operands[0].startswith("["):
            operands = ["_", *operands]
        if not 2 <= len(operands) <= 3 or (expects and len(operands) != 3):
            raise FormError("wrong number of operands")
        ops = [ctx.dest(operands[0], "b64"), ctx.address(operands[1])]
        if expects:
            ops += [ctx.value(operands[2], "u32"), ctx.constant(1, False)]
        else:
            ops.append(ctx.value(operands[2] if len(operands) > 2 else "1", "u32"))
        ctx.emit("mbarrier_arrive", ops, [1, int(expects)])
    elif action in ("try_wait", "test_wait"):
        if len(operands) not in (3, 4):
            raise FormError("expected a predicate, an address and a parity or state")
        wanted = ctx.value(operands[2], "u32" if parity else "b64")
        ops = [ctx.dest(operands[0], "pred"), ctx.address(operands[1]), wanted]
        ctx.emit("mbarrier_wait", ops, [int(action == "try_wait"), int(parity)])
    elif action == "pending_count":
        ctx.emit("mbarrier_pending", [ctx.dest(operands[0]), ctx.value(operands[1], "b64")])
    else:
        raise FormError(f"mbarrier.{action} is not supported")


def _set_max_registers(ctx: Context, form: Form, operands: list[str]) -> None:
    increases = form.need({"inc": 1, "dec": 0}, ".inc or .dec")
    form.flag("sync", "aligned", "u32")
    ctx.emit("setmaxnreg", [], [increases, integer(operands[0])])


def _grid_dependency(ctx: Context, form: Form, operands: list[str]) -> None:
    actions = {"wait": "dependency_wait", "launch_dependents": "launch_dependents"}
    ctx.emit(form.need(actions, "an action"), [])


_TILES = {"x1": 1, "x2": 2, "x4": 4}


def _matrix(ctx: Context, form: Form, operands: list[str]) -> None:
    form.flag("sync", "aligned", "m8n8")
    transposed = form.flag("trans")
    if form.base == "movmatrix":
        form.flag("b16")
        ctx.emit("movmatrix", [ctx.dest(operands[0]), ctx.value(operands[1], "b32")])
        return
    num = form.need(_TILES, "a number of tiles")
    form.space()
    if form.type() != "b16" or len(operands) != 2:
        raise FormError("expected .b16, registers and an address")
    if form.base == "ldmatrix":
        registers = [ctx.dest(text) for text in ctx.vector(operands[0])]
        address = ctx.address(operands[1])
    else:
        registers = [ctx.value(text, "b32") for text in ctx.vector(operands[1])]
        address = ctx.address(operands[0])
    if len(registers) != num:
        raise FormError("wrong number of registers")
    num_dests = num if form.base == "ldmatrix" else 0
    ctx.emit(form.base, [*registers, address], [num, int(transposed)], num_dests=num_dests)


_MATRIX_TYPES = {"f16", "bf16", "tf32", "e4m3", "e5m2", "s8", "u8"}


def _shape(form: Form) -> tuple[int, int, int]:
    for name in form.left:
        if match := re.match(r"m(\d+)n(\d+)k(\d+)$", name):
            form.left.remove(name)
            return int(match.group(1)), int(match.group(2)), int(match.group(3))
    raise FormError(f"{form.base} lacks a shape")


def _mma(ctx: Context, form: Form, operands: list[str]) -> None:
    form.flag("sync", "aligned", "row", "col", "satfinite")
    m, n, k = _shape(form)
    types = form.types()
    if (m, n) != (16, 8) or len(types) != 4 or len(operands) != 4:
        raise FormError("unsupported mma")
    d_type, a_type, b_type, c_type = types
    if a_type not in _MATRIX_TYPES or b_type not in _MATRIX_TYPES or d_type != c_type:
        raise FormError(f"unsupported mma types {types}")
    if (d_type == "s32") != (a_type in ("s8", "u8")) or d_type not in ("f32", "f16", "s32"):
        raise FormError(f"unsupported mma types {types}")
    d = [ctx.dest(text) for text in ctx.vector(operands[0])]
    a, b, c = ([ctx.value(t, "b32") for t in ctx.vector(group)] for group in operands[1:])
    if len(d) != len(c) or len(d) != (2 if d_type == "f16" else 4):
        raise FormError("wrong number of registers")
    args = [k, len(a), len(b), len(c), len(d), list(TYPE_BITS).index(d_type)]
    ctx.emit("mma", [*d, *a, *b, *c], args, a_type, b_type, num_dests=len(d))


def _wgmma(ctx: Context, form: Form, operands: list[str]) -> None:
    if form.flag("fence"):
        form.flag("sync", "aligned")
        ctx.emit("wgmma_fence", [])
        return
    if form.flag("commit_group"):
        form.flag("sync", "aligned")
        ctx.emit("wgmma_commit", [])
        return
    if form.flag("wait_group"):
        form.flag("sync", "aligned")
        ctx.emit("wgmma_wait", [], [integer(operands[0])])
        return
    form.need({"mma_async": True}, ".mma_async")
    form.flag("sync", "aligned")
    m, n, k = _shape(form)
    types = form.types()
    if m != 64 or len(types) != 3 or len(operands) < 6:
        raise FormError("unsupported wgmma")
    d_type, a_type, b_type = types
    if a_type not in _MATRIX_TYPES or b_type not in _MATRIX_TYPES:
        raise FormError(f"unsupported wgmma types {types}")
    d = [ctx.dest(text) for text in ctx.vector(operands[0])]
    in_registers = operands[1].startswith("{")
    a: list[Operand] = [
        ctx.value(text, "b32" if in_registers else "b64") for text in ctx.vector(operands[1])
    ]
    if len(a) != (4 if in_registers else 1):
        raise FormError("wrong number of A registers")
    scale = operands[3]
    found = ctx.find_register(scale)
    scale_op = ctx.predicate(scale) if found is None or found[0] == 3 else ctx.value(scale, "b32")
    numbers = [integer(text) for text in operands[4:]]
    if any(number not in (-1, 1) for number in numbers[:2]):
        raise FormError("imm-scale must be 1 or -1")
    majors = numbers[2:]
    if len(majors) > 2 or any(number not in (0, 1) for number in majors):
        raise FormError("transposition must be 0 or 1")
    a_major = 0 if in_registers or not majors else majors[0]
    b_major = majors[-1] if majors else 0
    args = [
        n,
        k,
        list(TYPE_BITS).index(d_type),
        int(in_registers),
        int(numbers[0] < 0),
        int(numbers[1] < 0),
        a_major,
        b_major,
        len(d),
    ]
    ops = [*d, *a, ctx.value(operands[2], "b64"), scale_op]
    ctx.emit("wgmma", ops, args, a_type, b_type, num_dests=len(d))


DECODERS: dict[str, Decoder] = {
    "bra": _branch,
    **dict.fromkeys(("ret", "exit"), _exit),
    **dict.fromkeys(("trap", "brkpt"), _trap),
    **dict.fromkeys(("nanosleep", "pmevent"), _nothing),
    **dict.fromkeys(("bar", "barrier"), _barrier),
    **dict.fromkeys(("shfl", "vote", "match", "redux", "elect"), _warp_operation),
    "activemask": _active_mask,
    **dict.fromkeys(("fence", "membar"), _fence),
    "mbarrier": _mbarrier,
    "setmaxnreg": _set_max_registers,
    "griddepcontrol": _grid_dependency,
    **dict.fromkeys(("ldmatrix", "stmatrix", "movmatrix"), _matrix),
    "mma": _mma,
    "wgmma": _wgmma,
}
