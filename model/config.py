"""Model configuration, read from a Hugging Face config.json of DeepSeek-V3, R1 or V3.1."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seekernel.model.errors import ConfigError

SUPPORTED_ARCHITECTURES = ("DeepseekV3ForCausalLM",)
SUPPORTED_MODEL_TYPES = ("deepseek_v3",)
BLOCK = 128  # rows and columns that share one weight scale
MAX_DIM = 1 << 24  # far above any real size; products of two still fit 64 bits


@dataclass(frozen=True)
class YarnConfig:
    """YaRN context extension (Peng et al. 2023), fields as in `rope_scaling`."""

    factor: float
    original_max_position_embeddings: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float = 1.0
    mscale_all_dim: float = 0.0


@dataclass(frozen=True)
class ModelConfig:
    """DeepSeek-V3 hyper-parameters; names are config.json's own."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    q_lora_rank: int | None
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    yarn: YarnConfig | None = None
    moe_intermediate_size: int = 0
    n_routed_experts: int = 0
    n_shared_experts: int = 0
    num_experts_per_tok: int = 0
    n_group: int = 1
    topk_group: int = 1
    first_k_dense_replace: int = 0
    moe_layer_freq: int = 1
    norm_topk_prob: bool = True
    routed_scaling_factor: float = 1.0
    scoring_func: str = "sigmoid"
    num_nextn_predict_layers: int = 0
    tie_word_embeddings: bool = False
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    fp8_weights: bool = False

    @property
    def qk_head_dim(self) -> int:
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def latent_dim(self) -> int:
        """Values of one token in the cache: the normed latent, then the rotated rope key."""
        return self.kv_lora_rank + self.qk_rope_head_dim

    @property
    def softmax_scale(self) -> float:
        """qk_head_dim^-0.5, times YaRN's mscale squared."""
        scale = 1.0 / math.sqrt(self.qk_head_dim)
        if self.yarn is not None and self.yarn.mscale_all_dim:
            scale *= yarn_mscale(self.yarn.factor, self.yarn.mscale_all_dim) ** 2
        return scale

    def is_moe_layer(self, layer: int) -> bool:
        """Whether a layer (the MTP module counts as layer num_hidden_layers) has experts."""
        return (
            self.n_routed_experts > 0
            and layer >= self.first_k_dense_replace
            and layer % self.moe_layer_freq == 0
        )

    @classmethod
    def from_dir(cls, model_dir: str | Path) -> ModelConfig:
        """Read model_dir/config.json. Errors: ConfigError naming file or key."""
        path = Path(model_dir) / "config.json"
        if not Path(model_dir).is_dir():
            raise ConfigError(f"model_dir: expected a directory, got '{model_dir}'")
        if not path.is_file():  # nor a pipe, which would never end
            raise ConfigError(f"{path}: expected a config.json, found none")
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise ConfigError(f"{path}: not readable as JSON: {error}") from None
        if not isinstance(data, dict):
            raise ConfigError(f"{path}: expected a JSON object, got {type(data).__name__}")
        return cls.from_dict(data)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ModelConfig:
        """Build from config.json's content. Unknown keys are ignored, impossible values refused."""
        read = _Reader(data)
        read.check_architecture()
        theta, yarn = _rope(read)
        num_experts = read.integer("n_routed_experts", 0, minimum=0)
        mtp_key = "num_nextn_predict_layers"
        if data.get(mtp_key) is None:  # transformers 5 writes its own name
            mtp_key = "num_mtp_layers"
        config = cls(
            vocab_size=read.integer("vocab_size"),
            hidden_size=read.integer("hidden_size"),
            intermediate_size=read.integer("intermediate_size"),
            num_hidden_layers=read.integer("num_hidden_layers"),
            num_attention_heads=read.integer("num_attention_heads"),
            q_lora_rank=None if data.get("q_lora_rank") is None else read.integer("q_lora_rank"),
            kv_lora_rank=read.integer("kv_lora_rank"),
            qk_nope_head_dim=read.integer("qk_nope_head_dim"),
            qk_rope_head_dim=read.integer("qk_rope_head_dim"),
            v_head_dim=read.integer("v_head_dim"),
            max_position_embeddings=read.integer("max_position_embeddings", 4096),
            rms_norm_eps=read.number("rms_norm_eps", 1e-6),
            rope_theta=theta,
            yarn=yarn,
            moe_intermediate_size=read.integer("moe_intermediate_size") if num_experts else 0,
            n_routed_experts=num_experts,
            n_shared_experts=read.integer("n_shared_experts", 0, minimum=0) if num_experts else 0,
            num_experts_per_tok=read.integer("num_experts_per_tok") if num_experts else 0,
            n_group=read.integer("n_group", 1),
            topk_group=read.integer("topk_group", 1),
            first_k_dense_replace=read.integer("first_k_dense_replace", 0, minimum=0),
            moe_layer_freq=read.integer("moe_layer_freq", 1),
            norm_topk_prob=read.boolean("norm_topk_prob", True),
            routed_scaling_factor=read.number("routed_scaling_factor", 1.0),
            scoring_func=read.choice("scoring_func", "sigmoid", ("sigmoid",)),
            num_nextn_predict_layers=read.integer(mtp_key, 0, minimum=0),
            tie_word_embeddings=read.boolean("tie_word_embeddings", False),
            bos_token_id=data["bos_token_id"]
            if isinstance(data.get("bos_token_id"), int)
            else None,
            eos_token_ids=read.token_ids("eos_token_id"),
            fp8_weights=_fp8_weights(read),
        )
        _check_relations(config, read)
        return config


