"""What a kernel's machine code says without a GPU: registers, spills, local memory, instruction counts.

    python -m tests.static_gate            # compare with static_table.json
    python -m tests.static_gate --write    # measure again and rewrite the table; review the diff

A row of the table is one compilation; add one for a new kernel with "kernels": {} and run --write.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.emulator.foreign.wheels import CUOBJDUMP, NVDISASM

ROOT = Path(__file__).parents[1]
TABLE = Path(__file__).with_name("static_table.json")
REGISTERS_PER_SM = 65536
COUNTED = (
    "QGMMA",
    "HGMMA",
    "HMMA",
    "UTMALDG",
    "UTMASTG",
    "UTMAREDG",
    "UBLKCP",
    "UBLKRED",
    "LDGSTS",
    "LDSM",
    "STSM",
    "WARPGROUP.ARRIVE",
    "WARPGROUP.DEPBAR",
    "BAR.SYNC",
    "LDL",
    "STL",
)
"""SASS opcodes whose counts are kept: tensor cores, TMA, matrix moves, barriers, local memory."""


class ToolsMissing(Exception):
    """No nvcc on this machine."""

    def __init__(self) -> None:
        super().__init__("nvcc: expected on PATH, got nothing")


@dataclass(frozen=True)
class Row:
    """One compilation.

    Args:
        source: CUDA file, relative to the repository.
        defines, includes: macros; header folders relative to the repository.
        per_k_block: SASS opcodes issued per K block; the count in the code is a multiple of it
            (the assembler unrolls).
        kernels: the stored facts by kernel name.
    """

    source: str
    defines: tuple[str, ...] = ()
    includes: tuple[str, ...] = ()
    per_k_block: dict[str, int] = field(default_factory=dict)
    kernels: dict[str, dict[str, int]] = field(default_factory=dict)

    def __str__(self) -> str:
        return "-".join((Path(self.source).stem, *self.defines))


@dataclass(frozen=True)
class Facts:
    """What was measured of one kernel.

    Args:
        numbers: registers, barriers, static shared bytes, and the opcode counts that are not zero.
        stack_bytes, spill_bytes: both must be 0.
        max_threads: from the launch bounds; 1024 without.
    """

    numbers: dict[str, int]
    stack_bytes: int
    spill_bytes: int
    max_threads: int

    def faults(self, per_k_block: dict[str, int]) -> list[str]:
        """Every gate that this kernel fails, whatever the table says."""
        found = []
        if self.stack_bytes or self.spill_bytes:
            found.append(f"{self.stack_bytes} bytes of stack, {self.spill_bytes} of spills")
        local = self.numbers.get("LDL", 0) + self.numbers.get("STL", 0)
        if local:
            found.append(f"{local} local-memory accesses")
        # Registers are handed out in units of 8 a thread, warps in fours.
        allowed = REGISTERS_PER_SM // ((self.max_threads + 127) // 128 * 128) // 8 * 8
        if self.numbers["registers"] > min(allowed, 255):
            found.append(f"{self.numbers['registers']} registers, {allowed} fit")
        for opcode, count in per_k_block.items():
            seen = self.numbers.get(opcode, 0)
            if seen == 0 or seen % count:
                found.append(f"{seen} {opcode}, not a multiple of {count} per K block")
        return found


@dataclass(frozen=True)
class Measured:
    """One compilation's kernels and the assembler's complaints about wgmma or local memory."""

    kernels: dict[str, Facts]
    warnings: tuple[str, ...]


def compiler_version() -> str:
    """Release of nvcc, such as "13.0"; ToolsMissing where there is none."""
    if shutil.which("nvcc") is None:
        raise ToolsMissing
    text = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"release ([\d.]+)", text)
    return found.group(1) if found else "unknown"


def _run(*command: str | Path) -> str:
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{command[0]}: expected success, got {done.stderr or done.stdout}")
    return done.stdout + done.stderr


def _opcode_counts(sass: str) -> dict[str, dict[str, int]]:
    """Counts of COUNTED by function in nvdisasm's text."""
    counts: dict[str, dict[str, int]] = {}
    name = ""
    for line in sass.splitlines():
        section = re.match(r"\.text\.(\S+):", line.strip())
        if section:
            name = section.group(1)
            counts[name] = {}
        operation = re.match(r"\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", line)
        if operation and name:
            for opcode in COUNTED:
                if (operation.group(1) + ".").startswith(opcode + "."):
                    counts[name][opcode] = counts[name].get(opcode, 0) + 1
    return counts


