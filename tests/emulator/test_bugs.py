"""The planted-bug suite: every bug is caught in each of nine schedules, every control is clean.

A checker that nobody tries to fool decays, so the bugs stay here for good. A bug that is legal
PTX, such as a wrong descriptor, is caught by its numbers; for all others the checker must speak.
"""

from __future__ import annotations

import pytest

from tests.emulator.compile import CompilerMissing, compile_ptx
from tests.emulator.emulator_backend import Emulator
from tests.emulator.kernels.cases import BUGS, CONTROLS, WRONG, Case
from tests.emulator.kernels.compare import WrongResult
from tests.emulator.launch import KernelFault
from tests.emulator.schedules import NINE_SCHEDULES, Schedule

# A bug that spins for ever is stopped here; the longest control needs a tenth of it.
_MAX_INSTRUCTIONS = 3_000_000


def _verdict(case: Case, schedule: Schedule) -> tuple[set[str], str]:
    """Report kinds of one run (`WRONG` for wrong numbers, none if all is well) and the text."""
    try:
        ptx = compile_ptx(case.source, defines=case.defines)
    except CompilerMissing as missing:
        pytest.skip(str(missing))
    device = Emulator(schedule, max_instructions=_MAX_INSTRUCTIONS)
    try:
        case.run(device, ptx)
    except KernelFault as fault:
        return {report.split(":", 1)[0] for report in fault.reports}, str(fault)
    except WrongResult as wrong:
        return {WRONG}, str(wrong)
    return set(), ""


@pytest.mark.parametrize("case", CONTROLS, ids=str)
def test_control_is_clean_in_nine_schedules(case: Case) -> None:
    """No report and right numbers."""
    for schedule in NINE_SCHEDULES:
        kinds, text = _verdict(case, schedule)
        assert not kinds, f"{schedule}: {text}"


@pytest.mark.parametrize("case", BUGS, ids=str)
def test_bug_is_caught_in_nine_schedules(case: Case) -> None:
    """One of the kinds that the case names, whatever the schedule."""
    for schedule in NINE_SCHEDULES:
        kinds, text = _verdict(case, schedule)
        assert kinds & case.expect, f"{schedule}: expected {set(case.expect)}, got {kinds}\n{text}"


def test_there_are_enough_bugs() -> None:
    """The suite may grow, it must not shrink."""
    assert len(BUGS) >= 40
    assert len({str(case) for case in BUGS}) == len(BUGS)