def yarn_mscale(factor: float, mscale: float) -> float:
    """YaRN's attention temperature: 0.1 mscale ln(factor) + 1, and 1 without extension."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


class _Reader:
    """Typed access to config.json that names the key in every error."""

    def __init__(self, data: Mapping[str, Any], prefix: str = "config.json: ") -> None:
        self.data, self.prefix = data, prefix

    def fail(self, key: str, expected: str, got: object) -> ConfigError:
        return ConfigError(f"{self.prefix}{key}: expected {expected}, got {got!r:.200}")

    def integer(self, key: str, default: int | None = None, minimum: int = 1) -> int:
        value = self.data.get(key)
        if value is None:
            value = default
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or not minimum <= value <= MAX_DIM:
            raise self.fail(key, f"an integer from {minimum} to {MAX_DIM}", self.data.get(key))
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self.data.get(key)
        if value is None:
            value = default
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.fail(key, "a number", self.data.get(key))
        try:
            value = float(value)
        except OverflowError:
            value = math.inf
        if not math.isfinite(value) or value <= 0:
            raise self.fail(key, "a finite number above 0", self.data.get(key))
        return value

    def boolean(self, key: str, default: bool) -> bool:
        value = self.data.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.fail(key, "true or false", value)
        return value

    def choice(self, key: str, default: str, allowed: tuple[str, ...]) -> str:
        value = self.data.get(key)
        if value is None:
            return default
        if value not in allowed:
            raise self.fail(key, " or ".join(map(repr, allowed)), value)
        return str(value)

    def token_ids(self, key: str) -> tuple[int, ...]:
        value = self.data.get(key)
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if not all(isinstance(item, int) and not isinstance(item, bool) for item in ids):
            raise self.fail(key, "a token id or a list of them", value)
        return tuple(ids)

    def mapping(self, key: str) -> dict[str, Any] | None:
        value = self.data.get(key)
        if value is not None and not isinstance(value, dict):
            raise self.fail(key, "an object", value)
        return value

    def check_architecture(self) -> None:
        names = self.data.get("architectures") or []
        model_type = self.data.get("model_type")
        if not isinstance(names, list) or (not names and model_type is None):
            raise self.fail("architectures", f"one of {list(SUPPORTED_ARCHITECTURES)}", names)
        unknown = [name for name in names if name not in SUPPORTED_ARCHITECTURES]
        if unknown:
            raise self.fail("architectures", f"one of {list(SUPPORTED_ARCHITECTURES)}", unknown[0])
        if model_type is not None and model_type not in SUPPORTED_MODEL_TYPES:
            raise self.fail("model_type", f"one of {list(SUPPORTED_MODEL_TYPES)}", model_type)


def _rope(read: _Reader) -> tuple[float, YarnConfig | None]:
    """Read rope_theta and YaRN from either spelling: rope_scaling, or transformers 5's rope_parameters."""
    new_style = read.mapping("rope_parameters")
    scaling = new_style if new_style is not None else read.mapping("rope_scaling")
    key = "rope_parameters" if new_style is not None else "rope_scaling"
    if read.data.get("rope_interleave") is False:
        raise read.fail("rope_interleave", "true (rope on interleaved pairs)", False)
    theta = read.number("rope_theta", 10000.0)
    if scaling is None:
        return theta, None
    nested = _Reader(scaling, f"{read.prefix}{key}.")
    theta = nested.number("rope_theta", theta)
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return theta, None
    if kind != "yarn":
        raise nested.fail("rope_type", "'yarn' or 'default'", kind)
    original = nested.integer("original_max_position_embeddings")
    default_factor = read.integer("max_position_embeddings", 4096) / original
    optional = {"mscale": 1.0, "mscale_all_dim": 0.0, "beta_fast": 32.0, "beta_slow": 1.0}
    values = {
        name: nested.number(name) if scaling.get(name) else default
        for name, default in optional.items()
    }
    factor = nested.number("factor", default_factor)
    return theta, YarnConfig(factor, original, **values)


