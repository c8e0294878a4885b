"""The cache key: one digest over everything that decides a kernel's code."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from seekernel.jit.compiler import Compiler
from seekernel.jit.spec import ARCH, KernelSpec

FORMAT = "seekernel-kernel-1"


def cache_key(spec: KernelSpec, compiler: Compiler, headers: Mapping[str, str]) -> str:
    """`<family>.<32 hex digits>` over format, arch, compiler, options, source and headers reached.

    Every part is preceded by its length, so no two different lists of parts run into the same bytes.
    """
    parts = [FORMAT, ARCH, compiler.identity, *compiler.options(spec), "", spec.source()]
    for name, text in sorted(headers.items()):
        parts += [name, text]
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    return f"{spec.family}.{digest.hexdigest()[:32]}"
