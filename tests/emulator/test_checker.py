"""The checker on small PTX: each kind of report appears when it should, and its twin is clean."""

from __future__ import annotations

import re

import numpy as np
import pytest

from tests.emulator.emulator_backend import Emulator
from tests.emulator.launch import KernelFault
from tests.emulator.ptx_samples import STORE_R1, kernel, reports_of, run_words
from tests.emulator.schedules import NINE_SCHEDULES, Schedule

SHARED = ".shared .align 16 .b8 sm[1024];"

# %r2 is the shared address of this thread's word, %r3 that of the next thread's, of `mask` + 1.
NEIGHBOUR = """
    mov.u32 %r10, %tid.x;
    mov.u32 %r11, sm;
    shl.b32 %r12, %r10, 2;
    add.u32 %r2, %r11, %r12;
    add.u32 %r13, %r10, 1;
    and.b32 %r13, %r13, {mask};
    shl.b32 %r13, %r13, 2;
    add.u32 %r3, %r11, %r13;
"""


def _kinds(body: str, **options: object) -> set[str]:
    """The kinds reported under every schedule; a run is clean under all of them or none."""
    runs = []
    for schedule in NINE_SCHEDULES:
        reports = reports_of(body, device=Emulator(schedule, max_instructions=100_000), **options)
        runs.append({report.split(":")[0] for report in reports})
    assert len({bool(kinds) for kinds in runs}) == 1, f"the verdict depends on the schedule: {runs}"
    return set.intersection(*runs)


def _exchange(barrier: str, mask: int) -> str:
    return f"""
    {NEIGHBOUR.format(mask=mask)}
    st.shared.u32 [%r2], %r10;
    {barrier}
    ld.shared.u32 %r1, [%r3];
    {STORE_R1}"""


@pytest.mark.parametrize(
    ("barrier", "threads", "clean"),
    [
        ("bar.sync 0;", 64, True),
        ("barrier.sync 1, 64;", 64, True),
        ("bar.warp.sync 0xffffffff;", 32, True),
        ("", 32, False),
        ("bar.warp.sync 0xffffffff;", 64, False),
        ("shfl.sync.idx.b32 %r20, %r10, 0, 31, 0xffffffff;", 32, False),
        ("membar.cta;", 32, False),
    ],
)
def test_exchange_through_shared_memory(barrier: str, threads: int, clean: bool) -> None:
    """Only barriers that reach the other lane order the two accesses; a shuffle is none."""
    found = _kinds(_exchange(barrier, threads - 1), block=threads, declarations=SHARED)
    assert (found == set()) == clean
    assert clean or "RACE" in found


def test_neighbouring_bytes_do_not_race_and_one_byte_does() -> None:
    """Sub-word stores by different warps are judged byte by byte."""
    body = """
    mov.u32 %r10, %tid.x;
    mov.u32 %r11, sm;
    shr.u32 %r12, %r10, {shift};
    add.u32 %r2, %r11, %r12;
    cvt.u16.u32 %rs1, %r10;
    st.shared.u8 [%r2], %rs1;
"""
    assert _kinds(body.format(shift=0), block=64, declarations=SHARED) == set()
    assert _kinds(body.format(shift=6), block=64, declarations=SHARED) == {"RACE"}


def test_uninitialised_reads_of_shared_global_and_registers() -> None:
    """Each memory has its own report; a copy of an undefined register alone has none."""
    shared = f"mov.u32 %r2, sm; ld.shared.u32 %r1, [%r2+64]; {STORE_R1}"
    assert _kinds(shared, declarations=SHARED) == {"UNINIT"}
    assert _kinds("ld.global.u32 %r1, [%rd0];") == {"UNINIT"}
    assert _kinds(f"add.u32 %r1, %r40, 1; {STORE_R1}") == {"UNINIT"}
    assert _kinds(f"mov.u32 %r41, %r40; mov.u32 %r1, 1; {STORE_R1}") == set()
    half = f"""
    mov.u32 %r10, %tid.x;
    setp.lt.u32 %p1, %r10, 16;
    @%p1 mov.u32 %r40, 7;
    @{{guard}}%p1 add.u32 %r1, %r40, 1;
    @!%p1 mov.u32 %r1, 2;
    {STORE_R1}"""
    assert _kinds(half.format(guard="")) == set()
    assert _kinds(half.format(guard="!")) == {"UNINIT"}


