"""config.json: both spellings, defaults, and every refusal names its key."""

from __future__ import annotations

import math
from typing import Any

import pytest

from seekernel.model import ConfigError, ModelConfig
from seekernel.model.rope import rope_frequencies

V3: dict[str, Any] = {
    "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "vocab_size": 129280,
    "hidden_size": 7168, "intermediate_size": 18432, "moe_intermediate_size": 2048,
    "num_hidden_layers": 61, "first_k_dense_replace": 3, "moe_layer_freq": 1,
    "num_attention_heads": 128, "num_key_value_heads": 128, "n_routed_experts": 256,
    "n_shared_experts": 1, "num_experts_per_tok": 8, "q_lora_rank": 1536, "kv_lora_rank": 512,
    "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "n_group": 8,
    "topk_group": 4, "rms_norm_eps": 1e-6, "norm_topk_prob": True, "routed_scaling_factor": 2.5,
    "rope_theta": 10000, "scoring_func": "sigmoid", "topk_method": "noaux_tc",
    "rope_scaling": {"type": "yarn", "factor": 40, "beta_fast": 32, "beta_slow": 1, "mscale": 1.0,
                     "mscale_all_dim": 1.0, "original_max_position_embeddings": 4096},
    "max_position_embeddings": 163840, "hidden_act": "silu", "num_nextn_predict_layers": 1,
    "bos_token_id": 0, "eos_token_id": 1, "attention_bias": False, "tie_word_embeddings": False,
    "quantization_config": {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic",
                            "weight_block_size": [128, 128]},
    "some_future_field": {"x": 1},
}  # fmt: skip


def test_v3() -> None:
    config = ModelConfig.from_dict(V3)
    assert config.latent_dim == 576
    assert config.fp8_weights
    assert config.eos_token_ids == (1,)
    assert math.isclose(config.softmax_scale, 0.1352338, rel_tol=1e-6)
    assert not config.is_moe_layer(2)
    assert config.is_moe_layer(3)
    assert config.is_moe_layer(61), "the MTP module has experts"


def test_yarn_frequencies() -> None:
    frequencies = rope_frequencies(ModelConfig.from_dict(V3))
    plain = [10000 ** (-2 * i / 64) for i in range(32)]
    assert all(math.isclose(frequencies[i], plain[i]) for i in range(11))
    assert all(math.isclose(frequencies[i], plain[i] / 40) for i in range(23, 32))
    assert plain[15] / 40 < frequencies[15] < plain[15]


def test_transformers_5_spelling_is_the_same_model() -> None:
    renamed = {
        k: v
        for k, v in V3.items()
        if k not in ("rope_scaling", "rope_theta", "scoring_func", "topk_method")
    }
    parameters = {**V3["rope_scaling"], "rope_type": "yarn", "rope_theta": 10000}
    parameters.pop("type")
    assert ModelConfig.from_dict(
        {**renamed, "rope_parameters": parameters}
    ) == ModelConfig.from_dict(V3)


def test_no_q_lora_no_groups_list_of_eos() -> None:
    config = ModelConfig.from_dict(
        {**V3, "q_lora_rank": None, "n_group": 1, "topk_group": 1, "eos_token_id": [1, 7]}
    )
    assert config.q_lora_rank is None
    assert config.eos_token_ids == (1, 7)


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("architectures", ["LlamaForCausalLM"], "architectures: expected one of ['DeepseekV3ForCausalLM']"),
        ("model_type", "deepseek_v32", "model_type: expected one of ['deepseek_v3'], got 'deepseek_v32'"),
        ("model_type", "deepseek_v4", "model_type: expected one of ['deepseek_v3'], got 'deepseek_v4'"),
        ("hidden_size", 0, "hidden_size: expected an integer from 1"),
        ("hidden_size", "7168", "hidden_size: expected an integer"),
        ("hidden_size", None, "hidden_size: expected an integer"),
        ("vocab_size", 1 << 40, "vocab_size: expected an integer from 1"),
        ("num_hidden_layers", -3, "num_hidden_layers: expected"),
        ("num_experts_per_tok", 200, "num_experts_per_tok: expected at most"),
        ("n_group", 7, "n_group: expected a divisor of n_routed_experts 256"),
        ("topk_group", 9, "topk_group: expected at most n_group 8"),
        ("scoring_func", "tanh", "scoring_func: expected 'sigmoid'"),
        ("topk_method", "greedy", "topk_method: expected 'noaux_tc'"),
        ("rms_norm_eps", float("nan"), "rms_norm_eps: expected a finite number"),
        ("rope_theta", -1, "rope_theta: expected a finite number above 0"),
        ("rope_interleave", False, "rope_interleave: expected true"),
        ("hidden_act", "gelu", "hidden_act: expected 'silu'"),
        ("attention_bias", True, "attention_bias: expected false"),
        ("eos_token_id", 129280, "eos_token_id: expected ids below vocab_size"),
        ("eos_token_id", "x", "eos_token_id: expected a token id"),
        ("qk_rope_head_dim", 63, "qk_rope_head_dim: expected an even number"),
        ("rope_scaling", {"type": "linear", "factor": 2}, "rope_scaling.rope_type: expected 'yarn'"),
        ("rope_scaling", [], "rope_scaling: expected an object"),
        ("num_key_value_heads", 8, "num_key_value_heads: expected 128"),
        ("quantization_config", {"quant_method": "awq"}, "quantization_config.quant_method: expected 'fp8'"),
        ("quantization_config", {"quant_method": "fp8", "weight_block_size": [64, 64]}, "weight_block_size: expected [128, 128]"),
    ],
)  # fmt: skip
def test_refusals_name_the_key(key: str, value: Any, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ModelConfig.from_dict({**V3, key: value})
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_nan_yarn_factor() -> None:
    with pytest.raises(ConfigError, match=r"rope_scaling\.factor"):
        ModelConfig.from_dict(
            {**V3, "rope_scaling": {**V3["rope_scaling"], "factor": float("nan")}}
        )
