"""Fakes, for torch.compile and opcheck: every op only writes into tensors it was given."""

from __future__ import annotations

import torch


def register_fakes(*names: str) -> None:
    """Register the fake of torch.ops.seekernel.<name>: nothing is returned, so no shape is made."""

    def fake(*args: object) -> None:
        return None

    for name in names:
        torch.library.register_fake(f"seekernel::{name}", fake)