@pytest.mark.parametrize(
    ("access", "kind"),
    [
        ("st.global.u32 [%rd0+128], %r1;", "BOUNDS"),
        ("st.global.u32 [%rd0+-4], %r1;", "BOUNDS"),
        ("st.global.u32 [%rd0+2], %r1;", "MISALIGNED"),
        ("st.global.v4.u32 [%rd0+8], {%r1, %r1, %r1, %r1};", "MISALIGNED"),
        ("st.shared.u32 [%r50], %r1;", "BOUNDS"),
        ("st.shared.u32 [sm+1024], %r1;", "BOUNDS"),
        ("st.shared.u16 [sm+1], %rs1;", "MISALIGNED"),
        ("st.u32 [%rd15], %r1;", "BOUNDS"),
        ("trap;", "TRAP"),
        ("bar.sync 17;", "DIVERGENCE"),
        ("bar.sync 0, 33;", "DIVERGENCE"),
        ("mbarrier.arrive.shared.b64 _, [sm];", "MBARRIER"),
        ("mbarrier.init.shared.b64 [sm+4], 1;", "MISALIGNED"),
        ("mbarrier.init.shared.b64 [sm], 0;", "MBARRIER"),
        ("setmaxnreg.inc.sync.aligned.u32 20;", "SETMAXNREG"),
        ("cp.async.bulk.global.shared::cta.bulk_group [%rd0], [sm], 24;", "MISALIGNED"),
        ("LOOP: bra LOOP;", "LIVELOCK"),
        ("barrier.cluster.wait;", "DIVERGENCE"),
    ],
)
def test_single_instruction_faults(access: str, kind: str) -> None:
    """One bad instruction by one warp, reported with its PTX line."""
    body = f"mov.u32 %r1, 1; mov.u32 %r50, 0; mov.u64 %rd15, 4096; mov.u16 %rs1, 1;\n{access}\n"
    assert _kinds(body, declarations=SHARED) == {kind}
    (report,) = reports_of(body, declarations=SHARED, device=Emulator(max_instructions=100_000))[:1]
    assert re.search(r"PTX line \d+", report)


def test_divergent_collectives() -> None:
    """Lanes that wait for each other at different places, and masks that leave a lane out."""
    apart = """
    mov.u32 %r10, %tid.x;
    setp.lt.u32 %p1, %r10, 16;
    @%p1 bra LOW;
    bar.warp.sync 0xffffffff;
    bra DONE;
LOW:
    shfl.sync.idx.b32 %r1, %r10, 0, 31, 0xffffffff;
DONE:
"""
    assert _kinds(apart) == {"DIVERGENCE"}
    assert _kinds("bar.warp.sync 0x0000ffff;") == {"DIVERGENCE"}
    together = """
    mov.u32 %r10, %tid.x;
    setp.lt.u32 %p1, %r10, 16;
    @%p1 bra LOW;
    bar.warp.sync 0xffff0000;
    bra DONE;
LOW:
    bar.warp.sync 0x0000ffff;
DONE:
    bar.warp.sync 0xffffffff;
"""
    assert _kinds(together) == set()


def test_lanes_make_progress_independently() -> None:
    """A spin lock inside a warp ends, because a spinning lane cannot starve the holder."""
    body = f"""
    mov.u32 %r10, %tid.x;
    mov.u32 %r11, sm;
    setp.eq.u32 %p1, %r10, 0;
    @%p1 st.shared.u32 [%r11], 0;
    @%p1 st.shared.u32 [%r11+4], 0;
    bar.warp.sync 0xffffffff;
SPIN:
    atom.acquire.cta.shared.cas.b32 %r12, [%r11], 0, 1;
    setp.ne.u32 %p2, %r12, 0;
    @%p2 bra SPIN;
    ld.relaxed.cta.shared.u32 %r13, [%r11+4];
    add.u32 %r13, %r13, 1;
    st.relaxed.cta.shared.u32 [%r11+4], %r13;
    st.release.cta.shared.u32 [%r11], 0;
    bar.warp.sync 0xffffffff;
    ld.relaxed.cta.shared.u32 %r1, [%r11+4];
    {STORE_R1}"""
    for schedule in NINE_SCHEDULES:
        got = run_words(body, declarations=SHARED, device=Emulator(schedule))
        assert (got == 32).all(), schedule


