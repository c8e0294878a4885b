"""The device headers a source reaches: what the compilers see and what the cache key covers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from importlib.resources import files

from seekernel.jit.errors import JitError

_INCLUDE = re.compile(r"^[ \t]*#[ \t]*include[ \t]+(\S+)", re.MULTILINE)
_OURS = re.compile(r"<(seekernel/[a-z0-9_/]+\.cuh)>\Z")


@lru_cache(maxsize=1)
def installed_headers() -> Mapping[str, str]:
    """Path from the include folder to text, of every device header in the package."""
    root = files("seekernel.csrc").joinpath("include")
    found: dict[str, str] = {}
    folders = [("seekernel", root.joinpath("seekernel"))]
    while folders:
        prefix, folder = folders.pop()
        for item in folder.iterdir():
            name = f"{prefix}/{item.name}"
            if item.is_dir():
                folders.append((name, item))
            elif name.endswith(".cuh"):
                found[name] = item.read_text(encoding="utf-8")
    return found


def reached_headers(source: str, available: Mapping[str, str]) -> dict[str, str]:
    """Path to text of every header that `source` includes, directly or not, sorted by path.

    Conditional includes count as taken: the key may cover too much, never too little.
    Errors: JitError for an include that is not `<seekernel/....cuh>` or does not exist.
    """
    reached: dict[str, str] = {}
    waiting = [("the kernel source", source)]
    while waiting:
        user, text = waiting.pop()
        for target in _INCLUDE.findall(text):
            match = _OURS.match(target)
            if match is None or match[1] not in available:
                raise JitError(f"{user}: expected an #include of <seekernel/....cuh>, got {target}")
            if match[1] not in reached:
                reached[match[1]] = available[match[1]]
                waiting.append((match[1], available[match[1]]))
    return dict(sorted(reached.items()))
