"""The GEMM ops on a Hopper GPU: every path of the chain against the reference, and against each other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path as FilePath

import pytest
import torch
from torch import Tensor

from seekernel import _extension, _jit, ops, reference
from seekernel.jit import Jit, KernelCache, native
from seekernel.jit.loader import require_loads
from seekernel.ops import paths
from seekernel.ops.paths import Path
from tests.gemm_testing import make_weights, randn
from tests.jit_testing import nvrtc_or_skip

HAS_HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability()[0] == 9
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not HAS_HOPPER, reason="no Hopper GPU"),
    pytest.mark.skipif(not _extension.build_info()["cuda_version"], reason="built without CUDA"),
]
FP8 = torch.float8_e4m3fn


@pytest.fixture(autouse=True)
def chain(tmp_path: FilePath) -> Iterator[None]:
    """A compiler with a cache of its own; nothing chosen before, nothing kept after."""
    torch.zeros(1, device="cuda")
    _jit.clear()
    native.install(Jit(KernelCache(tmp_path), nvrtc_or_skip(), validate=require_loads))
    paths.reset()
    yield
    torch.cuda.synchronize()
    paths.reset()
    _jit.clear()
    _jit.set_resolver(None)


def problem(m: int, n: int, k: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Quantised operands on the CPU; NaN in the scales of rows that do not exist."""
    a, a_scale = reference.quantize_fp8_1x128(randn(m, k, seed=m + k))
    a_scale[:, m:] = float("nan")
    weights = make_weights(FP8, n, k, seed=n)
    assert weights.scale is not None
    return a, a_scale, weights.values, weights.scale


def guarded(m: int, n: int) -> tuple[Tensor, Tensor]:
    """An output inside a buffer of NaN, and the buffer."""
    buffer = torch.full((m + 2, n + 16), float("nan"), dtype=torch.bfloat16, device="cuda")
    return buffer[1 : m + 1, 8 : n + 8], buffer


def assert_guards_untouched(buffer: Tensor, m: int, n: int) -> None:
    rest = buffer.clone()
    rest[1 : m + 1, 8 : n + 8] = float("nan")
    assert rest.isnan().all(), "wrote outside of the output"


def assert_close(got: Tensor, want: Tensor) -> None:
    """One rounding to bfloat16, and the tensor cores' sums of 128 products, which keep some 13 bits."""
    error = (got.double() - want).abs()
    budget = want.abs() * 2.0**-8 + want.abs().max() * 2.0**-11
    assert (error <= budget).all(), f"largest excess {(error - budget).max().item():.3e}"


DENSE = [
    *((m, 520, 384) for m in (1, 7, 8, 9, 31, 32, 33, 63, 64, 65, 127, 128, 129, 200)),
    (1, 2112, 7168), (17, 576, 7168), (64, 24576, 1536), (128, 32768, 512), (300, 7168, 2048), (5, 8, 128),
]  # fmt: skip


@pytest.mark.parametrize(("m", "n", "k"), DENSE)
def test_fp8_gemm_nt_on_both_paths(m: int, n: int, k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    operands = problem(m, n, k)
    want = reference.fp8_gemm_nt(*operands)
    on_gpu = [x.cuda() for x in operands]
    results: dict[Path, Tensor] = {}
    for enabled, path in (("1", Path.JIT), ("0", Path.AOT)):
        monkeypatch.setenv("TRTLLM_DG_ENABLED", enabled)
        paths.reset()
        for attempt in range(2):
            out, buffer = guarded(m, n)
            ops.fp8_gemm_nt(*on_gpu, out=out)
            assert_guards_untouched(buffer, m, n)
            assert_close(out.cpu(), want)
            first = results.setdefault(path, out.clone())
            assert torch.equal(out.view(torch.int16), first.view(torch.int16)), attempt
        assert [choice.path for choice in paths.choices()] == [path]
    assert torch.equal(results[Path.JIT].view(torch.int16), results[Path.AOT].view(torch.int16))


def test_every_aot_configuration() -> None:
    operands = problem(193, 520, 1024)
    want = reference.fp8_gemm_nt(*operands)
    on_gpu = [x.cuda() for x in operands]
    for m in (1, 8, 16, 32, 64, 96, 128, 193):
        out = torch.full((m, 520), float("nan"), dtype=torch.bfloat16, device="cuda")
        scale = on_gpu[1][:, : (m + 3) // 4 * 4].contiguous()
        torch.ops.seekernel.fp8_gemm_nt(on_gpu[0][:m], scale, *on_gpu[2:], out)
        assert_close(out.cpu(), want[:m])


@pytest.mark.parametrize("enabled", ["0", "1"])
def test_what_no_kernel_takes_is_answered_all_the_same(
    enabled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRTLLM_DG_ENABLED", enabled)
    paths.reset()
    for m, n, k in ((3, 12, 256), (3, 16, 200), (5, 130, 131)):
        operands = problem(m, n, k)
        got = ops.fp8_gemm_nt(*(x.cuda() for x in operands))
        assert_close(got.cpu(), reference.fp8_gemm_nt(*operands))
    a, b = randn(3, 256), make_weights(FP8, 64, 256)
    assert b.scale is not None
    got = ops.fp8_gemm_nt(a.cuda(), None, b.values.cuda(), b.scale.cuda())
    torch.testing.assert_close(
        got.cpu().double(), reference.fp8_gemm_nt(a, None, b.values, b.scale), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("enabled", ["0", "1"])
def test_graph_and_stream(enabled: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRTLLM_DG_ENABLED", enabled)
    paths.reset()
    operands = [x.cuda() for x in problem(33, 2112, 1024)]
    want = ops.fp8_gemm_nt(*operands)
    out = torch.empty_like(want)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        ops.fp8_gemm_nt(*operands, out=out)
    stream.synchronize()
    assert torch.equal(out, want)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(3):
            ops.fp8_gemm_nt(*operands, out=out)
    out.zero_()
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(out, want)


def test_empty_and_rejects() -> None:
    a, a_scale, b, b_scale = (x.cuda() for x in problem(4, 64, 256))
    empty = ops.fp8_gemm_nt(a[:0], a_scale[:, :0], b, b_scale)
    assert empty.shape == (0, 64)
    with pytest.raises(RuntimeError, match=r"fp8_gemm_nt: b_scale: expected shape \[1, 2\]"):
        ops.fp8_gemm_nt(a, a_scale, b, b_scale[:, :1])
    with pytest.raises(RuntimeError, match="b: expected the device"):
        ops.fp8_gemm_nt(a, a_scale, b.cpu(), b_scale)
    with pytest.raises(RuntimeError, match="a_scale: expected"):
        torch.ops.seekernel.fp8_gemm_nt(
            a, None, b, b_scale, a.new_empty(4, 64, dtype=torch.bfloat16)
        )
