"""Muon: momentum whose update matrix is made orthogonal, for the matrices inside the layers.

    m <- mu m + g;  u = orthogonal part of (g + mu m);  w <- w - lr (0.2 sqrt(max(n, k)) u + wd w)

The factor 0.2 sqrt(max(n, k)) gives u the root mean square of a typical AdamW step, so that both
optimisers take the same learning rate. Matrices of one shape are updated together; those with no
side of 256 or less (kv_b) go in slices of 128 rows, one head's keys or values each, which costs a
fifth.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

# Quintic whose iteration drives every singular value from (0, 1] to about 1.
_A, _B, _C = 3.4445, -4.7750, 2.0315
SLICE = 128


def orthogonalise(update: Tensor, rounds: int = 5) -> Tensor:
    """U V^T (approximately) of update = U S V^T; [..., n, k] in, the same shape and dtype out."""
    tall = update.shape[-2] > update.shape[-1]
    x = update.transpose(-1, -2) if tall else update
    x = x.to(torch.bfloat16)
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(rounds):
        gram = x @ x.transpose(-1, -2)
        x = _A * x + (_B * gram + _C * gram @ gram) @ x
    out: Tensor = (x.transpose(-1, -2) if tall else x).to(update.dtype)
    return out


class Muon(torch.optim.Optimizer):
    """The optimiser above. Every parameter must be a matrix."""

    def __init__(
        self, params: Iterable[Tensor], lr: float = 3e-3, momentum: float = 0.95, decay: float = 0.1
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "decay": decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    by_shape[p.shape].append(p)
            for shape, params in by_shape.items():
                grad = torch.stack([p.grad for p in params if p.grad is not None])
                states = [self.state[p] for p in params]
                for state, p in zip(states, params, strict=True):
                    state.setdefault("momentum", torch.zeros_like(p))
                moment = torch.stack([s["momentum"] for s in states])
                moment.mul_(group["momentum"]).add_(grad)
                grad.add_(moment, alpha=group["momentum"])
                rows, columns = shape
                if min(shape) > 256 and rows % SLICE == 0:
                    rows = SLICE
                update = orthogonalise(grad.view(-1, rows, columns)).view(grad.shape)
                scale = 0.2 * max(rows, columns) ** 0.5
                for p, m, u, state in zip(params, moment, update, states, strict=True):
                    state["momentum"].copy_(m)
                    p.mul_(1 - group["lr"] * group["decay"]).add_(u, alpha=-group["lr"] * scale)
        return None
