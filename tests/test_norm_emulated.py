"""The CUDA norm kernels' PTX on the emulator: right numbers in every schedule, nothing to report."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.emulator.compile import CompilerMissing, compile_ptx
from tests.emulator.launch import KernelFault, open_device
from tests.emulator.schedules import NINE_SCHEDULES

Array = NDArray[Any]
DTYPES = {"float": np.dtype(np.float32), "bfloat16_t": np.dtype(ml_dtypes.bfloat16)}
SIGNATURES = {
    "rms_norm<{t}, {w}, {v}>": "const {t}*, const {w}*, {t}*, int, int64_t, int64_t, float",
    "add_rms_norm<{t}, {w}, {v}>":
        "const {t}*, {t}*, const {w}*, {t}*, int, int64_t, int64_t, int64_t, float",
    "silu_mul<{t}, {v}>": "const {t}*, {t}*, int, int64_t, int64_t",
}  # fmt: skip
HEADERS = Path(__file__).resolve().parent.parent / "csrc" / "include"
EPS = 1e-6
SOURCE = "#include <seekernel/fused/norm.cuh>\nnamespace seekernel {{ template __global__ void {name}({args}); }}\n"


@dataclass(frozen=True)
class Case:
    op: str
    dtype: str
    weight: str
    vector: int
    m: int
    n: int
    threads: int

    def __str__(self) -> str:
        return f"{self.op}-{self.dtype}-{self.weight}-x{self.vector}-m{self.m}-n{self.n}"


CASES = [
    Case("rms_norm", "bfloat16_t", "bfloat16_t", 8, 3, 1040, 96),
    Case("rms_norm", "float", "float", 1, 2, 77, 64),
    Case("rms_norm", "float", "bfloat16_t", 8, 2, 512, 64),
    Case("add_rms_norm", "bfloat16_t", "bfloat16_t", 8, 3, 776, 64),
    Case("add_rms_norm", "float", "float", 1, 2, 45, 32),
    Case("silu_mul", "bfloat16_t", "", 8, 3, 520, 64),
    Case("silu_mul", "float", "", 1, 2, 131, 64),
]


def build(case: Case, folder: Path, edit: tuple[str, str] | None = None) -> tuple[Path, str]:
    """Return the PTX of one instantiation and its entry; `edit` replaces a text of the header."""
    template = next(name for name in SIGNATURES if name.startswith(case.op + "<"))
    fill = {"t": case.dtype, "w": case.weight, "v": case.vector}
    text = SOURCE.format(name=template.format(**fill), args=SIGNATURES[template].format(**fill))
    if edit is not None:
        original = (HEADERS / "seekernel" / "fused" / "norm.cuh").read_text()
        assert edit[0] in original
        text = text.replace("#include <seekernel/fused/norm.cuh>", original.replace(*edit))
    source = folder / f"{case.op}.cu"
    source.write_text(text)
    try:
        ptx = compile_ptx(source, flags=[f"-I{HEADERS}"])
    except CompilerMissing as missing:
        pytest.skip(str(missing))
    entries = re.findall(r"\.entry (\w+)", ptx.read_text())
    assert len(entries) == 1
    return ptx, entries[0]


def reference(case: Case, x: Array, residual: Array, weight: Array) -> Array:
    wide = x.astype(np.float64)
    if case.op == "silu_mul":
        gate, up = wide[:, : case.n], wide[:, case.n :]
        return np.asarray(gate / (1 + np.exp(-gate)) * up)
    if case.op == "add_rms_norm":
        total = x.astype(np.float32) + residual.astype(np.float32)
        wide = total.astype(x.dtype).astype(np.float64)
    mean = np.mean(wide**2, axis=1, keepdims=True)
    return np.asarray(wide / np.sqrt(mean + EPS) * weight.astype(np.float64))


def run(case: Case, ptx: Path, entry: str, **schedule: Any) -> None:
    """Launch, compare, and see that rows are left alone beyond n."""
    rng = np.random.default_rng(5)
    dtype, wide = DTYPES[case.dtype], case.op == "silu_mul"
    columns, pad = case.n * (2 if wide else 1), 8
    x = np.full((case.m, columns + pad), np.nan, dtype)
    x[:, :columns] = rng.standard_normal((case.m, columns)) * 2
    residual = rng.standard_normal((case.m, case.n)).astype(dtype)
    weight = rng.standard_normal(case.n).astype(DTYPES[case.weight or "float"])
    out = np.full((case.m, case.n + pad), np.nan, dtype)
    device = open_device("emulator", **schedule)
    d_x, d_residual, d_weight, d_out = (device.buffer(v) for v in (x, residual, weight, out))
    n, stride_x, stride_out = np.int32(case.n), np.int64(x.shape[1]), np.int64(out.shape[1])
    args: tuple[Any, ...] = (d_x, d_weight, d_out, n, stride_x, stride_out, np.float32(EPS))
    grid: tuple[int, ...] = (case.m,)
    if case.op == "add_rms_norm":
        args = (d_x, d_residual, d_weight, d_out, n, stride_x, np.int64(case.n), stride_out, np.float32(EPS))  # fmt: skip
    elif wide:
        args = (d_x, d_out, n, stride_x, stride_out)
        grid = (case.m, -(-case.n // (case.threads * case.vector)))
    device.launch(device.load(ptx).function(entry), grid=grid, block=(case.threads,), args=args)
    got, want = d_out.numpy(), reference(case, x[:, :columns], residual, weight)
    assert np.isnan(got[:, case.n :].astype(np.float32)).all(), "wrote beyond the row"
    error = np.abs(got[:, : case.n].astype(np.float64) - want).max() / np.abs(want).max()
    assert error < (2.0**-8 if dtype.itemsize == 2 else 2e-6), f"relative error {error:.2e}"
    if case.op == "add_rms_norm":
        total = x[:, : case.n].astype(np.float32) + residual.astype(np.float32)
        assert np.array_equal(d_residual.numpy(), total.astype(dtype))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_kernel_in_every_schedule(case: Case, tmp_path: Path) -> None:
    ptx, entry = build(case, tmp_path)
    for schedule in NINE_SCHEDULES:
        run(case, ptx, entry, schedule=schedule)


PLANTED = {
    "sum of one warp only": ("block_sum(squares, scratch)", "squares"),
    "norm of x, not of the sum": ("kWithResidual ? residual : x;", "x;"),
    "columns beyond the row": ("if (i >= n) return;", ""),
    "wrong stride of out": ("out + row * stride_out_m", "out + row * stride_x_m"),
}


@pytest.mark.parametrize("bug", PLANTED)
def test_planted_bugs_are_seen(bug: str, tmp_path: Path) -> None:
    seen = 0
    for case in (CASES[3], CASES[5]):
        try:
            run(case, *build(case, tmp_path, PLANTED[bug]))
        except (AssertionError, KernelFault):
            seen += 1
    assert seen >= 1
