"""The kernel cache: what hits and misses, damage, trust, full and read-only disks, eviction."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from seekernel.jit import ArtifactError, CacheRefused, CacheWarning, Jit, KernelCache, KernelSpec
from seekernel.jit.compiler import Compiler, CompilerOutput
from seekernel.jit.locks import locked
from seekernel.jit.store import Artifact, write_entry
from tests.jit_testing import TINY_HEADERS, nvrtc_or_skip, tiny_jit, tiny_spec

ROOT = Path(__file__).resolve().parent.parent


@dataclass
class Renamed:
    """A compiler that is another one under another identity or with other options."""

    inner: Compiler
    identity: str
    more: tuple[str, ...] = ()

    def options(self, spec: KernelSpec) -> tuple[str, ...]:
        return (*self.inner.options(spec), *self.more)

    def run(self, spec: KernelSpec, headers: dict[str, str]) -> CompilerOutput:
        return self.inner.run(spec, headers)


def _compiled(jit: Jit, spec: KernelSpec) -> int:
    """How many kernels asking for `spec` compiles."""
    before = jit.num_compiled
    jit.artifact(spec)
    return jit.num_compiled - before


def _entry(jit: Jit, spec: KernelSpec) -> Path:
    return jit.cache.root / "kernels" / jit.key(spec)


# ---- hits and misses ----


def test_nothing_changed_hits(tmp_path: Path) -> None:
    assert _compiled(tiny_jit(tmp_path), tiny_spec(1)) == 1
    assert _compiled(tiny_jit(tmp_path), tiny_spec(1)) == 0


def test_another_process_loads_without_compiling(tmp_path: Path) -> None:
    first = tiny_jit(tmp_path).artifact(tiny_spec(1))
    script = (
        "import hashlib, sys\nfrom pathlib import Path\n"
        "from tests.jit_testing import tiny_jit, tiny_spec\n"
        "jit = tiny_jit(Path(sys.argv[1]))\na = jit.artifact(tiny_spec(1))\n"
        "assert 'cupy_backends' not in sys.modules, 'a hit loads no compiler'\n"
        "print(jit.num_compiled, hashlib.sha256(a.cubin).hexdigest())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout.split() == ["0", first.meta.cubin_sha256], done.stderr


@pytest.mark.parametrize("name", ["seekernel/tiny.cuh", "seekernel/tiny_part.cuh"])
def test_one_byte_of_a_reached_header_misses(tmp_path: Path, name: str) -> None:
    tiny_jit(tmp_path).artifact(tiny_spec(1))
    changed = TINY_HEADERS | {name: TINY_HEADERS[name] + " "}
    jit = Jit(KernelCache(tmp_path), nvrtc_or_skip(), changed)
    assert _compiled(jit, tiny_spec(1)) == 1


def test_a_header_that_is_not_reached_does_not_matter(tmp_path: Path) -> None:
    tiny_jit(tmp_path).artifact(tiny_spec(1))
    changed = TINY_HEADERS | {"seekernel/unreached.cuh": "#error\n"}
    assert _compiled(Jit(KernelCache(tmp_path), nvrtc_or_skip(), changed), tiny_spec(1)) == 0


def test_parameters_options_and_compiler_miss(tmp_path: Path) -> None:
    real = nvrtc_or_skip()
    tiny_jit(tmp_path).artifact(tiny_spec(1))
    assert _compiled(tiny_jit(tmp_path), tiny_spec(2)) == 1
    assert _compiled(tiny_jit(tmp_path), replace(tiny_spec(1), options=("-lineinfo",))) == 1
    for compiler in (Renamed(real, real.identity + "1"), Renamed(real, real.identity, ("-G",))):
        jit = Jit(KernelCache(tmp_path), compiler, TINY_HEADERS)
        assert _compiled(jit, tiny_spec(1)) == 1
    assert len(KernelCache(tmp_path).entries()) == 5


def test_keys_do_not_run_into_each_other() -> None:
    jit = Jit(KernelCache(Path("/nowhere")), nvrtc_or_skip(), TINY_HEADERS)
    one = replace(tiny_spec(1), options=("-DA", "B"))
    two = replace(tiny_spec(1), options=("-DAB",))
    three = replace(tiny_spec(1), options=("-D", "AB"))
    assert len({jit.key(spec) for spec in (one, two, three)}) == 3


def test_threads_of_a_process_compile_once(tmp_path: Path) -> None:
    jit = tiny_jit(tmp_path)
    jit.precompile([tiny_spec(i % 3) for i in range(24)], jobs=8)
    threads = [threading.Thread(target=jit.artifact, args=(tiny_spec(9),)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert jit.num_compiled == 4


def test_fork_while_a_thread_compiles(tmp_path: Path) -> None:
    """A child forked while another thread holds the locks must neither hang nor keep them."""
    jit = tiny_jit(tmp_path)
    jit._busy[tiny_spec(1)] = threading.Lock()
    jit._busy[tiny_spec(1)].acquire()
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        jit.artifact(tiny_spec(1))
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


# ---- what is on disk ----


def test_entry_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jit = tiny_jit(tmp_path)
    artifact = jit.artifact(tiny_spec(1))
    folder = _entry(jit, tiny_spec(1))
    assert {path.name for path in folder.iterdir()} == {"kernel.cubin", "meta.json", ".committed"}
    meta = json.loads((folder / "meta.json").read_text())
    assert meta["name"] == "tiny<kValue=1>"
    assert meta["compiler"] == jit.compiler.identity
    assert "--gpu-architecture=sm_90a" in meta["command"]
    assert meta["registers"] > 0
    assert meta["spill_store_bytes"] == 0
    assert meta["seconds"] > 0
    assert (folder / "kernel.cubin").read_bytes() == artifact.cubin
    monkeypatch.setenv("TRTLLM_DG_JIT_DUMP_CUBIN", "1")
    jit.artifact(tiny_spec(2))
    folder = _entry(jit, tiny_spec(2))
    assert ".entry" in (folder / "kernel.ptx").read_text()
    assert (folder / "kernel.cu").read_text() == tiny_spec(2).source()


@pytest.mark.parametrize("name", ["kernel.cubin", "meta.json", ".committed"])
@pytest.mark.parametrize("damage", ["missing", "empty", "half", "flipped", "folder"])
def test_a_damaged_entry_is_rebuilt(tmp_path: Path, name: str, damage: str) -> None:
    jit = tiny_jit(tmp_path)
    want = jit.artifact(tiny_spec(1)).cubin
    path = _entry(jit, tiny_spec(1)) / name
    data = path.read_bytes()
    path.unlink()
    if damage == "folder":
        path.mkdir()
    elif damage != "missing":
        flipped = bytes([data[0] ^ 1]) + data[1:]
        path.write_bytes({"empty": b"", "half": data[: len(data) // 2], "flipped": flipped}[damage])
    again = tiny_jit(tmp_path)
    assert again.cache.get(again.key(tiny_spec(1))) is None
    assert [entry.artifact for entry in again.cache.entries()] == [None]
    assert _compiled(again, tiny_spec(1)) == 1
    assert again.artifact(tiny_spec(1)).cubin == want
    assert _compiled(tiny_jit(tmp_path), tiny_spec(1)) == 0
    assert not list((tmp_path / "tmp").iterdir())


def test_meta_with_wrong_fields_is_rebuilt(tmp_path: Path) -> None:
    import hashlib

    jit = tiny_jit(tmp_path)
    jit.artifact(tiny_spec(1))
    folder = _entry(jit, tiny_spec(1))
    for text in ("[]", "{}", '{"name": 1}', "null"):
        (folder / "meta.json").write_text(text)
        (folder / ".committed").write_text(hashlib.sha256(text.encode()).hexdigest())
        assert _compiled(tiny_jit(tmp_path), tiny_spec(1)) == 1


def test_an_entry_that_is_a_file_is_rebuilt(tmp_path: Path) -> None:
    jit = tiny_jit(tmp_path)
    jit.artifact(tiny_spec(1))
    shutil.rmtree(_entry(jit, tiny_spec(1)))
    _entry(jit, tiny_spec(1)).write_text("not a folder")
    assert _compiled(tiny_jit(tmp_path), tiny_spec(1)) == 1
    assert _compiled(tiny_jit(tmp_path), tiny_spec(1)) == 0


def test_half_a_cubin_is_never_published(tmp_path: Path) -> None:
    jit = tiny_jit(tmp_path)
    whole = jit.artifact(tiny_spec(1))
    for broken in (whole.cubin[:1000], whole.cubin[:-1], b"", b"\x7fELF\x02\x01" + bytes(100)):
        with pytest.raises(ArtifactError, match="cubin: "):
            write_entry(tmp_path, "tiny.0", Artifact(broken, whole.meta), {})
    assert not (tmp_path / "kernels" / "tiny.0").exists()


def test_a_refused_validation_publishes_nothing(tmp_path: Path) -> None:
    def refuse(artifact: Artifact) -> None:
        raise ArtifactError("the driver will not load it")

    jit = Jit(KernelCache(tmp_path), nvrtc_or_skip(), TINY_HEADERS, validate=refuse)
    with pytest.raises(ArtifactError, match="will not load"):
        jit.artifact(tiny_spec(1))
    assert jit.cache.entries() == []
    assert _compiled(tiny_jit(tmp_path), tiny_spec(1)) == 1


# ---- who may write there ----


@pytest.mark.parametrize("folder", ["", "kernels"])
def test_world_writable_is_refused(tmp_path: Path, folder: str) -> None:
    tiny_jit(tmp_path / "cache").artifact(tiny_spec(1))
    (tmp_path / "cache" / folder).chmod(0o777)
    with pytest.raises(CacheRefused, match="only we can write, got mode 777, ours"):
        KernelCache(tmp_path / "cache")
    with pytest.raises(CacheRefused):
        KernelCache(tmp_path / "own", [tmp_path / "cache"])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize(("mode", "refused"), [(0o775, True), (0o777, True), (0o755, False)])
def test_owned_by_another_user(tmp_path: Path, mode: int, refused: bool) -> None:
    tiny_jit(tmp_path / "cache").artifact(tiny_spec(1))
    os.chown(tmp_path / "cache", 65534, 65534)
    (tmp_path / "cache").chmod(mode)
    if refused:
        with pytest.raises(
            CacheRefused, match="owned by user 65534; 'chmod go-w' it, or set TRTLLM"
        ):
            KernelCache(tmp_path / "cache")
    else:
        assert _compiled(tiny_jit(tmp_path / "cache"), tiny_spec(1)) == 0


def test_a_cache_made_unsafe_meanwhile_is_refused(tmp_path: Path) -> None:
    jit = tiny_jit(tmp_path / "cache")
    jit.artifact(tiny_spec(1))
    (tmp_path / "cache").chmod(0o777)
    with pytest.raises(CacheRefused):
        jit.artifact(tiny_spec(2))


# ---- disks that are full, read-only, absent ----


def _in_memory(jit: Jit, reason: str) -> None:
    """The kernel is there, once a process, and one warning says why it is not on disk."""
    with pytest.warns(CacheWarning, match=rf"kernel cache .*: .*{reason}.*TRTLLM_DG_CACHE_DIR"):
        assert _compiled(jit, tiny_spec(1)) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _compiled(jit, tiny_spec(1)) == 0


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")
    _in_memory(tiny_jit(tmp_path / "cache"), "ENOTDIR|EEXIST")


def test_a_write_that_fails(tmp_path: Path) -> None:
    """A file-size limit makes real writes fail half way, as a full disk does."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    jit = tiny_jit(tmp_path)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        _in_memory(jit, "EFBIG")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert jit.cache.entries() == []
    assert not list((tmp_path / "tmp").iterdir())
    assert _compiled(tiny_jit(tmp_path), tiny_spec(1)) == 1


