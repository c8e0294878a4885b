"""Write golden vectors from a GPU: `python -m tests.emulator.golden.dump_golden --out FOLDER`.

Runs every probe on the chip, twice, and refuses to keep one whose answers differ. One process and one
`.npz` per family, one array per probe; `device.json` says which chip and driver answered.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from tests.emulator.golden import (
    probes_alu,
    probes_convert,
    probes_kernels,
    probes_matrix,
    probes_tma,
    probes_wgmma,
)
from tests.emulator.golden.probe import Array, Probe
from tests.emulator.launch import Device, KernelFault, LaunchError, open_device

FAULT_EXIT = 3
VECTORS = Path(__file__).parent / "vectors"


def all_probes() -> list[Probe]:
    """Every probe of every family, names unique."""
    modules = (probes_alu, probes_convert, probes_matrix, probes_wgmma, probes_tma, probes_kernels)
    return [probe for module in modules for probe in module.probes()]


def describe(device: Device) -> dict[str, object]:
    """Name, compute capability and driver of the GPU."""
    driver = device.driver  # type: ignore[attr-defined]
    name = ctypes.create_string_buffer(128)
    driver.call("cuDeviceGetName", name, 128, 0)
    version, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    driver.call("cuDriverGetVersion", ctypes.byref(version))
    driver.call("cuDeviceGetAttribute", ctypes.byref(major), 75, 0)
    driver.call("cuDeviceGetAttribute", ctypes.byref(minor), 76, 0)
    return {
        "device": name.value.decode(),
        "compute_capability": f"{major.value}.{minor.value}",
        "cuda_driver": version.value,
    }


def dump(device: Device, folder: Path, family: str, skip: set[str]) -> list[str]:
    """Run one family's probes and write its file; a line per probe that gave no vector.

    A fault loses the context, and with it the family: `KernelFault` then carries the probe's name.
    """
    vectors: dict[str, Array] = {}
    failures = []
    for probe in all_probes():
        if probe.family != family or probe.name in skip:
            continue
        try:
            first, second = probe.run(device), probe.run(device)
        except LaunchError as error:
            failures.append(f"{probe.name}: {error}")
            continue
        except KernelFault as error:
            raise KernelFault(probe.name, error.reports) from error
        if first.tobytes() != second.tobytes():
            failures.append(f"{probe.name}: two runs differ")
            continue
        vectors[probe.name] = first
    folder.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(folder / f"{family}.npz", **vectors)
    (folder / "device.json").write_text(json.dumps(describe(device), indent=1) + "\n")
    return failures


def dump_in_child(folder: Path, family: str) -> list[str]:
    """`dump` in a process of its own, again without each probe that faults."""
    failures: list[str] = []
    skip: list[str] = []
    while True:
        command = [sys.executable, "-m", "tests.emulator.golden.dump_golden"]
        command += ["--out", str(folder), "--family", family, "--skip", *skip]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        lines = done.stdout.splitlines()
        failures += lines
        if done.returncode != FAULT_EXIT:
            return failures if done.returncode == 0 else [*failures, done.stderr.strip()]
        skip.append(lines[-1].split(": ")[0])


def main() -> int:
    """Command line; exit code 1 when a probe gave no vector."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=VECTORS)
    parser.add_argument(
        "--family", default="", help="only this one, such as wgmma, in this process"
    )
    parser.add_argument("--skip", nargs="*", default=[], help="probes to leave out")
    options = parser.parse_args()
    if options.family:
        try:
            failures = dump(open_device("gpu"), options.out, options.family, set(options.skip))
        except KernelFault as error:
            print(f"{error.kernel}: {error.reports[0]}")
            return FAULT_EXIT
        print("\n".join(failures))
        return 0
    families = sorted({probe.family for probe in all_probes()})
    failures = [line for family in families for line in dump_in_child(options.out, family) if line]
    print("\n".join(failures) or "every probe gave a vector")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
