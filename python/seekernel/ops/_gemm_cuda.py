"""The GEMM ops on a GPU: the hot path to kernels compiled at run time, and plain torch where none fits."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from seekernel import _jit, reference
from seekernel.ops._check import expect, fail
from seekernel.ops.paths import Chain, NoKernel

_FP8, _BF16, _F32, _I32 = torch.float8_e4m3fn, torch.bfloat16, torch.float32, torch.int32
_WIDE = (_F32, _BF16)
_ops = torch.ops.seekernel
_PART_VALUES = 1 << 26  # weights that the reference expands at a time
# As csrc/heuristics/gemm.h numbers them.
_BATCHED, _TILE_MAP = 1, 5
_KINDS = {"offsets": 2, "contiguous": 3, "masked": 4}
_OUTPUTS = {_BF16: 0, _F32: 1, _FP8: 2}


@lru_cache(maxsize=64)
def _num_sms(device: int) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


def _is_current(device: int) -> bool:
    return bool(torch._C._cuda_getDevice() == device)


def _stream(device: int) -> tuple[int, int]:
    """SMs and the current stream of a device."""
    return _num_sms(device), torch._C._cuda_getCurrentRawStream(device)


def _row_stride(x: Tensor, rows: int, columns: int) -> int:
    # The stride of a single row may be anything in torch.
    return x.stride(-2) if rows > 1 else (columns + 15) // 16 * 16


def _matrix_stride(x: Tensor) -> int:
    return x.stride(0) if x.shape[0] > 1 else _row_stride(x, *x.shape[1:]) * x.shape[1]


def _launch(
    device: int, check: Callable[[], None], call: Callable[..., None], *members: int
) -> None:
    """Call with members, SMs and stream; what the launcher refuses is our user's error or NoKernel."""
    if not _is_current(device):
        with torch.cuda.device(device):
            return _launch(device, check, call, *members)
    try:
        call(*members, *_stream(device))
    except ValueError as error:
        check()
        raise NoKernel(str(error)) from None
    return None


def _aligned(x: Tensor) -> bool:
    rows_at = x.shape[-2] <= 1 or x.stride(-2) * x.element_size() % 16 == 0
    stacks_at = x.dim() < 3 or x.shape[0] <= 1 or x.stride(0) * x.element_size() % 16 == 0
    return x.data_ptr() % 16 == 0 and rows_at and stacks_at


