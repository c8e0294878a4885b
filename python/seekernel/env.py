"""Every environment variable that seekernel reads: name, type, default, meaning.

    from seekernel import env
    if env.TRTLLM_DG_JIT_USE_NVCC.get(): ...

Values are read when asked for, so a change takes effect at the next use. A value that cannot be
read is an `EnvError` that names the variable. The README's table is `markdown_table()`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from seekernel.errors import SeekernelError

T = TypeVar("T")


class EnvError(SeekernelError):
    """An environment variable holds a value that it cannot take."""

    def __init__(self, name: str, expected: str, got: str) -> None:
        super().__init__(f"{name}: expected {expected}, got {got!r}")
        self.name = name


@dataclass(frozen=True)
class Variable(Generic[T]):
    """One environment variable.

    Args:
        name: as in the environment.
        default: what an unset or empty variable means.
        parse: from text to value; raises ValueError.
        expected: what `parse` accepts, for the error message.
        meaning: one line for the README's table.
        shown_default: the default in the table, where the value itself would not do.
    """

    name: str
    default: T
    parse: Callable[[str], T]
    expected: str
    meaning: str
    shown_default: str = ""

    def get(self, environ: Mapping[str, str] | None = None) -> T:
        """The value now. Errors: EnvError naming the variable."""
        text = (os.environ if environ is None else environ).get(self.name, "").strip()
        if not text:
            return self.default
        try:
            return self.parse(text)
        except ValueError:
            raise EnvError(self.name, self.expected, text) from None


_TRUE, _FALSE = ("1", "true", "on", "yes"), ("0", "false", "off", "no")


def _parse_flag(text: str) -> bool:
    lowered = text.lower()
    if lowered in _TRUE or lowered in _FALSE:
        return lowered in _TRUE
    raise ValueError(text)


def _parse_count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise ValueError(text)
    return value


def _parse_path(text: str) -> Path:
    path = Path(text).expanduser()
    if not path.is_absolute():
        raise ValueError(text)
    return path


def _parse_paths(text: str) -> tuple[Path, ...]:
    return tuple(_parse_path(part) for part in text.split(":") if part)


def _choice(*values: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in values:
            raise ValueError(text)
        return text

    return parse


def _flag(name: str, default: bool, meaning: str) -> Variable[bool]:
    return Variable(name, default, _parse_flag, "0 or 1", meaning)


SEEKERNEL_CUDA = Variable(
    "SEEKERNEL_CUDA",
    "auto",
    _choice("0", "1", "auto"),
    "0, 1 or auto",
    "Build time: compile the CUDA kernels (`1` demands nvcc, `auto` takes it where found).",
)
SEEKERNEL_CPU_ISA = Variable(
    "SEEKERNEL_CPU_ISA",
    "",
    _choice("baseline", "avx2", "avx512"),
    "baseline, avx2 or avx512",
    "Instruction set of the CPU kernels; one that the machine lacks is an error.",
    "the best there is",
)
SEEKERNEL_JIT_READ_ONLY_DIRS: Variable[tuple[Path, ...]] = Variable(
    "SEEKERNEL_JIT_READ_ONLY_DIRS",
    (),
    _parse_paths,
    "absolute paths separated by ':'",
    "More kernel caches, looked into after the own one and never written (an image's, a cluster's).",
    "none",
)
SEEKERNEL_JIT_CACHE_MAX_MB = Variable(
    "SEEKERNEL_JIT_CACHE_MAX_MB",
    2048,
    _parse_count,
    "a number of MiB, 0 for no limit",
    "Size of the kernel cache above which the kernels not used for longest are removed.",
)
TRTLLM_DG_ENABLED = _flag(
    "TRTLLM_DG_ENABLED",
    True,
    "Use kernels compiled at run time; `0` leaves the ones compiled at build time, same results to one "
    "rounding of the output.",
)
TRTLLM_DG_JIT_DEBUG = _flag(
    "TRTLLM_DG_JIT_DEBUG",
    False,
    "Log source, options, compile time, compiler output and cache hits.",
)
TRTLLM_DG_JIT_USE_NVCC = _flag(
    "TRTLLM_DG_JIT_USE_NVCC", False, "Compile with nvcc instead of NVRTC."
)
TRTLLM_DG_JIT_DUMP_CUBIN = _flag(
    "TRTLLM_DG_JIT_DUMP_CUBIN",
    False,
    "Keep source and PTX beside each cubin. Cubins themselves are always kept on disk here; "
    "TensorRT-LLM keeps them only with this variable and compiles anew in every process without.",
)
TRTLLM_DG_CACHE_DIR: Variable[Path | None] = Variable(
    "TRTLLM_DG_CACHE_DIR",
    None,
    _parse_path,
    "an absolute path",
    "Root of the kernel cache.",
    "`$XDG_CACHE_HOME/seekernel` or `~/.cache/seekernel`",
)
TRTLLM_DG_NVCC_COMPILER: Variable[Path | None] = Variable(
    "TRTLLM_DG_NVCC_COMPILER",
    None,
    _parse_path,
    "an absolute path",
    "The nvcc to use.",
    "`$CUDA_HOME/bin/nvcc`, else `nvcc` on `PATH`",
)
TRTLLM_DG_JIT_PRINT_NVCC_COMMAND = _flag(
    "TRTLLM_DG_JIT_PRINT_NVCC_COMMAND",
    False,
    "Print the command or the NVRTC options of each build.",
)
TRTLLM_DG_PTXAS_VERBOSE = _flag(
    "TRTLLM_DG_PTXAS_VERBOSE",
    False,
    "Print registers, spills and barriers of each build (ptxas -v).",
)
VARIABLES: tuple[Variable[object], ...] = tuple(
    value for value in globals().values() if isinstance(value, Variable)
)
"""All of them, in the order of the table."""


def _shown_default(variable: Variable[object]) -> str:
    if variable.shown_default:
        return variable.shown_default
    default = variable.default
    return f"`{int(default)}`" if isinstance(default, (bool, int)) else f"`{default}`"


def markdown_table() -> str:
    """The README's table of environment variables."""
    rows = ["| variable | default | meaning |", "|---|---|---|"]
    rows += [f"| `{v.name}` | {_shown_default(v)} | {v.meaning} |" for v in VARIABLES]
    return "\n".join(rows) + "\n"
