"""Decoders of loads, stores, atomics, asynchronous copies and TMA."""

from __future__ import annotations

import re

from tests.emulator.frontend.arithmetic import Decoder
from tests.emulator.frontend.context import Context, integer, split_operands
from tests.emulator.frontend.form import SCOPES, SPACES, TYPE_BITS, Form, FormError
from tests.emulator.frontend.program import NO_OPERAND, Operand

_ORDERINGS = {"weak": 0, "volatile": 1, "relaxed": 1, "mmio": 1, "acquire": 2, "release": 3}
_ATOMIC_ORDERINGS = {"relaxed": 1, "acquire": 2, "release": 3, "acq_rel": 4}
_VECTORS = {"v2": 2, "v4": 4, "v8": 8}
_ATOMICS = {
    name: code
    for code, name in enumerate(["add", "min", "max", "inc", "dec", "and", "or", "xor", "exch", "cas"])
}  # fmt: skip
_COMPLETION = "mbarrier::complete_tx::bytes"


def _drop_policy(operands: list[str], has_policy: bool) -> list[str]:
    return operands[:-1] if has_policy else operands


def _element_type(type_name: str) -> str:
    """What a register of that memory type is declared as: at least 16 bits."""
    return "b16" if TYPE_BITS[type_name] < 32 else type_name


def _load(ctx: Context, form: Form, operands: list[str]) -> None:
    has_policy = form.hints()
    ordering = form.pick(_ORDERINGS, 0)
    form.flag(*SCOPES)
    form.flag("unified")
    space = form.space()
    num = form.pick(_VECTORS, 1)
    type_name = form.type()
    operands = _drop_policy(operands, has_policy)
    if len(operands) != 2:
        raise FormError("expected a destination and an address")
    dests = [ctx.dest(text, _element_type(type_name), True) for text in ctx.vector(operands[0])]
    if len(dests) != num:
        raise FormError("vector size does not match")
    address, space = _param_space(ctx, operands[1], space)
    if space == SPACES["param"] and isinstance(address, int):
        args = [space, num, 0, address]
        ctx.emit("ld_param", list(dests), args, type_name, num_dests=num)
        return
    assert not isinstance(address, int)
    ctx.emit("ld", [*dests, address], [space, num, ordering], type_name, num_dests=num)


def _param_space(ctx: Context, text: str, space: int) -> tuple[Operand | int, int]:
    """Kernel parameters become plain offsets; parameters of functions live in local memory."""
    if space != SPACES["param"]:
        return ctx.address(text), space
    match = re.match(r"\[\s*([\w$%]+)\s*(?:\+\s*(\d+))?\s*\]$", text)
    symbol = ctx.symbol(match.group(1)) if match else None
    if match is None or symbol is None:
        return ctx.address(text), space
    offset = symbol.value + int(match.group(2) or 0)
    if symbol.space == "local":
        return ctx.constant(offset, True), SPACES["local"]
    return offset, space


def _store(ctx: Context, form: Form, operands: list[str]) -> None:
    if form.flag("async"):
        _store_async(ctx, form, operands)
        return
    has_policy = form.hints()
    ordering = form.pick(_ORDERINGS, 0)
    form.flag(*SCOPES)
    space = form.space()
    num = form.pick(_VECTORS, 1)
    type_name = form.type()
    operands = _drop_policy(operands, has_policy)
    if len(operands) != 2:
        raise FormError("expected an address and a value")
    values = [ctx.value(text, _element_type(type_name), True) for text in ctx.vector(operands[1])]
    if len(values) != num:
        raise FormError("vector size does not match")
    address, space = _param_space(ctx, operands[0], space)
    if isinstance(address, int):
        raise FormError("kernel parameters cannot be written")
    ctx.emit("st", [*values, address], [space, num, ordering], type_name, num_dests=0)


def _store_async(ctx: Context, form: Form, operands: list[str]) -> None:
    form.flag("weak")
    form.space()
    form.need({_COMPLETION: True}, _COMPLETION)
    num = form.pick(_VECTORS, 1)
    type_name = form.type()
    if len(operands) != 3:
        raise FormError("expected an address, a value and an mbarrier")
    values = [ctx.value(text, type_name) for text in ctx.vector(operands[1])]
    if len(values) != num:
        raise FormError("vector size does not match")
    ctx.emit(
        "st_async",
        [ctx.address(operands[0]), *values, ctx.address(operands[2])],
        [num],
        type_name,
        num_dests=0,
    )


