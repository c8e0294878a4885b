"""Joins the compiled launch path to the compilers: what `_jit` misses is compiled here, once."""

from __future__ import annotations

from collections.abc import Sequence

from seekernel import _jit
from seekernel.jit.families import kernel_spec
from seekernel.jit.loader import Jit, default_jit, require_enabled


def install(jit: Jit | None = None) -> None:
    """Let `seekernel._jit` ask `jit`, or the process's default one, for kernels it has not loaded."""

    def resolve(family: str, values: Sequence[int]) -> tuple[bytes, str]:
        require_enabled()
        artifact = (jit or default_jit()).artifact(kernel_spec(family, values))
        return artifact.cubin, artifact.meta.symbol

    _jit.set_resolver(resolve)


def install_once() -> None:
    """Install the process's default compiler unless something is installed already."""
    if not _jit.has_resolver():
        install()
