"""What the tests of every op share: error budgets, opcheck, repeatability, rejected inputs."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

# Roundings to `dtype` alone: half a unit in the last place, relative.
UNIT_ROUNDOFF = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}


def assert_error_within(got: Tensor, want: Tensor, naive: Tensor, factor: float = 2.0) -> None:
    """Fail if `got` is further from `want` than `factor` times as far as `naive` is.

    want: float64 truth. naive: the same formula computed in the dtype of `got`, the budget.
    Non-finite values must sit in the same places and be equal; the error is the largest one,
    relative to the largest magnitude of the truth, plus two roundings to the dtype of `got`: of few
    terms the naive sum may be exact by luck, while any order of operations may round twice.
    """
    assert got.shape == want.shape, f"shape: expected {tuple(want.shape)}, got {tuple(got.shape)}"
    finite = torch.isfinite(want)
    assert torch.equal(finite, torch.isfinite(got)), "finite values in other places than the truth"
    special = ~finite
    assert torch.equal(torch.nan_to_num(got[special].double()), torch.nan_to_num(want[special])), (
        "infinities or NaNs differ from the truth"
    )
    if not finite.any():
        return
    truth = want[finite].double()
    scale = truth.abs().max().item()
    error = (got[finite].double() - truth).abs().max().item()
    budget = factor * (naive[finite].double() - truth).abs().max().item()
    budget += 2 * UNIT_ROUNDOFF[got.dtype] * scale
    assert error <= budget, f"error {error:.3e} over budget {budget:.3e} (scale {scale:.3e})"


def assert_repeatable(call: Callable[[], Any]) -> None:
    """Fail unless two runs give the same bits."""
    first, second = call(), call()
    for a, b in zip(_tensors(first), _tensors(second), strict=True):
        assert torch.equal(a.view(torch.uint8), b.view(torch.uint8)), "two runs gave different bits"


def assert_rejects(match: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    """Fail unless the call raises a RuntimeError whose text holds `match` literally."""
    with pytest.raises(RuntimeError, match=re.escape(match)):
        call(*args, **kwargs)


def opcheck(name: str, *args: Any) -> None:
    """Run torch.library.opcheck on torch.ops.seekernel.<name>: schema, autograd, fake, AOT."""
    torch.library.opcheck(getattr(torch.ops.seekernel, name).default, args)


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value.contiguous().reshape(-1)]
    if value is None:
        return []
    return [tensor for item in value for tensor in _tensors(item)]