def _require_kernel_takes(
    a: Tensor, a_scale: Tensor | None, b: Tensor, b_scale: Tensor, out: Tensor
) -> None:
    """Errors: NoKernel saying what no compiled kernel takes, of arguments that were checked."""
    k = a.shape[-1]
    if a.dtype is not _FP8 or a_scale is None:
        raise NoKernel("activations that are not float8")
    if k % 128 or k == 0 or b.shape[-2] % 8:
        raise NoKernel("k that is not a positive multiple of 128, or n not of 8")
    if not all(map(_aligned, (a, a_scale, b, out))):
        raise NoKernel("rows that do not start at multiples of 16 bytes")
    if b_scale.stride(-1) != 1 or (b_scale.shape[-2] > 1 and b_scale.stride(-2) != k // 128):
        raise NoKernel("scales of a weight matrix that do not lie together")


def _check_operands(
    op: str,
    a: Tensor,
    a_scale: Tensor | None,
    b: Tensor,
    b_scale: Tensor,
    stacked_a: bool,
    stacked_b: bool,
    halves: int = 1,
) -> None:
    """Errors: RuntimeError naming the tensor, expected and got."""
    device = a.device
    if a.dim() != 2 + stacked_a:
        fail(op, "a", a, "shape [g, m, k]" if stacked_a else "shape [m, k]")
    if b.dim() != 2 + stacked_b:
        fail(op, "b", b, "shape [g, n, k]" if stacked_b else "shape [n, k]")
    n, (m, k) = b.shape[-2], a.shape[-2:]
    groups = b.shape[:1] if stacked_b else ()
    stack = groups if stacked_a else ()
    expect(op, "a", a, (*stack, m, k), (*_WIDE, _FP8), device)
    if (a.dtype is _FP8) != (a_scale is not None):
        need = "a tensor as a is float8_e4m3fn" if a.dtype is _FP8 else "None as a is not"
        raise RuntimeError(f"{op}: a_scale: expected {need}")
    if a_scale is not None:
        expect(op, "a_scale", a_scale, (*stack, -(-k // 128), -(-m // 4) * 4), (_F32,), device)
    expect(op, "b", b, (*groups, n, k), (_FP8,), device)
    n_blocks = halves * -(-(n // halves) // 128)
    expect(op, "b_scale", b_scale, (*groups, n_blocks, -(-k // 128)), (_F32,), device)


# ---- fp8_gemm_nt ----


def check_fp8_gemm_nt(
    a: Tensor, a_scale: Tensor | None, b: Tensor, b_scale: Tensor, out: Tensor
) -> None:
    """Errors: RuntimeError naming the tensor, expected and got."""
    _check_operands("fp8_gemm_nt", a, a_scale, b, b_scale, False, False)
    expect("fp8_gemm_nt", "out", out, (a.shape[0], b.shape[0]), _WIDE, a.device)


def jit_fp8_gemm_nt(
    a: Tensor, a_scale: Tensor | None, b: Tensor, b_scale: Tensor, out: Tensor
) -> None:
    """Launch the kernel compiled for the shape. Errors: JitError, NoKernel, RuntimeError."""
    (m, k), (n, k_b) = a.shape, b.shape
    device, out_dtype = a.get_device(), out.dtype
    if not (
        a_scale is not None
        and a.dtype is _FP8
        and b.dtype is _FP8
        and (out_dtype is _BF16 or out_dtype is _F32)
        and a_scale.dtype is _F32
        and b_scale.dtype is _F32
        and k == k_b
        and k % 128 == 0
        and a_scale.shape == (k // 128, (m + 3) // 4 * 4)
        and b_scale.shape == ((n + 127) // 128, k // 128)
        and out.shape == (m, n)
        and b_scale.is_contiguous()
        and device
        == b.get_device()
        == out.get_device()
        == a_scale.get_device()
        == b_scale.get_device()
    ):
        check_fp8_gemm_nt(a, a_scale, b, b_scale, out)
        raise NoKernel("arguments that no compiled kernel takes")
    if m == 0 or n == 0:
        return None
    (a_rows, a_step), (b_rows, b_step) = a.stride(), b.stride()
    (scale_rows, scale_step), (out_rows, out_step) = a_scale.stride(), out.stride()
    if not a_step == b_step == scale_step == out_step == 1:
        check_fp8_gemm_nt(a, a_scale, b, b_scale, out)
        raise NoKernel("a last dimension of one column, strided")
    if m == 1:  # the stride of a single row may be anything in torch
        a_rows, out_rows = k, (n + 15) // 16 * 16
    if k == 128:
        scale_rows = (m + 3) // 4 * 4
    if not _is_current(device):
        with torch.cuda.device(device):
            return jit_fp8_gemm_nt(a, a_scale, b, b_scale, out)
    num_sms, stream = _stream(device)
    try:
        _jit.fp8_gemm_nt(
            a.data_ptr(), a_scale.data_ptr(), b.data_ptr(), b_scale.data_ptr(), out.data_ptr(),
            m, n, k, a_rows, scale_rows, b_rows, out_rows, num_sms, stream,
            0 if out_dtype is _BF16 else 1,
        )  # fmt: skip
    except ValueError as error:
        check_fp8_gemm_nt(a, a_scale, b, b_scale, out)
        raise NoKernel(str(error)) from None
    return None


def aot_fp8_gemm_nt(
    a: Tensor, a_scale: Tensor | None, b: Tensor, b_scale: Tensor, out: Tensor
) -> None:
    """Launch a kernel compiled at build time. Errors: NoKernel, RuntimeError."""
    check_fp8_gemm_nt(a, a_scale, b, b_scale, out)
    _require_kernel_takes(a, a_scale, b, b_scale, out)
    _ops.fp8_gemm_nt.default(a, a_scale, b, b_scale, out)


def _multiply(a: Tensor, a_scale: Tensor | None, b: Tensor, b_scale: Tensor, out: Tensor) -> None:
    """out = a @ b.T by plain torch in float32, some rows of weights at a time."""
    rows = max(128, _PART_VALUES // max(1, b.shape[1]) // 128 * 128)
    for i in range(0, b.shape[0], rows):
        scale = b_scale[i // 128 : (i + rows) // 128]
        out[:, i : i + rows] = reference.fp8_gemm_nt(a, a_scale, b[i : i + rows], scale, dtype=_F32)


def reference_fp8_gemm_nt(
    a: Tensor, a_scale: Tensor | None, b: Tensor, b_scale: Tensor, out: Tensor
) -> None:
    """Plain torch."""
    check_fp8_gemm_nt(a, a_scale, b, b_scale, out)
    _multiply(a, a_scale, b, b_scale, out)


fp8_gemm_nt = Chain(
    "fp8_gemm_nt", jit=jit_fp8_gemm_nt, aot=aot_fp8_gemm_nt, reference=reference_fp8_gemm_nt
)


# ---- fp8_bmm_nt ----


def _check_bmm(a: Tensor, a_scale: Tensor | None, b: Tensor, b_scale: Tensor, out: Tensor) -> None:
    _check_operands("fp8_bmm_nt", a, a_scale, b, b_scale, True, True)
    expect("fp8_bmm_nt", "out", out, (*a.shape[:2], b.shape[1]), _WIDE, a.device)


def jit_fp8_bmm_nt(
    a: Tensor, a_scale: Tensor | None, b: Tensor, b_scale: Tensor, out: Tensor
) -> None:
    """Launch the wide kernel over a batch. Errors: JitError, NoKernel, RuntimeError."""
    _check_bmm(a, a_scale, b, b_scale, out)
    _require_kernel_takes(a, a_scale, b, b_scale, out)
    if out.dtype is not _BF16 or a_scale is None:
        raise NoKernel("an output that is not bfloat16")
    (g, m, k), n = a.shape, b.shape[1]
    if g * m * n == 0:
        return
    _launch(
        a.get_device(), lambda: None, _jit.fp8_gemm, _BATCHED, 0, m, n, k, g, 0, 0, a.data_ptr(),
        a_scale.data_ptr(), b.data_ptr(), b_scale.data_ptr(), out.data_ptr(), 0, 0, 0, 0, 0,
        _row_stride(a, m, k), _matrix_stride(a), *_scale_strides(a_scale),
        _row_stride(b, n, k), _matrix_stride(b), b_scale.stride(0), _row_stride(out, m, n),
        _matrix_stride(out), 0, 4,
    )  # fmt: skip


def _scale_strides(a_scale: Tensor) -> tuple[int, int]:
    blocks, padded = a_scale.shape[-2:]
    stride = a_scale.stride(-2) if blocks > 1 else padded
    if a_scale.dim() < 3:
        return stride, 0
    return stride, a_scale.stride(0) if a_scale.shape[0] > 1 else stride * blocks


def aot_fp8_bmm_nt(
    a: Tensor, a_scale: Tensor | None, b: Tensor, b_scale: Tensor, out: Tensor
) -> None:
    """Launch a kernel compiled at build time. Errors: NoKernel, RuntimeError."""
    _check_bmm(a, a_scale, b, b_scale, out)
    _require_kernel_takes(a, a_scale, b, b_scale, out)
    if out.dtype is not _BF16:
        raise NoKernel("an output that is not bfloat16")
    _ops.fp8_bmm_nt.default(a, a_scale, b, b_scale, out)


def reference_fp8_bmm_nt(
    a: Tensor, a_scale: Tensor | None, b: Tensor, b_scale: Tensor, out: Tensor
) -> None:
    """Plain torch, one matrix after the other."""
    _check_bmm(a, a_scale, b, b_scale, out)
    for i in range(b.shape[0]):
        _multiply(a[i], None if a_scale is None else a_scale[i], b[i], b_scale[i], out[i])


fp8_bmm_nt = Chain(
    "fp8_bmm_nt", jit=jit_fp8_bmm_nt, aot=aot_fp8_bmm_nt, reference=reference_fp8_bmm_nt
)


# ---- bmm_nt ----


def _check_bf16_bmm(a: Tensor, b: Tensor, out: Tensor) -> None:
    op = "bmm_nt"
    for name, x in (("a", a), ("b", b)):
        if x.dim() != 3:
            fail(op, name, x, "three dimensions")
    (g, m, k), n = a.shape, b.shape[1]
    expect(op, "a", a, (g, m, k), _WIDE, a.device)
    expect(op, "b", b, (g, n, k), _WIDE, a.device)
    expect(op, "out", out, (g, m, n), _WIDE, a.device)


def aot_bmm_nt(a: Tensor, b: Tensor, out: Tensor) -> None:
    """Launch the kernel compiled at build time. Errors: NoKernel, RuntimeError."""
    _check_bf16_bmm(a, b, out)
    if not a.dtype is b.dtype is out.dtype is _BF16:
        raise NoKernel("operands that are not all bfloat16")
    if a.shape[2] % 8 or b.shape[1] % 8 or a.shape[2] == 0 or not all(map(_aligned, (a, b, out))):
        raise NoKernel("rows that are not multiples of 16 bytes, or do not start at them")
    _ops.bmm_nt.default(a, b, out)


def reference_bmm_nt(a: Tensor, b: Tensor, out: Tensor) -> None:
    """Plain torch, in float32."""
    _check_bf16_bmm(a, b, out)
    out.copy_(reference.bmm_nt(a, b, _F32))


bmm_nt = Chain("bmm_nt", jit=None, aot=aot_bmm_nt, reference=reference_bmm_nt)


# ---- fp8_grouped_gemm_nt ----


def _check_grouped(
    a: Tensor, a_scale: Tensor | None, b: Tensor, b_scale: Tensor, offsets: Tensor, out: Tensor,
    layout: str, tile_map: Tensor | None, num_tiles: Tensor | None, row_weight: Tensor | None,
    expected_m: int,
) -> None:  # fmt: skip
    op = "fp8_grouped_gemm_nt"
    if layout not in _KINDS:
        raise RuntimeError(
            f"{op}: layout: expected 'offsets', 'contiguous' or 'masked', got {layout!r}"
        )
    masked = layout == "masked"
    _check_operands(op, a, a_scale, b, b_scale, masked, True)
    expect(op, "out", out, (*a.shape[:-1], b.shape[1]), _WIDE, a.device)
    names = {"offsets": "offsets", "contiguous": "m_indices", "masked": "masked_m"}
    lengths = {"offsets": b.shape[0] + 1, "contiguous": a.shape[0], "masked": b.shape[0]}
    dtypes = (_I32, torch.int64) if layout == "offsets" else (_I32,)
    expect(op, names[layout], offsets, (lengths[layout],), dtypes, a.device)
    _check_map(op, tile_map, num_tiles, layout, a.device)
    if row_weight is not None:
        if masked:
            raise RuntimeError(f"{op}: row_weight: expected None where masked, got a tensor")
        expect(op, "row_weight", row_weight, (a.shape[0],), (_F32,), a.device)


def _check_map(
    op: str, tile_map: Tensor | None, num_tiles: Tensor | None, layout: str, device: torch.device
) -> None:
    if (tile_map is None) != (num_tiles is None):
        raise RuntimeError(f"{op}: expected tile_map and num_tiles, or neither, got one of them")
    if tile_map is None or num_tiles is None:
        return
    if layout != "offsets":
        raise RuntimeError(f"{op}: tile_map: expected None unless layout is 'offsets'")
    expect(op, "tile_map", tile_map, (tile_map.shape[0], 4), (_I32,), device)
    expect(op, "num_tiles", num_tiles, (1,), (_I32,), device)


def jit_fp8_grouped_gemm_nt(
    a: Tensor, a_scale: Tensor | None, b: Tensor, b_scale: Tensor, offsets: Tensor, out: Tensor,
    layout: str, tile_map: Tensor | None, num_tiles: Tensor | None, row_weight: Tensor | None,
    expected_m: int,
) -> None:  # fmt: skip
    """Launch the kernel compiled for the shape. Errors: JitError, NoKernel, RuntimeError."""
    arguments = (a, a_scale, b, b_scale, offsets, out, layout, tile_map, num_tiles, row_weight, expected_m)  # fmt: skip
    _check_grouped(*arguments)
    _require_kernel_takes(a, a_scale, b, b_scale, out)
    if a_scale is None:
        raise NoKernel("activations that are not float8")
    g, n, k = b.shape
    m = a.shape[-2]
    if g * m * n == 0:
        return
    masked, mapped = layout == "masked", tile_map is not None
    _launch(
        a.get_device(), lambda: None, _jit.fp8_gemm, _TILE_MAP if mapped else _KINDS[layout],
        _OUTPUTS[out.dtype], m, n, k, g, expected_m or (m if masked else -(-m // g)), 0,
        a.data_ptr(), a_scale.data_ptr(), b.data_ptr(), b_scale.data_ptr(), out.data_ptr(), 0,
        (offsets if tile_map is None else tile_map).data_ptr(),
        0 if num_tiles is None else num_tiles.data_ptr(),
        0 if row_weight is None else row_weight.data_ptr(), 0, _row_stride(a, m, k),
        _matrix_stride(a) if masked else 0, *_scale_strides(a_scale), _row_stride(b, n, k),
        _matrix_stride(b), b_scale.stride(0), _row_stride(out, m, n),
        _matrix_stride(out) if masked else 0, 0, 8 if offsets.dtype is torch.int64 else 4,
    )  # fmt: skip


def aot_fp8_grouped_gemm_nt(
    a: Tensor, a_scale: Tensor | None, b: Tensor, b_scale: Tensor, offsets: Tensor, out: Tensor,
    layout: str, tile_map: Tensor | None, num_tiles: Tensor | None, row_weight: Tensor | None,
    expected_m: int,
) -> None:  # fmt: skip
    """Launch a kernel compiled at build time. Errors: NoKernel, RuntimeError."""
    arguments = (a, a_scale, b, b_scale, offsets, out, layout, tile_map, num_tiles, row_weight, expected_m)  # fmt: skip
    _check_grouped(*arguments)
    _require_kernel_takes(a, a_scale, b, b_scale, out)
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
        _multiply(rows[begin:end], scale, b[group], b_scale[group], part)
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
    _check_operands(op, a, a_scale, b, b_scale, False, True, halves=2)
    rows = a.shape[0] if row_token is None else row_token.shape[0]
    n = b.shape[1] // 2
    expect(op, "out", out, (rows, n), (*_WIDE, _FP8), a.device)
    if (out.dtype is _FP8) != (out_scale is not None):
        need = "a tensor as out is float8_e4m3fn" if out.dtype is _FP8 else "None as out is not"
        raise RuntimeError(f"{op}: out_scale: expected {need}")
    if out_scale is not None:
        expect(op, "out_scale", out_scale, (-(-n // 128), -(-rows // 4) * 4), (_F32,), a.device)
    expect(op, "offsets", offsets, (b.shape[0] + 1,), (_I32, torch.int64), a.device)
    if row_token is not None:
        expect(op, "row_token", row_token, (rows,), (_I32,), a.device)
    _check_map(op, tile_map, num_tiles, "offsets", a.device)


def _require_swiglu_kernel(
    a: Tensor, a_scale: Tensor | None, b: Tensor, b_scale: Tensor, out: Tensor
) -> None:
    _require_kernel_takes(a, a_scale, b, b_scale, out)
    if out.dtype is not _FP8 or out.shape[1] % 128:
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
    _launch(
        a.get_device(), lambda: None, _jit.fp8_gemm,
        _KINDS["offsets"] if tile_map is None else _TILE_MAP, _OUTPUTS[_FP8], rows, two_n, k, g,
        expected_m or -(-rows // g), 0 if row_token is None else tokens, a.data_ptr(),
        a_scale.data_ptr(), b.data_ptr(), b_scale.data_ptr(), out.data_ptr(), out_scale.data_ptr(),
        (offsets if tile_map is None else tile_map).data_ptr(),
        0 if num_tiles is None else num_tiles.data_ptr(), 0,
        0 if row_token is None else row_token.data_ptr(), _row_stride(a, tokens, k), 0,
        *_scale_strides(a_scale), _row_stride(b, two_n, k), _matrix_stride(b), b_scale.stride(0),
        _row_stride(out, rows, two_n // 2), 0, _scale_strides(out_scale)[0],
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
        _multiply(x, scale, b[group, :half], b_scale[group, :blocks], gate)
        _multiply(x, scale, b[group, half:], b_scale[group, blocks:], up)
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
    expect(op, "a", a, (rows, k), (*_WIDE, _FP8), device)
    if (a.dtype is _FP8) != (a_scale is not None):
        need = "a tensor as a is float8_e4m3fn" if a.dtype is _FP8 else "None as a is not"
        raise RuntimeError(f"{op}: a_scale: expected {need}")
    if a_scale is not None:
        expect(op, "a_scale", a_scale, (1,), (_F32,), device)
    expect(op, "b", b, (g, n, k // 2), (torch.uint8,), device)
    expect(op, "b_scale", b_scale, (g, n, -(-k // 128)), (_F32,), device)
    expect(op, "offsets", offsets, (g + 1,), (_I32,), device)
    expect(op, "out", out, (rows, n), _WIDE, device)
    for group, _, begin, end in reference.group_runs(offsets, "offsets"):
        weights = reference.dequantize_int4_g128(b[group], b_scale[group], _F32)
        part = a[begin:end].to(_F32) @ weights.t()
        out[begin:end] = part if a_scale is None else part * a_scale


w4a8_grouped_gemm_nt = Chain(
    "w4a8_grouped_gemm_nt", jit=None, aot=None, reference=reference_w4a8_grouped_gemm_nt
)
