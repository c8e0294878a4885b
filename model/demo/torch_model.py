"""DeepSeek-V3 in plain torch: differentiable, typed, with no kernel of this package in it.

The demo checkpoint is trained with it and the tests use it as the oracle of the main model and of
the MTP module. It is written for reading: no cache, no absorbed attention, one row of text in, one
row of logits out. Parameter names are those of DeepSeek's published files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_YARN_FIELDS = {
    "factor": "rope_factor",
    "original_max_position_embeddings": "rope_original_max",
    "beta_fast": "rope_beta_fast",
    "beta_slow": "rope_beta_slow",
    "mscale": "rope_mscale",
    "mscale_all_dim": "rope_mscale_all_dim",
}


@dataclass(frozen=True)
class TorchConfig:
    """The fields of a DeepSeek-V3 `config.json` that change a number.

    `rope_factor` None means plain RoPE. Other fields keep their Hugging Face names.
    """

    vocab_size: int = 3584
    hidden_size: int = 256
    intermediate_size: int = 512
    moe_intermediate_size: int = 128
    num_hidden_layers: int = 5
    num_nextn_predict_layers: int = 1
    first_k_dense_replace: int = 1
    num_attention_heads: int = 4
    q_lora_rank: int | None = 128
    kv_lora_rank: int = 512
    qk_nope_head_dim: int = 128
    qk_rope_head_dim: int = 64
    v_head_dim: int = 128
    n_routed_experts: int = 16
    n_shared_experts: int = 1
    num_experts_per_tok: int = 4
    n_group: int = 4
    topk_group: int = 2
    norm_topk_prob: bool = True
    routed_scaling_factor: float = 2.5
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_factor: float | None = 40.0
    rope_original_max: int = 4096
    rope_beta_fast: float = 32.0
    rope_beta_slow: float = 1.0
    rope_mscale: float = 1.0
    rope_mscale_all_dim: float = 1.0

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> TorchConfig:
        """Read a parsed `config.json`; fields that it lacks keep the defaults above.

        Errors: ValueError for a rope type other than yarn.
        """
        known = {f.name for f in fields(cls)}
        values = {k: v for k, v in config.items() if k in known}
        scaling = config.get("rope_scaling")
        if scaling is None:
            values["rope_factor"] = None
        else:
            kind = scaling.get("rope_type", scaling.get("type"))
            if kind != "yarn":
                raise ValueError(
                    f"rope_scaling.type: expected 'yarn' or no rope_scaling, got {kind!r}"
                )
            values |= {name: scaling[key] for key, name in _YARN_FIELDS.items() if key in scaling}
        return cls(**values)

    @property
    def softmax_scale(self) -> float:
        """(nope + rope)^-0.5, times (0.1 mscale_all_dim ln factor + 1)^2 under YaRN."""
        scale: float = (self.qk_nope_head_dim + self.qk_rope_head_dim) ** -0.5
        if self.rope_factor is not None and self.rope_factor > 1 and self.rope_mscale_all_dim:
            scale *= _yarn_mscale(self.rope_factor, self.rope_mscale_all_dim) ** 2
        return scale


def _yarn_mscale(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def rope_tables(config: TorchConfig, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """cos and sin of every position's rotation, YaRN-corrected.

    Returns: two [length, qk_rope_head_dim / 2] fp32 tables.
    """
    dim = config.qk_rope_head_dim
    inv_freq = config.rope_theta ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    magnitude = 1.0
    if config.rope_factor is not None:

        def turns_to_dim(turns: float) -> float:
            span = config.rope_original_max / (turns * 2 * math.pi)
            return dim * math.log(span) / (2 * math.log(config.rope_theta))

        low = max(math.floor(turns_to_dim(config.rope_beta_fast)), 0)
        high = min(math.ceil(turns_to_dim(config.rope_beta_slow)), dim - 1)
        ramp = (torch.arange(dim // 2, dtype=torch.float64) - low) / max(high - low, 0.001)
        ramp = ramp.clamp(0, 1)
        inv_freq = inv_freq * (1 - ramp) + inv_freq / config.rope_factor * ramp
        magnitude = _yarn_mscale(config.rope_factor, config.rope_mscale) / _yarn_mscale(
            config.rope_factor, config.rope_mscale_all_dim
        )
    angle = torch.outer(torch.arange(length, dtype=torch.float64), inv_freq)
    cos, sin = angle.cos() * magnitude, angle.sin() * magnitude
    return cos.to(device, torch.float32), sin.to(device, torch.float32)


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the interleaved pairs (x0, x1), (x2, x3), ... of the last dim.

    Args: x [..., s, d]; cos, sin [s, d / 2] fp32. Returns: as x, computed in fp32.
    """
    even, odd = x.float().reshape(*x.shape[:-1], x.shape[-1] // 2, 2).unbind(-1)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2).to(x.dtype)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last dim, in fp32."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self.weight.shape, self.weight.float(), self.eps).to(x.dtype)


def _narrow(x: Tensor) -> Tensor:
    """Under autocast, cast once what several products read; else x itself."""
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x


def _linear(in_features: int, out_features: int) -> nn.Linear:
    return nn.Linear(in_features, out_features, bias=False)


class Attention(nn.Module):
    """Multi-head latent attention in its naive form: k and v expanded from the latent per head."""

    def __init__(self, config: TorchConfig) -> None:
        super().__init__()
        self.config = config
        heads, hidden = config.num_attention_heads, config.hidden_size
        qk_dim = config.qk_nope_head_dim + config.qk_rope_head_dim
        if config.q_lora_rank is None:
            self.q_proj = _linear(hidden, heads * qk_dim)
        else:
            self.q_a_proj = _linear(hidden, config.q_lora_rank)
            self.q_a_layernorm = RMSNorm(config.q_lora_rank, config.rms_norm_eps)
            self.q_b_proj = _linear(config.q_lora_rank, heads * qk_dim)
        self.kv_a_proj_with_mqa = _linear(hidden, config.kv_lora_rank + config.qk_rope_head_dim)
        self.kv_a_layernorm = RMSNorm(config.kv_lora_rank, config.rms_norm_eps)
        self.kv_b_proj = _linear(
            config.kv_lora_rank, heads * (config.qk_nope_head_dim + config.v_head_dim)
        )
        self.o_proj = _linear(heads * config.v_head_dim, hidden)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        """x [b, s, hidden]; cos, sin [s, rope / 2]; mask [b or 1, 1, s, s], True = may look."""
        c = self.config
        heads = c.num_attention_heads
        if c.q_lora_rank is None:
            q = self.q_proj(x)
        else:
            q = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x)))
        q = q.unflatten(-1, (heads, -1)).transpose(1, 2)
        q_nope, q_rope = q.split([c.qk_nope_head_dim, c.qk_rope_head_dim], -1)
        latent, k_rope = self.kv_a_proj_with_mqa(x).split([c.kv_lora_rank, c.qk_rope_head_dim], -1)
        kv = self.kv_b_proj(self.kv_a_layernorm(latent)).unflatten(-1, (heads, -1)).transpose(1, 2)
        k_nope, v = kv.split([c.qk_nope_head_dim, c.v_head_dim], -1)
        q_rope = apply_rope(q_rope, cos, sin)
        k_rope = apply_rope(k_rope.unsqueeze(1), cos, sin)
        query = torch.cat((q_nope, q_rope), -1) * c.softmax_scale
        key = torch.cat((k_nope, k_rope.expand(-1, heads, -1, -1)), -1)
        scores = (query @ key.transpose(-1, -2)).masked_fill(~mask, -torch.inf)
        probs = scores.softmax(-1, dtype=torch.float32).to(v.dtype)
        out: Tensor = self.o_proj((probs @ v).transpose(1, 2).flatten(-2))
        return out


