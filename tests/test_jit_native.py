"""seekernel._jit: imports without a driver, says what is missing, and what it would launch."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from seekernel import _jit
from seekernel.jit import Jit, JitDisabled, native
from seekernel.jit.compiler import find_nvcc
from seekernel.jit.families import kernel_spec
from seekernel.jit.headers import installed_headers
from seekernel.jit.loader import require_loads
from tests.jit_testing import nvcc_or_skip, tiny_jit, tiny_spec

ROOT = Path(__file__).resolve().parent.parent
ADDRESS = 1 << 20


@pytest.fixture
def null_driver() -> Iterator[list[tuple[str, tuple[int, ...]]]]:
    """The driver that launches nothing; the kernels asked for."""
    asked: list[tuple[str, tuple[int, ...]]] = []

    def resolve(family: str, values: tuple[int, ...]) -> tuple[bytes, str]:
        asked.append((family, values))
        return b"cubin", "symbol"

    _jit.use_null_driver(True)
    _jit.clear()
    _jit.set_resolver(resolve)
    yield asked
    _jit.clear()
    _jit.set_resolver(None)
    _jit.use_null_driver(False)


def _gemm(m: int = 16, n: int = 256, k: int = 512, **changes: int) -> None:
    arguments = dict(
        a=ADDRESS, sfa=2 * ADDRESS, b=3 * ADDRESS, sfb=4 * ADDRESS, d=5 * ADDRESS, m=m, n=n, k=k,
        a_stride=k, sfa_stride=(m + 3) // 4 * 4, b_stride=k, d_stride=n, num_sms=132, stream=7,
    )  # fmt: skip
    _jit.fp8_gemm_nt(**(arguments | changes))


def test_loads_without_torch_and_without_a_driver() -> None:
    script = (
        "import importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('seekernel._jit', {_jit.__file__!r})\n"
        "module = importlib.util.module_from_spec(spec)\nspec.loader.exec_module(module)\n"
        "assert 'torch' not in sys.modules\nprint(module.driver_status())\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    needed = subprocess.run(["ldd", _jit.__file__], capture_output=True, text=True).stdout
    assert "cuda" not in needed
    assert "torch" not in needed


@pytest.mark.skipif(_jit.driver_status() == "", reason="there is a driver here")
def test_without_a_driver_everything_says_so() -> None:
    message = "CUDA driver: libcuda.so.1 cannot be loaded"
    assert _jit.driver_status() == message
    for call in (
        _jit.driver_version,
        _jit.current_num_sms,
        lambda: _jit.Kernel(b"", "x", 128),
    ):
        with pytest.raises(RuntimeError, match=message):
            call()


def test_our_declarations_are_those_of_cuda_h(tmp_path: Path) -> None:
    """The driver's interface as we wrote it down, against the toolkit's header."""
    nvcc_or_skip()
    header = find_nvcc().resolve().parent.parent / "include"
    candidates = [
        header,
        *Path("/usr/local").glob("cuda*/include"),
        *header.parent.glob("targets/*/include"),
    ]
    found = [path for path in candidates if (path / "cuda.h").exists()]
    if not found or shutil.which("c++") is None:
        pytest.skip("no cuda.h or no C++ compiler here")
    source = tmp_path / "same.cpp"
    source.write_text("""
