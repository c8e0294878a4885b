"""Which implementation serves an op on a GPU: tuned JIT kernel, else AOT kernel, else plain torch.

The choice is made once per op, device and weight shape, logged by `seekernel.ops` at debug level, and kept:
`reset()` forgets all, so that a changed environment variable takes effect. On the CPU there is one way only.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache

import torch

from seekernel import _jit, env
from seekernel._extension import build_info
from seekernel.jit import CompilerMissing, JitError, default_jit, native

logger = logging.getLogger("seekernel.ops")

Call = Callable[..., None]


class Path(Enum):
    """Where an op's answer comes from."""

    JIT = "jit"
    AOT = "aot"
    REFERENCE = "reference"


class NoKernel(Exception):
    """Legal arguments that the compiled kernels do not take; plain torch answers."""


@dataclass(frozen=True)
class Choice:
    """What was chosen for an op and a shape, and why nothing before it in the chain was."""

    op: str
    device: int
    shape: tuple[int, ...]
    path: Path
    skipped: tuple[str, ...]

    def __str__(self) -> str:
        why = f" ({'; '.join(self.skipped)})" if self.skipped else ""
        return f"{self.op} {list(self.shape)} on cuda:{self.device}: {self.path.value}{why}"


@lru_cache(maxsize=64)
def capability(device: int) -> tuple[int, int]:
    """Compute capability of a CUDA device."""
    return torch.cuda.get_device_capability(device)


def why_no_jit(capability: tuple[int, int]) -> str | None:
    """Why a kernel compiled at run time cannot be used on such a GPU; None: it can."""
    if capability != (9, 0):
        return f"jit: compute capability {capability[0]}.{capability[1]}, the kernels need 9.0"
    if not env.TRTLLM_DG_ENABLED.get():
        return "jit: TRTLLM_DG_ENABLED=0"
    if _jit.driver_status():
        return f"jit: {_jit.driver_status()}"
    try:
        default_jit()
    except CompilerMissing as missing:
        return f"jit: {missing}"
    return None


def why_no_aot(capability: tuple[int, int]) -> str | None:
    """Why a kernel compiled at build time cannot be used on such a GPU; None: it can."""
    if capability != (9, 0):
        return f"aot: compute capability {capability[0]}.{capability[1]}, the kernels need 9.0"
    if not build_info()["cuda_version"]:
        return "aot: built without CUDA"
    return None


class Chain:
    """One op's ways to an answer on a GPU, best first.

    Args:
        op: name, as in torch.ops.seekernel.
        jit, aot: launch a compiled kernel, or raise NoKernel, or (jit) JitError; None: there is none.
        reference: checks its arguments and answers with plain torch.
    """

    def __init__(self, op: str, *, jit: Call | None, aot: Call | None, reference: Call) -> None:
        self.op = op
        given = {Path.JIT: jit, Path.AOT: aot, Path.REFERENCE: reference}
        self.calls: dict[Path, Call] = {path: call for path, call in given.items() if call}
        self.choices: dict[tuple[int, tuple[int, ...]], Choice] = {}
        self._chosen: dict[tuple[int, tuple[int, ...]], Call] = {}
        _chains.append(self)

    def __call__(self, device: int, shape: tuple[int, ...], *arguments: object) -> None:
        """Run the op with what was chosen for the weights' shape, choosing first if need be."""
        call = self._chosen.get((device, shape))
        if call is None:
            call = self._choose(device, shape, ())
        try:
            call(*arguments)
            return
        except JitError as error:
            logger.warning("%s: %s; kernels compiled at build time take over", self.op, error)
            self._choose(device, shape, (f"jit: {str(error).splitlines()[0]}",))
        except NoKernel as reason:
            logger.debug("%s %s: reference (%s)", self.op, list(shape), reason)
            self.calls[Path.REFERENCE](*arguments)
            return
        self(device, shape, *arguments)

    def skips(self, capability: tuple[int, int]) -> tuple[Path, tuple[str, ...]]:
        """The path for such a GPU, and why not the ones before it."""
        reasons: list[str] = []
        for path, why_not in ((Path.JIT, why_no_jit), (Path.AOT, why_no_aot)):
            if path not in self.calls:
                continue
            reason = why_not(capability)
            if reason is None:
                return path, tuple(reasons)
            reasons.append(reason)
        return Path.REFERENCE, tuple(reasons)

    def _choose(self, device: int, shape: tuple[int, ...], failed: Sequence[str]) -> Call:
        if failed:
            reason = why_no_aot(capability(device)) if Path.AOT in self.calls else None
            path = Path.AOT if Path.AOT in self.calls and reason is None else Path.REFERENCE
            skipped = (*failed, *((reason,) if reason else ()))
        else:
            path, skipped = self.skips(capability(device))
        if path is Path.JIT:
            native.install_once()
        choice = Choice(self.op, device, tuple(shape), path, skipped)
        logger.debug("%s", choice)
        call = self.calls[path]
        self.choices[device, tuple(shape)] = choice
        self._chosen[device, tuple(shape)] = call
        return call

    def reset(self) -> None:
        """Forget what was chosen."""
        self.choices.clear()
        self._chosen.clear()


_chains: list[Chain] = []


def chains() -> Sequence[Chain]:
    """Of every op that has more than one implementation on a GPU."""
    return tuple(_chains)


def choices() -> list[Choice]:
    """What was chosen so far in this process."""
    return [choice for chain in _chains for choice in chain.choices.values()]


def reset() -> None:
    """Forget what was chosen: the next call of each op chooses anew."""
    for chain in _chains:
        chain.reset()
