"""mla_prepare, rope_interleaved, mla_gather_latent, merge_attention_states through their compiled PTX."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from seekernel import reference
from tests.emulator.launch import Array, Device, KernelFault
from tests.emulator.schedules import NINE_SCHEDULES
from tests.kernel_testing import BACKENDS, BuiltKernel, build, devices, to_torch
from tests.mla_prepare_testing import (
    EPS,
    FORMATS,
    launch_gather,
    launch_merge,
    launch_prepare,
    launch_rope,
    prepare_inputs,
    scale_of,
    stored,
)
from tests.mla_testing import BF16, F32, cos_sin, int32, offsets, paged, paged_fp8
from tests.op_testing import assert_error_within

FOLDER = "seekernel/attention"
ELEMENT = {F32: "float", BF16: "bfloat16_t"}
Edit = tuple[str, str]


def build_in(
    name: str, instance: str, edit: Edit | None = None, header: str | None = None
) -> BuiltKernel:
    edits = {f"{FOLDER}/{header or name}": [edit]} if edit else None
    return build(f"{FOLDER}/{name}", instance, edits=edits)


def check_prepare(kind: str, given: dict[str, Any], got: tuple[Array, Array]) -> None:
    """q_latent and the stored values, by the budgets of the CPU's tests; other rows untouched."""
    want_q, want = reference.mla_prepare(**given)
    naive_q, naive = reference.mla_prepare(**given, dtype=given["qkv_a"].dtype)
    if want_q is not None:
        assert_error_within(to_torch(got[0]), want_q, naive_q)
    kv_lora, scale = given["kv_norm_weight"].shape[0], given["kv_scale"]
    raw = torch.from_numpy(got[1].copy())
    before = given["kv_cache"].view(torch.uint8)
    live = given["slots"][given["slots"] >= 0].long()
    dead = torch.ones(raw.shape[0] * raw.shape[1], dtype=torch.bool)
    dead[live] = False
    assert torch.equal(raw.flatten(0, 1)[dead], before.flatten(0, 1)[dead]), "touched other rows"
    cache = raw.view(given["kv_cache"].dtype)
    values = reference.latent_values(cache, kv_lora, scale).flatten(0, 1)[live]
    want = want.flatten(0, 1)[live]
    if kind in ("float", "bfloat16"):
        assert_error_within(values.to(cache.dtype), want, naive.flatten(0, 1)[live].to(cache.dtype))
        return
    if scale is None:
        codes = raw.flatten(0, 1)[live]
        multipliers = codes[:, kv_lora : kv_lora + kv_lora // 32].contiguous().view(F32).double()
        amax = want[:, :kv_lora].unflatten(-1, (-1, 128)).abs().amax(-1)
        assert (torch.frexp(multipliers)[0] == 0.5).all(), "powers of two"
        assert ((amax <= 448.001 * multipliers) & (amax >= 223.999 * multipliers)).all()
        steps = multipliers.repeat_interleave(128, 1)
        steps = torch.cat([steps, torch.zeros(len(live), want.shape[1] - kv_lora)], 1)
    else:
        steps = scale.double().expand(want.shape)
        want = want.clamp(-448 * steps, 448 * steps)
    half_step = torch.where(steps > 0, want.abs() / 16 + steps / 1024, want.abs() / 256)
    slack = 1e-5 * half_step + 1e-6 * want.abs().amax(-1, keepdim=True)
    assert ((values - want).abs() <= half_step + slack).all()


PREPARE = [
    # kind, dtype, s, q_lora, kv_lora, rope, page size
    ("bfloat16", BF16, 4, 1536, 512, 64, 64),
    ("blocks", BF16, 4, 1536, 512, 64, 64),
    ("flat", BF16, 4, 264, 512, 64, 16),
    ("blocks", F32, 4, 0, 512, 8, 16),
    ("float", F32, 4, 40, 72, 24, 32),
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", PREPARE, ids=lambda case: f"{case[0]}-{case[3]}-{case[4]}")
def test_prepare(backend: str, case: tuple[Any, ...]) -> None:
    kind, dtype, *sizes = case
    given = prepare_inputs(kind, dtype, *sizes)
    kernel = build_in("mla_prepare.cuh", f"mla_prepare<{ELEMENT[dtype]}>")
    first = None
    for device in devices(backend):
        got = launch_prepare(device, kernel, kind, given)
        if first is None:
            first = got
            check_prepare(kind, given, got)
        assert all(a.tobytes() == b.tobytes() for a, b in zip(got, first, strict=True))


def test_codes_are_those_of_the_cpu() -> None:
    """Where the norm is exact to the bit, so are codes and multipliers."""
    for kind in ("blocks", "flat"):
        given = prepare_inputs(kind, F32, 3, 0, 512, 64, 16)
        latent = torch.randint(-8, 9, (3, 512)).float()
        given["qkv_a"][:, :512] = latent
        given["positions"] = int32([0, 0, 0])
        given["slots"] = torch.arange(3)
        inverse = 1.0 / torch.sqrt(latent.square().sum(-1, keepdim=True) / 512 + EPS)
        rows = torch.cat([latent * inverse * given["kv_norm_weight"], given["qkv_a"][:, 512:]], -1)
        want = reference.quantize_latent(rows, 512, given["kv_scale"]).view(torch.uint8)
        kernel = build_in("mla_prepare.cuh", "mla_prepare<float>")
        (device,) = devices("emulator", NINE_SCHEDULES[:1])
        _, raw = launch_prepare(device, kernel, kind, given)
        assert torch.equal(torch.from_numpy(raw).flatten(0, 1)[:3], want)


SHIFT = 70_000  # pages of 64 rows of 656 bytes: 2.9e9 bytes, beyond 31 bits


def test_pages_beyond_31_bits() -> None:
    """Page offsets are 64 bits wide in both directions."""
    (device,) = devices("emulator", NINE_SCHEDULES[:1])
    given = prepare_inputs("blocks", BF16, 4, 64, 512, 64, 64)
    kernel = build_in("mla_prepare.cuh", "mla_prepare<bfloat16_t>")
    check_prepare("blocks", given, launch_prepare(device, kernel, "blocks", given, SHIFT))
    rows = [stored(torch.randn(5, 576), "blocks", 512)]
    cache, table = paged_fp8(rows, 64)
    gather = build_in("mla_gather_latent.cuh", "mla_gather_latent<float>")
    latent, _ = launch_gather(
        device, gather, "blocks", cache, table[:, :1] + SHIFT, int32([0, 5]), 512, 64, F32, SHIFT
    )
    want = reference.latent_values(rows[0], 512)[:, :512]
    assert torch.equal(to_torch(latent)[:, :512].double(), want)
    narrow = ("data + page * stride_page_bytes", "data + (int)(page * stride_page_bytes)")
    bad = build("seekernel/attention/mla_gather_latent.cuh", "mla_gather_latent<float>",
                edits={"seekernel/attention/latent_cache.cuh": [narrow]})  # fmt: skip
    with pytest.raises(KernelFault, match="BOUNDS"):
        launch_gather(device, bad, "blocks", cache, table[:, :1] + SHIFT, int32([0, 5]), 512, 64, F32, SHIFT)  # fmt: skip


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("page_size", [16, 64])
def test_gather(backend: str, kind: str, page_size: int) -> None:
    torch.manual_seed(0)
    lengths, kv_lora, rope = (0, 17, 0, 1, 66, 0), 512, 24
    dtype = F32 if kind == "float" else BF16
    rows = [stored(torch.randn(n, kv_lora + rope), kind, kv_lora) for n in lengths]
    if kind in ("blocks", "flat"):
        cache, table = paged_fp8(rows, page_size)
    else:
        cache, table = paged(rows, page_size, kv_lora + rope, rows[0].dtype)
    want = reference.latent_values(torch.cat(rows), kv_lora, scale_of(kind)).float().to(dtype)
    kernel = build_in("mla_gather_latent.cuh", f"mla_gather_latent<{ELEMENT[dtype]}>")
    for device in devices(backend):
        got = launch_gather(
            device, kernel, kind, cache, table, offsets(lengths), kv_lora, rope, dtype
        )
        for part, size, expected in zip(
            got, (kv_lora, rope), want.split([kv_lora, rope], -1), strict=True
        ):
            assert torch.equal(to_torch(part)[:, :size], expected)
            assert to_torch(part)[:, size:].isnan().all(), "wrote beyond the row"


def states(dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    result = []
    for i in range(2):
        out, lse = torch.randn(5, 3, 264).to(dtype), torch.randn(5, 3) * 20
        lse[i::3] = -math.inf
        out[i::3] = math.nan
        result.append((out, lse))
    result[0][1][4] = result[1][1][4] = -math.inf
    return result


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize("in_place", [False, True])
def test_merge(backend: str, dtype: torch.dtype, in_place: bool) -> None:
    given = states(dtype)
    want = reference.merge_attention_states(*given[0], *given[1])
    naive = reference.merge_attention_states(*given[0], *given[1], dtype=dtype)
    kernel = build_in("merge_attention_states.cuh", "merge_attention_states<256>")
    for device in devices(backend):
        out, lse = launch_merge(device, kernel, given, dtype, in_place)
        assert_error_within(to_torch(out), want[0], naive[0])
        assert_error_within(to_torch(lse), want[1], naive[1])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize(("s", "h", "rope"), [(3, 5, 64), (2, 1, 8)])
def test_rope(backend: str, dtype: torch.dtype, s: int, h: int, rope: int) -> None:
    torch.manual_seed(0)
    x, positions = torch.randn(s, h, rope + 16).to(dtype), int32(range(96, 96 + s))
    want, naive = (
        reference.rope_interleaved(x[..., 16:], positions, cos_sin(99, rope), t)
        for t in (torch.float64, dtype)
    )
    kernel = build("seekernel/fused/rope.cuh", f"rope_interleaved<{ELEMENT[dtype]}>")
    for device in devices(backend):
        got = to_torch(launch_rope(device, kernel, x, rope, positions))
        assert torch.equal(got[..., :16], x[..., :16])
        assert_error_within(got[..., 16:], want, naive)


PLANTED: dict[str, tuple[str, Edit]] = {
    "no barrier before the sums are read": ("mla_prepare.cuh", ("  __syncthreads();", "")),
    "sum of the wrong warps": ("mla_prepare.cuh", ("sums, q_warps, q_warps + kv_warps", "sums, 0, kv_warps")),
    "rows of slot -1 are stored": ("mla_prepare.cuh", ("if (slot < 0) return;", "if (slot < -1) return;")),
    "multiplier of the whole row": ("mla_prepare.cuh", ("step = 8; step", "step = 16; step")),
    "rope key at the place of the latent": ("mla_prepare.cuh", ("cache.kv_lora + column, 1.0f", "column, 1.0f")),
    "multiplier not a power of two": ("latent_cache.cuh", ("(__float_as_uint(quotient) + 0x7fffffu) & 0x7f800000u", "__float_as_uint(quotient)")),
    "no saturation": ("latent_cache.cuh", ("fmaxf(amax, 1e-4f) / 448.0f", "fmaxf(amax, 1e-4f) / 960.0f")),
}  # fmt: skip


@pytest.mark.parametrize("bug", PLANTED)
def test_planted_bugs_are_seen(bug: str) -> None:
    header, edit = PLANTED[bug]
    given = prepare_inputs("blocks", BF16, 4, 264, 512, 64, 16)
    kernel = build_in("mla_prepare.cuh", "mla_prepare<bfloat16_t>", edit, header)
    assert any(prepare_fails(kernel, given, device) for device in devices("emulator")), "not seen"


def prepare_fails(kernel: BuiltKernel, given: dict[str, Any], device: Device) -> bool:
    try:
        check_prepare("blocks", given, launch_prepare(device, kernel, "blocks", given))
    except (AssertionError, KernelFault):
        return True
    return False