def _atomic(ctx: Context, form: Form, operands: list[str]) -> None:
    """atom returns the old value, red does not; both order as relaxed unless they say more."""
    has_policy = form.hints()
    ordering = form.pick(_ATOMIC_ORDERINGS, 1)
    form.flag(*SCOPES)
    form.flag("noftz")
    space = form.space()
    op = form.need(_ATOMICS, "an operation")
    num = form.pick(_VECTORS, 1)
    type_name = form.type()
    operands = _drop_policy(operands, has_policy)
    if form.base == "red":
        operands = ["_" if num == 1 else "{" + ", ".join("_" * num) + "}", *operands]
    if len(operands) != (4 if op == _ATOMICS["cas"] else 3):
        raise FormError("wrong number of operands")
    reg_type = _element_type(type_name)
    dests = [ctx.dest(text, reg_type) for text in ctx.vector(operands[0])]
    values = [ctx.value(text, reg_type) for text in ctx.vector(operands[2])]
    if len(dests) != num or len(values) != num or (op == _ATOMICS["cas"] and num != 1):
        raise FormError("vector size does not match")
    if op == _ATOMICS["cas"]:
        values.append(ctx.value(operands[3], reg_type))
    ctx.emit(
        "atom",
        [*dests, ctx.address(operands[1]), *values],
        [op, space, ordering, num],
        type_name,
        num_dests=num,
    )


def _prefetch(ctx: Context, form: Form, operands: list[str]) -> None:
    """prefetch, prefetchu, discard, applypriority: no meaning but for tensor maps."""
    if form.flag("tensormap"):
        space = form.space()
        ctx.emit(
            "prefetch_tensormap",
            [ctx.address(operands[0])],
            [int(space == SPACES["param"])],
            num_dests=0,
        )
        return
    form.hints()
    form.space()
    form.flag("L1", "L2")
    ctx.emit("nop", [ctx.address(operands[0])], num_dests=0)


def _create_policy(ctx: Context, form: Form, operands: list[str]) -> None:
    form.left.clear()
    ctx.emit("mov", [ctx.dest(operands[0], "b64"), ctx.constant(0, True)], [], "b64")


# ---- cp


def _copy(ctx: Context, form: Form, operands: list[str]) -> None:
    reduce = form.flag("reduce")
    form.need({"async": True}, ".async")
    if form.flag("bulk"):
        _bulk(ctx, form, operands, reduce)
    elif form.flag("commit_group"):
        ctx.emit("cp_async_commit", [])
    elif form.flag("wait_group"):
        ctx.emit("cp_async_wait", [], [integer(operands[0])])
    elif form.flag("wait_all"):
        ctx.emit("cp_async_wait", [], [-1])
    elif form.flag("mbarrier"):
        form.need({"arrive": True}, ".arrive")
        noinc = form.flag("noinc")
        form.space()
        form.flag("b64")
        ctx.emit("cp_async_arrive", [ctx.address(operands[0])], [int(noinc)], num_dests=0)
    else:
        _copy_async(ctx, form, operands)


def _copy_async(ctx: Context, form: Form, operands: list[str]) -> None:
    has_policy = form.hints()
    form.space()
    form.space()
    operands = _drop_policy(operands, has_policy)
    if len(operands) not in (3, 4):
        raise FormError("expected a destination, a source and a size")
    ops = [ctx.address(operands[0]), ctx.address(operands[1])]
    if len(operands) == 4:
        if (found := ctx.find_register(operands[3])) and found[0] == 3:
            raise FormError("ignore-src predicates are not supported")
        ops.append(ctx.value(operands[3], "u32"))
    ctx.emit("cp_async", ops, [integer(operands[2])], num_dests=0)


