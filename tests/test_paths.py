"""The chain JIT, AOT, reference: what is chosen, what is said about it, and that there is always an answer.

No GPU is needed: the driver that launches nothing stands in for it, and the tensors lie on the CPU.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from seekernel import _jit, reference
from seekernel.jit import CompileError, native
from seekernel.ops import _gemm_cuda, _gemm_shared, _grouped_gemm_cuda, paths
from seekernel.ops.paths import Chain, NoKernel, Path
from tests.gemm_testing import make_weights, randn

FP8 = torch.float8_e4m3fn


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine with an H100, as far as the choice and the launch path can tell."""
    _jit.use_null_driver(True)
    _jit.clear()
    _jit.set_resolver(lambda family, values: (b"cubin", "symbol"))
    monkeypatch.setattr(paths, "capability", lambda device: (9, 0))
    monkeypatch.setattr(paths, "build_info", lambda: {"cuda_version": "13.0"})
    monkeypatch.setattr(_gemm_shared, "is_current", lambda device: True)
    monkeypatch.setattr(_gemm_shared, "stream", lambda device: (132, 7))
    paths.reset()
    yield
    paths.reset()
    _jit.clear()
    _jit.set_resolver(None)
    _jit.use_null_driver(False)


def chain_of(log: list[str], **failing: Exception) -> Chain:
    def call(name: str) -> paths.Call:
        def run(*arguments: object) -> None:
            log.append(name)
            if name in failing:
                raise failing[name]

        return run

    chain = Chain("test_op", jit=call("jit"), aot=call("aot"), reference=call("reference"))
    paths._chains.remove(chain)
    return chain


def test_jit_first_and_chosen_once(hopper: None, caplog: pytest.LogCaptureFixture) -> None:
    log: list[str] = []
    chain = chain_of(log)
    with caplog.at_level(logging.DEBUG, "seekernel.ops"):
        for _ in range(3):
            chain(0, (64, 128))
        chain(0, (64, 256))
    assert log == ["jit"] * 4
    assert [record.message for record in caplog.records] == [
        "test_op [64, 128] on cuda:0: jit",
        "test_op [64, 256] on cuda:0: jit",
    ]