#include <cuda.h>
#include <cstddef>
#include "driver/driver.h"
using namespace seekernel::cu;
static_assert(sizeof(LaunchConfig) == sizeof(CUlaunchConfig));
static_assert(offsetof(LaunchConfig, block) == offsetof(CUlaunchConfig, blockDimX));
static_assert(offsetof(LaunchConfig, shared_bytes) == offsetof(CUlaunchConfig, sharedMemBytes));
static_assert(offsetof(LaunchConfig, stream) == offsetof(CUlaunchConfig, hStream));
static_assert(offsetof(LaunchConfig, attributes) == offsetof(CUlaunchConfig, attrs));
static_assert(offsetof(LaunchConfig, num_attributes) == offsetof(CUlaunchConfig, numAttrs));
static_assert(sizeof(LaunchAttribute) == sizeof(CUlaunchAttribute));
static_assert(offsetof(LaunchAttribute, value) == offsetof(CUlaunchAttribute, value));
static_assert(sizeof(seekernel::cu::CUtensorMap) == sizeof(::CUtensorMap));
static_assert(alignof(seekernel::cu::CUtensorMap) >= alignof(::CUtensorMap));
static_assert(kClusterDimension == (int)CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION);
static_assert(kProgrammaticStreamSerialization ==
              (int)CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION);
