"""Checks of arguments on the way to plain torch, worded as csrc/host/check.h words them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def fail(op: str, name: str, tensor: Tensor, expected: str) -> None:
    """Errors: always the RuntimeError "op: name: expected ..., got ..."."""
    device = "cpu" if tensor.device.type == "cpu" else f"device {tensor.device.index}"
    raise RuntimeError(
        f"{op}: {name}: expected {expected}, got shape {list(tensor.shape)}, "
        f"strides {list(tensor.stride())}, dtype {_name(tensor.dtype)}, {device}"
    )


def expect(
    op: str,
    name: str,
    tensor: Tensor,
    shape: Sequence[int],
    dtypes: Sequence[torch.dtype],
    device: torch.device,
) -> None:
    """Errors: RuntimeError naming the tensor, expected and got, unless all is as said."""
    if tuple(tensor.shape) != tuple(shape):
        fail(op, name, tensor, f"shape {list(shape)}")
    if tensor.dtype not in dtypes:
        fail(op, name, tensor, f"dtype {' or '.join(map(_name, dtypes))}")
    if tensor.device != device:
        fail(op, name, tensor, f"the device {device}")
    if tensor.dim() and tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
        fail(op, name, tensor, "stride 1 in the last dimension")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
