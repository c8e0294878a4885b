"""Small tokenizers and checkpoint directories that the tests write, and then damage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

from seekernel.model import DeepseekV3ForCausalLM, ModelConfig
from seekernel.model.weights import DummySource

BOS, EOS = "<|begin|>", "<|end|>"
SPECIAL = (BOS, EOS, "<|user|>", "<|assistant|>")
TEXT = ["The quick brown fox jumps over the lazy dog. It was a sunny day, and the dog slept on."]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def write_tokenizer(
    folder: Path, vocab_size: int = 320, special: tuple[str, ...] = SPECIAL, **config: Any
) -> None:
    """Write tokenizer.json (byte-level BPE) and tokenizer_config.json."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(
        TEXT,
        trainers.BpeTrainer(
            vocab_size=vocab_size - len(special),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    backend.add_special_tokens([AddedToken(text, special=True) for text in special])
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    fields = {"bos_token": BOS, "eos_token": EOS, "add_bos_token": True, "chat_template": TEMPLATE}
    edit_json(folder / "tokenizer_config.json", **{**fields, **config})


def edit_json(path: Path, **changes: Any) -> None:
    """Set top-level keys of a JSON file, made if it is not there; a value of ... deletes its key."""
    data = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    data = {key: value for key, value in {**data, **changes}.items() if value is not ...}
    path.write_text(json.dumps(data), encoding="utf-8")


def config_of(**changes: Any) -> dict[str, Any]:
    """Return config.json's content of a model that loads in milliseconds."""
    return {
        "architectures": ["DeepseekV3ForCausalLM"],
        "model_type": "deepseek_v3",
        "vocab_size": 320,
        "hidden_size": 64,
        "intermediate_size": 96,
        "moe_intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "n_shared_experts": 1,
        "n_routed_experts": 4,
        "n_group": 2,
        "topk_group": 1,
        "num_experts_per_tok": 2,
        "first_k_dense_replace": 1,
        "q_lora_rank": 32,
        "kv_lora_rank": 64,
        "qk_nope_head_dim": 32,
        "qk_rope_head_dim": 16,
        "v_head_dim": 32,
        "max_position_embeddings": 4096,
        "rope_theta": 10000,
        "rope_scaling": {"type": "yarn", "factor": 4, "original_max_position_embeddings": 1024},
        "num_nextn_predict_layers": 0,
        "quantization_config": {
            "quant_method": "fp8",
            "fmt": "e4m3",
            "activation_scheme": "dynamic",
            "weight_block_size": [128, 128],
        },
        **changes,
    }


class _Recorder(DummySource):
    """Random weights that are kept, to be written to a file."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config, torch.device("cpu"))
        self.tensors: dict[str, Tensor] = {}

    def read_into(self, name: str, destination: Tensor) -> None:
        super().read_into(name, destination)
        self.tensors[name] = destination.clone()


def write_checkpoint(folder: Path, **changes: Any) -> Path:
    """Write a whole checkpoint: config.json, random FP8 weights, tokenizer. Returns the folder."""
    write_tokenizer(folder)
    edit_json(folder / "config.json", **config_of(**changes))
    config = ModelConfig.from_dir(folder)
    recorder = _Recorder(config)
    DeepseekV3ForCausalLM(config, recorder)
    save_file(recorder.tensors, folder / "model.safetensors")
    return folder
