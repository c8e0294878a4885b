"""Random DeepSeek-V3 checkpoints of the field's reference implementation, and runs of our model."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from seekernel import reference
from seekernel.model import Batch, DeepseekV3ForCausalLM

YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 40.0,
    "original_max_position_embeddings": 4096,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}
PLAIN_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
BASE: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 128,
    "intermediate_size": 192,
    "moe_intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "n_shared_experts": 1,
    "n_routed_experts": 16,
    "n_group": 4,
    "topk_group": 2,
    "num_experts_per_tok": 4,
    "first_k_dense_replace": 1,
    "q_lora_rank": 48,
    "kv_lora_rank": 64,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "v_head_dim": 32,
    "max_position_embeddings": 163840,
    "rope_parameters": YARN,
    "num_nextn_predict_layers": 0,
}


@dataclass(frozen=True)
class Shape:
    """A shrunken config: what differs from BASE, and whether weights are FP8 in blocks."""

    name: str
    changes: dict[str, Any] = field(default_factory=dict)
    fp8: bool = False

    def __str__(self) -> str:
        return self.name


SHAPES = [
    Shape("dense_only", {"first_k_dense_replace": 3}),
    Shape("moe_no_groups", {"n_group": 1, "topk_group": 1, "num_experts_per_tok": 6}),
    Shape("moe_groups_v3_heads", {
        "q_lora_rank": 128, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
        "v_head_dim": 128, "n_routed_experts": 32, "n_group": 8, "topk_group": 4,
        "num_experts_per_tok": 8, "num_hidden_layers": 2,
    }),
    Shape("q_lora_null", {"q_lora_rank": None, "rope_parameters": PLAIN_ROPE}),
    Shape("odd_sizes", {
        "vocab_size": 203, "hidden_size": 92, "intermediate_size": 75, "moe_intermediate_size": 37,
        "num_attention_heads": 3, "num_key_value_heads": 3, "q_lora_rank": 19, "kv_lora_rank": 41,
        "qk_nope_head_dim": 22, "qk_rope_head_dim": 10, "v_head_dim": 27, "n_routed_experts": 9,
        "n_group": 3, "topk_group": 1, "num_experts_per_tok": 2, "n_shared_experts": 2,
    }),
    Shape("fp8_blocks", {
        "hidden_size": 384, "moe_intermediate_size": 160, "intermediate_size": 320,
        "q_lora_rank": 192, "kv_lora_rank": 256, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
        "v_head_dim": 128,
    }, fp8=True),
    Shape("fp8_heads_share_blocks", {
        "hidden_size": 256, "qk_nope_head_dim": 32, "v_head_dim": 32, "kv_lora_rank": 128,
    }, fp8=True),
    Shape("fp8_heads_straddle_blocks", {
        "hidden_size": 256, "qk_nope_head_dim": 48, "v_head_dim": 32, "kv_lora_rank": 128,
    }, fp8=True),
]  # fmt: skip


def make_checkpoint(shape: Shape, folder: Path, seed: int = 0) -> Any:
    """Write a random checkpoint and return transformers' model that holds the same weights.

    FP8 checkpoints are written in DeepSeek's format; the returned model then holds the dequantised
    weights in float32.
    """
    import transformers

    torch.manual_seed(seed)
    config = transformers.DeepseekV3Config(**{**BASE, **shape.changes})
    model = transformers.DeepseekV3ForCausalLM(config).float().eval()
    model.set_experts_implementation("eager")  # the grouped one takes no odd widths
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
            else:
                parameter.normal_(0.0, parameter.shape[-1] ** -0.5)
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.uniform_(-0.2, 0.2)
    model.save_pretrained(folder)
    if shape.fp8:
        _quantise_files(folder)
        model.load_state_dict(_dequantised_state(folder, model))
    return model


def is_quantised(name: str) -> bool:
    """Whether DeepSeek's checkpoints store this weight in FP8."""
    return name.endswith(("_proj.weight", "kv_a_proj_with_mqa.weight"))


def _quantise_files(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if is_quantised(name)]:
        tensors[name], tensors[name + "_scale_inv"] = reference.quantize_fp8_128x128(tensors[name])
    save_file(tensors, folder / "model.safetensors")
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"] = {
        "quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic",
        "weight_block_size": [128, 128],
    }  # fmt: skip
    path.write_text(json.dumps(config))


def _dequantised_state(folder: Path, model: Any) -> dict[str, Tensor]:
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if is_quantised(name)]:
        scale = tensors.pop(name + "_scale_inv")
        tensors[name] = reference.dequantize_fp8_128x128(tensors[name], scale, torch.float32)
    state = {}
    for name in model.state_dict():
        if ".experts.gate_up_proj" in name or ".experts.down_proj" in name:
            prefix, kind = name.rsplit(".", 1)
            experts = range(model.config.n_routed_experts)
            if kind == "down_proj":
                parts = [tensors[f"{prefix}.{e}.down_proj.weight"] for e in experts]
            else:
                parts = [
                    torch.cat([tensors[f"{prefix}.{e}.{p}_proj.weight"] for p in ("gate", "up")])
                    for e in experts
                ]
            state[name] = torch.stack(parts)
        else:
            state[name] = tensors[name]
    return state


class Runner:
    """Our model with its own float32 cache and one page table per sequence: no engine."""

    def __init__(
        self, model: DeepseekV3ForCausalLM, num_pages: int = 256, page_size: int = 16
    ) -> None:
        self.model, self.page_size = model, page_size
        self.cache = model.allocate_kv_cache(num_pages, page_size, "float32")
        for layer in self.cache:
            layer.fill_(float("nan"))
        self._free = list(range(num_pages))[::-1]  # backwards, so that pages are not in order
        self._pages: dict[int, list[int]] = {}
        self._length: dict[int, int] = {}

    def hidden(self, requests: dict[int, list[int]]) -> Tensor:
        """Append tokens to sequences and return the hidden states of the new tokens."""
        tables, cached, new = [], [], []
        for key, tokens in requests.items():
            pages, length = self._pages.setdefault(key, []), self._length.get(key, 0)
            while len(pages) * self.page_size < length + len(tokens):
                pages.append(self._free.pop())
            tables.append(pages)
            cached.append(length)
            new.append(len(tokens))
            self._length[key] = length + len(tokens)
        batch = Batch.build("cpu", self.page_size, tables, cached, new)
        flat = torch.tensor([token for ids in requests.values() for token in ids])
        return self.model.forward(flat, batch, self.cache)

    def logits(self, requests: dict[int, list[int]]) -> Tensor:
        """As hidden(), then through the head."""
        return self.model.compute_logits(self.hidden(requests))

    def greedy(self, key: int, prompt: list[int], num_tokens: int) -> tuple[list[int], list[float]]:
        """Return greedy tokens and, for each, the margin of the best logit over the second."""
        tokens: list[int] = []
        margins = []
        step = prompt
        for _ in range(num_tokens):
            best = self.logits({key: step})[-1].topk(2)
            tokens.append(int(best.indices[0]))
            margins.append(float(best.values[0] - best.values[1]))
            step = tokens[-1:]
        return tokens, margins


def random_prompt(vocab_size: int, length: int, seed: int = 0) -> list[int]:
    """Return `length` random token ids."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(vocab_size, (length,), generator=generator).tolist()
