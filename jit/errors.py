"""What can go wrong between a kernel spec and a loaded kernel."""

from __future__ import annotations


class JitError(RuntimeError):
    """Base of all errors of the JIT."""


class CompilerMissing(JitError):
    """No usable compiler; the message says what to install."""


class CompileError(JitError):
    """The compiler refused the source; the message holds its output."""

    def __init__(self, kernel: str, compiler: str, output: str) -> None:
        super().__init__(f"{kernel}: {compiler} failed\n{output.strip()}")


class StaticCheckError(JitError):
    """The kernel compiled, but into code that must not ship: spills, local memory, serial wgmma."""

    def __init__(self, kernel: str, faults: tuple[str, ...]) -> None:
        super().__init__(f"{kernel}: {'; '.join(faults)}")
        self.faults = faults


class ArtifactError(JitError):
    """A compiled file that is not a whole cubin of one kernel for sm_90a."""


class CacheRefused(JitError):
    """A cache directory that other users could plant kernels in."""


class JitDisabled(JitError):
    """A JIT kernel was asked for although TRTLLM_DG_ENABLED is 0."""