def measure(row: Row) -> Measured:
    """Compile to PTX, assemble, disassemble.

    Errors: ToolsMissing; WheelUnavailable where the disassemblers cannot be fetched.
    """
    if shutil.which("nvcc") is None:
        raise ToolsMissing
    cuobjdump = CUOBJDUMP.unpacked() / CUOBJDUMP.programs[0]
    nvdisasm = NVDISASM.unpacked() / NVDISASM.programs[0]
    with tempfile.TemporaryDirectory() as folder:
        ptx, cubin = Path(folder, "kernel.ptx"), Path(folder, "kernel.cubin")
        flags = [*(f"-D{d}" for d in row.defines), *(f"-I{ROOT / i}" for i in row.includes)]
        _run("nvcc", "-arch=sm_90a", "-std=c++17", "-ptx", *flags, "-o", ptx, ROOT / row.source)
        log = _run("nvcc", "-arch=sm_90a", "-cubin", "-Xptxas=-v", "-o", cubin, ptx)
        usage = _run(cuobjdump, "--dump-resource-usage", cubin)
        counts = _opcode_counts(_run(nvdisasm, "-c", cubin))
        text = ptx.read_text()
    warnings = tuple(
        line.strip() for line in log.splitlines() if "serialized" in line or "(C75" in line
    )
    kernels = {}
    for name, rest in re.findall(r"Function (\S+):\s*\n([^\n]*)", usage):
        numbers = {
            key: int(value) for key, value in re.findall(r"([A-Z]+)(?:\[\d+\])?:(\d+)", rest)
        }
        entry = text.partition(f".entry {name}(")[2].partition("{")[0]
        threads = re.search(r"\.maxntid (\d+)(?:, (\d+))?(?:, (\d+))?", entry)
        section = log.partition(f"Function properties for {name}\n")[2].partition("Compiling")[0]
        spills = sum(int(count) for count in re.findall(r"(\d+) bytes spill", section))
        barriers = re.search(r"used (\d+) barriers", section)
        size = 1
        for part in threads.groups() if threads else ("1024",):
            size *= int(part or 1)
        facts = {
            "registers": numbers["REG"],
            "barriers": int(barriers.group(1)) if barriers else 0,
            "shared_bytes": numbers["SHARED"],
        }
        facts |= counts.get(name, {})
        kernels[name] = Facts(facts, numbers["STACK"] + numbers["LOCAL"], spills, size)
    return Measured(kernels, warnings)


def load_table() -> tuple[str, list[Row]]:
    """The compiler release the numbers belong to, and the rows."""
    raw: dict[str, Any] = json.loads(TABLE.read_text())
    rows = [
        Row(
            entry["source"],
            tuple(entry.get("defines", ())),
            tuple(entry.get("includes", ())),
            entry.get("per_k_block", {}),
            entry.get("kernels", {}),
        )
        for entry in raw["rows"]
    ]
    return raw["nvcc"], rows


def write_table(rows: list[Row]) -> None:
    """Measure all rows and rewrite the table, a line per kernel."""
    lines = []
    for row in rows:
        parts = [f'"source": {json.dumps(row.source)}']
        for key in ("defines", "includes", "per_k_block"):
            value = getattr(row, key)
            if value:
                parts.append(f'"{key}": {json.dumps(value)}')
        facts = [
            f"    {json.dumps(name)}: {json.dumps(facts.numbers)}"
            for name, facts in sorted(measure(row).kernels.items())
        ]
        lines.append("  {" + ", ".join(parts) + ', "kernels": {\n' + ",\n".join(facts) + "}}")
    head = f'{{"nvcc": {json.dumps(compiler_version())}, "rows": [\n'
    TABLE.write_text(head + ",\n".join(lines) + "\n]}\n")


def problems(row: Row, compare: bool) -> list[str]:
    """Everything wrong with a row: failed gates, warnings, and differences from the table."""
    measured = measure(row)
    found = list(measured.warnings)
    for name, facts in measured.kernels.items():
        found += [f"{name}: {fault}" for fault in facts.faults(row.per_k_block)]
        if compare and facts.numbers != row.kernels.get(name):
            found.append(f"{name}: table {row.kernels.get(name)}, measured {facts.numbers}")
    if compare and set(row.kernels) != set(measured.kernels):
        found.append(f"table has {sorted(row.kernels)}, measured {sorted(measured.kernels)}")
    return found


def main() -> int:
    """Command line; exit code 1 when something differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    release, rows = load_table()
    if parser.parse_args().write:
        write_table(rows)
        return 0
    same = release == compiler_version()
    found = [f"{row}: {problem}" for row in rows for problem in problems(row, same)]
    print("\n".join(found) or f"{len(rows)} rows as in the table")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
