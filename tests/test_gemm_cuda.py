"""The GEMM ops on a Hopper GPU: every path of the chain against the reference, and against each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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


# ---- batched and grouped ----


def both_paths(monkeypatch: pytest.MonkeyPatch, call: Callable[[], Tensor]) -> Tensor:
    """The result, the same bits by kernels of run time and of build time, and on a second run."""
    results = []
    for enabled in ("1", "0"):
        monkeypatch.setenv("TRTLLM_DG_ENABLED", enabled)
        paths.reset()
        results += [call().clone(), call().clone()]
        want = Path.JIT if enabled == "1" else Path.AOT
        assert {choice.path for choice in paths.choices()} == {want}
    for other in results[1:]:
        assert torch.equal(other.view(torch.uint8), results[0].view(torch.uint8))
    return results[0]


def counts_of(case: str) -> list[int]:
    cases = {
        "few": [1, 0, 7, 8, 9],
        "edges": [31, 32, 33, 63, 64, 65, 127, 128, 129, 200],
        "hot": [0, 0, 300, 0],
        "none": [0, 0],
        "256 experts": [i % 5 for i in range(256)],
    }
    return cases[case]


@pytest.mark.parametrize("layout", ["offsets", "offsets64", "tile_map", "contiguous", "masked"])
@pytest.mark.parametrize("case", ["few", "edges", "hot", "none", "256 experts"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_grouped(
    layout: str, case: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts, n, k = counts_of(case), 264, 512
    g, size = len(counts), max(max(counts_of(case)), 1)
    weights = make_weights(FP8, g, n, k)
    assert weights.scale is not None
    step = {"contiguous": 128, "masked": size}.get(layout, 1)
    starts, row = [], 0
    for count in counts:
        starts.append(row)
        row += size if layout == "masked" else -(-count // step) * step
    rows = row + (0 if layout == "masked" else 5)
    x = randn(rows, k)
    live = torch.zeros(rows, dtype=torch.bool)
    indices = torch.full((rows,), -1, dtype=torch.int32)
    for i, count in enumerate(counts):
        live[starts[i] : starts[i] + count] = True
        indices[starts[i] : starts[i] + count] = i
    tile_map = None
    if layout == "masked":
        pairs = [reference.quantize_fp8_1x128(part) for part in x.view(g, size, k)]
        a = torch.stack([q.view(torch.uint8) for q, _ in pairs])
        a[~live.view(g, size)] = 0x7F
        a, a_scale = a.view(FP8), torch.stack([scale for _, scale in pairs])
        groups, kind = torch.tensor(counts, dtype=torch.int32), "masked"
        out_shape: tuple[int, ...] = (g, size, n)
    else:
        a, a_scale = reference.quantize_fp8_1x128(x)
        a.view(torch.uint8)[~live] = 0x7F
        offsets = torch.tensor([*starts, starts[-1] + counts[-1]])
        groups = offsets if layout == "offsets64" else offsets.to(torch.int32)
        kind, out_shape = "offsets", (rows, n)
        if layout == "contiguous":
            groups, kind = indices, "contiguous"
        if layout == "tile_map":
            tiles = [
                (i, starts[i] + r, min(64, count - r), 0)
                for i, count in enumerate(counts)
                for r in range(0, count, 64)
            ]
            padded = torch.tensor([*tiles, (0, 0, 0, 0)], dtype=torch.int32)
            tile_map = (padded.cuda(), torch.tensor([len(tiles)], dtype=torch.int32).cuda())
    want = reference.fp8_grouped_gemm_nt(
        a, a_scale, weights.values, weights.scale, groups, layout=kind
    )
    operands = [t.cuda() for t in (a, a_scale, weights.values, weights.scale, groups)]

    def call() -> Tensor:
        out = torch.full(out_shape, 77.0, dtype=dtype, device="cuda")
        return ops.fp8_grouped_gemm_nt(*operands, out, layout=kind, tile_map=tile_map)

    got = both_paths(monkeypatch, call).cpu().reshape(-1, n)
    want = want.reshape(-1, n)
    assert (got[~live] == 77).all(), "wrote rows of nobody"
    if live.any():
        assert_close(got[live], want[live])


@pytest.mark.parametrize("gather", [False, True])
@pytest.mark.parametrize("case", ["few", "edges", "256 experts"])
def test_swiglu(case: str, gather: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    counts, n, k = counts_of(case), 256, 512
    total = sum(counts)
    weights = make_weights(FP8, len(counts), 2 * n, k, halves=2)
    assert weights.scale is not None
    a, a_scale = reference.quantize_fp8_1x128(randn(total, k))
    offsets = torch.tensor([0, *counts]).cumsum(0).to(torch.int32)
    token = torch.randperm(total).to(torch.int32) if gather else None
    arguments = (a, a_scale, weights.values, weights.scale, offsets, token)
    want = reference.fp8_grouped_gemm_swiglu_nt(*arguments)
    on_gpu = [None if t is None else t.cuda() for t in arguments]
    scale = torch.empty(n // 128, -(-total // 4) * 4, device="cuda")

    def call() -> Tensor:
        out = torch.zeros(total, n, dtype=torch.uint8, device="cuda").view(FP8)
        return ops.fp8_grouped_gemm_swiglu_nt(*on_gpu, out, out_scale=scale)

    got = both_paths(monkeypatch, call).cpu().double()
    per_value = scale[:, :total].t().cpu().double().repeat_interleave(128, 1)
    amax = want.view(total, -1, 128).abs().amax(-1).clamp(min=1e-4) / 448
    torch.testing.assert_close(scale[:, :total].t().cpu().double(), amax, rtol=2e-3, atol=0)
    error = (got * per_value - want).abs()
    assert (error <= want.abs() / 14 + amax.repeat_interleave(128, 1) * 2.0**-6 * 1.1).all()


@pytest.mark.parametrize(("m", "n", "k"), [(1, 512, 128), (33, 128, 512), (130, 136, 256)])
def test_batched(m: int, n: int, k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    h = 5
    weights = make_weights(FP8, h, n, k)
    assert weights.scale is not None
    pairs = [reference.quantize_fp8_1x128(randn(m, k, seed=i)) for i in range(h)]
    a = torch.stack([q.view(torch.uint8) for q, _ in pairs]).view(FP8)
    a_scale = torch.stack([scale for _, scale in pairs])
    arguments = (a, a_scale, weights.values, weights.scale)
    want = reference.fp8_bmm_nt(*arguments)
    on_gpu = [t.cuda() for t in arguments]
    # Operands and result as heads of [m, h, .] tokens.
    on_gpu[0] = on_gpu[0].transpose(0, 1).contiguous().transpose(0, 1)

    def call() -> Tensor:
        out = torch.zeros(m, h, n, dtype=torch.bfloat16, device="cuda").transpose(0, 1)
        return ops.fp8_bmm_nt(*on_gpu, out=out)

    assert_close(both_paths(monkeypatch, lambda: call().contiguous()).cpu(), want)
    x, w = randn(m, h, k).bfloat16(), randn(h, n, k).bfloat16()
    out = torch.full((m + 1, h, n + 8), 77.0, dtype=torch.bfloat16, device="cuda")
    target = out[:m, :, :n].transpose(0, 1)
    ops.bmm_nt(x.cuda().transpose(0, 1), w.cuda(), target)
    assert_close(target.cpu(), reference.bmm_nt(x.transpose(0, 1), w))
    assert (out[m] == 77).all()
    assert (out[:, :, n:] == 77).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("m", "k"), [(1, 128), (3, 300), (130, 7168), (5, 1030)])
def test_quantisers(m: int, k: int, dtype: torch.dtype) -> None:
    x = randn(m, k).to(dtype)
    for name in ("quantize_fp8_1x128", "quantize_fp8_128x128", "quantize_int4_g128"):
        got = getattr(ops, name)(x.cuda())
        for mine, right in zip(got, getattr(reference, name)(x), strict=True):
            assert torch.equal(mine.cpu().view(torch.uint8), right.view(torch.uint8)), name
    q, scale = reference.quantize_fp8_128x128(x)
    got = ops.dequantize_fp8_128x128(q.cuda(), scale.cuda(), dtype)
    assert torch.equal(got.cpu(), ops.dequantize_fp8_128x128(q, scale, dtype))
