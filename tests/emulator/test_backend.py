"""The emulator as a device: buffers, tensor maps, launches that follow each other, the command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from tests.emulator import compile as compile_module
from tests.emulator.__main__ import main
from tests.emulator.compile import CompileError, CompilerMissing, compile_ptx
from tests.emulator.emulator_backend import Emulator
from tests.emulator.kernels.run_gemm import fp8_gemm
from tests.emulator.launch import (
    Array,
    ElementType,
    KernelFault,
    LaunchError,
    Swizzle,
    TensorMap,
    encode_tensor_map,
    open_device,
)
from tests.emulator.ptx_samples import STORE_R1, kernel, run_words
from tests.emulator.schedules import NINE_SCHEDULES

KERNELS = Path(__file__).parent / "kernels"


def test_buffers_keep_shape_dtype_and_say_what_is_unwritten() -> None:
    """Fresh memory is poisoned and counted; a write must fit."""
    device = Emulator()
    buffer = device.empty((4, 8), np.float32)
    assert buffer.nbytes == buffer.unwritten_bytes() == 128
    assert np.isnan(buffer.numpy()).all()
    with pytest.raises(LaunchError, match=r"Buffer\.write"):
        buffer.write(np.zeros((8, 4), np.float32))
    values = np.arange(32, dtype=np.float32).reshape(4, 8)
    buffer.write(values)
    assert buffer.unwritten_bytes() == 0
    assert (buffer.numpy() == values).all()
    assert device.buffer(np.zeros((0, 3), np.int8)).numpy().shape == (0, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dims": ()}, "1 to 5 dimensions"),
        ({"strides_bytes": (24,)}, "multiples of 16"),
        ({"strides_bytes": ()}, "1 strides"),
        ({"box": (0, 4)}, "sizes of 1 to 256"),
        ({"box": (257, 4)}, "sizes of 1 to 256"),
        ({"box": (3, 4)}, "multiple of 16 bytes"),
        ({"box": (64, 4), "swizzle": Swizzle.B128}, "within 128 bytes"),
        ({"element_strides": (1, 9)}, "of 1 to 8"),
        ({"offset_bytes": 8}, "16-byte alignment"),
        ({"dims": (0, 16)}, "sizes of 1 to"),
    ],
)
def test_tensor_maps_that_the_driver_would_refuse(change: dict[str, object], message: str) -> None:
    """Refused when they are made, with the field, what was expected and what came."""
    buffer = Emulator().empty((16, 16), np.float32)
    fields: dict[str, object] = {
        "buffer": buffer,
        "element": ElementType.FLOAT32,
        "dims": (16, 16),
        "strides_bytes": (64,),
        "box": (4, 4),
    }
    TensorMap(**fields)
    with pytest.raises(LaunchError, match=message):
        TensorMap(**{**fields, **change})


def test_tensor_map_is_encoded_by_its_device() -> None:
    """128 bytes that name the memory."""
    device = Emulator()
    buffer = device.empty((16, 16), np.float32)
    encoded = encode_tensor_map(
        device, TensorMap(buffer, ElementType.FLOAT32, (16, 16), (64,), (4, 4))
    )
    assert len(encoded) == 128
    assert buffer.address.to_bytes(8, "little") in encoded


def test_unknown_device_and_foreign_function_are_refused() -> None:
    """Errors, not guesses."""
    with pytest.raises(LaunchError, match='"emulator" or "gpu"'):
        open_device("tpu")


WRITER = "ld.param.u64 %rd1, [out]; st.global.u32 [%rd1], 7;"


@pytest.mark.parametrize(
    ("wait", "pdl", "host_waits", "clean"),
    [
        ("griddepcontrol.wait;", True, False, True),
        ("", False, False, True),
        ("", True, True, True),
        ("", True, False, False),
    ],
)
def test_launches_that_may_overlap(wait: str, pdl: bool, host_waits: bool, clean: bool) -> None:
    """Data of the launch before needs griddepcontrol.wait, unless nothing can overlap."""
    reader = f"{wait} setp.eq.u32 %p1, %r10, 1; ld.global.u32 %r1, [%rd0];"
    for schedule in NINE_SCHEDULES:
        device = Emulator(schedule)
        out = device.empty(1, np.uint32)
        first = device.load(kernel(WRITER)).function("probe")
        second = device.load(kernel(f"mov.u32 %r10, 0; {reader}")).function("probe")
        device.launch(first, grid=(1,), block=(1,), args=(out,))
        if host_waits:
            assert out.numpy()[0] == 7
        try:
            device.launch(second, grid=(1,), block=(32,), args=(out,), pdl=pdl)
            reports: tuple[str, ...] = ()
        except KernelFault as fault:
            reports = fault.reports
        assert (reports == ()) == clean
        assert clean or reports[0].startswith("PDL")


# Every CTA waits until all have arrived: only a grid that is resident as a whole gets through.
GRID_BARRIER = f"""
    ld.param.u64 %rd1, [counter];
    mov.u32 %r10, %nctaid.x;
    atom.acq_rel.gpu.global.add.u32 %r11, [%rd1], 1;
