"""Write and read DeepSeek's FP8 checkpoint format with plain torch and safetensors.

    X.weight            e4m3 [n, k]
    X.weight_scale_inv  fp32 [ceil(n / 128), ceil(k / 128)], a multiplier: w = weight * scale_inv

Embedding, head, norms, router and eh_proj stay bf16, the router's bias fp32.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from seekernel.model.demo.torch_model import TorchConfig, TorchDeepseekV3

BLOCK = 128
FP8_MAX = 448.0


def hf_config(config: TorchConfig) -> dict[str, Any]:
    """`config.json` in the shape of DeepSeek-V3's own."""
    return {
        "architectures": ["DeepseekV3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "aux_loss_alpha": 0.001,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "ep_size": 1,
        "first_k_dense_replace": config.first_k_dense_replace,
        "hidden_act": "silu",
        "hidden_size": config.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": config.intermediate_size,
        "kv_lora_rank": config.kv_lora_rank,
        "max_position_embeddings": 163840,
        "model_type": "deepseek_v3",
        "moe_intermediate_size": config.moe_intermediate_size,
        "moe_layer_freq": 1,
        "n_group": config.n_group,
        "n_routed_experts": config.n_routed_experts,
        "n_shared_experts": config.n_shared_experts,
        "norm_topk_prob": config.norm_topk_prob,
        "num_attention_heads": config.num_attention_heads,
        "num_experts_per_tok": config.num_experts_per_tok,
        "num_hidden_layers": config.num_hidden_layers,
        "num_key_value_heads": config.num_attention_heads,
        "num_nextn_predict_layers": config.num_nextn_predict_layers,
        "pretraining_tp": 1,
        "q_lora_rank": config.q_lora_rank,
        "qk_nope_head_dim": config.qk_nope_head_dim,
        "qk_rope_head_dim": config.qk_rope_head_dim,
        "quantization_config": {
            "activation_scheme": "dynamic",
            "fmt": "e4m3",
            "quant_method": "fp8",
            "weight_block_size": [BLOCK, BLOCK],
        },
        "rms_norm_eps": config.rms_norm_eps,
        "rope_scaling": {
            "beta_fast": int(config.rope_beta_fast),
            "beta_slow": int(config.rope_beta_slow),
            "factor": int(config.rope_factor),
            "mscale": config.rope_mscale,
            "mscale_all_dim": config.rope_mscale_all_dim,
            "original_max_position_embeddings": config.rope_original_max,
            "type": "yarn",
        }
        if config.rope_factor is not None
        else None,
        "rope_theta": int(config.rope_theta),
        "routed_scaling_factor": config.routed_scaling_factor,
        "scoring_func": "sigmoid",
        "seq_aux": True,
        "tie_word_embeddings": False,
        "topk_group": config.topk_group,
        "topk_method": "noaux_tc",
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "v_head_dim": config.v_head_dim,
        "vocab_size": config.vocab_size,
    }


def quantise_blocks(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise by blocks of 128 x 128: scale = amax / 448, value = weight / scale.

    Args: weight [n, k], any float dtype; edge blocks may be smaller. A block of zeros gets scale 1.
    Returns: e4m3 [n, k]; fp32 scales [ceil(n / 128), ceil(k / 128)].
    """
    n, k = weight.shape
    padded = F.pad(weight.float(), (0, -k % BLOCK, 0, -n % BLOCK))
    rows, columns = padded.shape[0] // BLOCK, padded.shape[1] // BLOCK
    blocks = padded.view(rows, BLOCK, columns, BLOCK)
    amax = blocks.abs().amax((1, 3))
    scale = torch.where(amax > 0, amax / FP8_MAX, torch.ones_like(amax))
    values = (blocks / scale[:, None, :, None]).reshape(padded.shape)[:n, :k]
    return values.contiguous().to(torch.float8_e4m3fn), scale


def dequantise_blocks(values: Tensor, scale: Tensor) -> Tensor:
    """The inverse: e4m3 [n, k] times its block's scale, in fp32."""
    n, k = values.shape
    wide = scale.repeat_interleave(BLOCK, 0)[:n].repeat_interleave(BLOCK, 1)[:, :k]
    return values.float() * wide


def quantise_rows(x: Tensor) -> Tensor:
    """Activations as the FP8 products see them: e4m3 by 1 x 128 groups and back.

    Args: x [..., k], k a multiple of 128. Scale max(amax, 1e-4) / 448. Returns: as x.
    """
    groups = x.float().reshape(*x.shape[:-1], x.shape[-1] // BLOCK, BLOCK)
    scale = groups.abs().amax(-1, keepdim=True).clamp(min=1e-4) / FP8_MAX
    rounded = (groups / scale).to(torch.float8_e4m3fn).float() * scale
    return rounded.reshape(x.shape).to(x.dtype)


def is_fp8(name: str) -> bool:
    """Whether DeepSeek's files hold this parameter in FP8: every linear of attention and experts."""
    return name.endswith(".weight") and "_proj" in name and "eh_proj" not in name


def checkpoint_tensors(model: TorchDeepseekV3) -> dict[str, Tensor]:
    """The model's tensors by name, in the dtypes of the published files."""
    tensors: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        if is_fp8(name):
            tensors[name], tensors[name + "_scale_inv"] = quantise_blocks(value)
        elif name.endswith("e_score_correction_bias"):
            tensors[name] = value.float().clone()
        else:
            tensors[name] = value.to(torch.bfloat16)
    return tensors


def save_checkpoint(model: TorchDeepseekV3, directory: Path, num_shards: int = 2) -> int:
    """Write the shards, their index, `config.json` and `generation_config.json`.

    Returns: bytes of all tensors.
    """
    directory.mkdir(parents=True, exist_ok=True)
    tensors = checkpoint_tensors(model)
    total = sum(t.nbytes for t in tensors.values())
    shards: list[dict[str, Tensor]] = [{} for _ in range(num_shards)]
    written = 0
    for name, tensor in tensors.items():
        shards[min(written * num_shards // total, num_shards - 1)][name] = tensor
        written += tensor.nbytes
    files = [f"model-{i + 1:05d}-of-{num_shards:06d}.safetensors" for i in range(num_shards)]
    weight_map: dict[str, str] = {}
    for file, shard in zip(files, shards, strict=True):
        save_file(shard, directory / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    _write_json(directory / "model.safetensors.index.json", index)
    _write_json(directory / "config.json", hf_config(model.config))
    generation = {"bos_token_id": 0, "eos_token_id": 1, "do_sample": False}
    _write_json(directory / "generation_config.json", generation)
    return total


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def load_checkpoint(directory: Path) -> TorchDeepseekV3:
    """Read a checkpoint directory into the plain-torch model, FP8 weights expanded to fp32.

    Stored copies of the embedding and the head inside MTP modules are ignored.
    Errors: FileNotFoundError for a missing file; RuntimeError (torch) for missing or odd tensors.
    """
    config = TorchConfig.from_dict(json.loads((directory / "config.json").read_text("utf-8")))
    index = json.loads((directory / "model.safetensors.index.json").read_text("utf-8"))
    tensors: dict[str, Tensor] = {}
    for file in sorted(set(index["weight_map"].values())):
        with safe_open(directory / file, framework="pt") as shard:
            tensors |= {name: shard.get_tensor(name) for name in shard.keys()}  # noqa: SIM118
    state: dict[str, Tensor] = {}
    for name, value in tensors.items():
        inside_layer = name.startswith("model.layers.")
        if name.endswith("_scale_inv") or (
            inside_layer and name.endswith(("embed_tokens.weight", "head.weight"))
        ):
            continue
        scale = tensors.get(name + "_scale_inv")
        state[name] = value.float() if scale is None else dequantise_blocks(value, scale)
    model = TorchDeepseekV3(config)
    model.load_state_dict(state)
    return model
