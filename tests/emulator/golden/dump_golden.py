"""Write golden vectors from a GPU: `python -m tests.emulator.golden.dump_golden --out FOLDER`.

Runs every probe on the chip, twice, and refuses to keep one whose answers differ. One `.npz` per
family, one array per probe; `device.json` says which chip and driver answered.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import sys
from pathlib import Path

import numpy as np

from tests.emulator.golden import probes_convert, probes_matrix, probes_tma, probes_wgmma
from tests.emulator.golden.probe import Array, Probe
from tests.emulator.launch import Device, KernelFault, LaunchError, open_device

VECTORS = Path(__file__).parent / "vectors"


def all_probes() -> list[Probe]:
    """Every probe of every family, names unique."""
    modules = (probes_convert, probes_matrix, probes_wgmma, probes_tma)
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


def dump(device: Device, folder: Path, only: str = "") -> list[str]:
    """Run all probes, or one family, and write the files; a line per probe that gave no vector."""
    families: dict[str, dict[str, Array]] = {}
    failures = []
    for probe in all_probes():
        if only not in ("", probe.family):
            continue
        try:
            first, second = probe.run(device), probe.run(device)
        except LaunchError as error:
            failures.append(f"{probe.name}: {error}")
            continue
        except KernelFault as error:
            # The context is gone: keep what there is.
            failures.append(f"{probe.name}: {error}; all later probes were not run")
            break
        if first.tobytes() != second.tobytes():
            failures.append(f"{probe.name}: two runs differ")
            continue
        families.setdefault(probe.family, {})[probe.name] = first
    folder.mkdir(parents=True, exist_ok=True)
    for family, arrays in families.items():
        np.savez_compressed(folder / f"{family}.npz", **arrays)  # type: ignore[arg-type]
    (folder / "device.json").write_text(json.dumps(describe(device), indent=1) + "\n")
    return failures


def main() -> int:
    """Command line; exit code 1 when a probe gave no vector."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=VECTORS)
    parser.add_argument("--family", default="", help="only this one, such as wgmma")
    options = parser.parse_args()
    failures = dump(open_device("gpu"), options.out, options.family)
    print("\n".join(failures) or "every probe gave a vector")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