class MLP(nn.Module):
    """down(silu(gate(x)) * up(x)); the dense block, the shared expert and each routed expert."""

    def __init__(self, hidden: int, intermediate: int) -> None:
        super().__init__()
        self.gate_proj = _linear(hidden, intermediate)
        self.up_proj = _linear(hidden, intermediate)
        self.down_proj = _linear(intermediate, hidden)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Gate(nn.Module):
    """Group-limited sigmoid routing without auxiliary loss, all in fp32.

    The bias only selects. `load` holds the last call's tokens per expert, for the bias update.
    """

    def __init__(self, config: TorchConfig) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.empty(config.n_routed_experts, config.hidden_size))
        self.e_score_correction_bias = nn.Parameter(
            torch.zeros(config.n_routed_experts), requires_grad=False
        )
        self.load = torch.zeros(config.n_routed_experts)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [t, hidden] -> expert ids [t, k] int64 and their weights [t, k] fp32."""
        c = self.config
        with torch.autocast(x.device.type, enabled=False):
            scores = F.linear(x.float(), self.weight.float()).sigmoid()
        with torch.no_grad():
            choice = (scores + self.e_score_correction_bias).view(len(x), c.n_group, -1)
            group_score = choice.topk(min(2, choice.shape[-1]), -1).values.sum(-1)
            kept = group_score.topk(c.topk_group, -1).indices
            lost = torch.ones_like(group_score, dtype=torch.bool).scatter_(-1, kept, False)
            choice = choice.masked_fill(lost.unsqueeze(-1), -torch.inf).flatten(-2)
            ids = choice.topk(c.num_experts_per_tok, -1).indices
            self.load = torch.bincount(ids.flatten(), minlength=c.n_routed_experts)
        weights = scores.gather(-1, ids)
        if c.norm_topk_prob:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return ids, weights * c.routed_scaling_factor

    @torch.no_grad()
    def update_bias(self, speed: float) -> None:
        """Move each expert's bias by `speed` towards an equal load."""
        load = self.load.float()
        self.e_score_correction_bias.add_((load.mean() - load).sign(), alpha=speed)


