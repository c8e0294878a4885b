"""The GEMM ops on a GPU: the hot path to kernels compiled at run time, and plain torch where none fits."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from seekernel import _jit, reference
from seekernel.ops._check import expect, fail
from seekernel.ops.paths import Chain, NoKernel

_FP8, _BF16, _F32 = torch.float8_e4m3fn, torch.bfloat16, torch.float32
_WIDE = (_F32, _BF16)
_ops = torch.ops.seekernel
_PART_VALUES = 1 << 26  # weights that the reference expands at a time


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


def _require_kernel_takes(
    a: Tensor, a_scale: Tensor | None, b: Tensor, b_scale: Tensor, out: Tensor
) -> None:
    """Errors: NoKernel saying what no compiled kernel takes; further checks are the launcher's."""
    k = a.shape[-1]
    if a.dtype is not _FP8 or a_scale is None or b.dtype is not _FP8:
        raise NoKernel("activations that are not float8")
    if out.dtype is not _BF16:
        raise NoKernel("an output that is not bfloat16")
    if k % 128 or k == 0 or b.shape[-2] % 8:
        raise NoKernel("k that is not a positive multiple of 128, or n not of 8")
    for x in (a, a_scale, b, out):
        unaligned = x.data_ptr() % 16 or (x.shape[-2] > 1 and x.stride(-2) * x.element_size() % 16)
        if unaligned or x.stride(-1) != 1:
            raise NoKernel("rows that do not start at multiples of 16 bytes")


# ---- fp8_gemm_nt ----


def check_fp8_gemm_nt(
    a: Tensor, a_scale: Tensor | None, b: Tensor, b_scale: Tensor, out: Tensor
) -> None:
    """Errors: RuntimeError naming the tensor, expected and got."""
    op, device = "fp8_gemm_nt", a.device
    if a.dim() != 2:
        fail(op, "a", a, "shape [m, k]")
    m, k = a.shape
    expect(op, "a", a, (m, k), (*_WIDE, _FP8), device)
    if (a.dtype is _FP8) != (a_scale is not None):
        need = "a tensor as a is float8_e4m3fn" if a.dtype is _FP8 else "None as a is not"
        raise RuntimeError(f"{op}: a_scale: expected {need}")
    if a_scale is not None:
        expect(op, "a_scale", a_scale, (-(-k // 128), -(-m // 4) * 4), (_F32,), device)
    if b.dim() != 2:
        fail(op, "b", b, "shape [n, k]")
    n = b.shape[0]
    expect(op, "b", b, (n, k), (_FP8,), device)
    expect(op, "b_scale", b_scale, (-(-n // 128), -(-k // 128)), (_F32,), device)
    expect(op, "out", out, (m, n), _WIDE, device)


def jit_fp8_gemm_nt(
    a: Tensor, a_scale: Tensor | None, b: Tensor, b_scale: Tensor, out: Tensor
) -> None:
    """Launch the kernel compiled for the shape. Errors: JitError, NoKernel, RuntimeError."""
    (m, k), (n, k_b) = a.shape, b.shape
    device = a.get_device()
    if not (
        a_scale is not None
        and a.dtype is _FP8
        and b.dtype is _FP8
        and out.dtype is _BF16
        and a_scale.dtype is _F32
        and b_scale.dtype is _F32
        and k == k_b
        and k % 128 == 0
        and a_scale.shape == (k // 128, (m + 3) // 4 * 4)
        and b_scale.shape == ((n + 127) // 128, k // 128)
        and out.shape == (m, n)
        and b_scale.is_contiguous()
        and b.get_device() == device
        and out.get_device() == device
        and a_scale.get_device() == device
        and b_scale.get_device() == device
    ):
        check_fp8_gemm_nt(a, a_scale, b, b_scale, out)
        raise NoKernel("arguments that no compiled kernel takes")
    if m == 0 or n == 0:
        return
    if not _is_current(device):
        with torch.cuda.device(device):
            return jit_fp8_gemm_nt(a, a_scale, b, b_scale, out)
    num_sms, stream = _stream(device)
    try:
        _jit.fp8_gemm_nt(
            a.data_ptr(), a_scale.data_ptr(), b.data_ptr(), b_scale.data_ptr(), out.data_ptr(),
            m, n, k, _row_stride(a, m, k), _row_stride(a_scale, k, m), _row_stride(b, n, k),
            _row_stride(out, m, n), num_sms, stream,
        )  # fmt: skip
    except ValueError as error:
        check_fp8_gemm_nt(a, a_scale, b, b_scale, out)
        raise NoKernel(str(error)) from None


def aot_fp8_gemm_nt(
    a: Tensor, a_scale: Tensor | None, b: Tensor, b_scale: Tensor, out: Tensor
) -> None:
    """Launch a kernel compiled at build time. Errors: NoKernel, RuntimeError."""
    check_fp8_gemm_nt(a, a_scale, b, b_scale, out)
    _require_kernel_takes(a, a_scale, b, b_scale, out)
    _ops.fp8_gemm_nt.default(a, a_scale, b, b_scale.contiguous(), out)


def reference_fp8_gemm_nt(
    a: Tensor, a_scale: Tensor | None, b: Tensor, b_scale: Tensor, out: Tensor
) -> None:
    """Plain torch, in float32, some rows of weights at a time."""
    check_fp8_gemm_nt(a, a_scale, b, b_scale, out)
    rows = max(128, _PART_VALUES // max(1, b.shape[1]) // 128 * 128)
    for i in range(0, b.shape[0], rows):
        part = reference.fp8_gemm_nt(
            a, a_scale, b[i : i + rows], b_scale[i // 128 : (i + rows) // 128], dtype=_F32
        )
        out[:, i : i + rows] = part


fp8_gemm_nt = Chain(
    "fp8_gemm_nt", jit=jit_fp8_gemm_nt, aot=aot_fp8_gemm_nt, reference=reference_fp8_gemm_nt
)