def test_disabled_jit_leaves_aot(hopper: None, monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    chain = chain_of(log)
    monkeypatch.setenv("TRTLLM_DG_ENABLED", "0")
    chain(0, (64, 128))
    assert log == ["aot"]
    assert str(chain.choices[0, (64, 128)]) == (
        "test_op [64, 128] on cuda:0: aot (jit: TRTLLM_DG_ENABLED=0)"
    )
    monkeypatch.setenv("TRTLLM_DG_ENABLED", "1")
    chain(0, (64, 128))
    assert log == ["aot", "aot"], "the choice is kept"
    chain.reset()
    chain(0, (64, 128))
    assert log[-1] == "jit"


def test_other_gpus_and_builds_get_the_reference(
    hopper: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    log: list[str] = []
    chain = chain_of(log)
    monkeypatch.setattr(paths, "capability", lambda device: (8, 0))
    chain(0, (64, 128))
    assert log == ["reference"]
    assert "compute capability 8.0" in str(chain.choices[0, (64, 128)])
    monkeypatch.setattr(paths, "capability", lambda device: (9, 0))
    monkeypatch.setattr(paths, "build_info", lambda: {"cuda_version": ""})
    monkeypatch.setenv("TRTLLM_DG_ENABLED", "0")
    chain.reset()
    chain(0, (64, 128))
    assert log == ["reference"] * 2
    assert chain.choices[0, (64, 128)].skipped == (
        "jit: TRTLLM_DG_ENABLED=0",
        "aot: built without CUDA",
    )


def test_a_failed_compilation_falls_to_aot_for_good(
    hopper: None, caplog: pytest.LogCaptureFixture
) -> None:
    log: list[str] = []
    chain = chain_of(log, jit=CompileError("kernel", "nvrtc", "no such header"))
    chain(0, (64, 128))
    chain(0, (64, 128))
    assert log == ["jit", "aot", "aot"]
    assert "kernel: nvrtc failed" in caplog.text
    assert chain.choices[0, (64, 128)].path is Path.AOT


def test_arguments_that_no_kernel_takes(hopper: None) -> None:
    log: list[str] = []
    chain = chain_of(log, jit=NoKernel("odd"))
    chain(0, (64, 128))
    assert log == ["jit", "reference"]
    assert chain.choices[0, (64, 128)].path is Path.JIT, "other arguments of this shape may fit"


def test_other_errors_are_not_swallowed(hopper: None) -> None:
    log: list[str] = []
    chain = chain_of(log, jit=RuntimeError("cuLaunchKernelEx: CUDA_ERROR_LAUNCH_FAILED (719)"))
    with pytest.raises(RuntimeError, match="719"):
        chain(0, (64, 128))
    assert log == ["jit"]


# ---- fp8_gemm_nt ----


def operands(m: int, n: int, k: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    a, a_scale = reference.quantize_fp8_1x128(randn(m, k))
    weights = make_weights(FP8, n, k)
    assert weights.scale is not None
    return a, a_scale, weights.values, weights.scale


def run(*tensors: Tensor | None, out: Tensor) -> None:
    _gemm_cuda.fp8_gemm_nt(0, tuple(tensors[2].shape), *tensors, out)  # type: ignore[union-attr]


def test_fp8_gemm_nt_launches(hopper: None) -> None:
    before = _jit.last_launch()["num_launches"]
    out = torch.empty(33, 264, dtype=torch.bfloat16)
    run(*operands(33, 264, 512), out=out)
    config = _jit.choose_gemm(33, 264, 512)
    launch = _jit.last_launch()
    assert launch["num_launches"] == before + 1
    assert launch["stream"] == 7
    assert launch["grid"][0] * config.block_n >= 264
    run(*operands(0, 264, 512), out=torch.empty(0, 264, dtype=torch.bfloat16))
    assert _jit.last_launch()["num_launches"] == before + 1, "an empty batch launches nothing"


@pytest.mark.parametrize("enabled", ["0", "1"])
@pytest.mark.parametrize(("m", "n", "k"), [(3, 12, 256), (3, 16, 200), (5, 130, 131)])
def test_odd_sizes_are_answered_by_the_reference(
    hopper: None, monkeypatch: pytest.MonkeyPatch, enabled: str, m: int, n: int, k: int
) -> None:
    monkeypatch.setenv("TRTLLM_DG_ENABLED", enabled)
    before = _jit.last_launch()["num_launches"]
    tensors = operands(m, n, k)
    out = torch.full((m, n), float("nan"))
    run(*tensors, out=out)
    torch.testing.assert_close(out.double(), reference.fp8_gemm_nt(*tensors), rtol=1e-5, atol=1e-4)
    assert _jit.last_launch()["num_launches"] == before


def test_the_reference_takes_weights_in_parts(
    hopper: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "capability", lambda device: (8, 0))
    monkeypatch.setattr(_gemm_shared, "PART_VALUES", 1)
    tensors = operands(5, 300, 256)
    out = torch.full((5, 300), float("nan"))
    run(*tensors, out=out)
    torch.testing.assert_close(out.double(), reference.fp8_gemm_nt(*tensors), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("capability", [(9, 0), (8, 0)])
def test_rejects_in_the_words_of_the_cpu_op(
    hopper: None, monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]
) -> None:
    monkeypatch.setattr(paths, "capability", lambda device: capability)
    a, a_scale, b, b_scale = operands(5, 256, 256)
    out = torch.empty(5, 256, dtype=torch.bfloat16)
    for wrong, message in (
        ((a, a_scale[:, :4], b, b_scale, out), r"a_scale: expected shape \[2, 8\]"),
        ((a, a_scale, b[:, :128], b_scale, out), r"b: expected shape \[256, 256\]"),
        ((a, a_scale, b, b_scale[:1], out), r"b_scale: expected shape \[2, 2\]"),
        ((a, a_scale, b, b_scale, out[:4]), r"out: expected shape \[5, 256\]"),
        ((a, a_scale, b, b_scale, out.int()), "out: expected dtype float32 or bfloat16"),
        ((a, a_scale.double(), b, b_scale, out), "a_scale: expected dtype float32"),
        ((a, None, b, b_scale, out), "a_scale: expected a tensor as a is float8_e4m3fn"),
    ):
        with pytest.raises(RuntimeError, match=f"fp8_gemm_nt: {message}"):
            run(*wrong[:4], out=wrong[4])


# ---- batched and grouped: every form launches, and the reference answers where no kernel can ----


def stacks(fp8_out: bool = False) -> dict[str, Tensor]:
    """Operands of three groups; masked ones as stacks of eight rows."""
    weights = make_weights(FP8, 3, 256, 256, halves=2 if fp8_out else 1)
    assert weights.scale is not None
    pairs = [reference.quantize_fp8_1x128(randn(8, 256, seed=i)) for i in range(3)]
    return {
        "a": torch.cat([q.view(torch.uint8) for q, _ in pairs]).view(FP8),
        "a_scale": torch.cat([scale for _, scale in pairs], 1),
        "stack": torch.stack([q.view(torch.uint8) for q, _ in pairs]).view(FP8),
        "stack_scale": torch.stack([scale for _, scale in pairs]),
        "b": weights.values,
        "b_scale": weights.scale,
        "offsets": torch.tensor([0, 3, 3, 20], dtype=torch.int32),
        "m_indices": torch.tensor([0] * 8 + [-1] * 8 + [2] * 8, dtype=torch.int32),
        "masked_m": torch.tensor([3, 0, 8], dtype=torch.int32),
    }


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("layout", ["offsets", "contiguous", "masked", "tile_map"])
@pytest.mark.parametrize("capability", [(9, 0), (8, 0)])
def test_grouped(
    hopper: None,
    monkeypatch: pytest.MonkeyPatch,
    capability: tuple[int, int],
    layout: str,
    dtype: torch.dtype,
) -> None:
    monkeypatch.setattr(paths, "capability", lambda device: capability)
    x = stacks()
    masked = layout == "masked"
    a, a_scale = (x["stack"], x["stack_scale"]) if masked else (x["a"], x["a_scale"])
    names = {"offsets": "offsets", "contiguous": "m_indices", "masked": "masked_m"}
    groups, kind = x[names.get(layout, "offsets")], layout if layout in names else "offsets"
    mapped: tuple[Tensor | None, Tensor | None] = (None, None)
    if layout == "tile_map":
        mapped = (torch.zeros(4, 4, dtype=torch.int32), torch.ones(1, dtype=torch.int32))
    out = torch.full((*a.shape[:-1], 256), 77.0, dtype=dtype)
    before = _jit.last_launch()["num_launches"]
    _grouped_gemm_cuda.fp8_grouped_gemm_nt(
        0,
        tuple(x["b"].shape),
        a,
        a_scale,
        x["b"],
        x["b_scale"],
        groups,
        out,
        kind,
        *mapped,
        None,
        0,
    )
    launched = _jit.last_launch()["num_launches"] - before
    if capability == (9, 0):
        assert launched == 1
        assert (out == 77).all()
        return
    assert launched == 0
    want = reference.fp8_grouped_gemm_nt(a, a_scale, x["b"], x["b_scale"], groups, layout=kind)
    live = (want != 0).any(-1)
    torch.testing.assert_close(out[live].double(), want[live], rtol=1e-2, atol=1e-2)
    assert (out[~live] == 77).all()


@pytest.mark.parametrize("gather", [False, True])
@pytest.mark.parametrize("capability", [(9, 0), (8, 0)])
def test_swiglu(
    hopper: None, monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], gather: bool
) -> None:
    monkeypatch.setattr(paths, "capability", lambda device: capability)
    x = stacks(fp8_out=True)
    token = torch.arange(23, -1, -1, dtype=torch.int32) if gather else None
    out = torch.zeros(24, 128, dtype=torch.uint8).view(FP8)
    scale = torch.zeros(1, 24)
    before = _jit.last_launch()["num_launches"]
    _grouped_gemm_cuda.fp8_grouped_gemm_swiglu_nt(
        0, tuple(x["b"].shape), x["a"], x["a_scale"], x["b"], x["b_scale"], x["offsets"], token, out,
        scale, None, None, 0,
    )  # fmt: skip
    launched = _jit.last_launch()["num_launches"] - before
    assert launched == (capability == (9, 0))
    if launched:
        return
    want = reference.fp8_grouped_gemm_swiglu_nt(
        x["a"], x["a_scale"], x["b"], x["b_scale"], x["offsets"], token
    )
    got = out[:20].double() * scale[0, :20, None].double()
    assert ((got - want[:20]).abs() <= want[:20].abs() / 14 + want.abs().max() / 1000).all()
    assert not out[20:].view(torch.uint8).any()


@pytest.mark.parametrize("capability", [(9, 0), (8, 0)])
def test_batched(
    hopper: None, monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]
) -> None:
    monkeypatch.setattr(paths, "capability", lambda device: capability)
    x = stacks()
    out = torch.empty(3, 8, 256, dtype=torch.bfloat16)
    arguments = (x["stack"], x["stack_scale"], x["b"], x["b_scale"])
    before = _jit.last_launch()["num_launches"]
    _gemm_cuda.fp8_bmm_nt(0, tuple(x["b"].shape), *arguments, out)
    assert _jit.last_launch()["num_launches"] - before == (capability == (9, 0))
    if capability == (8, 0):
        want = reference.fp8_bmm_nt(*arguments)
        torch.testing.assert_close(out.double(), want, rtol=1e-2, atol=1e-2)
        a, b = randn(2, 3, 24).bfloat16(), randn(2, 5, 24).bfloat16()
        plain = torch.empty(2, 3, 5)
        _gemm_cuda.bmm_nt(0, tuple(b.shape), a, b, plain)
        torch.testing.assert_close(plain.double(), reference.bmm_nt(a, b), rtol=1e-5, atol=1e-5)


def test_int4_is_answered_by_the_reference(hopper: None) -> None:
    pairs = [reference.quantize_int4_g128(randn(40, 256, seed=i)) for i in range(2)]
    b, b_scale = (torch.stack(parts) for parts in zip(*pairs, strict=True))
    offsets = torch.tensor([0, 2, 5], dtype=torch.int32)
    a, alpha = randn(6, 256).to(FP8), torch.tensor([0.5])
    out = torch.full((6, 40), 77.0)
    run = _grouped_gemm_cuda.w4a8_grouped_gemm_nt
    run(0, tuple(b.shape), a, alpha, b, b_scale, offsets, out)
    want = reference.w4a8_grouped_gemm_nt(a, alpha, b, b_scale, offsets)
    torch.testing.assert_close(out[:5].double(), want[:5], rtol=1e-5, atol=1e-4)
    assert (out[5] == 77).all()
    with pytest.raises(RuntimeError, match="w4a8_grouped_gemm_nt: b: expected shape"):
        run(0, tuple(b.shape), a[:, :128], alpha, b, b_scale, offsets, out)


def test_a_resolver_that_is_there_is_kept() -> None:
    _jit.set_resolver(lambda family, values: (b"", ""))
    native.install_once()
    assert _jit.has_resolver()
    _jit.set_resolver(None)
    assert not _jit.has_resolver()
