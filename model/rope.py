"""Rotary position table: interleaved pairs, YaRN frequencies (Peng et al. 2023, section 3.2)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from seekernel.model.config import ModelConfig, yarn_mscale


def rope_frequencies(config: ModelConfig) -> Tensor:
    """Return the angle per position of each pair, [qk_rope_head_dim / 2] float64.

    Without YaRN theta^(-2i/d). With it, pairs that turn more than beta_fast times over the original
    context keep their frequency, those below beta_slow are divided by factor, between them a ramp.
    """
    dim = config.qk_rope_head_dim
    base = config.rope_theta ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    yarn = config.yarn
    if yarn is None:
        return base

    def pair_that_turns(times: float) -> float:
        context = yarn.original_max_position_embeddings
        return dim * math.log(context / (times * 2 * math.pi)) / (2 * math.log(config.rope_theta))

    low = max(math.floor(pair_that_turns(yarn.beta_fast)), 0)
    high = min(math.ceil(pair_that_turns(yarn.beta_slow)), dim - 1)
    width = max(high - low, 0.001)
    ramp = ((torch.arange(dim // 2, dtype=torch.float64) - low) / width).clamp(0, 1)
    return base * (1 - ramp) + base / yarn.factor * ramp


class RopeTable:
    """cos | sin of every position so far needed, [positions, qk_rope_head_dim] float32."""

    def __init__(self, config: ModelConfig, device: torch.device) -> None:
        self._frequencies = rope_frequencies(config)
        self._device = device
        self._limit = config.max_position_embeddings
        yarn = config.yarn
        self._scale = 1.0
        if yarn is not None:
            whole = yarn.mscale_all_dim or yarn.mscale
            with_ratio = yarn.mscale and yarn.mscale_all_dim
            self._scale = (
                yarn_mscale(yarn.factor, yarn.mscale) / yarn_mscale(yarn.factor, whole)
                if with_ratio
                else yarn_mscale(yarn.factor, 1.0)
            )
        self._table = self._compute(min(4096, self._limit))

    def _compute(self, positions: int) -> Tensor:
        angles = torch.arange(positions, dtype=torch.float64)[:, None] * self._frequencies
        table = torch.cat([angles.cos(), angles.sin()], dim=1) * self._scale
        return table.float().to(self._device)

    def cos_sin(self, num_positions: int) -> Tensor:
        """Return the table for at least `num_positions` positions, growing it by doubling."""
        have = self._table.shape[0]
        if num_positions > have:
            self._table = self._compute(min(max(num_positions, 2 * have), self._limit))
        return self._table