# Two CTAs: the first publishes a word behind a flag, the second waits for it.
MESSAGE = """
    ld.param.u64 %rd1, [flag];
    mov.u32 %r10, %ctaid.x;
    mov.u32 %r11, %tid.x;
    setp.ne.u32 %p1, %r11, 0;
    @%p1 bra DONE;
    setp.ne.u32 %p1, %r10, 0;
    @%p1 bra READER;
    st.global.u32 [%rd0], 42;
    {publish}
    bra DONE;
READER:
    {acquire}
    setp.eq.u32 %p2, %r12, 0;
    @%p2 bra READER;
    {fence}
    ld.global.u32 %r13, [%rd0];
DONE:
"""


@pytest.mark.parametrize(
    ("publish", "acquire", "fence", "clean"),
    [
        ("st.release.gpu.global.u32 [%rd1], 1;", "ld.acquire.gpu.global.u32 %r12, [%rd1];", "", True),
        (
            "membar.gl; st.volatile.global.u32 [%rd1], 1;",
            "ld.volatile.global.u32 %r12, [%rd1];",
            "membar.gl;",
            True,
        ),
        ("membar.gl; atom.global.add.u32 %r20, [%rd1], 1;",
         "ld.acquire.gpu.global.u32 %r12, [%rd1];", "", True),
        ("st.relaxed.gpu.global.u32 [%rd1], 1;", "ld.acquire.gpu.global.u32 %r12, [%rd1];", "", False),
        ("st.release.gpu.global.u32 [%rd1], 1;", "ld.relaxed.gpu.global.u32 %r12, [%rd1];", "", False),
        ("st.global.u32 [%rd1], 1;", "ld.global.u32 %r12, [%rd1];", "", False),
    ],
)  # fmt: skip
def test_message_between_ctas(publish: str, acquire: str, fence: str, clean: bool) -> None:
    """Release and acquire, or fences around relaxed accesses; both sides are needed."""
    parameters = (".param .u64 out", ".param .u64 flag")
    text = kernel(MESSAGE.format(publish=publish, acquire=acquire, fence=fence), parameters)
    for schedule in NINE_SCHEDULES:
        device = Emulator(schedule, max_instructions=200_000)
        out, flag = device.empty(1, np.uint32), device.buffer(np.zeros(1, np.uint32))
        function = device.load(text).function("probe")
        kinds: set[str] = set()
        try:
            device.launch(function, grid=(2,), block=(32,), args=(out, flag))
        except KernelFault as fault:
            kinds = {report.split(":")[0] for report in fault.reports}
        assert (kinds == set()) == clean, (str(schedule), kinds)
        assert clean or "RACE" in kinds


def test_deadlock_report_names_warp_barrier_phase_and_bytes() -> None:
    """What one needs in order to see who waits for what."""
    body = """
    mov.u32 %r10, %tid.x;
    setp.ne.u32 %p1, %r10, 0;
    @%p1 bra READY;
    mbarrier.init.shared::cta.b64 [sm], 3;
    mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [sm], 48;
READY:
    bar.sync 0;
    mov.u32 %r12, sm;
WAIT:
    mbarrier.try_wait.parity.shared::cta.b64 %p2, [%r12], 0;
    @!%p2 bra WAIT;
"""
    (report,) = reports_of(body, block=64, declarations=SHARED)
    assert report.startswith("DEADLOCK")
    for part in (
        "warp 0",
        "warp 1",
        "waits for parity 0",
        "phase 0",
        "3 of 3 arrivals",
        "48 bytes",
    ):
        assert part in report
    (report,) = reports_of("bar.sync 3, 64;", block=64 + 32, declarations=SHARED)[:1]
    assert "DEADLOCK" in report
    assert "barrier 3, 32 of 64 threads arrived" in report


