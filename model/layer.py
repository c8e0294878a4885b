"""A decoder layer: pre-norm attention and feed-forward around one residual stream."""

from __future__ import annotations

from torch import Tensor

from seekernel import ops
from seekernel.model.attention import LatentAttention
from seekernel.model.batch import Batch
from seekernel.model.config import ModelConfig
from seekernel.model.mlp import DenseMLP, MoE
from seekernel.model.weights import WeightSource


class DecoderLayer:
    """x += attn(norm(x)); x += mlp(norm(x)), with each add fused into the norm that follows it."""

    def __init__(self, config: ModelConfig, source: WeightSource, index: int) -> None:
        prefix, hidden = f"model.layers.{index}", config.hidden_size
        self.eps = config.rms_norm_eps
        self.input_layernorm = source.read(f"{prefix}.input_layernorm.weight", (hidden,))
        self.post_attention_layernorm = source.read(
            f"{prefix}.post_attention_layernorm.weight", (hidden,)
        )
        self.self_attn = LatentAttention(config, source, f"{prefix}.self_attn")
        self.mlp: MoE | DenseMLP
        if config.is_moe_layer(index):
            self.mlp = MoE(config, source, f"{prefix}.mlp")
        else:
            self.mlp = DenseMLP(source, f"{prefix}.mlp", config.intermediate_size, hidden)

    def __call__(
        self, x: Tensor | None, residual: Tensor, batch: Batch, cos_sin: Tensor, kv_cache: Tensor
    ) -> Tensor:
        """x [s, hidden] is the previous layer's output, not yet added to residual (None at first).

        Returns: this layer's output, to be added. Writes: residual, kv_cache.
        """
        if x is None:
            normed = ops.rms_norm(residual, self.input_layernorm, self.eps)
        else:
            normed = ops.add_rms_norm(x, residual, self.input_layernorm, self.eps)
        attended = self.self_attn(normed, batch, cos_sin, kv_cache)
        normed = ops.add_rms_norm(attended, residual, self.post_attention_layernorm, self.eps)
        return self.mlp(normed)
