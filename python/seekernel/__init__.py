"""DeepSeek-V3/R1 inference, kernel by kernel: ops, model, engine.

Everything below this module is imported on first use, so that `seekernel --help` needs no torch;
torch.ops.seekernel.* exist once seekernel.ops is imported.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from seekernel._version import __version__

# libgomp reads this once, when torch loads it: threads that wait at a barrier give their core away
# soon, instead of spinning against whoever holds the other one.
os.environ.setdefault("GOMP_SPINCOUNT", "2000")

if TYPE_CHECKING:
    import seekernel.engine as engine
    import seekernel.jit as jit
    import seekernel.model as model
    import seekernel.ops as ops
    import seekernel.reference as reference
    from seekernel.engine import LLM, CompletionOutput, RequestOutput, SamplingParams

_SUBMODULES = ("engine", "jit", "model", "ops", "reference")
_FROM_ENGINE = ("LLM", "CompletionOutput", "RequestOutput", "SamplingParams")

__all__ = [
    "LLM",
    "CompletionOutput",
    "RequestOutput",
    "SamplingParams",
    "__version__",
    "engine",
    "jit",
    "model",
    "ops",
    "reference",
]


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return import_module(f"seekernel.{name}")
    if name in _FROM_ENGINE:
        value = getattr(import_module("seekernel.engine"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'seekernel' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *_SUBMODULES, *_FROM_ENGINE})