def test_same_schedule_same_bits_and_reports() -> None:
    """Runs are reproducible, racy ones too."""
    body = _exchange("", 127)
    for schedule in NINE_SCHEDULES:
        first, second = (
            reports_of(body, block=128, declarations=SHARED, device=Emulator(schedule))
            for _ in range(2)
        )
        assert first == second
        assert first


def test_unchecked_runs_give_numbers_only() -> None:
    """check=False finds faults but judges nothing."""
    device = Emulator(Schedule(), check=False)
    reports = reports_of(_exchange("", 63), block=64, declarations=SHARED, device=device)
    assert reports == ()


def test_freed_memory_is_out_of_bounds_and_gaps_are_guarded() -> None:
    """A buffer's end is the end, whatever lies behind it."""
    device = Emulator()
    gone, kept = device.empty(4, np.uint32), device.buffer(np.zeros(4, np.uint32))
    gone.free()
    body = "ld.param.u64 %rd5, [x]; ld.global.u32 %r1, [%rd5];"
    parameters = (".param .u64 out", ".param .u64 x")
    reports = reports_of(body, np.uint64(gone.address), device=device, parameters=parameters)
    assert reports[0].startswith("BOUNDS")
    for offset in (-4, 16, 20):
        address = np.uint64(kept.address + offset)
        (report,) = reports_of(body, address, device=device, parameters=parameters)
        assert report.startswith("BOUNDS"), offset


def test_counters() -> None:
    """Instructions, bytes, coalescing and bank conflicts are those of the access pattern."""
    device = Emulator()
    out = device.empty(32 * 32, np.uint32)
    body = """
    mov.u32 %r10, %tid.x;
    mov.u32 %r1, 5;
    mul.lo.u32 %r11, %r10, {shared_stride};
    mov.u32 %r12, sm;
    add.u32 %r12, %r12, %r11;
    st.shared.u32 [%r12], %r1;
    mul.wide.u32 %rd1, %r10, {global_stride};
    add.u64 %rd1, %rd0, %rd1;
    st.global.u32 [%rd1], %r1;"""

    def counters(shared_stride: int, global_stride: int) -> dict[str, int]:
        text = kernel(
            body.format(shared_stride=shared_stride, global_stride=global_stride),
            declarations=".shared .align 16 .b8 sm[4096];",
        )
        result = device.launch(
            device.load(text).function("probe"), grid=(1,), block=(32,), args=(out,)
        )
        return dict(result.counters)

    dense, strided = counters(4, 4), counters(128, 128)
    assert dense["warp_instructions"] == strided["warp_instructions"] == 12
    assert dense["thread_instructions"] == 12 * 32
    assert dense["global_store_bytes"] == strided["global_store_bytes"] == 128
    assert (dense["global_sectors"], dense["uncoalesced_accesses"]) == (4, 0)
    assert (strided["global_sectors"], strided["uncoalesced_accesses"]) == (32, 1)
    assert (dense["shared_bank_conflicts"], strided["shared_bank_conflicts"]) == (0, 31)


def test_cvt_takes_registers_wider_than_its_types() -> None:
    """The low bits of a 64-bit source, and a 64-bit destination, in every lane."""
    body = """
    mov.u32 %r10, %tid.x;
    cvt.u64.u32 %rd1, %r10;
    add.s64 %rd1, %rd1, 0x700000000;
    cvt.s64.s32 %rd2, %rd1;
    cvt.u64.u32 %rd3, %rd1;
    add.s64 %rd2, %rd2, %rd3;
    mov.b64 %rd4, -1;
    cvt.u32.u64 %rd4, %rd1;
    add.s64 %rd2, %rd2, %rd4;
    shr.u64 %rd5, %rd2, 32;
    add.s64 %rd2, %rd2, %rd5;
    cvt.u32.u64 %r1, %rd2;
"""
    assert run_words(body + STORE_R1).tolist() == [3 * lane for lane in range(32)]
