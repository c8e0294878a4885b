"""The modifiers of one opcode, taken one by one so that an unknown one cannot pass unseen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")

SCOPES = ("cta", "cluster", "gpu", "sys")
SPACES = {"global": 1, "shared": 2, "param": 3, "local": 4, "const": 5}
GENERIC_SPACE = 0
# Cache operators and hints change speed, never meaning.
_HINTS = frozenset(
    [
        "ca",
        "cg",
        "cs",
        "lu",
        "cv",
        "wb",
        "wt",
        "nc",
        "L1::evict_normal",
        "L1::evict_unchanged",
        "L1::evict_first",
        "L1::evict_last",
        "L1::no_allocate",
        "L2::evict_normal",
        "L2::evict_first",
        "L2::evict_last",
        "L2::64B",
        "L2::128B",
        "L2::256B",
        "level::eviction_priority",
    ]
)

TYPE_BITS = {
    "pred": 1, "b8": 8, "u8": 8, "s8": 8, "b16": 16, "u16": 16, "s16": 16, "f16": 16, "bf16": 16,
    "b32": 32, "u32": 32, "s32": 32, "f32": 32, "f16x2": 32, "bf16x2": 32, "tf32": 32, "b64": 64,
    "u64": 64, "s64": 64, "f64": 64, "b128": 128, "e4m3": 8, "e5m2": 8, "e4m3x2": 16, "e5m2x2": 16,
}  # fmt: skip
FLOAT_TYPES = frozenset(("f16", "bf16", "f16x2", "bf16x2", "f32", "f64"))


class FormError(Exception):
    """A modifier or operand that the opcode does not have; the decoder adds line and text."""


class Form:
    """`cp.async.ca.shared.global` as base `cp` and a list of modifiers still to be explained."""

    def __init__(self, opcode: str) -> None:
        self.opcode = opcode
        self.base, *self.left = opcode.split(".")

    def flag(self, *names: str) -> bool:
        """Take every modifier in `names`; whether any was there."""
        before = len(self.left)
        self.left = [name for name in self.left if name not in names]
        return len(self.left) != before

    def pick(self, options: Mapping[str, T], default: T) -> T:
        """Take the first modifier in `options` and return what it maps to."""
        for index, name in enumerate(self.left):
            if name in options:
                del self.left[index]
                return options[name]
        return default

    def need(self, options: Mapping[str, T], what: str) -> T:
        """Like `pick`, but one of them must be there."""
        for index, name in enumerate(self.left):
            if name in options:
                del self.left[index]
                return options[name]
        raise FormError(f"{self.opcode} lacks {what}")

    def types(self) -> list[str]:
        """Take all type modifiers, in order."""
        found = [name for name in self.left if name in TYPE_BITS]
        self.left = [name for name in self.left if name not in TYPE_BITS]
        return found

    def type(self) -> str:
        """Take the only type modifier."""
        found = self.types()
        if len(found) != 1:
            raise FormError(f"{self.opcode} needs one type")
        return found[0]

    def space(self) -> int:
        """Take the state space; shared::cta and shared::cluster are windows of one address form."""
        for name in list(self.left):
            head, _, tail = name.partition("::")
            if head in SPACES and tail in ("", "cta", "cluster", "entry", "func"):
                self.left.remove(name)
                return SPACES[head]
        return GENERIC_SPACE

    def hints(self) -> bool:
        """Take cache hints; whether a policy operand follows."""
        self.left = [name for name in self.left if name not in _HINTS]
        return self.flag("L2::cache_hint")

    def done(self) -> None:
        """FormError if anything is left unexplained."""
        if self.left:
            raise FormError(f"unknown modifier .{' .'.join(self.left)} of {self.opcode}")
