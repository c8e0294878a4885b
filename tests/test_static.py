"""Static gates on every kernel's machine code; the numbers of record are in static_table.json."""

from __future__ import annotations

import pytest

from tests.emulator.foreign.wheels import WheelUnavailable
from tests.static_gate import (
    Facts,
    Row,
    ToolsMissing,
    compiler_version,
    load_table,
    measure,
    problems,
)

RELEASE, ROWS = load_table()
GEMM = "tests/emulator/kernels/fp8_gemm.cu"


@pytest.fixture(scope="module", autouse=True)
def _tools() -> None:
    try:
        compiler_version()
        measure(Row("tests/emulator/kernels/subword.cu"))
    except (ToolsMissing, WheelUnavailable) as missing:
        pytest.skip(str(missing))


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_machine_code_is_as_recorded(row: Row) -> None:
    """No spills, no local memory, no serialised wgmma; counts as in the table for its compiler."""
    assert problems(row, compare=compiler_version() == RELEASE) == []


def test_a_serialised_wgmma_is_seen() -> None:
    """Reading an accumulator too early makes the assembler serialise, and say so."""
    found = problems(Row(GEMM, ("BUG_ACCUMULATOR_EARLY",)), compare=False)
    assert any("serialized" in line for line in found)


def test_an_injected_fence_is_seen() -> None:
    """A missing wgmma.fence is put in by the assembler, with a warning."""
    found = problems(Row(GEMM, ("BUG_NO_WGMMA_FENCE",)), compare=False)
    assert any("injected" in line for line in found)


def test_a_wrong_count_per_k_block_is_seen() -> None:
    """A K block of 128 takes four QGMMA of 32; five cannot be."""
    assert problems(Row(GEMM, per_k_block={"QGMMA": 5}), compare=False) != []


def test_a_changed_number_is_seen() -> None:
    """One register more than the table says is a difference to look at."""
    row = next(row for row in ROWS if row.source == GEMM and not row.defines)
    numbers = dict(row.kernels["fp8_gemm"])
    numbers["registers"] += 1
    changed = Row(GEMM, kernels={"fp8_gemm": numbers})
    assert any("registers" in line for line in problems(changed, compare=True))


def test_spills_stack_and_too_many_registers_are_faults() -> None:
    """The gates themselves, on made-up facts."""
    assert Facts({"registers": 64}, 0, 0, 384).faults({}) == []
    assert Facts({"registers": 64}, 8, 16, 384).faults({}) == ["8 bytes of stack, 16 of spills"]
    assert Facts({"registers": 64, "LDL": 2}, 0, 0, 384).faults({}) == ["2 local-memory accesses"]
    assert Facts({"registers": 176}, 0, 0, 384).faults({}) == ["176 registers, 168 fit"]
