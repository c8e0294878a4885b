"""Reads compiled kernels: the cubin's ELF structure, and what ptxas said about the code."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

from seekernel.jit.errors import ArtifactError

_ELF_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_EM_CUDA = 190
_SHT_NOBITS = 8


def missing_bytes(elf: bytes) -> int:
    """How many bytes a 64-bit ELF file lacks up to the end of its program headers; 0 for none."""
    if len(elf) < _ELF_HEADER.size:
        return _ELF_HEADER.size - len(elf)
    header = _ELF_HEADER.unpack_from(elf)
    programs, program_size, num_programs = (int(header[i]) for i in (5, 9, 10))
    return max(0, programs + program_size * num_programs - len(elf))


def kernel_name(cubin: bytes) -> str:
    """The mangled name of the one kernel in a cubin.

    Errors: ArtifactError unless it is a whole 64-bit CUDA ELF file with exactly one kernel.
    """
    if len(cubin) < _ELF_HEADER.size or not cubin.startswith(b"\x7fELF\x02\x01"):
        raise ArtifactError(
            f"cubin: expected a 64-bit ELF file, got {len(cubin)} bytes {cubin[:8]!r}"
        )
    header = _ELF_HEADER.unpack_from(cubin)
    machine, table, entry_size, count, names_index = (header[i] for i in (2, 6, 11, 12, 13))
    if machine != _EM_CUDA:
        raise ArtifactError(f"cubin: expected ELF machine {_EM_CUDA}, got {machine}")
    if missing_bytes(cubin):
        raise ArtifactError(f"cubin: {missing_bytes(cubin)} bytes are missing at the end")
    if (
        entry_size != _SECTION.size
        or table + count * entry_size > len(cubin)
        or names_index >= count
    ):
        raise ArtifactError(
            f"cubin: section table of {count} entries does not fit {len(cubin)} bytes"
        )
    sections = [_SECTION.unpack_from(cubin, table + i * entry_size) for i in range(count)]
    for _, kind, _, _, offset, size, *_ in sections:
        if kind != _SHT_NOBITS and offset + size > len(cubin):
            raise ArtifactError(f"cubin: a section ends at {offset + size} of {len(cubin)} bytes")
    names_offset, names_size = sections[names_index][4], sections[names_index][5]
    names = cubin[names_offset : names_offset + names_size]
    kernels = []
    for section in sections:
        name = names[section[0] : names.find(b"\0", section[0])]
        if name.startswith(b".text."):
            kernels.append(name.removeprefix(b".text.").decode())
    if len(kernels) != 1:
        raise ArtifactError(f"cubin: expected one kernel, got {kernels}")
    return kernels[0]


@dataclass(frozen=True)
class PtxasReport:
    """What `ptxas -v` said of the one kernel; `faults` are the reasons not to ship it."""

    registers: int
    stack_bytes: int
    spill_store_bytes: int
    spill_load_bytes: int
    faults: tuple[str, ...]


def read_ptxas(log: str) -> PtxasReport:
    """Parse the output of `ptxas -v`. Errors: ArtifactError where the figures are missing."""
    registers = re.search(r"Used (\d+) registers", log)
    memory = re.search(
        r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", log
    )
    if registers is None or memory is None:
        raise ArtifactError(f"ptxas: expected registers and spills in its output, got {log!r}")
    stack, stores, loads = (int(memory[i]) for i in (1, 2, 3))
    faults = []
    if stores or loads:
        faults.append(f"registers spill ({stores} bytes stored, {loads} bytes loaded)")
    elif stack:
        faults.append(f"{stack} bytes of local memory")
    # 'wgmma serialised' (C7510, C7514, C7517 ...) and 'setmaxnreg ignored' (C7508) cost the speed
    # that the kernel is built for, without any other sign.
    for line in log.splitlines():
        if "serializ" in line or ("setmaxnreg" in line and "ignored" in line):
            faults.append(line.strip())
    return PtxasReport(int(registers[1]), stack, stores, loads, tuple(faults))
