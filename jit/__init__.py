"""Turns a kernel spec into a loaded kernel, once: compilers, cache, loader. Knows no ops."""

from seekernel.jit.cache import CacheWarning, KernelCache
from seekernel.jit.errors import (
    ArtifactError,
    CacheRefused,
    CompileError,
    CompilerMissing,
    JitDisabled,
    JitError,
    StaticCheckError,
)
from seekernel.jit.loader import Jit, default_jit, require_enabled
from seekernel.jit.spec import KernelSpec

__all__ = [
    "ArtifactError",
    "CacheRefused",
    "CacheWarning",
    "CompileError",
    "CompilerMissing",
    "Jit",
    "JitDisabled",
    "JitError",
    "KernelCache",
    "KernelSpec",
    "StaticCheckError",
    "default_jit",
    "require_enabled",
]