_IN_NAMESPACE = """
import subprocess, sys, warnings
from pathlib import Path
from seekernel.jit import CacheWarning
from tests.jit_testing import tiny_jit, tiny_spec
root = Path(sys.argv[1])
subprocess.run(["mount", "-t", "tmpfs", "-o", sys.argv[2], "tmpfs", str(root)], check=True)
if sys.argv[3] == "ro":
    tiny_jit(root).artifact(tiny_spec(1))
    subprocess.run(["mount", "-o", "remount,ro", str(root)], check=True)
    assert tiny_jit(root).artifact(tiny_spec(1)) and not list(root.glob("tmp/*"))
jit = tiny_jit(root)
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    assert jit.artifact(tiny_spec(2)).cubin
assert [w.category for w in seen] == [CacheWarning], [str(w.message) for w in seen]
print(seen[0].message)
assert not list(root.glob("tmp/*")), "a torn write was left"
assert all(e.artifact is not None for e in jit.cache.entries())
"""


def _namespaces_work() -> bool:
    command = ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not _namespaces_work(), reason="no mount namespaces here")
@pytest.mark.parametrize(
    ("options", "mode", "code"),
    [("size=4k,mode=755", "rw", "ENOSPC"), ("size=1m,mode=755", "ro", "EROFS")],
)
def test_full_and_read_only_file_systems(
    tmp_path: Path, options: str, mode: str, code: str
) -> None:
    nvrtc_or_skip()
    done = subprocess.run(
        ["unshare", "-rm", sys.executable, "-c", _IN_NAMESPACE, str(tmp_path), options, mode],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert f"({code}); kernels are compiled for this process only" in done.stdout


@pytest.mark.skipif(os.geteuid() != 0, reason="root must step down for this")
def test_a_directory_without_permission(tmp_path: Path) -> None:
    """As another user, who may read nothing and write nothing there."""
    jit = tiny_jit(tmp_path / "cache")
    (tmp_path / "cache").mkdir(mode=0o700)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.setgid(65534)
            os.setuid(65534)
            _in_memory(jit, "EACCES")
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0


def test_read_only_roots(tmp_path: Path) -> None:
    image, own = tmp_path / "image", tmp_path / "own"
    tiny_jit(image).artifact(tiny_spec(1))
    before = sorted((p, p.stat().st_mtime_ns) for p in image.rglob("*"))
    jit = tiny_jit(own, read_only_roots=[tmp_path / "absent", image])
    assert _compiled(jit, tiny_spec(1)) == 0
    assert _compiled(jit, tiny_spec(2)) == 1
    assert sorted((p, p.stat().st_mtime_ns) for p in image.rglob("*")) == before
    assert len(jit.cache.entries()) == 1
    (image / "kernels" / jit.key(tiny_spec(1)) / "kernel.cubin").write_bytes(b"")
    assert _compiled(tiny_jit(own, read_only_roots=[image]), tiny_spec(1)) == 1


# ---- size ----


def test_the_least_recently_used_go_first(tmp_path: Path) -> None:
    jit = tiny_jit(tmp_path)
    specs = [tiny_spec(i) for i in range(6)]
    jit.precompile(specs)
    now = time.time()
    for age, spec in enumerate(specs):
        os.utime(_entry(jit, spec) / ".committed", (now - 7200 * (age + 1),) * 2)
    tiny_jit(tmp_path).artifact(specs[5])  # The oldest, but used again.
    size = jit.cache.entries()[0].bytes
    small = tiny_jit(tmp_path, max_bytes=4 * size)
    small.artifact(tiny_spec(100))
    left = {entry.key for entry in small.cache.entries()}
    assert left == {small.key(spec) for spec in (specs[5], specs[0], tiny_spec(100))}
    assert not list((tmp_path / "tmp").iterdir())


def test_a_limit_smaller_than_one_kernel_keeps_the_last(tmp_path: Path) -> None:
    jit = tiny_jit(tmp_path, max_bytes=1)
    for value in range(3):
        jit.artifact(tiny_spec(value))
        assert [entry.key for entry in jit.cache.entries()] == [jit.key(tiny_spec(value))]


def test_clear(tmp_path: Path) -> None:
    jit = tiny_jit(tmp_path)
    jit.precompile([tiny_spec(i) for i in range(3)])
    (tmp_path / "tmp" / "tiny.0.leftover").mkdir()
    assert jit.cache.clear() == 3
    assert jit.cache.entries() == []
    assert not list((tmp_path / "tmp").iterdir())
    assert _compiled(tiny_jit(tmp_path), tiny_spec(0)) == 1
    assert KernelCache(tmp_path / "absent").clear() == 0


def test_a_lock_file_that_is_removed_protects_nothing(tmp_path: Path) -> None:
    """Who waited for a lock file that the cache's clearing removed must wait for the new one too."""
    path, taken = tmp_path / "lock", threading.Event()

    def wait_for_it() -> None:
        with locked(path):
            taken.set()

    waiter = threading.Thread(target=wait_for_it)
    with ExitStack() as old, ExitStack() as new:
        assert old.enter_context(locked(path))
        waiter.start()
        assert not taken.wait(0.2)
        path.unlink()
        assert new.enter_context(locked(path, wait=False))
        old.close()
        assert not taken.wait(0.2)
    waiter.join()
    assert taken.is_set()
    with locked(path), locked(path, wait=False) as held:
        assert not held
