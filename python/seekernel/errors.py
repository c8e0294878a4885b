"""What a user can get wrong. The text of each error is one line naming what, expected and got.

The command line prints that line and exits with status 2; anything else is a defect of ours.
"""

from __future__ import annotations

from typing import TypeVar

E = TypeVar("E", bound="SeekernelError")


class SeekernelError(ValueError):
    """Base of every error that the user's input, and not this package, is the cause of."""

    @classmethod
    def expected(cls: type[E], name: str, expected: str, got: object) -> E:
        """Return the error "name: expected ..., got ...", with a long value cut short."""
        text = repr(got)
        if len(text) > 200:
            text = text[:197] + "..."
        return cls(f"{name}: expected {expected}, got {text}")


class OptionError(SeekernelError):
    """An option of the engine or of a command that cannot be."""


class TokenizerError(SeekernelError):
    """Tokenizer files that are missing, damaged, or do not fit the model."""


class ChatTemplateError(TokenizerError):
    """A chat template that is missing, fails, or exceeds its limits."""


class RequestError(SeekernelError):
    """A prompt or sampling parameter that no answer can be made for."""


class CapacityError(SeekernelError):
    """A request or a configuration that can never fit the memory it was given."""
