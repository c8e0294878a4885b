"""What the GEMM ops on a GPU share: checks, strides, the launch, products by plain torch."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from seekernel import reference
from seekernel.ops._check import expect, fail
from seekernel.ops.paths import NoKernel

FP8, BF16, F32, I32 = torch.float8_e4m3fn, torch.bfloat16, torch.float32, torch.int32
WIDE = (F32, BF16)
PART_VALUES = 1 << 26  # weights that the reference expands at a time
# As csrc/heuristics/gemm.h numbers them.
BATCHED, TILE_MAP = 1, 5
KINDS = {"offsets": 2, "contiguous": 3, "masked": 4}
OUTPUTS = {BF16: 0, F32: 1, FP8: 2}


@lru_cache(maxsize=64)
def num_sms(device: int) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


def is_current(device: int) -> bool:
    return bool(torch._C._cuda_getDevice() == device)


def stream(device: int) -> tuple[int, int]:
    """SMs and the current stream of a device."""
    return num_sms(device), torch._C._cuda_getCurrentRawStream(device)


def row_stride(x: Tensor, rows: int, columns: int) -> int:
    # The stride of a single row may be anything in torch.
    return x.stride(-2) if rows > 1 else (columns + 15) // 16 * 16


def matrix_stride(x: Tensor) -> int:
    return x.stride(0) if x.shape[0] > 1 else row_stride(x, *x.shape[1:]) * x.shape[1]


def scale_strides(a_scale: Tensor) -> tuple[int, int]:
    blocks, padded = a_scale.shape[-2:]
    stride = a_scale.stride(-2) if blocks > 1 else padded
    if a_scale.dim() < 3:
        return stride, 0
    return stride, a_scale.stride(0) if a_scale.shape[0] > 1 else stride * blocks


def launch(
    device: int, check: Callable[[], None], call: Callable[..., None], *members: int
) -> None:
    """Call with members, SMs and stream; what the launcher refuses is our user's error or NoKernel."""
    if not is_current(device):
        with torch.cuda.device(device):
            return launch(device, check, call, *members)
    try:
        call(*members, *stream(device))
    except ValueError as error:
        check()
        raise NoKernel(str(error)) from None
    return None


def aligned(x: Tensor) -> bool:
    rows_at = x.shape[-2] <= 1 or x.stride(-2) * x.element_size() % 16 == 0
    stacks_at = x.dim() < 3 or x.shape[0] <= 1 or x.stride(0) * x.element_size() % 16 == 0
    return x.data_ptr() % 16 == 0 and rows_at and stacks_at


def require_kernel_takes(
    a: Tensor, a_scale: Tensor | None, b: Tensor, b_scale: Tensor, out: Tensor
) -> None:
    """Errors: NoKernel saying what no compiled kernel takes, of arguments that were checked."""
    k = a.shape[-1]
    if a.dtype is not FP8 or a_scale is None:
        raise NoKernel("activations that are not float8")
    if k % 128 or k == 0 or b.shape[-2] % 8:
        raise NoKernel("k that is not a positive multiple of 128, or n not of 8")
    if not all(map(aligned, (a, a_scale, b, out))):
        raise NoKernel("rows that do not start at multiples of 16 bytes")
    if b_scale.stride(-1) != 1 or (b_scale.shape[-2] > 1 and b_scale.stride(-2) != k // 128):
        raise NoKernel("scales of a weight matrix that do not lie together")


def check_operands(
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
    expect(op, "a", a, (*stack, m, k), (*WIDE, FP8), device)
    if (a.dtype is FP8) != (a_scale is not None):
        need = "a tensor as a is float8_e4m3fn" if a.dtype is FP8 else "None as a is not"
        raise RuntimeError(f"{op}: a_scale: expected {need}")
    if a_scale is not None:
        expect(op, "a_scale", a_scale, (*stack, -(-k // 128), -(-m // 4) * 4), (F32,), device)
    expect(op, "b", b, (*groups, n, k), (FP8,), device)
    n_blocks = halves * -(-(n // halves) // 128)
    expect(op, "b_scale", b_scale, (*groups, n_blocks, -(-k // 128)), (F32,), device)


def multiply(a: Tensor, a_scale: Tensor | None, b: Tensor, b_scale: Tensor, out: Tensor) -> None:
    """out = a @ b.T by plain torch in float32, some rows of weights at a time."""
    rows = max(128, PART_VALUES // max(1, b.shape[1]) // 128 * 128)
    for i in range(0, b.shape[0], rows):
        scale = b_scale[i // 128 : (i + rows) // 128]
        out[:, i : i + rows] = reference.fp8_gemm_nt(a, a_scale, b[i : i + rows], scale, dtype=F32)
