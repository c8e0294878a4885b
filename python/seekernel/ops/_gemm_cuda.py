"""Dense and batched GEMM ops on a GPU: JIT, AOT, and plain torch where no kernel fits."""

from __future__ import annotations

import torch
from torch import Tensor

from seekernel import _jit, reference
from seekernel.ops import _gemm_shared as shared
from seekernel.ops._check import expect, fail
from seekernel.ops._gemm_shared import BATCHED, BF16, F32, FP8, WIDE
from seekernel.ops.paths import Chain, NoKernel

_ops = torch.ops.seekernel


# ---- fp8_gemm_nt ----


def check_fp8_gemm_nt(
    a: Tensor, a_scale: Tensor | None, b: Tensor, b_scale: Tensor, out: Tensor
) -> None:
    """Errors: RuntimeError naming the tensor, expected and got."""
    shared.check_operands("fp8_gemm_nt", a, a_scale, b, b_scale, False, False)
    expect("fp8_gemm_nt", "out", out, (a.shape[0], b.shape[0]), WIDE, a.device)


def jit_fp8_gemm_nt(
    a: Tensor, a_scale: Tensor | None, b: Tensor, b_scale: Tensor, out: Tensor
) -> None:
    """Launch the kernel compiled for the shape. Errors: JitError, NoKernel, RuntimeError."""
    (m, k), (n, k_b) = a.shape, b.shape
    device, out_dtype = a.get_device(), out.dtype
    if not (
        a_scale is not None
        and a.dtype is FP8
        and b.dtype is FP8
        and (out_dtype is BF16 or out_dtype is F32)
        and a_scale.dtype is F32
        and b_scale.dtype is F32
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
    if not shared.is_current(device):
        with torch.cuda.device(device):
            return jit_fp8_gemm_nt(a, a_scale, b, b_scale, out)
    num_sms, stream = shared.stream(device)
    try:
        _jit.fp8_gemm_nt(
            a.data_ptr(), a_scale.data_ptr(), b.data_ptr(), b_scale.data_ptr(), out.data_ptr(),
            m, n, k, a_rows, scale_rows, b_rows, out_rows, num_sms, stream,
            0 if out_dtype is BF16 else 1,
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
    shared.require_kernel_takes(a, a_scale, b, b_scale, out)
    _ops.fp8_gemm_nt.default(a, a_scale, b, b_scale, out)


def reference_fp8_gemm_nt(
    a: Tensor, a_scale: Tensor | None, b: Tensor, b_scale: Tensor, out: Tensor
) -> None:
    """Plain torch."""
    check_fp8_gemm_nt(a, a_scale, b, b_scale, out)
    shared.multiply(a, a_scale, b, b_scale, out)


fp8_gemm_nt = Chain(
    "fp8_gemm_nt", jit=jit_fp8_gemm_nt, aot=aot_fp8_gemm_nt, reference=reference_fp8_gemm_nt
)


# ---- fp8_bmm_nt ----


def _check_bmm(a: Tensor, a_scale: Tensor | None, b: Tensor, b_scale: Tensor, out: Tensor) -> None:
    shared.check_operands("fp8_bmm_nt", a, a_scale, b, b_scale, True, True)
    expect("fp8_bmm_nt", "out", out, (*a.shape[:2], b.shape[1]), WIDE, a.device)


def jit_fp8_bmm_nt(
    a: Tensor, a_scale: Tensor | None, b: Tensor, b_scale: Tensor, out: Tensor
) -> None:
    """Launch the wide kernel over a batch. Errors: JitError, NoKernel, RuntimeError."""
    _check_bmm(a, a_scale, b, b_scale, out)
    shared.require_kernel_takes(a, a_scale, b, b_scale, out)
    if out.dtype is not BF16 or a_scale is None:
        raise NoKernel("an output that is not bfloat16")
    (g, m, k), n = a.shape, b.shape[1]
    if g * m * n == 0:
        return
    shared.launch(
        a.get_device(), lambda: None, _jit.fp8_gemm, BATCHED, 0, m, n, k, g, 0, 0, a.data_ptr(),
        a_scale.data_ptr(), b.data_ptr(), b_scale.data_ptr(), out.data_ptr(), 0, 0, 0, 0, 0,
        shared.row_stride(a, m, k), shared.matrix_stride(a), *shared.scale_strides(a_scale),
        shared.row_stride(b, n, k), shared.matrix_stride(b), b_scale.stride(0), shared.row_stride(out, m, n),
        shared.matrix_stride(out), 0, 4,
    )  # fmt: skip


def aot_fp8_bmm_nt(
    a: Tensor, a_scale: Tensor | None, b: Tensor, b_scale: Tensor, out: Tensor
) -> None:
    """Launch a kernel compiled at build time. Errors: NoKernel, RuntimeError."""
    _check_bmm(a, a_scale, b, b_scale, out)
    shared.require_kernel_takes(a, a_scale, b, b_scale, out)
    if out.dtype is not BF16:
        raise NoKernel("an output that is not bfloat16")
    _ops.fp8_bmm_nt.default(a, a_scale, b, b_scale, out)


def reference_fp8_bmm_nt(
    a: Tensor, a_scale: Tensor | None, b: Tensor, b_scale: Tensor, out: Tensor
) -> None:
    """Plain torch, one matrix after the other."""
    _check_bmm(a, a_scale, b, b_scale, out)
    for i in range(b.shape[0]):
        shared.multiply(a[i], None if a_scale is None else a_scale[i], b[i], b_scale[i], out[i])


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
    expect(op, "a", a, (g, m, k), WIDE, a.device)
    expect(op, "b", b, (g, n, k), WIDE, a.device)
    expect(op, "out", out, (g, m, n), WIDE, a.device)


def aot_bmm_nt(a: Tensor, b: Tensor, out: Tensor) -> None:
    """Launch the kernel compiled at build time. Errors: NoKernel, RuntimeError."""
    _check_bf16_bmm(a, b, out)
    if not a.dtype is b.dtype is out.dtype is BF16:
        raise NoKernel("operands that are not all bfloat16")
    if (
        a.shape[2] % 8
        or b.shape[1] % 8
        or a.shape[2] == 0
        or not all(map(shared.aligned, (a, b, out)))
    ):
        raise NoKernel("rows that are not multiples of 16 bytes, or do not start at them")
    _ops.bmm_nt.default(a, b, out)


def reference_bmm_nt(a: Tensor, b: Tensor, out: Tensor) -> None:
    """Plain torch, in float32."""
    _check_bf16_bmm(a, b, out)
    out.copy_(reference.bmm_nt(a, b, F32))


bmm_nt = Chain("bmm_nt", jit=None, aot=aot_bmm_nt, reference=reference_bmm_nt)