def _fp8_weights(read: _Reader) -> bool:
    quantization = read.mapping("quantization_config")
    if quantization is None:
        return False
    nested = _Reader(quantization, f"{read.prefix}quantization_config.")
    nested.choice("quant_method", "", ("fp8",))
    nested.choice("fmt", "e4m3", ("e4m3",))
    nested.choice("activation_scheme", "dynamic", ("dynamic",))
    if quantization.get("weight_block_size") != [BLOCK, BLOCK]:
        raise nested.fail(
            "weight_block_size", f"[{BLOCK}, {BLOCK}]", quantization.get("weight_block_size")
        )
    return True


def _check_relations(config: ModelConfig, read: _Reader) -> None:
    data = read.data
    if data.get("attention_bias"):
        raise read.fail("attention_bias", "false", data["attention_bias"])
    read.choice("hidden_act", "silu", ("silu",))
    read.choice("topk_method", "noaux_tc", ("noaux_tc",))
    if config.qk_rope_head_dim % 2:
        raise read.fail("qk_rope_head_dim", "an even number", config.qk_rope_head_dim)
    if config.num_hidden_layers > 1024:
        raise read.fail("num_hidden_layers", "at most 1024", config.num_hidden_layers)
    heads = data.get("num_key_value_heads")
    if heads is not None and heads != config.num_attention_heads:
        raise read.fail("num_key_value_heads", f"{config.num_attention_heads} (MLA)", heads)
    if config.num_nextn_predict_layers > 1:
        raise read.fail("num_nextn_predict_layers", "0 or 1", config.num_nextn_predict_layers)
    for token in config.eos_token_ids:
        if not 0 <= token < config.vocab_size:
            raise read.fail("eos_token_id", f"ids below vocab_size {config.vocab_size}", token)
    if config.n_routed_experts == 0:
        return
    experts, groups = config.n_routed_experts, config.n_group
    if experts % groups:
        raise read.fail("n_group", f"a divisor of n_routed_experts {experts}", groups)
    if not config.topk_group <= groups:
        raise read.fail("topk_group", f"at most n_group {groups}", config.topk_group)
    candidates = experts // groups * config.topk_group
    if config.num_experts_per_tok > min(candidates, 16):
        raise read.fail(
            "num_experts_per_tok",
            f"at most {min(candidates, 16)} (16, and the experts of topk_group groups)",
            config.num_experts_per_tok,
        )
