"""Both compilers: artifacts, messages, static checks, and what is said where there is none."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from seekernel import _jit
from seekernel.jit import (
    ArtifactError,
    CompileError,
    CompilerMissing,
    JitDisabled,
    JitError,
    KernelSpec,
    StaticCheckError,
    default_jit,
    nvrtc,
)
from seekernel.jit.compiler import Compiler, Nvcc, compile_kernel, compiler_from_env, find_nvcc
from seekernel.jit.cubin import kernel_name, missing_bytes, read_ptxas
from seekernel.jit.families import kernel_spec
from seekernel.jit.headers import installed_headers, reached_headers
from tests.jit_testing import TINY_HEADERS, nvcc_or_skip, nvrtc_or_skip, tiny_spec

ROOT = Path(__file__).resolve().parent.parent
GEMM_CONFIGS = [
    _jit.GemmConfig(False, 64, 16, 8),
    _jit.GemmConfig(False, 64, 64, 4, kind=1),
    _jit.GemmConfig(False, 64, 128, 6, kind=2, output=1),
    _jit.GemmConfig(False, 128, 32, 3, multicast=2),
    _jit.GemmConfig(False, 128, 128, 5, multicast=1),
    _jit.GemmConfig(False, 256, 128, 3, kind=5),
    _jit.GemmConfig(False, 64, 128, 6, ping_pong=True),
    _jit.GemmConfig(False, 128, 128, 4, kind=5, output=2, gather=True),
]


@pytest.fixture(params=["nvrtc", "nvcc"])
def compiler(request: pytest.FixtureRequest) -> Compiler:
    return nvrtc_or_skip() if request.param == "nvrtc" else nvcc_or_skip()


def test_gives_cubin_and_ptx_of_one_kernel(compiler: Compiler) -> None:
    kernel = compile_kernel(tiny_spec(41), compiler, TINY_HEADERS)
    assert ".target sm_90a" in kernel.ptx
    assert f".entry {kernel.symbol}(" in kernel.ptx
    assert "tiny" in kernel.symbol
    assert kernel_name(kernel.cubin) == kernel.symbol
    assert 0 < kernel.report.registers <= 255
    assert kernel.report.spill_store_bytes == 0
    again = compile_kernel(tiny_spec(41), compiler, TINY_HEADERS)
    assert (again.cubin, again.ptx) == (kernel.cubin, kernel.ptx)


def test_a_source_error_shows_the_compilers_output(compiler: Compiler) -> None:
    broken = TINY_HEADERS | {"seekernel/tiny_part.cuh": "#error this one is broken\n"}
    with pytest.raises(CompileError, match=r"(?s)tiny<kValue=1>: nv.* failed.*this one is broken"):
        compile_kernel(tiny_spec(1), compiler, broken)


def test_local_memory_is_a_build_error(compiler: Compiler) -> None:
    with pytest.raises(StaticCheckError, match=r"tiny<.*>: 256 bytes of local memory"):
        compile_kernel(tiny_spec(1, ("kSpill", 1)), compiler, TINY_HEADERS)


def test_spills_are_a_build_error(compiler: Compiler) -> None:
    spec = kernel_spec("sm90_fp8_gemm_nt", (0, 0, 128, 128, 5, 0, 0, 0, 0, 0))
    headers = dict(reached_headers(spec.source(), installed_headers()))
    config = "seekernel/gemm/sm90_fp8_gemm_nt_config.cuh"
    assert "? 224 : 232" in headers[config]
    headers[config] = headers[config].replace("? 224 : 232", "? 224 : 168")
    with pytest.raises(StaticCheckError, match=r"registers spill \(\d+ bytes stored"):
        compile_kernel(spec, compiler, headers)


def test_serialised_wgmma_is_a_build_error(compiler: Compiler) -> None:
    """Reading the sums of a product that is still in flight makes ptxas wait for each one."""
    spec = kernel_spec("sm90_fp8_gemm_nt", (0, 0, 128, 128, 5, 0, 0, 0, 0, 0))
    headers = dict(reached_headers(spec.source(), installed_headers()))
    commit = "    ptx::wgmma_commit_group();\n"
    consumer = "seekernel/gemm/sm90_fp8_gemm_nt_consumer.cuh"
    assert commit in headers[consumer]
    headers[consumer] = headers[consumer].replace(commit, "    partial[0] += 1.f;\n" + commit)
    with pytest.raises(StaticCheckError, match="serialized"):
        compile_kernel(spec, compiler, headers)


def test_ignored_setmaxnreg_is_a_fault() -> None:
    line = (
        "ptxas info : (C7508) Potential Performance Loss: 'setmaxnreg' ignored to maintain minimum"
    )
    log = (
        f"{line}\n 0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\nUsed 9 registers"
    )
    assert read_ptxas(log).faults == (line,)
    with pytest.raises(ArtifactError, match="expected registers and spills"):
        read_ptxas("ptxas info : 0 bytes gmem")


@pytest.mark.parametrize("config", GEMM_CONFIGS, ids=str)
def test_gemm_compiles_clean_and_the_host_knows_its_shared_memory(
    config: _jit.GemmConfig,
) -> None:
    """The chooser and the device header compute shared memory apart; the compiler compares them."""
    spec = kernel_spec("sm90_fp8_gemm_nt", config.parameters)
    threads, shared_bytes, registers, limit = _jit.gemm_resources(config, 7168)
    headers = dict(reached_headers(spec.source(), installed_headers()))
    values = ", ".join(map(str, config.parameters))
    name = f"seekernel::sm90_fp8_gemm_nt_config<{values}>"
    headers[spec.header] += (
        f"static_assert(seekernel::sm90_fp8_gemm_nt_detail::Plan<{name}>::kBytes == {shared_bytes});"
        f"static_assert({name}::kThreads == {threads} && {name}::kConsumerRegisters == {limit});"
    )
    kernel = compile_kernel(spec, nvrtc_or_skip(), headers)
    assert kernel.report.registers <= 65536 // threads
    assert registers <= limit


def test_gemm_by_nvcc_compiles_clean() -> None:
    spec = kernel_spec("sm90_fp8_gemm_nt", (2112, 7168, 128, 64, 4, 0, 0, 0, 0, 0))
    compile_kernel(spec, nvcc_or_skip(), reached_headers(spec.source(), installed_headers()))


# ---- options of the environment ----


def test_print_and_verbose(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    compiler = nvrtc_or_skip()
    compile_kernel(tiny_spec(1), compiler, TINY_HEADERS)
    assert capfd.readouterr().err == ""
    monkeypatch.setenv("TRTLLM_DG_JIT_PRINT_NVCC_COMMAND", "1")
    monkeypatch.setenv("TRTLLM_DG_PTXAS_VERBOSE", "1")
    compile_kernel(tiny_spec(1), compiler, TINY_HEADERS)
    text = capfd.readouterr().err
    assert "--gpu-architecture=sm_90a" in text
    assert "registers" in text


def test_debug_logs_source_and_time(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", logger="seekernel.jit")
    compile_kernel(tiny_spec(1), nvrtc_or_skip(), TINY_HEADERS)
    assert "#include <seekernel/tiny.cuh>" in caplog.text
    assert " s\n" in caplog.text


def test_disabled(monkeypatch: pytest.MonkeyPatch) -> None:
    default_jit.cache_clear()
    monkeypatch.setenv("TRTLLM_DG_ENABLED", "0")
    with pytest.raises(JitDisabled, match="TRTLLM_DG_ENABLED=0"):
        default_jit()


def test_default_jit_follows_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    nvcc_or_skip()
    default_jit.cache_clear()
    monkeypatch.setenv("TRTLLM_DG_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("TRTLLM_DG_JIT_USE_NVCC", "1")
    monkeypatch.setenv("SEEKERNEL_JIT_CACHE_MAX_MB", "3")
    monkeypatch.setenv("SEEKERNEL_JIT_READ_ONLY_DIRS", f"{tmp_path}/a:{tmp_path}/b")
    jit = default_jit()
    default_jit.cache_clear()
    assert isinstance(jit.compiler, Nvcc)
    assert jit.cache.root == tmp_path
    assert jit.cache.max_bytes == 3 << 20
    assert jit.cache.read_only_roots == (tmp_path / "a", tmp_path / "b")


# ---- compilers that are missing or broken ----


def test_no_nvcc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRTLLM_DG_JIT_USE_NVCC", "1")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_HOME", raising=False)
    with pytest.raises(CompilerMissing, match="install the CUDA toolkit"):
        compiler_from_env()
    monkeypatch.setenv("TRTLLM_DG_NVCC_COMPILER", str(tmp_path / "absent"))
    with pytest.raises(CompilerMissing, match=r"absent: No such file.*TRTLLM_DG_NVCC_COMPILER"):
        compiler_from_env()


def _script(path: Path, body: str) -> Path:
    """An executable Python script; through sh, since a shebang cannot name a path with a space."""
    code = shlex.quote(f"import sys\n{body}")
    path.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -c {code} "$@"\n')
    path.chmod(0o755)
    return path


def test_where_nvcc_is_looked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("TRTLLM_DG_NVCC_COMPILER", raising=False)
    for folder in ("home/bin", "path"):
        (tmp_path / folder).mkdir(parents=True)
        _script(tmp_path / folder / "nvcc", "")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    assert find_nvcc() == tmp_path / "home/bin/nvcc"
    monkeypatch.delenv("CUDA_HOME")
    assert find_nvcc() == tmp_path / "path/nvcc"
    monkeypatch.setenv("TRTLLM_DG_NVCC_COMPILER", "/named/nvcc")
    assert find_nvcc() == Path("/named/nvcc")


def test_nvcc_that_is_old_or_not_nvcc(tmp_path: Path) -> None:
    old = _script(tmp_path / "old", "print('Cuda compilation tools, release 12.2, V12.2.140')\n")
    with pytest.raises(CompilerMissing, match=r"expected CUDA >= 12.3, got V12.2.140"):
        Nvcc(old)
    with pytest.raises(CompilerMissing, match="names no version"):
        Nvcc(_script(tmp_path / "other", "print('hello')\n"))
    with pytest.raises(CompilerMissing, match="--version' failed"):
        Nvcc(_script(tmp_path / "broken", "sys.exit(3)\n"))


def test_nvcc_exit_status_and_output_count_and_no_shell_sees_the_arguments(tmp_path: Path) -> None:
    """A program that claims to be nvcc, then fails; its arguments arrive as they were given."""
    path = _script(
        tmp_path / "nvcc; touch pwned $(touch pwned)",
        "if sys.argv[1] == '--version':\n    print('V13.0.88')\n    sys.exit(0)\n"
        "print(repr(sys.argv[1:]))\nsys.exit(7)\n",
    )
    spec = KernelSpec("tiny", "seekernel/tiny.cuh", (("kValue", 1),), ("-DX=$(touch pwned)",))
    with pytest.raises(CompileError, match="exit status 7") as caught:
        compile_kernel(spec, Nvcc(path), TINY_HEADERS)
    assert "'-DX=$(touch pwned)'" in str(caught.value)
    assert not list(tmp_path.rglob("pwned"))


def test_no_shell_in_the_sources() -> None:
    for path in [*(ROOT / "jit").glob("*.py"), ROOT / "python/seekernel/cli/jit.py"]:
        text = path.read_text()
        for word in ("shell=", "os.system", "popen", "os.exec", "os.spawn"):
            assert word not in text, f"{path.name}: {word}"


def test_a_new_nvcc_at_the_same_path_has_a_new_identity(tmp_path: Path) -> None:
    body = "print('Cuda compilation tools, release 13.0, V13.0.{}')\n"
    first = Nvcc(_script(tmp_path / "nvcc", body.format(88))).identity
    second = Nvcc(_script(tmp_path / "nvcc", body.format(100))).identity
    assert first != second
    assert "V13.0.88" in first


def test_no_nvrtc_says_what_to_install(tmp_path: Path) -> None:
    """In a process that sees no CuPy distribution."""
    script = (
        "import importlib.metadata as m\n"
        "def absent(name): raise m.PackageNotFoundError(name)\n"
        "m.version = absent\n"
        "from seekernel.jit.compiler import compiler_from_env\n"
        "compiler_from_env()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert (
        "CompilerMissing: NVRTC: no CuPy here; install CuPy with NVRTC: pip install" in done.stderr
    )


def test_nvrtc_identity_is_the_build_id_of_the_loaded_library() -> None:
    nvrtc_or_skip()
    library = nvrtc._loaded_library()
    assert nvrtc._build_id(library) in nvrtc.identity()
    assert len(nvrtc._build_id(library)) == 40


# ---- specs, headers, artifacts ----


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("Tiny", "seekernel/tiny.cuh", ()), "KernelSpec.family: expected .*, got 'Tiny'"),
        (("a;b", "seekernel/tiny.cuh", ()), "KernelSpec.family"),
        (("tiny", "../etc/passwd", ()), "KernelSpec.header: expected .*passwd"),
        (("tiny", "seekernel/tiny.cuh\n#error", ()), "KernelSpec.header"),
        (("tiny", "seekernel/tiny.cuh", (("k", "1>"),)), r"parameters\[k\]: expected int"),
        (("tiny", "seekernel/tiny.cuh", (("k", 1.0),)), r"parameters\[k\]: expected int"),
    ],
)
def test_bad_specs(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        KernelSpec(*arguments)


def test_unknown_family_and_wrong_count() -> None:
    with pytest.raises(ValueError, match="expected one of sm90_fp8_gemm_nt, got 'x'"):
        kernel_spec("x", ())
    with pytest.raises(ValueError, match="expected values for"):
        kernel_spec("sm90_fp8_gemm_nt", (1,))


@pytest.mark.parametrize(
    "line",
    ["#include <cuda.h>", '#include "seekernel/tiny.cuh"', "#include <seekernel/absent.cuh>",
     "  #  include <seekernel/../x.cuh>", "#include MACRO"],
)  # fmt: skip
def test_only_device_headers_of_ours_may_be_included(line: str) -> None:
    headers = TINY_HEADERS | {"seekernel/tiny_part.cuh": line + "\n"}
    with pytest.raises(JitError, match=r"seekernel/tiny_part.cuh: expected an #include of <seek"):
        reached_headers(tiny_spec(1).source(), headers)


def test_installed_headers_reach_everything_they_include() -> None:
    headers = installed_headers()
    assert "seekernel/ptx/wgmma.cuh" in headers
    for name in headers:
        reached_headers(f"#include <{name}>\n", headers)


def test_kernel_name_refuses_what_is_not_one_kernel() -> None:
    cubin = compile_kernel(tiny_spec(1), nvrtc_or_skip(), TINY_HEADERS).cubin
    assert missing_bytes(cubin) == 0
    wrong_machine = cubin[:18] + b"\x3e\x00" + cubin[20:]
    far_sections = cubin[:40] + b"\xff" * 6 + cubin[46:]
    for broken in (b"", cubin[:63], b"X" + cubin[1:], wrong_machine, far_sections, cubin[:-1]):
        with pytest.raises(ArtifactError, match="cubin: "):
            kernel_name(broken)
