"""Matrix products with weights as checkpoints store them, one row of outputs per row ("nt").

Common to all: weights are never copied or widened in memory; sums are float32 and rounded once, into
the dtype of out. Tensors may be strided views as long as their last dimension is contiguous.
Every wrapper allocates `out` when it is not given, in the dtype of the activations (bfloat16 for
float8 ones). On the CPU a row's result has the same bits whatever the batch and the thread count.
"""

from __future__ import annotations

import torch
from torch import Tensor

from seekernel import _extension as _extension
from seekernel.ops import _gemm_cuda as _cuda
from seekernel.ops import _grouped_gemm_cuda as _grouped
from seekernel.ops._fakes import register_fakes
from seekernel.ops.quantize import quantize_fp8_1x128

_ops = torch.ops.seekernel
_fp8_gemm_nt = _ops.fp8_gemm_nt.default
_fp8_bmm_nt = _ops.fp8_bmm_nt.default
_fp8_grouped_gemm_nt = _ops.fp8_grouped_gemm_nt.default
_fp8_grouped_gemm_swiglu_nt = _ops.fp8_grouped_gemm_swiglu_nt.default
_w4a8_grouped_gemm_nt = _ops.w4a8_grouped_gemm_nt.default
_gemm_nt = _ops.gemm_nt.default
_bmm_nt = _ops.bmm_nt.default
_grouped_gemm_nt = _ops.grouped_gemm_nt.default
_grouped_gemm_swiglu_nt = _ops.grouped_gemm_swiglu_nt.default
_router_gemm = _ops.router_gemm.default


def _allocate(a: Tensor, *shape: int) -> Tensor:
    dtype = torch.bfloat16 if a.dtype == torch.float8_e4m3fn else a.dtype
    return torch.empty(shape, dtype=dtype, device=a.device)


def fp8_gemm_nt(
    a: Tensor, a_scale: Tensor | None, b: Tensor, b_scale: Tensor, out: Tensor | None = None
) -> Tensor:
    """Activations times float8 weights with a multiplier per 128x128 block.

        out[m, n] = sum_k a[m, k] * a_scale[k // 128, m] * b[n, k] * b_scale[n // 128, k // 128]

    Args:
        a: [m, k] float8_e4m3fn with a_scale; or float32 or bfloat16 without (CPU: weight-only, the
            activations keep their precision).
        a_scale: [ceil(k / 128), round_up(m, 4)] float32, or None.
        b: [n, k] float8_e4m3fn.  b_scale: [ceil(n / 128), ceil(k / 128)] float32.
        out: [m, n] float32 or bfloat16.
    Returns: out.  Writes: out.
    NaN codes (0x7f, 0xff) in b read as +-480 on the CPU: refuse them when loading. NaN codes in a give
    NaN. An activation times its block's multiplier overflows to infinity from 2^68 on.
    Errors: RuntimeError naming the tensor, expected and got.
    Source: DeepSeek-V3 report section 3.3 (block scales); csrc/cpu/kernels/gemm.inl.
    """
    if out is None:
        out = _allocate(a, a.shape[0], b.shape[0])
    if type(a) is Tensor and a.is_cuda:
        _cuda.fp8_gemm_nt(a.get_device(), b.shape, a, a_scale, b, b_scale, out)
    else:
        _fp8_gemm_nt(a, a_scale, b, b_scale, out)
    return out


def fp8_bmm_nt(
    a: Tensor, a_scale: Tensor | None, b: Tensor, b_scale: Tensor, out: Tensor | None = None
) -> Tensor:
    """Batched fp8_gemm_nt: matrix i of a times matrix i of b.

        out[i] = a[i] @ dequantize(b[i]).T

    Args:
        a: [g, m, k] float8_e4m3fn with a_scale, or float32 or bfloat16 without; q[:, h].transpose(0, 1)
            is as good as a contiguous tensor.
        a_scale: [g, ceil(k / 128), round_up(m, 4)] float32, or None.  b: [g, n, k] float8_e4m3fn.
        b_scale: [g, ceil(n / 128), ceil(k / 128)] float32.  out: [g, m, n], strided likewise.
    Returns: out.  Errors, NaN codes: as fp8_gemm_nt.  Writes: out.
    """
    if out is None:
        out = _allocate(a, a.shape[0], a.shape[1], b.shape[1])
    if type(a) is Tensor and a.is_cuda:
        _cuda.fp8_bmm_nt(a.get_device(), b.shape, a, a_scale, b, b_scale, out)
    else:
        _fp8_bmm_nt(a, a_scale, b, b_scale, out)
    return out


TileMap = tuple[Tensor, Tensor]
"""What a routing plan gives instead of a scan on the device: int32 [tiles, 4] of {group, first row, rows,
0}, groups ascending, and int32 [1], how many of them count (csrc/include/seekernel/scheduler/tiles.cuh)."""


