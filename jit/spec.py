"""What to compile: a kernel family and its compile-time parameters."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

ARCH = "sm_90a"
_NAME = re.compile(r"[a-z][a-z0-9_]*\Z")
_HEADER = re.compile(r"seekernel/[a-z0-9_/]+\.cuh\Z")


@dataclass(frozen=True)
class KernelSpec:
    """A kernel template and the values it is instantiated with.

        family<family_config<v0, v1, ...>>      from #include <header>

    Args:
        family: name of the kernel template in namespace seekernel; its configuration is the class
            template `<family>_config`.
        header: the device header that defines both.
        parameters: (name, value) of the template arguments in order; the names are for people.
        options: further compiler options that NVRTC and nvcc both take.
    Errors: ValueError naming the field.
    """

    family: str
    header: str
    parameters: tuple[tuple[str, int], ...]
    options: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        if not _NAME.match(self.family):
            raise ValueError(f"KernelSpec.family: expected {_NAME.pattern}, got {self.family!r}")
        if not _HEADER.match(self.header):
            raise ValueError(f"KernelSpec.header: expected {_HEADER.pattern}, got {self.header!r}")
        for name, value in self.parameters:
            if type(value) not in (int, bool):
                raise ValueError(
                    f"KernelSpec.parameters[{name}]: expected int or bool, got {value!r}"
                )

    @property
    def name(self) -> str:
        """Family and values, for messages: sm90_fp8_gemm_nt<SHAPE_N=0, ...>."""
        return f"{self.family}<{', '.join(f'{name}={int(v)}' for name, v in self.parameters)}>"

    def source(self) -> str:
        """The translation unit: naming the kernel's address makes the compiler emit it, once."""
        values = ", ".join(str(int(value)) for _, value in self.parameters)
        return (
            f"#include <{self.header}>\n"
            "template <auto kKernel> struct emit_t {};\n"
            f"template struct emit_t<&seekernel::{self.family}<seekernel::{self.family}_config<"
            f"{values}>>>;\n"
        )
