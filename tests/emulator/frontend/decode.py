"""PTX modules to kernels: directives, variables, functions and calls."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.emulator.frontend import arithmetic, memory, synchronisation
from tests.emulator.frontend.context import Context, Scope, Symbol, integer, split_operands
from tests.emulator.frontend.form import SPACES, TYPE_BITS, Form, FormError
from tests.emulator.frontend.program import NO_OPERAND, Kernel, OperandKind, Parameter
from tests.emulator.frontend.statements import (
    FunctionText,
    ModuleText,
    PtxError,
    Statement,
    split_module,
)

_DECODERS = {**arithmetic.DECODERS, **memory.DECODERS, **synchronisation.DECODERS}

_PREDICATED = re.compile(r"@(!?)\s*([%\w$]+)\s+(.*)$", re.DOTALL)
_INSTRUCTION = re.compile(r"([a-z][a-z0-9_]*(?:(?:\.|::)\w+)*)\s*(.*)$", re.DOTALL)
_VARIABLE = re.compile(
    r"(?:\.(?:visible|extern|weak|common)\s+)*\.(shared|global|const|local|param)\s+(.*)$",
    re.DOTALL,
)
_DECLARATOR = re.compile(
    r"(?:\.align\s+(\d+)\s+)?(?:\.ptr\s+)?\.(\w+)\s+([\w$%]+)((?:\[\w*\])*)\s*(?:=\s*(.*))?$",
    re.DOTALL,
)
_CALL = re.compile(r"(?:\((.*?)\)\s*,\s*)?([\w$]+)(?:\s*,\s*\((.*)\))?$", re.DOTALL)
_PARAMETER = re.compile(
    r"\.param\s+(?:\.align\s+(\d+)\s+)?\.(\w+)(?:\s+\.ptr(?:\s+\.\w+)*(?:\s+\.align\s+\d+)?)?"
    r"\s+([\w$]+)(?:\[(\d+)\])?$"
)
# Variables whose address or contents ask for too much would only exhaust memory.
_LARGEST_VARIABLE = 1 << 28


@dataclass
class GlobalVariable:
    """A .global or .const variable, to be placed by the device."""

    name: str
    num_bytes: int
    data: bytes
    initialised: bool


@dataclass
class PtxModule:
    """A split module with its variables; kernels are decoded once addresses are known."""

    text: ModuleText
    variables: list[GlobalVariable] = field(default_factory=list)
    shared: list[tuple[Statement, str]] = field(default_factory=list)

    def kernel_names(self) -> list[str]:
        """Names of all entries."""
        return [_function_name(f) for f in self.text.functions if f.is_entry]


def _function_name(function: FunctionText) -> str:
    header = re.sub(r"^.*?\.(?:entry|func)\b", "", function.header, flags=re.DOTALL).strip()
    if header.startswith("("):
        header = header[header.index(")") + 1 :].strip() if ")" in header else ""
    match = re.match(r"[\w$]+", header)
    if match is None:
        raise PtxError(function.line, function.header, "function without a name")
    return match.group(0)


def _round_up(value: int, multiple: int) -> int:
    return (value + multiple - 1) // multiple * multiple


@dataclass(frozen=True)
class _Variable:
    name: str
    align: int
    num_bytes: int
    element: str
    unsized: bool
    initialiser: str | None


def _parse_variable(text: str) -> _Variable:
    match = _DECLARATOR.match(text.strip())
    if match is None or match.group(2) not in TYPE_BITS or match.group(2) == "pred":
        raise FormError("cannot read the declaration")
    align_text, element, name, extents, initialiser = match.groups()
    size = TYPE_BITS[element] // 8
    unsized = False
    for extent in re.findall(r"\[(\w*)\]", extents):
        if extent:
            size *= integer(extent)
        else:
            unsized = True
    if size > _LARGEST_VARIABLE:
        raise FormError("variable is larger than 256 MiB")
    align = int(align_text) if align_text else TYPE_BITS[element] // 8
    if not 1 <= align <= 1 << 16 or align & (align - 1):
        raise FormError("alignment is no power of two")
    return _Variable(name, align, 0 if unsized else size, element, unsized, initialiser)


def _initial_bytes(variable: _Variable) -> bytes:
    if variable.initialiser is None:
        return b""
    width = TYPE_BITS[variable.element] // 8
    data = bytearray()
    for item in variable.initialiser.replace("{", " ").replace("}", " ").split(","):
        item = item.strip()
        if not item:
            continue
        is_float = re.match(r"0[fFdD]", item) is not None
        value = int(item[2:], 16) if is_float else integer(item)
        data += (value & ((1 << 8 * width) - 1)).to_bytes(width, "little")
    return bytes(data)


def parse_module(text: str) -> PtxModule:
    """Split a PTX text and read its module-level variables.

    Errors: PtxError with the line.
    """
    module = PtxModule(split_module(text))
    for directive in module.text.directives:
        match = _VARIABLE.match(directive.text)
        if match is None:
            if re.match(
                r"\.(pragma|func|extern|visible|weak|alias|target|section)\b", directive.text
            ):
                continue
            raise PtxError(directive.line, directive.text, "unknown directive")
        space, declaration = match.groups()
        try:
            if space == "shared":
                _parse_variable(declaration)
                module.shared.append((directive, declaration))
                continue
            variable = _parse_variable(declaration)
            data = _initial_bytes(variable)
        except FormError as error:
            raise PtxError(directive.line, directive.text, str(error)) from error
        # .global variables without an initialiser start as zeros.
        module.variables.append(
            GlobalVariable(variable.name, max(1, variable.num_bytes), data, True)
        )
    return module


class _KernelDecoder:
    """Decodes one entry and the functions it can call into one instruction list."""

    def __init__(self, module: PtxModule, addresses: dict[str, int], shared_start: int) -> None:
        self.module = module
        self.functions = {_function_name(f): f for f in module.text.functions}
        self.kernel = Kernel("")
        self.shared_start = shared_start
        symbols = {name: Symbol("global", address) for name, address in addresses.items()}
        self.ctx = Context(self.kernel, symbols)
        self.dynamic_symbols: list[Symbol] = []
        self.parameters: dict[str, list[Symbol]] = {}
        self.results: dict[str, list[Symbol]] = {}
        self.queue: list[str] = []
        self.label_count = 0

    def run(self, name: str) -> Kernel:
        entry = self.functions[name]
        self.kernel.name = name
        self.entry_header(entry)
        for statement, declaration in self.module.shared:
            self.guard(
                statement, lambda d=declaration: self.declare("shared", d, module_level=True)
            )
        self.body(entry)
        seen = {name}
        while self.queue:
            callee = self.queue.pop()
            if callee in seen:
                continue
            seen.add(callee)
            self.kernel.labels[f"function {callee}"] = len(self.kernel.insns)
            self.body(self.functions[callee])
        # Dynamic shared memory begins where the static variables end.
        align = self.kernel.dynamic_shared_align
        start = _round_up(self.shared_start + self.kernel.static_shared_bytes, align)
        self.patch_dynamic(start)
        return self.kernel

    # ---- headers

    def entry_header(self, entry: FunctionText) -> None:
        header = entry.header
        try:
            for declaration in self.parameter_list(header, entry.line):
                align, num_bytes, name = declaration
                self.kernel.param_bytes = _round_up(self.kernel.param_bytes, align)
                self.kernel.parameters.append(Parameter(name, self.kernel.param_bytes, num_bytes))
                self.ctx.module_symbols[name] = Symbol("param", self.kernel.param_bytes, num_bytes)
                self.kernel.param_bytes += num_bytes
            if match := re.search(r"\.(?:max|req)ntid\s+([\d\s,]+)", header):
                threads = 1
                for size in re.findall(r"\d+", match.group(1)):
                    threads *= int(size)
                self.kernel.max_threads = threads
            if match := re.search(r"\.minnctapersm\s+(\d+)", header):
                self.kernel.min_ctas = int(match.group(1))
            if match := re.search(r"\.maxnreg\s+(\d+)", header):
                self.kernel.max_registers = int(match.group(1))
            if match := re.search(
                r"\.reqnctapercluster\s+(\d+)(?:\s*,\s*(\d+))?(?:\s*,\s*(\d+))?", header
            ):
                x, y, z = (max(1, int(size or 1)) for size in match.groups())
                self.kernel.cluster = (x, y, z)
        except FormError as error:
            raise PtxError(entry.line, header, str(error)) from error

    def parameter_list(self, header: str, line: int) -> list[tuple[int, int, str]]:
        """(align, bytes, name) of each parameter in the last parentheses of a header."""
        match = re.search(r"\(([^()]*)\)[^()]*$", header, re.DOTALL)
        declared = []
        for text in split_operands(match.group(1)) if match and match.group(1).strip() else []:
            parts = _PARAMETER.match(text.strip())
            if parts is None or parts.group(2) not in TYPE_BITS:
                raise PtxError(line, text, "cannot read the parameter")
            align, element, name, count = parts.groups()
            size = TYPE_BITS[element] // 8
            num_bytes = size * int(count or 1)
            if num_bytes > 1 << 16:
                raise PtxError(line, text, "parameter is larger than 64 KiB")
            declared.append((max(1, int(align or size)), num_bytes, name))
        return declared

    def local_symbol(self, align: int, num_bytes: int) -> Symbol:
        self.kernel.local_bytes = _round_up(self.kernel.local_bytes, max(align, 8))
        symbol = Symbol("local", self.kernel.local_bytes, num_bytes)
        self.kernel.local_bytes += num_bytes
        if self.kernel.local_bytes > 1 << 20:
            raise FormError("more than 1 MiB of local memory a thread")
        return symbol

    def function_signature(self, name: str) -> tuple[list[Symbol], list[Symbol]]:
        """Local memory of a function's results and parameters: no recursion, so one place each."""
        if name not in self.parameters:
            function = self.functions[name]
            groups = re.findall(r"\(([^()]*)\)", function.header)
            has_result = re.search(r"\.func\s*\(", function.header) is not None
            results = groups[0] if has_result else ""
            params = groups[-1] if len(groups) > int(has_result) else ""
            for text, table in ((results, self.results), (params, self.parameters)):
                table[name] = [
                    self.local_symbol(align, num_bytes)
                    for align, num_bytes, _ in self.parameter_list(f"({text})", function.line)
                ]
        return self.results[name], self.parameters[name]

    # ---- bodies

    def guard(self, statement: Statement, action: object) -> None:
        """Run an action; a FormError becomes a PtxError of the statement."""
        try:
            assert callable(action)
            action()
        except (FormError, ValueError, IndexError, KeyError) as error:
            why = str(error) if isinstance(error, FormError) else f"malformed ({error!r})"
            raise PtxError(statement.line, statement.text, why) from error

    def body(self, function: FunctionText) -> None:
        ctx = self.ctx
        outer = ctx.scopes
        ctx.scopes = [Scope()]
        if not function.is_entry:
            name = _function_name(function)
            results, parameters = self.function_signature(name)
            groups = re.findall(r"\(([^()]*)\)", function.header)
            names = [
                declared[2]
                for group in groups
                for declared in self.parameter_list(f"({group})", function.line)
            ]
            for parameter, symbol in zip(names, [*results, *parameters], strict=True):
                ctx.scopes[0].symbols[parameter] = symbol
        blocks = self.collect_labels(function)
        block = 0
        for statement in function.body:
            ctx.line, ctx.source, ctx.text = statement.line, statement.source, statement.text
            if statement.kind == "open":
                block += 1
                ctx.scopes.append(Scope(labels=blocks[block]))
            elif statement.kind == "close":
                ctx.scopes.pop()
            elif statement.kind == "label":
                self.kernel.labels[ctx.label(statement.text)] = len(self.kernel.insns)
            elif statement.kind == "directive":
                self.guard(statement, functools.partial(self.directive, statement.text))
            else:
                self.guard(statement, functools.partial(self.instruction, statement.text))
        ctx.pred, ctx.pred_negated = -1, False
        ctx.text = "ret;"
        ctx.emit("ret", [])
        ctx.scopes = outer

    def collect_labels(self, function: FunctionText) -> list[dict[str, str]]:
        """Unique names of each block's labels, blocks in order of opening; the first is the body."""
        blocks: list[dict[str, str]] = [{}]
        stack = [0]
        for statement in function.body:
            if statement.kind == "open":
                blocks.append({})
                stack.append(len(blocks) - 1)
            elif statement.kind == "close":
                stack.pop()
            elif statement.kind == "label":
                if statement.text in blocks[stack[-1]]:
                    raise PtxError(statement.line, statement.text, "label defined twice")
                self.label_count += 1
                blocks[stack[-1]][statement.text] = f"{statement.text} {self.label_count}"
        self.ctx.scopes[0].labels = blocks[0]
        return blocks

    def directive(self, text: str) -> None:
        if match := re.match(r"\.reg\s+\.(\w+)\s+(.*)$", text, re.DOTALL):
            self.ctx.declare(match.group(2), match.group(1))
        elif match := _VARIABLE.match(text):
            self.declare(match.group(1), match.group(2), module_level=False)
        elif re.match(r"\.branchtargets\b", text):
            names = [name.strip() for name in text.split(None, 1)[1].split(",")]
            label = next(reversed(self.kernel.labels))
            self.kernel.labels.pop(label)
            self.branch_targets = {label: tuple(self.ctx.label(name) for name in names)}
            self.patch_brx(label)
        elif not re.match(r"\.(pragma|loc|callprototype|noreturn|minnctapersm)\b", text):
            raise FormError("unknown directive")

    def declare(self, space: str, declaration: str, *, module_level: bool) -> None:
        variable = _parse_variable(declaration)
        kernel = self.kernel
        if space == "shared":
            if variable.unsized:
                # Patched once all static variables are known.
                symbol = Symbol("dynamic", 0)
                kernel.dynamic_shared_align = max(kernel.dynamic_shared_align, variable.align)
                self.dynamic_symbols.append(symbol)
                symbol.value = self.dynamic_placeholder(len(self.dynamic_symbols) - 1)
            else:
                begin = _round_up(self.shared_start + kernel.static_shared_bytes, variable.align)
                kernel.static_shared_bytes = begin - self.shared_start + variable.num_bytes
                symbol = Symbol("shared", begin, variable.num_bytes)
        elif space in ("local", "param"):
            symbol = self.local_symbol(variable.align, variable.num_bytes)
        else:
            raise FormError(f".{space} variable inside a function")
        where = self.ctx.module_symbols if module_level else self.ctx.scopes[-1].symbols
        where[variable.name] = symbol

    # Unsized shared arrays are encoded as an address no real one can have, then replaced.
    _PLACEHOLDER = 0x7A00_0000

    def dynamic_placeholder(self, index: int) -> int:
        return self._PLACEHOLDER

    def patch_dynamic(self, start: int) -> None:
        low, high = self._PLACEHOLDER, self._PLACEHOLDER + (1 << 20)
        if not self.dynamic_symbols:
            return
        self.kernel.constants[:] = [
            (value - low + start, wide) if low <= value < high else (value, wide)
            for value, wide in self.kernel.constants
        ]

    def instruction(self, text: str) -> None:
        ctx = self.ctx
        ctx.pred, ctx.pred_negated = -1, False
        if text.startswith("@"):
            match = _PREDICATED.match(text)
            if match is None:
                raise FormError("cannot read the predicate")
            found = ctx.find_register(match.group(2))
            if found is None or found[0] != OperandKind.PRED:
                raise FormError(f"{match.group(2)} is no predicate")
            ctx.pred, ctx.pred_negated = found[1], match.group(1) == "!"
            text = match.group(3)
        match = _INSTRUCTION.match(text)
        if match is None:
            raise FormError("cannot read the instruction")
        opcode, rest = match.groups()
        form = Form(opcode)
        if form.base == "call":
            self.call(form, rest)
        elif form.base == "brx":
            self.branch_indexed(form, rest)
        elif form.base in _DECODERS:
            _DECODERS[form.base](ctx, form, split_operands(rest))
        else:
            raise FormError(f"unknown opcode {opcode}")
        form.done()

    # ---- calls and jump tables

    def call(self, form: Form, rest: str) -> None:
        form.flag("uni")
        match = _CALL.match(rest.strip())
        if match is None:
            raise FormError("cannot read the call")
        results, name, arguments = match.groups()
        if name == "__assertfail":
            self.ctx.emit("assertfail", [])
            return
        if name == "vprintf":
            return  # output is no part of a kernel's result
        if name not in self.functions:
            raise FormError(f"call of unknown function {name}")
        result_symbols, parameter_symbols = self.function_signature(name)
        given = split_operands(arguments) if arguments and arguments.strip() else []
        taken = split_operands(results) if results and results.strip() else []
        if len(given) != len(parameter_symbols) or len(taken) != len(result_symbols):
            raise FormError(f"{name} takes {len(parameter_symbols)} parameters")
        for text, symbol in zip(given, parameter_symbols, strict=True):
            self.copy_local(self.local_of(text), symbol)
        self.ctx.emit("call", [], target=f"function {name}")
        for text, symbol in zip(taken, result_symbols, strict=True):
            self.copy_local(symbol, self.local_of(text))
        self.queue.append(name)

    def local_of(self, text: str) -> Symbol:
        symbol = self.ctx.symbol(text)
        if symbol is None or symbol.space != "local":
            raise FormError(f"{text} is no .param of this function")
        return symbol

    def copy_local(self, source: Symbol, target: Symbol) -> None:
        ctx = self.ctx
        local = SPACES["local"]
        at = 0
        while at < target.num_bytes:
            width = next(w for w in (8, 4, 2, 1) if at + w <= target.num_bytes and at % w == 0)
            type_name = f"b{8 * width}"
            register = ctx.temporary(64 if width == 8 else 32)
            args = [local, 1, 0]
            ctx.emit("ld", [register, ctx.constant(source.value + at, True)], args, type_name)
            ops = [register, ctx.constant(target.value + at, True)]
            ctx.emit("st", ops, args, type_name, num_dests=0)
            at += width

    def branch_indexed(self, form: Form, rest: str) -> None:
        form.need({"idx": True}, ".idx")
        form.flag("uni")
        operands = split_operands(rest)
        if len(operands) != 2:
            raise FormError("expected an index and a table")
        table = self.ctx.label(operands[1])
        self.ctx.emit(
            "brx_idx", [self.ctx.value(operands[0], "u32")], num_dests=0, targets=(table,)
        )
        if table in getattr(self, "branch_targets", {}):
            self.patch_brx(table)

    def patch_brx(self, table: str) -> None:
        for insn in self.kernel.insns:
            if insn.opcode == "brx_idx" and tuple(insn.targets) == (table,):
                insn.targets = self.branch_targets[table]


def decode_kernel(
    module: PtxModule, name: str, addresses: dict[str, int], shared_start: int
) -> Kernel:
    """Decode one entry.

    Args:
        module: from `parse_module`.
        name: one of `module.kernel_names()`.
        addresses: where the device placed each module variable.
        shared_start: first usable byte of shared memory.
    Errors: PtxError naming line and form.
    """
    return _KernelDecoder(module, addresses, shared_start).run(name)


__all__: Sequence[str] = ("NO_OPERAND", "PtxModule", "decode_kernel", "parse_module")
