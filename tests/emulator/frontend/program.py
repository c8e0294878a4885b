"""The decoded program in the form the engine takes: instructions, constants, sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TypeAlias

LANES = 32


class OperandKind(IntEnum):
    """Mirrors the engine's enumeration."""

    NONE = 0
    REG32 = 1
    REG64 = 2
    PRED = 3
    NOT_PRED = 4


Operand: TypeAlias = tuple[int, int, int, int]
"""(kind, bank, offset in 32-bit words or predicate index, immediate added to an address)."""

NO_OPERAND: Operand = (OperandKind.NONE, 0, 0, 0)
REGISTER_BANK = 0
CONSTANT_BANK = 1

EncodedInsn: TypeAlias = tuple[
    str, int, int, int, bool, int, int, int, str, str, list[Operand], list[int]
]


@dataclass
class Insn:
    """One engine instruction; `target` is a label until the program is encoded."""

    opcode: str
    operands: list[Operand]
    args: list[int]
    type: str
    type2: str
    num_dests: int
    pred: int
    pred_negated: bool
    line: int
    source: str
    text: str
    target: str | None = None
    targets: Sequence[str] = ()


@dataclass
class Parameter:
    """One kernel parameter."""

    name: str
    offset: int
    num_bytes: int


@dataclass
class Kernel:
    """An entry with everything reachable from it, ready to be encoded."""

    name: str
    parameters: list[Parameter] = field(default_factory=list)
    param_bytes: int = 0
    insns: list[Insn] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    constants: list[tuple[int, bool]] = field(default_factory=list)
    specials: list[tuple[str, int, bool]] = field(default_factory=list)
    num_words: int = 0
    num_preds: int = 1  # predicate 0 stays false
    static_shared_bytes: int = 0
    dynamic_shared_align: int = 16
    local_bytes: int = 0
    cluster: tuple[int, int, int] | None = None
    max_threads: int = 0
    min_ctas: int = 1
    max_registers: int = 0

    def registers_per_thread(self) -> int:
        """What ptxas would allot at launch: an equal share of the SM, in steps of 8.

        setmaxnreg takes its pool from what the CTA's warps give back, so the start value counts.
        """
        if self.max_registers:
            return self.max_registers
        threads = (self.max_threads or 384) * max(1, self.min_ctas)
        return max(24, min(255, 65536 // threads) // 8 * 8)

    def encode(self, type_index: Mapping[str, int]) -> list[EncodedInsn]:
        """Instructions as the engine's tuples."""
        encoded: list[EncodedInsn] = []
        for insn in self.insns:
            args = insn.args if not insn.targets else [self.labels[name] for name in insn.targets]
            encoded.append(
                (
                    insn.opcode,
                    type_index[insn.type],
                    type_index[insn.type2],
                    insn.pred,
                    insn.pred_negated,
                    -1 if insn.target is None else self.labels[insn.target],
                    insn.num_dests,
                    insn.line,
                    insn.source,
                    insn.text,
                    insn.operands,
                    args,
                )
            )
        return encoded

    def sizes(self) -> dict[str, int]:
        """The numbers the engine needs besides the instructions."""
        return {
            "num_words": self.num_words,
            "num_preds": self.num_preds,
            "static_shared_bytes": self.static_shared_bytes,
            "dynamic_shared_align": self.dynamic_shared_align,
            "local_bytes": self.local_bytes,
            "param_bytes": self.param_bytes,
            "registers_per_thread": self.registers_per_thread(),
        }
