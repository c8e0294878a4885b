"""Shrunken DeepSeek-V3 configs of the model benchmarks, and checkpoints of random weights for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from seekernel.model import DeepseekV3ForCausalLM, ModelConfig
from seekernel.model.weights import SCALE_SUFFIX, DummySource
from seekernel.reference import dequantize_fp8_128x128

COMMON: dict[str, Any] = {
    "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "vocab_size": 32768,
    "n_shared_experts": 1, "n_group": 4, "topk_group": 2, "num_experts_per_tok": 4,
    "first_k_dense_replace": 1, "moe_layer_freq": 1, "norm_topk_prob": True,
    "routed_scaling_factor": 2.5, "scoring_func": "sigmoid", "topk_method": "noaux_tc",
    "rms_norm_eps": 1e-6, "hidden_act": "silu", "max_position_embeddings": 163840,
    "rope_theta": 10000, "attention_bias": False, "tie_word_embeddings": False, "bos_token_id": 0,
    "eos_token_id": 1, "num_nextn_predict_layers": 0, "torch_dtype": "float32",
    "rope_scaling": {"type": "yarn", "factor": 40, "beta_fast": 32, "beta_slow": 1, "mscale": 1.0,
                     "mscale_all_dim": 1.0, "original_max_position_embeddings": 4096},
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "tiny": {
        **COMMON, "hidden_size": 512, "num_hidden_layers": 4, "num_attention_heads": 8,
        "num_key_value_heads": 8, "intermediate_size": 1408, "moe_intermediate_size": 256,
        "n_routed_experts": 16, "q_lora_rank": 192, "kv_lora_rank": 128, "qk_rope_head_dim": 32,
        "qk_nope_head_dim": 64, "v_head_dim": 64,
    },
    "medium": {
        **COMMON, "hidden_size": 1024, "num_hidden_layers": 8, "num_attention_heads": 16,
        "num_key_value_heads": 16, "intermediate_size": 2816, "moe_intermediate_size": 320,
        "n_routed_experts": 32, "q_lora_rank": 384, "kv_lora_rank": 256, "qk_rope_head_dim": 32,
        "qk_nope_head_dim": 64, "v_head_dim": 64,
    },
}  # fmt: skip
FP8 = {
    "quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic",
    "weight_block_size": [128, 128],
}  # fmt: skip


class _Recorder(DummySource):
    """Random weights that are kept under their checkpoint names."""

    def __init__(self, config: ModelConfig, device: torch.device) -> None:
        super().__init__(config, device)
        self.tensors: dict[str, Tensor] = {}

    def read_into(self, name: str, destination: Tensor) -> None:
        super().read_into(name, destination)
        self.tensors[name] = destination.clone()


def make_checkpoints(name: str, folder: Path) -> tuple[Path, Path]:
    """Write (FP8 checkpoint, the same weights dequantised to float32) below `folder`, once."""
    fp8, float32 = folder / f"{name}-fp8", folder / f"{name}-float32"
    if (float32 / "config.json").exists():
        return fp8, float32
    config = {**CONFIGS[name], "quantization_config": FP8}
    recorder = _Recorder(ModelConfig.from_dict(config), torch.device("cpu"))
    DeepseekV3ForCausalLM(ModelConfig.from_dict(config), recorder)
    tensors = recorder.tensors
    _write(fp8, tensors, config)
    wide = {
        key: dequantize_fp8_128x128(value, tensors[key + SCALE_SUFFIX]).float()
        if key + SCALE_SUFFIX in tensors
        else value.float()
        for key, value in tensors.items()
        if not key.endswith(SCALE_SUFFIX)
    }
    _write(float32, wide, CONFIGS[name])
    return fp8, float32


def _write(folder: Path, tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=1))
