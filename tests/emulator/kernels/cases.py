"""The sample kernels' cases: controls, which must be clean, and planted bugs, which must be caught.

A case is caught when the launch reports one of the expected kinds, or, for `WRONG`, when the
checker has nothing to object to (the program is legal) but the numbers differ from the reference.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.emulator.kernels import run_gemm, run_simt
from tests.emulator.launch import Device, LaunchResult, Swizzle

FOLDER = Path(__file__).parent
WRONG = "WRONG"

Run = Callable[[Device, str | Path], LaunchResult]


@dataclass(frozen=True)
class Case:
    """One kernel build and launch.

    Args:
        kernel: source file without its suffix.
        name: what is special about it; unique per kernel.
        run: launches on a device and compares; raises WrongResult.
        defines: macros the source is compiled with.
        expect: report kinds of which one must appear; empty for a control.
    """

    kernel: str
    name: str
    run: Run
    defines: tuple[str, ...] = ()
    expect: frozenset[str] = frozenset()

    def __str__(self) -> str:
        return f"{self.kernel}-{self.name}"

    @property
    def source(self) -> Path:
        """The CUDA file."""
        return FOLDER / f"{self.kernel}.cu"


def _control(kernel: str, run: Run, *defines: str, name: str = "control") -> Case:
    return Case(kernel, name, run, defines)


def _bug(kernel: str, run: Run, macro: str, expect: str, *defines: str) -> Case:
    """A case whose bug is a macro, named after the variant and it; `expect` lists report kinds."""
    words = [define.partition("=")[0] for define in defines] + [macro.removeprefix("BUG_")]
    name = "_".join(words).lower()
    return Case(kernel, name, run, (*defines, macro), frozenset(expect.split()))


def _host_bug(kernel: str, name: str, run: Run, expect: str, *defines: str) -> Case:
    """A case whose bug is in the launch."""
    return Case(kernel, name, run, defines, frozenset(expect.split()))


def _gemm() -> list[Case]:
    name, run = "fp8_gemm", run_gemm.fp8_gemm
    wide = partial(run, m=256)
    pair = partial(run, m=256, cluster=2)
    two = "CLUSTER=2"
    return [
        _control(name, partial(run, k=512)),
        _control(name, partial(wide, n=256, k=640), name="control_grid"),
        _control(name, pair, two, name="control_cluster"),
        _bug(name, run, "BUG_NO_FULL_WAIT", "RACE UNINIT"),
        _bug(name, run, "BUG_NO_EMPTY_WAIT", "RACE MBARRIER DEADLOCK"),
        _bug(name, run, "BUG_EMPTY_PARITY", "RACE DEADLOCK"),
        _bug(name, run, "BUG_STALE_PHASE", "RACE MBARRIER DEADLOCK"),
        _bug(name, run, "BUG_TX_BYTES", "DEADLOCK"),
        _bug(name, run, "BUG_EARLY_RELEASE", "RACE"),
        _bug(name, run, "BUG_ACCUMULATOR_EARLY", "WGMMA RACE"),
        _bug(name, run, "BUG_NO_WGMMA_FENCE", "WGMMA"),
        _bug(name, run, "BUG_NO_STORE_FENCE", "PROXY"),
        _bug(name, run, "BUG_NO_STORE_BARRIER", "RACE PROXY UNINIT"),
        _bug(name, run, "BUG_NO_INIT_FENCE", "PROXY"),
        _bug(name, run, "BUG_NO_INIT_SYNC", "RACE MBARRIER"),
        _bug(name, run, "BUG_SBO_SMALL", WRONG),
        _bug(name, run, "BUG_SBO_LARGE", "RACE UNINIT BOUNDS DESCRIPTOR"),
        _bug(name, run, "BUG_DESCRIPTOR_SWIZZLE", WRONG),
        _bug(name, run, "BUG_SETMAXNREG", "SETMAXNREG"),
        _host_bug(name, "map_not_swizzled", partial(run, swizzle_a=Swizzle.NONE), WRONG),
        _host_bug(
            name, "box_too_narrow", partial(run, swizzle_a=Swizzle.B64, box_a=64), "DEADLOCK"
        ),
        _host_bug(name, "shared_too_small", partial(run, stage_bytes=64), "BOUNDS"),
        _bug(name, pair, "BUG_NO_INIT_SYNC", "RACE MBARRIER", two),
        _bug(name, pair, "BUG_LOCAL_ARRIVE", "RACE MBARRIER DEADLOCK", two),
        _bug(name, pair, "BUG_MULTICAST_MASK", "DEADLOCK", two),
        _bug(name, pair, "BUG_NO_EXIT_SYNC", "RACE BOUNDS MBARRIER", two),
    ]


def _mma() -> list[Case]:
    copy, attend, turn = run_gemm.cp_async_mma, run_gemm.attention, run_gemm.matrix_transpose
    return [
        _control("cp_async_mma", copy),
        _bug("cp_async_mma", copy, "BUG_NO_WAIT", "RACE"),
        _bug("cp_async_mma", copy, "BUG_WAIT_TOO_FEW", "RACE"),
        _bug("cp_async_mma", copy, "BUG_NO_SYNC", "RACE"),
        _bug("cp_async_mma", copy, "BUG_NO_REUSE_SYNC", "RACE"),
        _bug("cp_async_mma", copy, "BUG_LDMATRIX_ROW", "RACE BOUNDS UNINIT"),
        _host_bug("cp_async_mma", "grid_too_large", partial(copy, grid_extra=1), "BOUNDS"),
        _control("attention", attend),
        _bug("attention", attend, "BUG_NO_Q_WAIT", "RACE UNINIT"),
        _bug("attention", attend, "BUG_NO_V_WAIT", "RACE UNINIT"),
        _bug("attention", attend, "BUG_NO_RS_FENCE", "WGMMA"),
        _bug("attention", attend, "BUG_P_OVERWRITTEN", "WGMMA"),
        _bug("attention", attend, "BUG_EARLY_RELEASE", "RACE"),
        _bug("attention", attend, "BUG_V_NOT_TRANSPOSED", f"RACE UNINIT BOUNDS {WRONG}"),
        _bug("attention", attend, "BUG_V_STRIDE", WRONG),
        _control("matrix_transpose", turn),
        _bug("matrix_transpose", turn, "BUG_OTHER_WARP", "RACE UNINIT"),
        _bug("matrix_transpose", turn, "BUG_ROW_ALIGNMENT", "MISALIGNED"),
    ]


def _global_and_cluster() -> list[Case]:
    norm, split, pdl = run_simt.rms_norm_quantize, run_simt.split_k, run_simt.pdl_pair
    cluster = run_simt.cluster_reduce
    return [
        _control("rms_norm_quantize", norm),
        _bug("rms_norm_quantize", norm, "BUG_NO_SYNC", "RACE UNINIT"),
        _bug("rms_norm_quantize", norm, "BUG_SHUFFLE_MASK", f"DIVERGENCE DEADLOCK {WRONG}"),
        _bug("rms_norm_quantize", norm, "BUG_MISALIGNED", "MISALIGNED"),
        _bug("rms_norm_quantize", norm, "BUG_SCALE_UNWRITTEN", WRONG),
        _host_bug("rms_norm_quantize", "grid_too_large", partial(norm, grid_extra=1), "BOUNDS"),
        _control("split_k", split),
        _control("split_k", split, "SPIN", name="control_spin"),
        _bug("split_k", split, "BUG_NO_FENCE", "RACE"),
        _bug("split_k", split, "BUG_NO_SYNC", "RACE"),
        _bug("split_k", split, "BUG_NO_ACQUIRE_FENCE", "RACE"),
        _bug("split_k", split, "BUG_PLAIN_COUNTER", "RACE"),
        _bug("split_k", split, "BUG_SAME_SLOT", "RACE UNINIT"),
        _bug("split_k", split, "BUG_FIRST_REDUCES", "RACE UNINIT"),
        _bug("split_k", split, "BUG_SPIN_RELAXED", "RACE", "SPIN"),
        _bug("split_k", split, "BUG_SPIN_FOREVER", "LIVELOCK DEADLOCK", "SPIN"),
        _control("pdl_pair", pdl),
        _bug("pdl_pair", pdl, "BUG_NO_WAIT", "PDL RACE UNINIT"),
        _bug("pdl_pair", pdl, "BUG_READ_BEFORE_WAIT", "PDL RACE UNINIT"),
        _control("cluster_reduce", cluster),
        _control("cluster_reduce", cluster, "PUSH", name="control_push"),
        _bug("cluster_reduce", cluster, "BUG_NO_SYNC", "RACE UNINIT"),
        _bug("cluster_reduce", cluster, "BUG_RELAXED_ARRIVE", "RACE"),
        _bug("cluster_reduce", cluster, "BUG_NO_EXIT_SYNC", "RACE BOUNDS"),
        _bug("cluster_reduce", cluster, "BUG_RANK_RANGE", "BOUNDS"),
        _bug("cluster_reduce", cluster, "BUG_NO_START_SYNC", "RACE BOUNDS", "PUSH"),
        _bug("cluster_reduce", cluster, "BUG_SAME_INBOX", "RACE UNINIT", "PUSH"),
    ]


def _exchange() -> list[Case]:
    warp, sub, ring = run_simt.warp_exchange, run_simt.subword, run_simt.phases
    named, reduce, copy = run_simt.named_barriers, run_simt.tma_reduce, run_simt.bulk_copy
    touch = partial(copy, add=1)
    return [
        _control("warp_exchange", warp),
        _bug("warp_exchange", warp, "BUG_NO_SYNCWARP", "RACE UNINIT"),
        _bug("warp_exchange", warp, "BUG_NO_REUSE_SYNCWARP", "RACE"),
        _bug("warp_exchange", warp, "BUG_HALF_MASK", "RACE UNINIT"),
        _control("subword", sub),
        _bug("subword", sub, "BUG_WORD_STORE", "RACE"),
        _bug("subword", sub, "BUG_GLOBAL_WORD_STORE", "RACE"),
        _bug("subword", sub, "BUG_NO_SYNC", "RACE UNINIT"),
        _control("phases", ring),
        _control("phases", ring, "TOKEN", name="control_token"),
        _bug("phases", ring, "BUG_NO_INIT_SYNC", "RACE MBARRIER"),
        _bug("phases", ring, "BUG_STALE_EMPTY", "RACE MBARRIER DEADLOCK"),
        _bug("phases", ring, "BUG_STALE_FULL", "RACE MBARRIER DEADLOCK UNINIT"),
        _bug("phases", ring, "BUG_EXTRA_ARRIVE", "RACE MBARRIER DEADLOCK UNINIT"),
        _bug("phases", ring, "BUG_REINIT", "RACE MBARRIER"),
        _bug("phases", ring, "BUG_MISSING_LANE", "DEADLOCK"),
        _bug("phases", ring, "BUG_USE_AFTER_INVAL", "MBARRIER", "TOKEN"),
        _control("named_barriers", named),
        _bug("named_barriers", named, "BUG_COUNT", "DEADLOCK DIVERGENCE RACE"),
        _bug("named_barriers", named, "BUG_WRONG_ID", "DEADLOCK"),
        _bug("named_barriers", named, "BUG_NO_EMPTY_SYNC", "RACE DEADLOCK"),
        _bug("named_barriers", named, "BUG_DIVERGENT_SYNC", "DIVERGENCE"),
        _control("tma_reduce", reduce),
        _bug("tma_reduce", reduce, "BUG_NO_PROXY_FENCE", "PROXY"),
        _bug("tma_reduce", reduce, "BUG_NO_SYNC", "RACE PROXY UNINIT"),
        _bug("tma_reduce", reduce, "BUG_PLAIN_STORE", "RACE"),
        _bug("tma_reduce", reduce, "BUG_NO_READ_WAIT", "RACE"),
        _bug("tma_reduce", reduce, "BUG_READ_BEFORE_COMPLETION", "RACE"),
        _bug("tma_reduce", reduce, "BUG_UNALIGNED_COORDINATE", "TENSORMAP MISALIGNED BOUNDS"),
        _bug("tma_reduce", reduce, "BUG_NEGATIVE_COORDINATE", "TENSORMAP MISALIGNED BOUNDS"),
        _control("bulk_copy", copy),
        _control("bulk_copy", touch, "TOUCH", name="control_touch"),
        _bug("bulk_copy", copy, "BUG_NO_READ_WAIT", "RACE"),
        _bug("bulk_copy", copy, "BUG_TX_SHORT", "RACE MBARRIER DEADLOCK"),
        _bug("bulk_copy", copy, "BUG_MISALIGNED", "MISALIGNED"),
        _bug("bulk_copy", copy, "BUG_PAST_THE_END", "BOUNDS"),
        _bug("bulk_copy", touch, "BUG_ONE_WAITER", "RACE UNINIT", "TOUCH"),
        _bug("bulk_copy", touch, "BUG_NO_PROXY_FENCE", "PROXY", "TOUCH"),
    ]


CASES: tuple[Case, ...] = (*_gemm(), *_mma(), *_global_and_cluster(), *_exchange())
CONTROLS = tuple(case for case in CASES if not case.expect)
BUGS = tuple(case for case in CASES if case.expect)
