"""DeepseekV3ForCausalLM: embedding, decoder layers, final norm, head; and the MTP module beside it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from seekernel.model.batch import Batch
from seekernel.model.config import BLOCK, ModelConfig
from seekernel.model.errors import ConfigError, WeightError
from seekernel.model.layer import DecoderLayer
from seekernel.model.linear import Linear
from seekernel.model.mlp import MoE
from seekernel.model.mtp import MtpModule, duplicates_equal, mtp_names
from seekernel.model.norm import Norm
from seekernel.model.rope import RopeTable
from seekernel.model.weights import CheckpointSource, DummySource, WeightSource

LOAD_FORMATS = ("auto", "dummy")
KV_CACHE_DTYPES = ("auto", "bfloat16", "float32", "fp8", "fp8_per_tensor")
ACTIVATION_DTYPES = {"auto": torch.float32, "float32": torch.float32, "bfloat16": torch.bfloat16}

KVCache = list[Tensor]  # per layer [num_pages, page_size, row], rows as in ops; MTP's last


class DeepseekV3ForCausalLM:
    """The whole model on one device. Weights stay in the checkpoint's dtypes."""

    def __init__(self, config: ModelConfig, source: WeightSource, dtype: str = "auto") -> None:
        if dtype not in ACTIVATION_DTYPES:
            raise ValueError(f"dtype: expected one of {list(ACTIVATION_DTYPES)}, got {dtype!r}")
        self.config, self.device = config, source.device
        self.dtype = ACTIVATION_DTYPES[dtype]
        shape = (config.vocab_size, config.hidden_size)
        self.embed_tokens = source.read("model.embed_tokens.weight", shape)
        self.layers = [
            DecoderLayer(config, source, index) for index in range(config.num_hidden_layers)
        ]
        norm = source.read("model.norm.weight", (config.hidden_size,))
        self.norm = Norm(norm, config.rms_norm_eps, quantize=False)
        if config.tie_word_embeddings:
            self.lm_head = Linear(self.embed_tokens, None)
        else:
            self.lm_head = Linear.load(source, "lm_head", *shape)
        self.mtp: MtpModule | None = None
        if config.num_nextn_predict_layers and _has_mtp(source, config):
            self.mtp = MtpModule(config, source)
        self.rope = RopeTable(config, self.device)

    @classmethod
    def from_pretrained(
        cls,
        model_dir: str | Path,
        *,
        device: str = "cpu",
        dtype: str = "auto",
        load_format: str = "auto",
    ) -> DeepseekV3ForCausalLM:
        """Load a Hugging Face directory.

        Args:
            model_dir: holds config.json and safetensors.  device: where to run.
            dtype: of activations: auto (float32 on a CPU), float32 or bfloat16.
            load_format: auto reads the weights; dummy makes random ones, only config.json is read.
        Errors: ConfigError or WeightError naming key or tensor; ValueError for an option.
        """
        if load_format not in LOAD_FORMATS:
            raise ValueError(f"load_format: expected one of {LOAD_FORMATS}, got {load_format!r}")
        config = ModelConfig.from_dir(model_dir)
        target = torch.device(device)
        if load_format == "dummy":
            return cls(config, DummySource(config, target), dtype)
        source = CheckpointSource(model_dir, target)
        model = cls(config, source, dtype)
        if model.mtp is None:
            source.ignore(f"model.layers.{config.num_hidden_layers}.")
        elif not duplicates_equal(source, config, model.embed_tokens, model.lm_head.weight):
            raise WeightError(
                f"{' or '.join(mtp_names(config))}: expected a copy of the main model's, got another"
            )
        if config.tie_word_embeddings:
            source.ignore("lm_head.")
        source.ignore(
            *(f"model.layers.{i}.self_attn.rotary_emb." for i in range(len(model.layers)))
        )
        source.check_all_used()
        return model

    def set_moe_max_num_tokens(self, limit: int | None) -> None:
        """Let the experts take at most so many tokens at once; None: all."""
        layers = [*self.layers, *([] if self.mtp is None else [self.mtp.layer])]
        for layer in layers:
            if isinstance(layer.mlp, MoE):
                layer.mlp.max_num_tokens = limit

    def allocate_kv_cache(self, num_pages: int, page_size: int, dtype: str = "auto") -> KVCache:
        """Return one latent cache per layer, the MTP module's last.

        dtype: auto (bfloat16), bfloat16, float32, or FP8: fp8_per_tensor has one multiplier, 1, for
        all; fp8 one per 128 latent values of a token and keeps the rope key in bfloat16, where the
        latent's width allows that. Rows are undefined until a forward writes them; untouched ones
        take no memory on a CPU.
        """
        if dtype not in KV_CACHE_DTYPES:
            raise ValueError(
                f"kv_cache_dtype: expected one of {list(KV_CACHE_DTYPES)}, got {dtype!r}"
            )
        latent, rope = self.config.kv_lora_rank, self.config.qk_rope_head_dim
        width, kind = latent + rope, torch.bfloat16
        if dtype == "fp8" and latent % BLOCK == 0:
            width, kind = latent + latent // 32 + 2 * rope, torch.uint8
        elif dtype in ("fp8", "fp8_per_tensor"):
            kind = torch.float8_e4m3fn
        elif dtype == "float32":
            kind = torch.float32
        shape = (num_pages, page_size, width)
        layers = self.config.num_hidden_layers + (self.mtp is not None)
        return [torch.empty(shape, dtype=kind, device=self.device) for _ in range(layers)]

    @torch.inference_mode()
    def forward(self, token_ids: Tensor, batch: Batch, kv_cache: KVCache) -> Tensor:
        """Return the hidden states after the final norm, [num_tokens, hidden_size].

        token_ids: [num_tokens] int64, the new tokens of the batch's requests, concatenated.
        Writes: kv_cache, the rows of the new tokens.
        """
        cos_sin = self.rope.cos_sin(batch.num_positions)
        if not self.layers:
            raise ConfigError("num_hidden_layers: expected at least 1, got 0")
        residual = torch.empty(
            len(token_ids), self.config.hidden_size, dtype=self.dtype, device=self.device
        )
        x = self.layers[0].input_norm.of_embedding(token_ids, self.embed_tokens, residual)
        norms = [*(layer.input_norm for layer in self.layers[1:]), self.norm]
        for layer, norm, cache in zip(self.layers, norms, kv_cache, strict=False):
            x = layer(x, residual, batch, cos_sin, cache, norm)
        return x.x

    @torch.inference_mode()
    def forward_mtp(
        self, next_token_ids: Tensor, hidden: Tensor, batch: Batch, kv_cache: KVCache
    ) -> Tensor:
        """Return the MTP module's states after its norm, [num_tokens, hidden_size].

        next_token_ids: [num_tokens] int64, for each state in `hidden` the token that follows it.
        Errors: WeightError if the checkpoint has no MTP module.  Writes: the last layer of kv_cache.
        """
        if self.mtp is None:
            raise WeightError("the checkpoint has no MTP module (num_nextn_predict_layers is 0)")
        cos_sin = self.rope.cos_sin(batch.num_positions)
        return self.mtp.forward(self._embed(next_token_ids), hidden, batch, cos_sin, kv_cache[-1])

    @torch.inference_mode()
    def compute_logits(self, hidden: Tensor) -> Tensor:
        """Return [rows, vocab_size] float32: call it only with the rows that need logits."""
        out = torch.empty(
            hidden.shape[0], self.config.vocab_size, dtype=torch.float32, device=self.device
        )
        return self.lm_head(hidden, out=out)

    def _embed(self, token_ids: Tensor) -> Tensor:
        return self.embed_tokens.index_select(0, token_ids).to(self.dtype)


def _has_mtp(source: WeightSource, config: ModelConfig) -> bool:
    return f"model.layers.{config.num_hidden_layers}.eh_proj.weight" in source
