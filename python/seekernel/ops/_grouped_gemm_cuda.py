"""Grouped GEMM ops on a GPU: JIT, AOT, and plain torch where no kernel fits."""

from __future__ import annotations

import torch
from torch import Tensor

from seekernel import _jit, reference
from seekernel.ops import _gemm_shared as shared
from seekernel.ops._check import expect, fail
from seekernel.ops._gemm_shared import F32, FP8, I32, KINDS, OUTPUTS, TILE_MAP, WIDE
from seekernel.ops.paths import Chain, NoKernel

_ops = torch.ops.seekernel


# ---- fp8_grouped_gemm_nt ----


def _check_grouped(
    a: Tensor, a_scale: Tensor | None, b: Tensor, b_scale: Tensor, offsets: Tensor, out: Tensor,
    layout: str, tile_map: Tensor | None, num_tiles: Tensor | None, row_weight: Tensor | None,
    expected_m: int,
) -> None:  # fmt: skip
    op = "fp8_grouped_gemm_nt"
    if layout not in KINDS:
        raise RuntimeError(
            f"{op}: layout: expected 'offsets', 'contiguous' or 'masked', got {layout!r}"
        )
    masked = layout == "masked"
    shared.check_operands(op, a, a_scale, b, b_scale, masked, True)
    expect(op, "out", out, (*a.shape[:-1], b.shape[1]), WIDE, a.device)
    names = {"offsets": "offsets", "contiguous": "m_indices", "masked": "masked_m"}
    lengths = {"offsets": b.shape[0] + 1, "contiguous": a.shape[0], "masked": b.shape[0]}
    dtypes = (I32, torch.int64) if layout == "offsets" else (I32,)
    expect(op, names[layout], offsets, (lengths[layout],), dtypes, a.device)
    _check_map(op, tile_map, num_tiles, layout, a.device)
    if row_weight is not None:
        if masked:
            raise RuntimeError(f"{op}: row_weight: expected None where masked, got a tensor")
        expect(op, "row_weight", row_weight, (a.shape[0],), (F32,), a.device)


def _check_map(
    op: str, tile_map: Tensor | None, num_tiles: Tensor | None, layout: str, device: torch.device
) -> None:
    if (tile_map is None) != (num_tiles is None):
        raise RuntimeError(f"{op}: expected tile_map and num_tiles, or neither, got one of them")
    if tile_map is None or num_tiles is None:
        return
    if layout != "offsets":
        raise RuntimeError(f"{op}: tile_map: expected None unless layout is 'offsets'")
    expect(op, "tile_map", tile_map, (tile_map.shape[0], 4), (I32,), device)
    expect(op, "num_tiles", num_tiles, (1,), (I32,), device)