def _tensor_operand(ctx: Context, text: str, rank: int) -> tuple[Operand, list[Operand]]:
    """`[map, {x, y}]`."""
    inner = text.strip()
    if not (inner.startswith("[") and inner.endswith("]")):
        raise FormError(f"expected a tensor operand, got {text}")
    parts = split_operands(inner[1:-1])
    if len(parts) != 2:
        raise FormError("expected a tensor map and coordinates")
    coordinates = [ctx.value(part, "s32") for part in ctx.vector(parts[1])]
    if len(coordinates) != rank:
        raise FormError(f"expected {rank} coordinates")
    address = ctx.address(f"[{parts[0]}]")
    if address[3]:
        sum_ = ctx.temporary(64)
        base = (address[0], address[1], address[2], 0)
        ctx.emit("iadd", [sum_, base, ctx.constant(address[3], True)], [], "u64")
        address = sum_
    return address, coordinates


_RANKS = {f"{rank}d": rank for rank in range(1, 6)}


def _bulk(ctx: Context, form: Form, operands: list[str], reduce: bool) -> None:
    if form.flag("commit_group"):
        ctx.emit("bulk_commit", [])
        return
    if form.flag("wait_group"):
        ctx.emit("bulk_wait", [], [integer(operands[0]), int(form.flag("read"))])
        return
    has_policy = form.hints()
    operands = _drop_policy(operands, has_policy)
    prefetch = form.flag("prefetch")
    tensor = form.flag("tensor")
    rank = form.need(_RANKS, "a rank") if tensor else 0
    multicast = form.flag("multicast::cluster")
    on_mbarrier = form.flag(_COMPLETION)
    form.flag("bulk_group", "tile", "noftz")
    op = form.need(_ATOMICS, "an operation") if reduce else 0
    if prefetch:
        form.space()
        form.flag("L2")
        if tensor:
            tensor_map, coordinates = _tensor_operand(ctx, operands[0], rank)
            ctx.emit("tma_prefetch", [tensor_map, *coordinates], [rank], num_dests=0)
        else:
            ctx.emit("nop", [ctx.address(operands[0])], num_dests=0)
        return
    to_space = form.space()
    from_space = form.space()
    if len(operands) < 2:
        raise FormError("expected a destination and a source")
    if on_mbarrier:
        if to_space != SPACES["shared"]:
            raise FormError("a copy that signals an mbarrier must go to shared memory")
        _bulk_load(ctx, form, operands, rank, multicast, reduce, op, from_space)
        return
    if to_space != SPACES["global"] or multicast:
        raise FormError("a bulk-group copy must go to global memory")
    if tensor:
        tensor_map, coordinates = _tensor_operand(ctx, operands[0], rank)
        ops = [tensor_map, ctx.address(operands[1]), *coordinates]
        ctx.emit("tma_store", ops, [rank, int(reduce), op], num_dests=0)
        return
    type_name = form.type() if reduce else "b32"
    if len(operands) != 3:
        raise FormError("expected a destination, a source and a size")
    ops = [ctx.address(operands[0]), ctx.address(operands[1]), ctx.value(operands[2], "u32")]
    ctx.emit("bulk_store", ops, [int(reduce), op], type_name, num_dests=0)


def _bulk_load(
    ctx: Context,
    form: Form,
    operands: list[str],
    rank: int,
    multicast: bool,
    reduce: bool,
    op: int,
    from_space: int,
) -> None:
    expected = (3 if rank else 4) + int(multicast)
    if len(operands) != expected:
        raise FormError(f"expected {expected} operands, got {len(operands)}")
    mask = ctx.value(operands[-1], "b16") if multicast else NO_OPERAND
    if rank:
        tensor_map, coordinates = _tensor_operand(ctx, operands[1], rank)
        ops = [ctx.address(operands[0]), tensor_map, ctx.address(operands[2]), mask, *coordinates]
        ctx.emit("tma_load", ops, [rank], num_dests=0)
        return
    type_name = form.type() if reduce else "b32"
    from_shared = from_space == SPACES["shared"]
    ops = [
        ctx.address(operands[0]),
        ctx.address(operands[1]),
        ctx.address(operands[3]),
        mask,
        ctx.value(operands[2], "u32"),
    ]
    ctx.emit("bulk_load", ops, [int(from_shared), int(reduce), op], type_name, num_dests=0)


DECODERS: dict[str, Decoder] = {
    **dict.fromkeys(("ld", "ldu"), _load),
    "st": _store,
    **dict.fromkeys(("atom", "red"), _atomic),
    **dict.fromkeys(("prefetch", "prefetchu", "discard", "applypriority"), _prefetch),
    "createpolicy": _create_policy,
    "cp": _copy,
}
