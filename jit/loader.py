"""From a kernel spec to a compiled kernel, once a process: memory, then disk, then the compiler."""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import lru_cache

from seekernel import _jit, env
from seekernel.jit.cache import Built, KernelCache
from seekernel.jit.compiler import Compiler, compile_kernel, compiler_from_env
from seekernel.jit.errors import ArtifactError, JitDisabled
from seekernel.jit.headers import installed_headers, reached_headers
from seekernel.jit.key import cache_key
from seekernel.jit.spec import KernelSpec
from seekernel.jit.store import Artifact, Meta

logger = logging.getLogger("seekernel.jit")


_instances: weakref.WeakSet[Jit] = weakref.WeakSet()


def _after_fork() -> None:
    for instance in _instances:
        instance.reset_locks()


os.register_at_fork(after_in_child=_after_fork)


class Jit:
    """Compiles and remembers kernels.

    Args:
        cache: on disk.
        compiler: its identity and options are part of every key.
        headers: the device headers, path to text.
        validate: further check of a fresh cubin before it is published, such as loading it.
    """

    def __init__(
        self,
        cache: KernelCache,
        compiler: Compiler,
        headers: Mapping[str, str] | None = None,
        validate: Callable[[Artifact], None] | None = None,
    ) -> None:
        self.cache = cache
        self.compiler = compiler
        self.headers = installed_headers() if headers is None else headers
        self.num_compiled = 0
        self._validate = validate
        self._done: dict[KernelSpec, Artifact] = {}
        self.reset_locks()
        _instances.add(self)

    def reset_locks(self) -> None:
        """Forget who is compiling: a child forked meanwhile would wait for ever."""
        self._guard = threading.Lock()
        self._busy: dict[KernelSpec, threading.Lock] = {}

    def key(self, spec: KernelSpec) -> str:
        """Name of the spec's entry in the cache."""
        return cache_key(spec, self.compiler, reached_headers(spec.source(), self.headers))

    def artifact(self, spec: KernelSpec) -> Artifact:
        """The compiled kernel.

        Errors: CompileError, StaticCheckError, ArtifactError, CompilerMissing.
        Writes: the cache on disk; where that fails, a CacheWarning and memory only.
        """
        found = self._done.get(spec)
        if found is not None:
            return found
        with self._guard:
            lock = self._busy.setdefault(spec, threading.Lock())
        with lock:
            if spec not in self._done:
                self._done[spec] = self.cache.get_or_build(
                    self.key(spec), lambda: self._build(spec)
                )
            return self._done[spec]

    def _build(self, spec: KernelSpec) -> Built:
        headers = reached_headers(spec.source(), self.headers)
        kernel = compile_kernel(spec, self.compiler, headers)
        self.num_compiled += 1
        meta = Meta.of(spec.name, self.compiler.identity, kernel)
        artifact = Artifact(kernel.cubin, meta)
        if self._validate is not None:
            self._validate(artifact)
        extra: dict[str, bytes] = {}
        if env.TRTLLM_DG_JIT_DUMP_CUBIN.get():
            extra = {"kernel.cu": spec.source().encode(), "kernel.ptx": kernel.ptx.encode()}
        return Built(artifact, extra)

    def precompile(
        self,
        specs: Sequence[KernelSpec],
        jobs: int = 1,
        progress: Callable[[KernelSpec], None] = lambda spec: None,
    ) -> None:
        """Build all specs with `jobs` threads; compilers run outside the interpreter's lock.

        Errors: the first build's error, once the running ones have ended.
        """
        with ThreadPoolExecutor(max_workers=max(1, jobs)) as pool:
            waiting = {pool.submit(self.artifact, spec): spec for spec in dict.fromkeys(specs)}
            try:
                for future in as_completed(waiting):
                    future.result()
                    progress(waiting[future])
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise


def require_enabled() -> None:
    """Errors: JitDisabled if TRTLLM_DG_ENABLED is 0."""
    if not env.TRTLLM_DG_ENABLED.get():
        raise JitDisabled("TRTLLM_DG_ENABLED=0: only kernels compiled at build time may be used")


@lru_cache(maxsize=1)
def default_jit() -> Jit:
    """The process's own, made from the environment at first use."""
    require_enabled()
    if env.TRTLLM_DG_JIT_DEBUG.get():
        logger.setLevel(logging.DEBUG)
        if not logger.handlers:
            logger.addHandler(logging.StreamHandler())
    return Jit(KernelCache.from_env(), compiler_from_env(), validate=require_loads)


def require_loads(artifact: Artifact) -> None:
    """Errors: ArtifactError if the driver of this machine, where there is one, refuses the cubin."""
    try:
        _jit.check_loads(artifact.cubin, artifact.meta.symbol)
    except RuntimeError as error:
        raise ArtifactError(f"{artifact.meta.name}: {error}") from error