SPIN:
    ld.acquire.gpu.global.u32 %r12, [%rd1];
    setp.lt.u32 %p1, %r12, %r10;
    @%p1 bra SPIN;
    mov.u32 %r13, %ctaid.x;
    setp.ne.u32 %p2, %r13, 0;
    @%p2 bra DONE;
    mov.u32 %r1, %r12;
    {STORE_R1}
DONE:
"""


def test_whole_grid_is_resident() -> None:
    """A grid barrier over 100 CTAs ends; over more than can be resident it is a livelock."""
    parameters = (".param .u64 out", ".param .u64 counter")
    for schedule in NINE_SCHEDULES:
        device = Emulator(schedule)
        counter = device.buffer(np.zeros(1, np.uint32))
        got = run_words(
            GRID_BARRIER, counter, grid=100, block=1, device=device, parameters=parameters
        )
        assert got[0] == 100
    device = Emulator(resident_ctas=8, max_instructions=100_000)
    counter = device.buffer(np.zeros(1, np.uint32))
    with pytest.raises(KernelFault, match="LIVELOCK"):
        run_words(GRID_BARRIER, counter, grid=9, block=1, device=device, parameters=parameters)


def _compiled(name: str, *defines: str) -> Path:
    try:
        return compile_ptx(KERNELS / f"{name}.cu", defines=defines)
    except CompilerMissing as missing:
        pytest.skip(str(missing))


def test_counters_of_a_gemm_are_those_of_its_shape() -> None:
    """MACs are m n k, TMA loads both operands once per tile."""
    result = fp8_gemm(Emulator(), _compiled("fp8_gemm"), m=128, n=128, k=512)
    assert result.counters["wgmma_macs"] == 128 * 128 * 512
    assert result.counters["tma_load_bytes"] == 2 * 128 * 512
    assert result.counters["tma_store_bytes"] == 128 * 128 * 2


def test_hopper_sums_differ_from_fp32_sums_and_stay_close() -> None:
    """The short accumulator is visible in the last bits, the reference tolerance still holds."""
    outputs: list[Array] = []
    for hopper in (False, True):
        device = Emulator(hopper_accumulate=hopper)
        fp8_gemm(device, _compiled("fp8_gemm"), m=128, n=128, k=512, outputs=outputs)
    plain, short = (x.astype(np.float64) for x in outputs)
    assert (plain != short).any()
    assert np.abs(plain - short).max() < 1e-2 * np.abs(plain).max()


def test_compiler_errors_are_told_and_headers_are_part_of_the_key(tmp_path: Path) -> None:
    """A changed header, beside the source or in an -I folder, gives another file."""
    (tmp_path / "include").mkdir()
    header = tmp_path / "include" / "value.cuh"
    source = tmp_path / "probe.cu"
    source.write_text(
        '#include "value.cuh"\nextern "C" __global__ void f(int* x) { *x = VALUE; }\n'
    )
    header.write_text("#define VALUE 1\n")
    flags = (f"-I{tmp_path / 'include'}",)
    try:
        first = compile_ptx(source, flags=flags)
        assert compile_ptx(source, flags=flags) == first
        header.write_text("#define VALUE 2\n")
        assert compile_ptx(source, flags=flags) != first
        header.write_text("#define VALUE nonsense here\n")
        with pytest.raises(CompileError, match=r"probe\.cu"):
            compile_ptx(source, flags=flags)
    except CompilerMissing as missing:
        pytest.skip(str(missing))


def test_without_any_compiler_the_reason_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Tests skip with this text, they do not fail."""
    monkeypatch.setattr(compile_module, "_BUILD", tmp_path)
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setitem(__import__("sys").modules, "cupy_backends.cuda.libs", None)
    with pytest.raises(CompilerMissing, match="no CUDA compiler"):
        compile_ptx(KERNELS / "subword.cu")


def test_command_line(tmp_path: Path) -> None:
    """Lists kernels, runs one in several schedules, prints counters; a report gives exit code 1."""
    ptx = tmp_path / "probe.ptx"
    ptx.write_text(kernel(f"mov.u32 %r1, %tid.x; {STORE_R1}"))
    run = CliRunner().invoke
    listed = run(main, [str(ptx), "--list"])
    assert listed.exit_code == 0
    assert "probe: parameters of 8 bytes" in listed.output
    arguments = [str(ptx), "--block", "32", "--schedules", "2", "--dump", "0"]
    good = run(main, [*arguments, "--arg", "uint32:32"])
    assert good.exit_code == 0, good.output
    assert "no report" in good.output
    assert "global_store_bytes" in good.output
    assert "30 31]" in good.output
    bad = run(main, [*arguments, "--arg", "uint32:31"])
    assert bad.exit_code == 1
    assert "BOUNDS" in bad.output
    wrong = run(main, [*arguments, "--arg", "uint32=3"])
    assert wrong.exit_code == 2
    assert "expected 8 bytes, got 4" in wrong.output
