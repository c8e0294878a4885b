"""Races processes on a cold kernel cache, kills some of them, and checks what they leave.

    python -m tests.jit_race --root DIR --rounds 50 [--plant no_lock|no_commit]

Exits 0 if every round holds, else 1 with one line per broken promise. `--plant` removes one of the two
mechanisms that make the cache safe, to show that these checks see it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from seekernel.jit import Jit, KernelCache, KernelSpec, cache, nvrtc, store
from seekernel.jit.compiler import Nvrtc
from tests.jit_testing import TINY_HEADERS, tiny_spec

NUM_PROCESSES, NUM_KERNELS = 16, 8


@contextmanager
def _no_lock(path: Path, *, wait: bool = True) -> Iterator[bool]:
    yield True


def _write_in_place(
    root: Path, entry: str, artifact: store.Artifact, extra: dict[str, bytes]
) -> None:
    target = root / "kernels" / entry
    target.mkdir(exist_ok=True)
    (target / store.META).write_text(json.dumps(asdict(artifact.meta)))
    half = len(artifact.cubin) // 2
    with (target / store.CUBIN).open("wb", buffering=0) as file:
        file.write(artifact.cubin[:half])
        time.sleep(0.05)
        file.write(artifact.cubin[half:])


def _read_on_trust(folder: Path) -> store.Artifact | None:
    try:
        values = json.loads((folder / store.META).read_bytes())
        return store.Artifact((folder / store.CUBIN).read_bytes(), store.Meta(**values))
    except (OSError, ValueError):
        return None


def plant(bug: str) -> None:
    """Take away the locks, or the commit: digests that a reader checks, and the rename."""
    planted: dict[str, dict[str, object]] = {
        "none": {},
        "no_lock": {"locked": _no_lock},
        "no_commit": {"write_entry": _write_in_place, "read_entry": _read_on_trust},
    }
    for name, replacement in planted[bug].items():
        setattr(cache, name, replacement)


def use_cache(root: Path, specs: list[KernelSpec], report: Path, order: random.Random) -> None:
    """What each process does: ask for all kernels in an order of its own, then report."""
    warnings.simplefilter("error")
    jit = Jit(KernelCache(root), Nvrtc(), TINY_HEADERS)
    compiled, digests = [], {}
    for spec in order.sample(specs, len(specs)):
        before = jit.num_compiled
        artifact = jit.artifact(spec)
        compiled += [spec.name] * (jit.num_compiled - before)
        digests[jit.key(spec)] = hashlib.sha256(artifact.cubin).hexdigest()
    report.write_text(json.dumps({"compiled": compiled, "digests": digests}))


def run_round(folder: Path, seed: int, expected_s: float) -> tuple[list[str], int]:
    """One race; returns the broken promises and how many processes were killed in it."""
    order = random.Random(seed)
    root = folder / "cache"
    specs = [tiny_spec(seed * NUM_KERNELS + i) for i in range(NUM_KERNELS)]
    start, go = os.pipe()
    children = []
    for index in range(NUM_PROCESSES):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                os.close(go)
                os.read(start, 1)
                use_cache(root, specs, folder / f"{index}.json", random.Random(seed * 100 + index))
                status = 0
            except BaseException:
                (folder / f"{index}.error").write_text(traceback.format_exc())
            finally:
                os._exit(status)
        children.append(child)
    os.close(go)
    os.close(start)

    victims = order.sample(children, order.randint(2, 10))
    begin = time.monotonic()
    for when, victim in sorted((order.uniform(0, expected_s), victim) for victim in victims):
        time.sleep(max(0.0, begin + when - time.monotonic()))
        os.kill(victim, signal.SIGKILL)
    statuses = {child: os.waitpid(child, 0)[1] for child in children}

    faults, compiled, killed = [], Counter[str](), 0
    digests: dict[str, set[str]] = {}
    for index, child in enumerate(children):
        if os.WIFSIGNALED(statuses[child]):
            killed += 1
            continue
        if statuses[child]:
            faults.append(f"process {index}: {(folder / f'{index}.error').read_text()}")
            continue
        report = json.loads((folder / f"{index}.json").read_text())
        compiled.update(report["compiled"])
        for key, digest in report["digests"].items():
            digests.setdefault(key, set()).add(digest)
    faults += [f"{name} compiled {n} times by survivors" for name, n in compiled.items() if n > 1]
    faults += [
        f"{key}: {len(found)} different cubins" for key, found in digests.items() if len(found) > 1
    ]

    entries = KernelCache(root).entries()
    faults += [f"{entry.key}: torn" for entry in entries if entry.artifact is None]
    if {entry.key for entry in entries} != set(digests):
        faults.append(f"expected entries {sorted(digests)}, got {sorted(e.key for e in entries)}")
    leftovers = [path.name for path in (root / "tmp").iterdir()]
    faults += [f"left behind: {name}" for name in leftovers]
    late = Jit(KernelCache(root), Nvrtc(), TINY_HEADERS)
    late.precompile(specs)
    if late.num_compiled:
        faults.append(f"a later process compiled {late.num_compiled} kernels")
    return faults, killed


def main() -> int:
    """Run the rounds; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plant", choices=("none", "no_lock", "no_commit"), default="none")
    options = parser.parse_args()
    plant(options.plant)
    nvrtc._binding()  # The parent loads the library; it must not compile, so the children race cold.
    faults, num_killed, expected_s = [], 0, 0.8
    begin = time.monotonic()
    for index in range(options.rounds):
        start = time.monotonic()
        with tempfile.TemporaryDirectory(dir=options.root) as folder:
            broken, killed = run_round(Path(folder), options.seed + index, expected_s)
        expected_s = time.monotonic() - start
        num_killed += killed
        faults += [f"round {index}: {fault}" for fault in broken]
    print("\n".join(faults))
    print(
        f"{options.rounds} rounds of {NUM_PROCESSES} processes, {NUM_KERNELS} kernels, "
        f"{num_killed} killed, {len(faults)} broken promises, {time.monotonic() - begin:.1f} s"
    )
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
