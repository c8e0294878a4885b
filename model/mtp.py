"""The multi-token prediction module (DeepSeek-V3 paper, section 2.2), stored as layer num_hidden_layers."""

from __future__ import annotations

import torch
from torch import Tensor

from seekernel import ops
from seekernel.model.batch import Batch
from seekernel.model.config import ModelConfig
from seekernel.model.layer import DecoderLayer
from seekernel.model.linear import Linear
from seekernel.model.norm import Norm
from seekernel.model.weights import WeightSource


class MtpModule:
    """Predicts token t + 2 from the hidden state at t and the token t + 1.

    h' = layer(eh_proj([enorm(embed(token_{t+1})), hnorm(h_t)])), logits = lm_head(norm(h'));
    h_t is the main model's state after its final norm, and norm(h') feeds the next draft step.
    """

    def __init__(self, config: ModelConfig, source: WeightSource) -> None:
        index, hidden = config.num_hidden_layers, config.hidden_size
        prefix = f"model.layers.{index}"
        self.eps = config.rms_norm_eps
        self.enorm = source.read(f"{prefix}.enorm.weight", (hidden,))
        self.hnorm = source.read(f"{prefix}.hnorm.weight", (hidden,))
        self.eh_proj = Linear.load(source, f"{prefix}.eh_proj", hidden, 2 * hidden)
        self.layer = DecoderLayer(config, source, index)
        norm = source.read(f"{prefix}.shared_head.norm.weight", (hidden,))
        self.norm = Norm(norm, self.eps, quantize=False)

    def forward(
        self, embedded: Tensor, hidden: Tensor, batch: Batch, cos_sin: Tensor, kv_cache: Tensor
    ) -> Tensor:
        """Run the module.

        Args:
            embedded: [s, hidden_size] embeddings of the tokens that follow those of `hidden`.
            hidden: [s, hidden_size] states after the final norm (or of the previous draft step).
            kv_cache: this module's own cache, [num_pages, page_size, latent].
        Returns: [s, hidden_size] after shared_head.norm.  Writes: kv_cache.
        """
        size = hidden.shape[-1]
        joined = hidden.new_empty(hidden.shape[0], 2 * size)
        ops.rms_norm(embedded, self.enorm, self.eps, out=joined[:, :size])
        ops.rms_norm(hidden, self.hnorm, self.eps, out=joined[:, size:])
        residual = self.eh_proj(joined)
        x = self.layer.input_norm(None, residual)
        return self.layer(x, residual, batch, cos_sin, kv_cache, self.norm).x


def mtp_names(config: ModelConfig) -> tuple[str, str]:
    """Return the names of the stored duplicates of the embedding and the head, which are not read."""
    prefix = f"model.layers.{config.num_hidden_layers}"
    return f"{prefix}.embed_tokens.weight", f"{prefix}.shared_head.head.weight"


def duplicates_equal(
    source: WeightSource, config: ModelConfig, embed: Tensor, head: Tensor
) -> bool:
    """Whether the stored duplicates, if any, are the main model's embedding and head."""
    for name, main in zip(mtp_names(config), (embed, head), strict=True):
        if name in source:
            stored = source.read(name, tuple(main.shape), main.dtype)
            if not torch.equal(stored, main):
                return False
    return True