def jit_fp8_grouped_gemm_nt(
    a: Tensor, a_scale: Tensor | None, b: Tensor, b_scale: Tensor, offsets: Tensor, out: Tensor,
    layout: str, tile_map: Tensor | None, num_tiles: Tensor | None, row_weight: Tensor | None,
    expected_m: int,
) -> None:  # fmt: skip
    """Launch the kernel compiled for the shape. Errors: JitError, NoKernel, RuntimeError."""
    arguments = (a, a_scale, b, b_scale, offsets, out, layout, tile_map, num_tiles, row_weight, expected_m)  # fmt: skip
    _check_grouped(*arguments)
    shared.require_kernel_takes(a, a_scale, b, b_scale, out)
    if a_scale is None:
        raise NoKernel("activations that are not float8")
    g, n, k = b.shape
    m = a.shape[-2]
    if g * m * n == 0:
        return
    masked, mapped = layout == "masked", tile_map is not None
    shared.launch(
        a.get_device(), lambda: None, _jit.fp8_gemm, TILE_MAP if mapped else KINDS[layout],
        OUTPUTS[out.dtype], m, n, k, g, expected_m or (m if masked else -(-m // g)), 0,
        a.data_ptr(), a_scale.data_ptr(), b.data_ptr(), b_scale.data_ptr(), out.data_ptr(), 0,
        (offsets if tile_map is None else tile_map).data_ptr(),
        0 if num_tiles is None else num_tiles.data_ptr(),
        0 if row_weight is None else row_weight.data_ptr(), 0, shared.row_stride(a, m, k),
        shared.matrix_stride(a) if masked else 0, *shared.scale_strides(a_scale), shared.row_stride(b, n, k),
        shared.matrix_stride(b), b_scale.stride(0), shared.row_stride(out, m, n),
        shared.matrix_stride(out) if masked else 0, 0, 8 if offsets.dtype is torch.int64 else 4,
    )  # fmt: skip


def aot_fp8_grouped_gemm_nt(
    a: Tensor, a_scale: Tensor | None, b: Tensor, b_scale: Tensor, offsets: Tensor, out: Tensor,
    layout: str, tile_map: Tensor | None, num_tiles: Tensor | None, row_weight: Tensor | None,
    expected_m: int,
) -> None:  # fmt: skip
    """Launch a kernel compiled at build time. Errors: NoKernel, RuntimeError."""
    arguments = (a, a_scale, b, b_scale, offsets, out, layout, tile_map, num_tiles, row_weight, expected_m)  # fmt: skip
    _check_grouped(*arguments)
    shared.require_kernel_takes(a, a_scale, b, b_scale, out)
    _ops.fp8_grouped_gemm_nt.default(*arguments)


def reference_fp8_grouped_gemm_nt(
    a: Tensor, a_scale: Tensor | None, b: Tensor, b_scale: Tensor, offsets: Tensor, out: Tensor,
    layout: str, tile_map: Tensor | None, num_tiles: Tensor | None, row_weight: Tensor | None,
    expected_m: int,
) -> None:  # fmt: skip
    """Plain torch, one group after the other; reads the groups on the host."""
    _check_grouped(a, a_scale, b, b_scale, offsets, out, layout, tile_map, num_tiles, row_weight, expected_m)  # fmt: skip
    for group, matrix, begin, end in reference.group_runs(offsets, layout):
        rows, target, scale = a, out, a_scale
        if layout == "masked":
            rows, target = a[matrix], out[matrix]
            scale = None if a_scale is None else a_scale[matrix]
        part = target.new_empty(end - begin, target.shape[1])
        scale = None if scale is None else scale[:, begin:end]
        shared.multiply(rows[begin:end], scale, b[group], b_scale[group], part)
        weight = 1.0 if row_weight is None else row_weight[begin:end, None]
        target[begin:end] = part * weight


fp8_grouped_gemm_nt = Chain(
    "fp8_grouped_gemm_nt",
    jit=jit_fp8_grouped_gemm_nt,
    aot=aot_fp8_grouped_gemm_nt,
    reference=reference_fp8_grouped_gemm_nt,
)


# ---- fp8_grouped_gemm_swiglu_nt ----


def _check_swiglu(
    a: Tensor, a_scale: Tensor | None, b: Tensor, b_scale: Tensor, offsets: Tensor,
    row_token: Tensor | None, out: Tensor, out_scale: Tensor | None, tile_map: Tensor | None,
    num_tiles: Tensor | None, expected_m: int,
) -> None:  # fmt: skip
    op = "fp8_grouped_gemm_swiglu_nt"
    shared.check_operands(op, a, a_scale, b, b_scale, False, True, halves=2)
    rows = a.shape[0] if row_token is None else row_token.shape[0]
    n = b.shape[1] // 2
    expect(op, "out", out, (rows, n), (*WIDE, FP8), a.device)
    if (out.dtype is FP8) != (out_scale is not None):
        need = "a tensor as out is float8_e4m3fn" if out.dtype is FP8 else "None as out is not"
        raise RuntimeError(f"{op}: out_scale: expected {need}")
    if out_scale is not None:
        expect(op, "out_scale", out_scale, (-(-n // 128), -(-rows // 4) * 4), (F32,), a.device)
    expect(op, "offsets", offsets, (b.shape[0] + 1,), (I32, torch.int64), a.device)
    if row_token is not None:
        expect(op, "row_token", row_token, (rows,), (I32,), a.device)
    _check_map(op, tile_map, num_tiles, "offsets", a.device)


def _require_swiglu_kernel(
    a: Tensor, a_scale: Tensor | None, b: Tensor, b_scale: Tensor, out: Tensor
) -> None:
    shared.require_kernel_takes(a, a_scale, b, b_scale, out)
    if out.dtype is not FP8 or out.shape[1] % 128:
        raise NoKernel("an output that is not float8 with whole blocks of 128 columns")


def jit_fp8_grouped_gemm_swiglu_nt(
    a: Tensor, a_scale: Tensor | None, b: Tensor, b_scale: Tensor, offsets: Tensor,
    row_token: Tensor | None, out: Tensor, out_scale: Tensor | None, tile_map: Tensor | None,
    num_tiles: Tensor | None, expected_m: int,
) -> None:  # fmt: skip
    """Launch the kernel compiled for the shape. Errors: JitError, NoKernel, RuntimeError."""
    _check_swiglu(a, a_scale, b, b_scale, offsets, row_token, out, out_scale, tile_map, num_tiles, expected_m)  # fmt: skip
    _require_swiglu_kernel(a, a_scale, b, b_scale, out)
    if a_scale is None or out_scale is None:
        raise NoKernel("activations or an output that are not float8")
    g, two_n, k = b.shape
    tokens, rows = a.shape[0], out.shape[0]
    if g * rows * two_n == 0:
        return
    shared.launch(
        a.get_device(), lambda: None, _jit.fp8_gemm,
        KINDS["offsets"] if tile_map is None else TILE_MAP, OUTPUTS[FP8], rows, two_n, k, g,
        expected_m or -(-rows // g), 0 if row_token is None else tokens, a.data_ptr(),
        a_scale.data_ptr(), b.data_ptr(), b_scale.data_ptr(), out.data_ptr(), out_scale.data_ptr(),
        (offsets if tile_map is None else tile_map).data_ptr(),
        0 if num_tiles is None else num_tiles.data_ptr(), 0,
        0 if row_token is None else row_token.data_ptr(), shared.row_stride(a, tokens, k), 0,
        *shared.scale_strides(a_scale), shared.row_stride(b, two_n, k), shared.matrix_stride(b), b_scale.stride(0),
        shared.row_stride(out, rows, two_n // 2), 0, shared.scale_strides(out_scale)[0],
        8 if offsets.dtype is torch.int64 else 4,
    )  # fmt: skip


def aot_fp8_grouped_gemm_swiglu_nt(
    a: Tensor, a_scale: Tensor | None, b: Tensor, b_scale: Tensor, offsets: Tensor,
    row_token: Tensor | None, out: Tensor, out_scale: Tensor | None, tile_map: Tensor | None,
    num_tiles: Tensor | None, expected_m: int,
) -> None:  # fmt: skip
    """Launch a kernel compiled at build time. Errors: NoKernel, RuntimeError."""
    arguments = (a, a_scale, b, b_scale, offsets, row_token, out, out_scale, tile_map, num_tiles, expected_m)  # fmt: skip
    _check_swiglu(*arguments)
    _require_swiglu_kernel(a, a_scale, b, b_scale, out)
    _ops.fp8_grouped_gemm_swiglu_nt.default(*arguments)


def reference_fp8_grouped_gemm_swiglu_nt(
    a: Tensor, a_scale: Tensor | None, b: Tensor, b_scale: Tensor, offsets: Tensor,
    row_token: Tensor | None, out: Tensor, out_scale: Tensor | None, tile_map: Tensor | None,
    num_tiles: Tensor | None, expected_m: int,
) -> None:  # fmt: skip
    """Plain torch, one group after the other; reads the offsets on the host."""
    _check_swiglu(a, a_scale, b, b_scale, offsets, row_token, out, out_scale, tile_map, num_tiles, expected_m)  # fmt: skip
    half, blocks = b.shape[1] // 2, b_scale.shape[1] // 2
    for group, _, begin, end in reference.group_runs(offsets, "offsets"):
        at = slice(begin, end) if row_token is None else row_token[begin:end].long()
        x, scale = a[at], None if a_scale is None else a_scale[:, at]
        gate, up = (torch.empty(end - begin, half, device=a.device) for _ in range(2))
        shared.multiply(x, scale, b[group, :half], b_scale[group, :blocks], gate)
        shared.multiply(x, scale, b[group, half:], b_scale[group, blocks:], up)
        inner = torch.nn.functional.silu(gate) * up
        if out_scale is None:
            out[begin:end] = inner
            continue
        q, s = reference.quantize_fp8_1x128(inner)
        out[begin:end].view(torch.uint8).copy_(q.view(torch.uint8))
        out_scale[:, begin:end] = s[:, : end - begin]


fp8_grouped_gemm_swiglu_nt = Chain(
    "fp8_grouped_gemm_swiglu_nt",
    jit=jit_fp8_grouped_gemm_swiglu_nt,
    aot=aot_fp8_grouped_gemm_swiglu_nt,
    reference=reference_fp8_grouped_gemm_swiglu_nt,
)


# ---- w4a8_grouped_gemm_nt ----


def reference_w4a8_grouped_gemm_nt(
    a: Tensor, a_scale: Tensor | None, b: Tensor, b_scale: Tensor, offsets: Tensor, out: Tensor
) -> None:
    """Plain torch, one group after the other; reads the offsets on the host."""
    op, device = "w4a8_grouped_gemm_nt", a.device
    for name, x, dims in (("a", a, 2), ("b", b, 3)):
        if x.dim() != dims:
            fail(op, name, x, f"{dims} dimensions")
    (rows, k), (g, n) = a.shape, b.shape[:2]
    expect(op, "a", a, (rows, k), (*WIDE, FP8), device)
    if (a.dtype is FP8) != (a_scale is not None):
        need = "a tensor as a is float8_e4m3fn" if a.dtype is FP8 else "None as a is not"
        raise RuntimeError(f"{op}: a_scale: expected {need}")
    if a_scale is not None:
        expect(op, "a_scale", a_scale, (1,), (F32,), device)
    expect(op, "b", b, (g, n, k // 2), (torch.uint8,), device)
    expect(op, "b_scale", b_scale, (g, n, -(-k // 128)), (F32,), device)
    expect(op, "offsets", offsets, (g + 1,), (I32,), device)
    expect(op, "out", out, (rows, n), WIDE, device)
    for group, _, begin, end in reference.group_runs(offsets, "offsets"):
        weights = reference.dequantize_int4_g128(b[group], b_scale[group], F32)
        part = a[begin:end].to(F32) @ weights.t()
        out[begin:end] = part if a_scale is None else part * a_scale


w4a8_grouped_gemm_nt = Chain(
    "w4a8_grouped_gemm_nt", jit=None, aot=None, reference=reference_w4a8_grouped_gemm_nt
)