def fp8_grouped_gemm_nt(
    a: Tensor,
    a_scale: Tensor | None,
    b: Tensor,
    b_scale: Tensor,
    offsets: Tensor,
    out: Tensor | None = None,
    *,
    layout: str = "offsets",
    tile_map: TileMap | None = None,
    row_weight: Tensor | None = None,
    expected_m: int = 0,
) -> Tensor:
    """One product per expert, over the rows that are its own.

        out[r] = row_weight[r] * a[r] @ dequantize(b[i]).T,  r a row of group i

    Args:
        a: [rows, k], a_scale: as fp8_gemm_nt; masked: [g, m, k] and [g, ceil(k / 128), round_up(m, 4)].
        b: [g, n, k] float8_e4m3fn.  b_scale: [g, ceil(n / 128), ceil(k / 128)] float32.
        layout: how `offsets` says which rows are whose. A group may have none.
            "offsets": [g + 1] int32 (on a GPU also int64), ascending from 0 to at most rows: group i is
                rows offsets[i] to offsets[i + 1]. Nothing is padded.
            "contiguous": [rows] int32, the group of each row, or -1: not computed. On a GPU a group
                starts at a multiple of 128.
            "masked": [g] int32: the first masked_m[i] rows of a[i].
        out: [rows, n], or [g, m, n]; rows of no group are left as they are.
        tile_map: with "offsets" on a GPU: the same grouping, tiles of at most 64 rows; spares a scan.
        row_weight: [rows] float32, not with "masked".
        expected_m: rows of one group as far as known, for the choice of a kernel; 0: rows / g.
    Returns: out.  Errors, NaN codes: as fp8_gemm_nt.  Writes: out.
    """
    if out is None:
        out = _allocate(a, *a.shape[:-1], b.shape[1])
    mapped = (None, None) if tile_map is None else tile_map
    arguments = (a, a_scale, b, b_scale, offsets, out, layout, *mapped, row_weight, expected_m)
    if type(a) is Tensor and a.is_cuda:
        _grouped.fp8_grouped_gemm_nt(a.get_device(), b.shape, *arguments)
    else:
        _fp8_grouped_gemm_nt(*arguments)
    return out