class MoE(nn.Module):
    """sum_k weight_k * expert_k(x) + shared(x), tokens sorted by expert so that each runs once."""

    def __init__(self, config: TorchConfig) -> None:
        super().__init__()
        self.gate = Gate(config)
        hidden, inner = config.hidden_size, config.moe_intermediate_size
        self.experts = nn.ModuleList(MLP(hidden, inner) for _ in range(config.n_routed_experts))
        self.shared_experts = MLP(hidden, inner * config.n_shared_experts)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, -2)
        ids, weights = self.gate(flat)
        order = ids.flatten().argsort(stable=True)
        token = order // ids.shape[-1]
        counts = self.gate.load.tolist()
        rows = torch.split(flat.index_select(0, token), counts)
        ys = [expert(row) for expert, row in zip(self.experts, rows, strict=True)]
        routed = torch.cat(ys) * weights.flatten()[order].unsqueeze(-1)
        out = routed.new_zeros(flat.shape).index_add(0, token, routed)
        total: Tensor = (out + self.shared_experts(flat)).view_as(x)
        return total


class DecoderLayer(nn.Module):
    """x += attention(norm(x)); x += ffn(norm(x)), dense below `first_k_dense_replace`."""

    def __init__(self, config: TorchConfig, index: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        dense = index < config.first_k_dense_replace
        self.mlp = MLP(config.hidden_size, config.intermediate_size) if dense else MoE(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        x = x + self.self_attn(_narrow(self.input_layernorm(x)), cos, sin, mask)
        out: Tensor = x + self.mlp(_narrow(self.post_attention_layernorm(x)))
        return out


class SharedHead(nn.Module):
    """The norm before the output head of an MTP module; the head itself is the main model's."""

    def __init__(self, config: TorchConfig) -> None:
        super().__init__()
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(x)
        return out


class MTPLayer(DecoderLayer):
    """Multi-token prediction: from h_t and token t+1, the hidden state that predicts token t+2."""

    def __init__(self, config: TorchConfig, index: int) -> None:
        super().__init__(config, index)
        self.enorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.hnorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.eh_proj = _linear(2 * config.hidden_size, config.hidden_size)
        self.shared_head = SharedHead(config)

    def draft(
        self, hidden: Tensor, next_embed: Tensor, cos: Tensor, sin: Tensor, mask: Tensor
    ) -> Tensor:
        """hidden, next_embed [b, s, hidden] -> normed hidden state, ready for the head."""
        x = self.eh_proj(torch.cat((self.enorm(next_embed), self.hnorm(hidden)), -1))
        out: Tensor = self.shared_head(self(x, cos, sin, mask))
        return out


class Backbone(nn.Module):
    """`model.*` of the checkpoint: embedding, layers (the MTP modules last), final norm."""

    def __init__(self, config: TorchConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        main, extra = config.num_hidden_layers, config.num_nextn_predict_layers
        layers: list[DecoderLayer] = [DecoderLayer(config, i) for i in range(main)]
        layers += [MTPLayer(config, main + i) for i in range(extra)]
        self.layers = nn.ModuleList(layers)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class TorchDeepseekV3(nn.Module):
    """The whole model. `state_dict()` has DeepSeek's tensor names, unquantised."""

    def __init__(self, config: TorchConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Backbone(config)
        self.lm_head = _linear(config.hidden_size, config.vocab_size)

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Normal weights of std 0.5 / sqrt(fan_in); what writes to the residual stream starts smaller."""
        generator = torch.Generator().manual_seed(seed)
        for name, p in self.named_parameters():
            if p.dim() < 2:
                continue
            std = 0.02 if "embed" in name or "lm_head" in name else 0.5 * p.shape[-1] ** -0.5
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                std /= math.sqrt(2 * self.config.num_hidden_layers)
            p.copy_(torch.randn(p.shape, generator=generator) * std)

    def _mask(self, ids: Tensor, segments: Tensor | None) -> Tensor:
        length = ids.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=ids.device).tril()
        if segments is None:
            return causal[None, None]
        return (segments[:, None, :, None] == segments[:, None, None, :]) & causal

    def forward(self, ids: Tensor, segments: Tensor | None = None) -> Tensor:
        """Hidden states after the final norm.

        Args:
            ids: [b, s] int64.
            segments: [b, s], equal where two tokens belong to one document; None: each row is one.
        Returns: [b, s, hidden]; `lm_head` of it gives logits, `mtp_hidden` takes it as input.
        """
        cos, sin = rope_tables(self.config, ids.shape[1], ids.device)
        mask = self._mask(ids, segments)
        x = self.model.embed_tokens(ids)
        for layer in self.model.layers[: self.config.num_hidden_layers]:
            x = layer(x, cos, sin, mask)
        out: Tensor = self.model.norm(x)
        return out

    def logits(self, ids: Tensor) -> Tensor:
        """ids [b, s] -> [b, s, vocab]."""
        out: Tensor = self.lm_head(self(ids))
        return out

    def mtp_hidden(
        self, hidden: Tensor, next_ids: Tensor, segments: Tensor | None = None, module: int = 0
    ) -> Tensor:
        """Hidden states of MTP module `module`, normed: `lm_head` of row t predicts token t+2.

        Args:
            hidden: [b, s, hidden], the main model's (or the previous draft's) normed output.
            next_ids: [b, s] int64, the tokens one place to the right of those behind `hidden`.
            segments: as in `forward`.
        """
        cos, sin = rope_tables(self.config, next_ids.shape[1], next_ids.device)
        layer = self.model.layers[self.config.num_hidden_layers + module]
        if not isinstance(layer, MTPLayer):
            raise TypeError(f"layer {module}: expected an MTPLayer, got {type(layer).__name__}")
        embed = self.model.embed_tokens(next_ids)
        return layer.draft(hidden, embed, cos, sin, self._mask(next_ids, segments))
