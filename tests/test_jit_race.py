"""Many processes on one cold kernel cache, some of them killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.jit_testing import nvrtc_or_skip, tiny_jit, tiny_spec

ROOT = Path(__file__).resolve().parent.parent


def _race(tmp_path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    nvrtc_or_skip()
    return subprocess.run(
        [sys.executable, "-m", "tests.jit_race", "--root", str(tmp_path), *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=500,
    )


def test_race_with_kills(tmp_path: Path) -> None:
    done = _race(tmp_path, "--rounds", "5")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_race_with_kills_long(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if "slow" not in request.config.getoption("markexpr"):
        pytest.skip("takes minutes: run with -m slow")
    done = _race(tmp_path, "--rounds", "50", "--seed", "1000")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("bug", "seen"), [("no_lock", "times by survivors"), ("no_commit", "different cubins")]
)
def test_race_sees_planted_bugs(tmp_path: Path, bug: str, seen: str) -> None:
    done = _race(tmp_path, "--rounds", "2", "--plant", bug)
    assert done.returncode == 1, "the race did not notice"
    assert seen in done.stdout


_DIE_AT = """
import os, signal, sys
from pathlib import Path
from seekernel.jit import nvrtc
from tests.jit_testing import tiny_jit, tiny_spec
nvrtc._binding()
FILE_EVENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.utime", "fcntl.flock"}
root = Path(sys.argv[1])

def child(last_step):
    steps = 0
    def step():
        nonlocal steps
        steps += 1
        if steps == last_step:
            os.kill(os.getpid(), signal.SIGKILL)
    def hook(event, arguments):
        if event in FILE_EVENTS and str(root) in repr(arguments[:1]):
            step()
    def half_write(file, data, write=os.write):
        if steps + 1 == last_step:
            write(file, data[: len(data) // 2])
        step()
        return write(file, data)
    def counted_sync(file, sync=os.fsync):
        step()
        sync(file)
    jit = tiny_jit(root / str(last_step))
    os.write, os.fsync = half_write, counted_sync
    sys.addaudithook(hook)
    jit.artifact(tiny_spec(7))

survived = False
last_step = 0
while not survived:
    last_step += 1
    pid = os.fork()
    if pid == 0:
        try:
            child(last_step)
            os._exit(0)
        except BaseException:
            import traceback; traceback.print_exc()
            os._exit(2)
    status = os.waitpid(pid, 0)[1]
    assert os.WIFSIGNALED(status) or status == 0, (last_step, status)
    survived = status == 0
print(last_step - 1)
"""


def test_killed_at_every_step(tmp_path: Path) -> None:
    """Kill the builder at each of its file operations, in the middle of writes too; then use the cache."""
    nvrtc_or_skip()
    done = subprocess.run(
        [sys.executable, "-c", _DIE_AT, str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    num_steps = int(done.stdout)
    assert num_steps > 20, "the steps of mkdir, lock, write, sync and rename were not seen"
    for step in range(1, num_steps + 1):
        root = tmp_path / str(step)
        jit = tiny_jit(root)
        jit.artifact(tiny_spec(7))
        assert [e.artifact is not None for e in jit.cache.entries()] == [True], f"step {step}"
        assert jit.cache.get(jit.key(tiny_spec(7))) is not None, f"step {step}"
        if jit.num_compiled:
            assert not list((root / "tmp").iterdir()), f"step {step}: rubbish left"


def test_lock_dies_with_its_holder(tmp_path: Path) -> None:
    jit = tiny_jit(tmp_path)
    (tmp_path / "locks").mkdir()
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom seekernel.jit.locks import locked\n"
        "with locked(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(60)\n"
    )
    lock = tmp_path / "locks" / jit.key(tiny_spec(1))
    holder = subprocess.Popen(
        [sys.executable, "-c", script, str(lock)], cwd=ROOT, stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        os.kill(holder.pid, signal.SIGKILL)
        jit.artifact(tiny_spec(1))
    finally:
        holder.kill()
        holder.wait()
    assert jit.num_compiled == 1