def fp8_grouped_gemm_swiglu_nt(
    a: Tensor,
    a_scale: Tensor | None,
    b: Tensor,
    b_scale: Tensor,
    offsets: Tensor,
    row_token: Tensor | None = None,
    out: Tensor | None = None,
    *,
    out_scale: Tensor | None = None,
    tile_map: TileMap | None = None,
    expected_m: int = 0,
) -> Tensor:
    """Gate and up projections of every expert and their SwiGLU, in one pass over the weights.

        gate, up = x @ dequantize(b[i]).T halves;  out[r] = silu(gate) * up,  x = a[row_token[r]]

    Args:
        a: [m, k], a_scale: as fp8_gemm_nt.  b: [g, 2 n, k] float8_e4m3fn, n gate rows, then n up rows.
        b_scale: [g, 2 ceil(n / 128), ceil(k / 128)] float32: those of gate_proj, then of up_proj.
        offsets: [g + 1] int32 as in fp8_grouped_gemm_nt.
        row_token: [rows] int32, which row of a serves as row r; entries from offsets[g] on are not
            read. None: row r of a itself, rows = m.
        out: [rows, n] float32 or bfloat16, or float8_e4m3fn with out_scale; its rows from offsets[g]
            on are left as they are.
        out_scale: [ceil(n / 128), round_up(rows, 4)] float32, as quantize_fp8_1x128 gives it.
        tile_map, expected_m: as fp8_grouped_gemm_nt.
    With g = 1 this is the dense MLP's first half. Gate and up meet in float32.
    Returns: out.  Errors, NaN codes: as fp8_gemm_nt.  Writes: out.
    """
    if out is None:
        rows = a.shape[0] if row_token is None else row_token.shape[0]
        out = _allocate(a, rows, b.shape[1] // 2)
    mapped = (None, None) if tile_map is None else tile_map
    arguments = (a, a_scale, b, b_scale, offsets, row_token, out, out_scale, *mapped, expected_m)
    if type(a) is Tensor and a.is_cuda:
        _grouped.fp8_grouped_gemm_swiglu_nt(a.get_device(), b.shape, *arguments)
    elif out_scale is None or a.is_cuda:
        _fp8_grouped_gemm_swiglu_nt(*arguments)
    else:
        used = int(offsets[-1])
        wide = torch.empty(out.shape, dtype=torch.float32)
        _fp8_grouped_gemm_swiglu_nt(a, a_scale, b, b_scale, offsets, row_token, wide)
        q, scale = quantize_fp8_1x128(wide[:used])
        out[:used].view(torch.uint8).copy_(q.view(torch.uint8))
        out_scale[:, :used] = scale[:, :used]
    return out


def w4a8_grouped_gemm_nt(
    a: Tensor,
    a_scale: Tensor | None,
    b: Tensor,
    b_scale: Tensor,
    offsets: Tensor,
    out: Tensor | None = None,
) -> Tensor:
    """fp8_grouped_gemm_nt with int4 weights.

        out[r] = a_scale * a[r] @ (b[i] * b_scale[i]).T,  offsets[i] <= r < offsets[i + 1]

    Args:
        a: [rows, k] float8_e4m3fn with a_scale [1] float32, one multiplier for all; or float32 or
            bfloat16 without (CPU: the activations keep their precision).
        b: [g, n, k / 2] uint8, as quantize_int4_g128 packs.  b_scale: [g, n, ceil(k / 128)] float32.
        offsets: [g + 1] int32.  out: [rows, n]; its rows from offsets[g] on are left as they are.
    Returns: out.  Errors: RuntimeError naming the tensor, expected and got.  Writes: out.
    """
    if out is None:
        out = _allocate(a, a.shape[0], b.shape[1])
    if type(a) is Tensor and a.is_cuda:
        _grouped.w4a8_grouped_gemm_nt(a.get_device(), b.shape, a, a_scale, b, b_scale, offsets, out)
    else:
        _w4a8_grouped_gemm_nt(a, a_scale, b, b_scale, offsets, out)
    return out


def gemm_nt(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """Activations times float32 or bfloat16 weights.

        out = a @ b.T

    Args: a: [m, k] float32 or bfloat16.  b: [n, k] float32 or bfloat16.  out: [m, n].
    Returns: out.  Errors: RuntimeError naming the tensor, expected and got.  Writes: out.
    """
    if out is None:
        out = _allocate(a, a.shape[0], b.shape[0])
    _gemm_nt(a, b, out)
    return out


def bmm_nt(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """Batched gemm_nt: matrix i of a times matrix i of b.

        out[i] = a[i] @ b[i].T

    Args: a: [g, m, k] float32 or bfloat16.  b: [g, n, k] float32 or bfloat16.  out: [g, m, n]. Any
        strides with a contiguous last dimension: heads of [m, h, k] tokens need no transposing copy.
    Returns: out.  Errors: RuntimeError naming the tensor, expected and got.  Writes: out.
    """
    if out is None:
        out = _allocate(a, a.shape[0], a.shape[1], b.shape[1])
    if type(a) is Tensor and a.is_cuda:
        _cuda.bmm_nt(a.get_device(), b.shape, a, b, out)
    else:
        _bmm_nt(a, b, out)
    return out


def grouped_gemm_nt(a: Tensor, b: Tensor, offsets: Tensor, out: Tensor | None = None) -> Tensor:
    """fp8_grouped_gemm_nt with float32 or bfloat16 weights.

        out[r] = a[r] @ b[i].T,  offsets[i] <= r < offsets[i + 1]

    Args: a: [rows, k].  b: [g, n, k].  offsets: [g + 1] int32.  out: [rows, n].
    Returns: out.  Errors: RuntimeError naming the tensor, expected and got.  Writes: out.
    """
    if out is None:
        out = _allocate(a, a.shape[0], b.shape[1])
    _grouped_gemm_nt(a, b, offsets, out)
    return out


def grouped_gemm_swiglu_nt(
    a: Tensor,
    b: Tensor,
    offsets: Tensor,
    row_token: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """fp8_grouped_gemm_swiglu_nt with float32 or bfloat16 weights.

        gate, up = x @ b[i].T halves;  out[r] = silu(gate) * up,  x = a[row_token[r]]

    Args: a: [m, k].  b: [g, 2 n, k].  offsets: [g + 1] int32.  row_token: [rows] int32.  out: [rows, n].
    Returns: out.  Errors: RuntimeError naming the tensor, expected and got.  Writes: out.
    """
    if out is None:
        rows = a.shape[0] if row_token is None else row_token.shape[0]
        out = _allocate(a, rows, b.shape[1] // 2)
    _grouped_gemm_swiglu_nt(a, b, offsets, row_token, out)
    return out


def router_gemm(x: Tensor, weight: Tensor, out: Tensor | None = None) -> Tensor:
    """Router logits of the MoE gate, always float32: a rounding here could change the choice.

        out = x @ weight.T

    Args: x: [m, k] float32 or bfloat16.  weight: [e, k] float32 or bfloat16.  out: [m, e] float32.
    Returns: out.  Errors: RuntimeError naming the tensor, expected and got.  Writes: out.
    """
    if out is None:
        out = x.new_empty(x.shape[0], weight.shape[0], dtype=torch.float32)
    _router_gemm(x, weight, out)
    return out


register_fakes(
    "fp8_gemm_nt",
    "fp8_bmm_nt",
    "fp8_grouped_gemm_nt",
    "fp8_grouped_gemm_swiglu_nt",
    "w4a8_grouped_gemm_nt",
    "gemm_nt",
    "bmm_nt",
    "grouped_gemm_nt",
    "grouped_gemm_swiglu_nt",
    "router_gemm",
)
