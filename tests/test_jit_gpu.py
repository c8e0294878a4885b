"""The launch path on a real GPU: spec -> compiler -> cubin -> cuLibraryLoadData -> launch, against torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from seekernel import _jit
from seekernel.jit import Jit, KernelCache, native
from seekernel.jit.compiler import Compiler
from seekernel.jit.loader import require_loads
from tests.jit_testing import nvcc_or_skip, nvrtc_or_skip

pytestmark = pytest.mark.gpu


def _have_hopper() -> bool:
    return torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)


@pytest.fixture(params=["nvrtc", "nvcc"])
def jit(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Jit]:
    if not _have_hopper():
        pytest.skip("no Hopper GPU here")
    compiler: Compiler = nvrtc_or_skip() if request.param == "nvrtc" else nvcc_or_skip()
    torch.zeros(1, device="cuda")
    _jit.clear()
    service = Jit(KernelCache(tmp_path), compiler, validate=require_loads)
    native.install(service)
    yield service
    torch.cuda.synchronize()
    _jit.clear()
    _jit.set_resolver(None)
    _jit.set_tuned_gemms([])


def _quantize(x: Tensor, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """e4m3 values, scales of blocks of rows x 128, and what they stand for in float64."""
    m, k = x.shape
    padded = x.new_zeros(-(-m // rows) * rows, k)
    padded[:m] = x
    blocks = padded.view(-1, rows, k // 128, 128)
    scales = blocks.abs().amax(dim=(1, 3)).clamp(min=1e-4) / 448
    values = (blocks / scales[:, None, :, None]).view(-1, k)[:m].to(torch.float8_e4m3fn)
    per_value = scales.repeat_interleave(rows, 0)[:m].repeat_interleave(128, 1)
    return values, scales, values.double() * per_value.double()


def _check(m: int, n: int, k: int) -> Tensor:
    generator = torch.Generator("cuda").manual_seed(m + n + k)
    a, scale_a, real_a = _quantize(torch.randn(m, k, device="cuda", generator=generator), 1)
    b, sfb, real_b = _quantize(torch.randn(n, k, device="cuda", generator=generator), 128)
    stride = -(-m // 4) * 4
    sfa = torch.full((k // 128, stride), float("nan"), device="cuda")
    sfa[:, :m] = scale_a.T
    d = torch.full((m + 1, n), float("nan"), device="cuda", dtype=torch.bfloat16)
    stream = torch.cuda.current_stream().cuda_stream
    pointers = (a.data_ptr(), sfa.data_ptr(), b.data_ptr(), sfb.data_ptr(), d.data_ptr())
    sizes = (m, n, k, k, stride, k, n, 132, stream)
    _jit.fp8_gemm_nt(*pointers, *sizes)
    want, got = real_a @ real_b.T, d[:m].double()
    assert ((got - want).abs().max() / want.abs().max()).item() < 2.0**-8 * 1.1
    assert d[m:].isnan().all(), "rows beyond m were written"
    first = d[:m].clone()
    _jit.fp8_gemm_nt(*pointers, *sizes)
    assert torch.equal(first.view(torch.int16), d[:m].view(torch.int16))
    return first


@pytest.mark.parametrize(
    ("m", "n", "k"),
    [(1, 8, 128), (1, 2112, 7168), (17, 576, 7168), (65, 136, 384), (129, 4096, 7168),
     (300, 24576, 1536), (1000, 32768, 512), (4096, 7168, 2048)],
)  # fmt: skip
def test_fp8_gemm(jit: Jit, m: int, n: int, k: int) -> None:
    _check(m, n, k)
    assert jit.num_compiled == 1


@pytest.mark.parametrize("block_m", [64, 128])
@pytest.mark.parametrize("block_n", [16, 32, 64, 128])
def test_every_configuration(jit: Jit, block_m: int, block_n: int) -> None:
    row = dict(num_sms=132, n=520, k=1024, m_min=1, m_max=4096, grouped=False)
    results = []
    for num_stages in (3, 4):
        config = _jit.GemmConfig(False, block_m, block_n, num_stages)
        _jit.set_tuned_gemms([row | {"config": config}])
        results.append(_check(193, 520, 1024))
    assert torch.equal(results[0].view(torch.int16), results[1].view(torch.int16))