static_assert(kLocalBytes == (int)CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES);
static_assert(kNumRegisters == (int)CU_FUNC_ATTRIBUTE_NUM_REGS);
static_assert(kMaxDynamicSharedBytes == (int)CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES);
static_assert((int)ElementType::kUint8 == (int)CU_TENSOR_MAP_DATA_TYPE_UINT8);
static_assert((int)ElementType::kUint16 == (int)CU_TENSOR_MAP_DATA_TYPE_UINT16);
static_assert((int)ElementType::kInt32 == (int)CU_TENSOR_MAP_DATA_TYPE_INT32);
static_assert((int)ElementType::kFloat16 == (int)CU_TENSOR_MAP_DATA_TYPE_FLOAT16);
static_assert((int)L2Promotion::k128 == (int)CU_TENSOR_MAP_L2_PROMOTION_L2_128B);
static_assert((int)ElementType::kFloat32 == (int)CU_TENSOR_MAP_DATA_TYPE_FLOAT32);
static_assert((int)ElementType::kBfloat16 == (int)CU_TENSOR_MAP_DATA_TYPE_BFLOAT16);
static_assert((int)Swizzle::k32 == (int)CU_TENSOR_MAP_SWIZZLE_32B);
static_assert((int)Swizzle::k64 == (int)CU_TENSOR_MAP_SWIZZLE_64B);
static_assert((int)Swizzle::k128 == (int)CU_TENSOR_MAP_SWIZZLE_128B);
static_assert((int)L2Promotion::k256 == (int)CU_TENSOR_MAP_L2_PROMOTION_L2_256B);
static_assert(16 == (int)CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT);
static_assert(75 == (int)CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR);
static_assert(76 == (int)CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR);
int main() {}
""")
    command = ["c++", "-std=c++20", "-fsyntax-only", f"-I{found[0]}", f"-I{ROOT / 'csrc'}", source]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_gemm_launch(null_driver: list[tuple[str, tuple[int, ...]]]) -> None:
    before = _jit.last_launch()
    _gemm(m=200, n=264, k=512)
    config = _jit.choose_gemm(200, 264, 512)
    threads, shared_bytes, _, _ = _jit.gemm_resources(config, 512)
    launch = _jit.last_launch()
    assert launch["grid"] == (-(-264 // config.block_n) * -(-200 // config.block_m), 1, 1)
    assert launch["block"] == (threads, 1, 1)
    assert launch["shared_bytes"] == shared_bytes
    assert launch["stream"] == 7
    assert launch["pdl"] is True
    assert launch["cluster"] is None
    assert null_driver == [("sm90_fp8_gemm_nt", config.parameters)]
    assert launch["num_launches"] - before["num_launches"] == 1


def test_kernels_are_asked_for_once_and_maps_encoded_once(
    null_driver: list[tuple[str, tuple[int, ...]]],
) -> None:
    before = _jit.last_launch()
    for _ in range(3):
        _gemm()
    after = _jit.last_launch()
    assert len(null_driver) == 1
    assert after["num_loads"] - before["num_loads"] == 1
    assert after["num_encodes"] - before["num_encodes"] == 4
    assert after["num_launches"] - before["num_launches"] == 3
    _gemm(a=ADDRESS + 4096)
    assert _jit.last_launch()["num_encodes"] - after["num_encodes"] == 1
    assert _jit.num_tensor_maps() == 5
    assert _jit.num_kernels() == 1


def test_cluster_and_pdl_attributes(null_driver: list[tuple[str, tuple[int, ...]]]) -> None:
    kernel = _jit.Kernel(b"cubin", "symbol", 128, 100_000, (2, 1, 1), True)
    kernel.launch((4, 3, 2), 1000, [b"\1" * 8, b"\2" * 128], 9)
    launch = _jit.last_launch()
    assert launch["cluster"] == (2, 1, 1)
    assert launch["pdl"] is True
    assert launch["grid"] == (4, 3, 2)
    assert launch["shared_bytes"] == 1000
    _jit.Kernel(b"cubin", "symbol", 64).launch((1, 1, 1), 0, [])
    launch = _jit.last_launch()
    assert launch["cluster"] is None
    assert launch["pdl"] is False
    with pytest.raises(ValueError, match="argument 0: expected at most 256 bytes, got 257"):
        kernel.launch((1, 1, 1), 0, [bytes(257)])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(m=0), "m: expected at least 1"),
        (dict(n=12, d_stride=16), "n: expected a positive multiple of 8, got 12"),
        (dict(k=500), "k: expected a positive multiple of 128, got 500"),
        (dict(a=ADDRESS + 8), "16-byte alignment of a, b, sfa and d"),
        (dict(a_stride=496), "a_stride: expected a multiple of 16, at least k, got 496"),
        (dict(b_stride=520), "b_stride: expected a multiple of 16, at least k, got 520"),
        (dict(d_stride=248), "d_stride: expected a multiple of 8, at least n, got 248"),
        (dict(sfa_stride=12), "sfa_stride: expected a multiple of 4, at least m, got 12"),
    ],
)
def test_gemm_rejects(
    null_driver: list[tuple[str, tuple[int, ...]]], changes: dict[str, int], message: str
) -> None:
    before = _jit.last_launch()["num_launches"]
    with pytest.raises(ValueError, match=message):
        _gemm(**changes)
    assert _jit.last_launch()["num_launches"] == before


def test_a_missing_kernel_is_compiled_through_the_cache(
    null_driver: list[tuple[str, tuple[int, ...]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jit = tiny_jit(tmp_path)
    jit.headers = installed_headers()
    native.install(jit)
    _gemm()
    _gemm()
    config = _jit.choose_gemm(16, 256, 512)
    assert jit.num_compiled == 1
    assert jit.cache.get(jit.key(kernel_spec("sm90_fp8_gemm_nt", config.parameters))) is not None
    _jit.clear()
    monkeypatch.setenv("TRTLLM_DG_ENABLED", "0")
    with pytest.raises(JitDisabled):
        _gemm()


def test_a_fresh_kernel_is_loaded_before_it_is_published(
    null_driver: list[tuple[str, tuple[int, ...]]], tmp_path: Path
) -> None:
    assert _jit.check_loads(b"cubin", "symbol") is True
    before = _jit.last_launch()["num_loads"]
    options = tiny_jit(tmp_path)
    jit = Jit(options.cache, options.compiler, options.headers, validate=require_loads)
    jit.artifact(tiny_spec(1))
    assert _jit.last_launch()["num_loads"] == before + 1
    jit.artifact(tiny_spec(1))
    assert _jit.last_launch()["num_loads"] == before + 1


@pytest.mark.skipif(_jit.driver_status() == "", reason="there is a driver here")
def test_without_a_driver_nothing_is_loaded() -> None:
    assert _jit.check_loads(b"cubin", "symbol") is False


def test_no_resolver_is_an_error(null_driver: list[tuple[str, tuple[int, ...]]]) -> None:
    _jit.set_resolver(None)
    with pytest.raises(RuntimeError, match="sm90_fp8_gemm_nt: no resolver is set"):
        _gemm()
