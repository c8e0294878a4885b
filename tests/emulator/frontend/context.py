"""What a decoder may ask for while it turns one statement into engine instructions."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, field

from tests.emulator.frontend.form import TYPE_BITS, FormError
from tests.emulator.frontend.program import (
    CONSTANT_BANK,
    LANES,
    NO_OPERAND,
    REGISTER_BANK,
    Insn,
    Kernel,
    Operand,
    OperandKind,
)

# Read as constants of a warp; the value says whether the register is 64 bits wide.
SPECIAL_REGISTERS = {
    **{
        f"%{stem}.{axis}": False
        for stem in (
            "tid", "ntid", "ctaid", "nctaid", "clusterid", "nclusterid", "cluster_ctaid",
            "cluster_nctaid",
        )
        for axis in "xyz"
    },
    **dict.fromkeys(
        (
            "%laneid", "%warpid", "%nwarpid", "%smid", "%nsmid", "%cluster_ctarank",
            "%cluster_nctarank", "%lanemask_eq", "%lanemask_lt", "%lanemask_le", "%lanemask_gt",
            "%lanemask_ge", "%dynamic_smem_size", "%total_smem_size",
        ),
        False,
    ),
    "%gridid": True,
}  # fmt: skip
CLOCKS = {"%clock": 32, "%clock_hi": 32, "%clock64": 64, "%globaltimer": 64, "%globaltimer_lo": 32}

# Virtual registers of a kernel; CUTLASS needs some thousands.
MAX_REGISTERS = 1 << 16

_INTEGER = re.compile(r"-?(0[xX][0-9a-fA-F]+|0[bB][01]+|\d+)U?$")
_HEX_FLOAT = re.compile(r"-?0[fF]([0-9a-fA-F]{8})$")
_HEX_DOUBLE = re.compile(r"-?0[dD]([0-9a-fA-F]{16})$")
_DECIMAL = re.compile(r"-?\d*\.\d+([eE][-+]?\d+)?$|-?\d+\.\d*([eE][-+]?\d+)?$")
_ADDRESS = re.compile(r"\[\s*([^+\s\]]+)\s*(?:\+\s*(-?\w+))?\s*\]$")


@dataclass
class Symbol:
    """A named address: offset in shared, local or parameter memory, or a global address."""

    space: str
    value: int
    num_bytes: int = 0


@dataclass
class Scope:
    """Names of one block: registers, variables, labels."""

    registers: dict[str, tuple[int, int]] = field(default_factory=dict)
    symbols: dict[str, Symbol] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)


def split_operands(text: str) -> list[str]:
    """Split at commas outside brackets."""
    if not any(mark in text for mark in "[{("):
        return [part.strip() for part in text.split(",")] if text.strip() else []
    parts, depth, start = [], 0, 0
    for index, char in enumerate(text):
        if char in "[{(":
            depth += 1
        elif char in ")}]":
            depth -= 1
        elif char == "," and depth == 0:
            parts.append(text[start:index].strip())
            start = index + 1
    parts.append(text[start:].strip())
    if depth != 0:
        raise FormError("brackets do not match")
    return parts


def integer(text: str) -> int:
    """An integer literal; FormError otherwise."""
    if not _INTEGER.match(text):
        raise FormError(f"expected an integer, got {text}")
    return int(text.rstrip("U"), 0) if not re.match(r"-?0\d", text) else int(text.rstrip("U"), 8)


class Context:
    """The function being decoded: scopes, registers, constants, and the list of instructions."""

    def __init__(self, kernel: Kernel, module_symbols: dict[str, Symbol]) -> None:
        self.kernel = kernel
        self.module_symbols = module_symbols
        self.scopes: list[Scope] = [Scope()]
        self.line = 0
        self.source = ""
        self.text = ""
        self.pred = -1
        self.pred_negated = False
        self._constants: dict[tuple[int, bool], int] = {}
        self._constant_words = 0
        self._specials: dict[str, Operand] = {}

    # ---- registers

    def new_register(self, bits: int) -> tuple[int, int]:
        """Kind and offset of a fresh register."""
        if bits == 1:
            self.kernel.num_preds += 1
            return OperandKind.PRED, self.kernel.num_preds - 1
        if bits > 64:
            raise FormError("128-bit registers are not supported")
        words = 2 if bits == 64 else 1
        offset = self.kernel.num_words * LANES
        self.kernel.num_words += words
        if self.kernel.num_words > MAX_REGISTERS:
            raise FormError(f"more than {MAX_REGISTERS} registers")
        return (OperandKind.REG64 if words == 2 else OperandKind.REG32), offset

    def temporary(self, bits: int) -> Operand:
        """A fresh register as an operand."""
        kind, offset = self.new_register(bits)
        return kind, REGISTER_BANK, offset, 0

    def declare(self, names: str, type_name: str) -> None:
        """`.reg .b32 %r<10>, %x;`"""
        bits = TYPE_BITS.get(type_name)
        if bits is None:
            raise FormError(f"unknown register type .{type_name}")
        registers = self.scopes[-1].registers
        for name in names.split(","):
            name = name.strip()
            match = re.match(r"(.+)<(\d+)>$", name)
            if match is None:
                registers[name] = self.new_register(bits)
                continue
            if int(match.group(2)) > MAX_REGISTERS:
                raise FormError(f"more than {MAX_REGISTERS} registers")
            for index in range(int(match.group(2))):
                registers[f"{match.group(1)}{index}"] = self.new_register(bits)

    def find_register(self, name: str) -> tuple[int, int] | None:
        """Innermost declaration of a register."""
        for scope in reversed(self.scopes):
            if name in scope.registers:
                return scope.registers[name]
        return None

    def constant(self, value: int, wide: bool) -> Operand:
        """An immediate, kept once for all warps."""
        value &= (1 << (64 if wide else 32)) - 1
        key = (value, wide)
        if key not in self._constants:
            self._constants[key] = self._constant_words * LANES
            self._constant_words += 2 if wide else 1
            self.kernel.constants.append(key)
        kind = OperandKind.REG64 if wide else OperandKind.REG32
        return kind, CONSTANT_BANK, self._constants[key], 0

    def special(self, name: str) -> Operand:
        """A special register, filled when the warp starts; clocks are read on the spot."""
        if name in CLOCKS:
            result = self.temporary(CLOCKS[name])
            self.emit("clock", [result])
            return result
        if name not in self._specials:
            wide = SPECIAL_REGISTERS[name]
            operand = self.temporary(64 if wide else 32)
            self._specials[name] = operand
            self.kernel.specials.append((name, operand[2], wide))
        return self._specials[name]

    # ---- operands

    def symbol(self, name: str) -> Symbol | None:
        """Innermost declaration of a variable."""
        for scope in reversed(self.scopes):
            if name in scope.symbols:
                return scope.symbols[name]
        return self.module_symbols.get(name)

    def check_width(self, text: str, kind: int, type_name: str, wider: bool) -> None:
        """FormError unless the register suits the type; only ld, st and cvt take wider ones."""
        if (kind == OperandKind.PRED) != (type_name == "pred"):
            raise FormError(f"{text} is of the wrong kind for .{type_name}")
        bits = TYPE_BITS[type_name]
        if bits == 64 and kind == OperandKind.REG32:
            raise FormError(f"{text} is too narrow for .{type_name}")
        if bits <= 32 and kind == OperandKind.REG64 and not wider:
            raise FormError(f"{text} is too wide for .{type_name}")

    def value(self, text: str, type_name: str, wider: bool = False) -> Operand:
        """A source operand: register, special register, immediate or address of a symbol."""
        bits = TYPE_BITS[type_name]
        found = self.find_register(text)
        if found is not None:
            self.check_width(text, found[0], type_name, wider)
            return found[0], REGISTER_BANK, found[1], 0
        if text in SPECIAL_REGISTERS or text in CLOCKS:
            return self.special(text)
        return self.constant(self.literal(text, type_name), bits == 64)

    def literal(self, text: str, type_name: str) -> int:
        """The bits of an immediate or the address of a symbol."""
        if _INTEGER.match(text):
            number = integer(text)
            if type_name == "f32":
                return int(struct.unpack("<I", struct.pack("<f", number))[0])
            if type_name == "f64":
                return int(struct.unpack("<Q", struct.pack("<d", number))[0])
            return number
        if match := _HEX_FLOAT.match(text):
            pattern = int(match.group(1), 16) ^ (0x80000000 if text[0] == "-" else 0)
            if type_name == "f64":
                single = struct.unpack("<f", struct.pack("<I", pattern))[0]
                return int(struct.unpack("<Q", struct.pack("<d", single))[0])
            return pattern
        if match := _HEX_DOUBLE.match(text):
            pattern = int(match.group(1), 16)
            if type_name == "f32":
                double = struct.unpack("<d", struct.pack("<Q", pattern))[0]
                try:
                    return int(struct.unpack("<I", struct.pack("<f", double))[0])
                except OverflowError as error:
                    raise FormError(f"{text} does not fit .f32") from error
            return pattern
        if _DECIMAL.match(text):
            layout = ("<f", "<I") if type_name != "f64" else ("<d", "<Q")
            try:
                return int(struct.unpack(layout[1], struct.pack(layout[0], float(text)))[0])
            except OverflowError as error:
                raise FormError(f"{text} does not fit .{type_name}") from error
        if text == "WARP_SZ":
            return LANES
        base, _, offset = text.partition("+")
        symbol = self.symbol(base.strip())
        if symbol is None:
            raise FormError(f"unknown name {text}")
        return symbol.value + (integer(offset.strip()) if offset else 0)

    def dest(self, text: str, type_name: str = "b32", wider: bool = False) -> Operand:
        """A destination: a register, or `_` for none."""
        if text == "_":
            return NO_OPERAND
        found = self.find_register(text)
        if found is None:
            raise FormError(f"expected a register, got {text}")
        self.check_width(text, found[0], type_name, wider)
        return found[0], REGISTER_BANK, found[1], 0

    def predicate(self, text: str) -> Operand:
        """A predicate source, `!p` or an immediate 0 or 1."""
        negated = text.startswith("!")
        name = text[1:].strip() if negated else text
        found = self.find_register(name)
        if found is not None:
            if found[0] != OperandKind.PRED:
                raise FormError(f"{name} is no predicate")
            kind = OperandKind.NOT_PRED if negated else OperandKind.PRED
            return kind, REGISTER_BANK, found[1], 0
        # Predicate 0 is never written: it is false, its complement true.
        truth = (integer(name) != 0) != negated
        return (OperandKind.NOT_PRED if truth else OperandKind.PRED), REGISTER_BANK, 0, 0

    def address(self, text: str) -> Operand:
        """`[register+offset]`, `[symbol+offset]` or `[number]`."""
        match = _ADDRESS.match(text)
        if match is None:
            raise FormError(f"expected an address, got {text}")
        base, offset_text = match.groups()
        offset = 0
        if offset_text:
            offset = (
                integer(offset_text)
                if _INTEGER.match(offset_text)
                else self.literal(offset_text, "b64")
            )
        found = self.find_register(base)
        if found is not None:
            if found[0] == OperandKind.PRED:
                raise FormError(f"{base} is a predicate")
            if not -(1 << 62) < offset < 1 << 62:
                raise FormError(f"offset {offset} is too large")
            return found[0], REGISTER_BANK, found[1], offset
        return self.constant(self.literal(base, "b64") + offset, True)

    def vector(self, text: str) -> list[str]:
        """`{a, b}` as its parts; a plain operand as one part."""
        text = text.strip()
        if not text.startswith("{"):
            return [text]
        if not text.endswith("}"):
            raise FormError(f"unbalanced vector {text}")
        return [part.strip() for part in text[1:-1].split(",")]

    def dest_and_pred(self, text: str, type_name: str) -> tuple[Operand, Operand]:
        """`d|p` with an optional predicate."""
        name, _, pred = text.partition("|")
        dest = self.dest(name.strip(), type_name)
        return dest, self.dest(pred.strip(), "pred") if pred else NO_OPERAND

    # ---- instructions

    def emit(
        self,
        opcode: str,
        operands: list[Operand],
        args: list[int] | None = None,
        type: str = "b32",
        type2: str = "b32",
        num_dests: int = 1,
        target: str | None = None,
        targets: tuple[str, ...] = (),
    ) -> None:
        """Append one engine instruction under the statement's predicate."""
        self.kernel.insns.append(
            Insn(
                opcode,
                operands,
                args or [],
                type,
                type2,
                min(num_dests, len(operands)),
                self.pred,
                self.pred_negated,
                self.line,
                self.source,
                self.text,
                target,
                targets,
            )
        )

    def label(self, name: str) -> str:
        """The unique name of a label visible here."""
        for scope in reversed(self.scopes):
            if name in scope.labels:
                return scope.labels[name]
        raise FormError(f"unknown label {name}")
