"""RMS norms of the residual stream, each with the add (or the embedding) before it and the quantiser behind it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from seekernel import ops
from seekernel.model.weights import WeightSource
from seekernel.ops import NormedRows


@dataclass(frozen=True)
class Norm:
    """residual += x; rms_norm(residual)."""

    weight: Tensor
    eps: float
    quantize: bool  # whether linear layers that follow take e4m3 rows

    @classmethod
    def load(cls, source: WeightSource, name: str, size: int, eps: float) -> Norm:
        """Read `name`. On a CPU activations stay as they are."""
        return cls(source.read(name, (size,)), eps, source.device.type == "cuda")

    def __call__(self, x: Tensor | None, residual: Tensor) -> NormedRows:
        """x [s, hidden] (None: nothing) is added to residual, which is written."""
        return ops.add_rms_norm_quantize(x, residual, self.weight, self.eps, quantize=self.quantize)

    def of_embedding(self, token_ids: Tensor, table: Tensor, residual: Tensor) -> NormedRows:
        """residual becomes table[token_ids]."""
        return ops.add_rms_norm_quantize(
            None, residual, self.weight, self.eps, self.quantize, token_ids, table
        )
