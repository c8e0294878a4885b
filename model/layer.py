"""A decoder layer: pre-norm attention and feed-forward around one residual stream."""

from __future__ import annotations

from torch import Tensor

from seekernel.model.attention import LatentAttention
from seekernel.model.batch import Batch
from seekernel.model.config import ModelConfig
from seekernel.model.mlp import DenseMLP, MoE
from seekernel.model.norm import Norm
from seekernel.model.weights import WeightSource
from seekernel.ops import NormedRows


class DecoderLayer:
    """x += attn(norm(x)); x += mlp(norm(x)), with each add fused into the norm that follows it.

    The layer's own first norm belongs to what comes before it: the caller applies input_norm, and
    the layer the norm of whatever follows.
    """

    def __init__(self, config: ModelConfig, source: WeightSource, index: int) -> None:
        prefix, hidden, eps = f"model.layers.{index}", config.hidden_size, config.rms_norm_eps
        self.input_norm = Norm.load(source, f"{prefix}.input_layernorm.weight", hidden, eps)
        self.post_attention_norm = Norm.load(
            source, f"{prefix}.post_attention_layernorm.weight", hidden, eps
        )
        self.self_attn = LatentAttention(config, source, f"{prefix}.self_attn")
        self.mlp: MoE | DenseMLP
        if config.is_moe_layer(index):
            self.mlp = MoE(config, source, f"{prefix}.mlp")
        else:
            self.mlp = DenseMLP(source, f"{prefix}.mlp", config.intermediate_size, hidden)

    def __call__(
        self,
        x: NormedRows,
        residual: Tensor,
        batch: Batch,
        cos_sin: Tensor,
        kv_cache: Tensor,
        next_norm: Norm,
    ) -> NormedRows:
        """x [s, hidden] is input_norm of residual. Returns next_norm of what this layer leaves.

        Writes: residual, kv_cache.
        """
        attended = self.self_attn(x, batch, cos_sin, kv_cache)
        return self.mlp(self.post_attention_norm(attended, residual), residual, next_norm)
