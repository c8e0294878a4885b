"""Writes a float32 DeepSeek-V3 checkpoint as a GGUF file, so that llama.cpp can run the same weights.

Needs gguf, numpy and safetensors only. Names and keys: the GGUF specification, architecture
"deepseek2". The file has no vocabulary: prompts are token ids.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.numpy import load_file

Array = np.ndarray[Any, np.dtype[np.float32]]
LAYER_NAMES = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.q_a_proj": "attn_q_a", "self_attn.q_a_layernorm": "attn_q_a_norm",
    "self_attn.q_b_proj": "attn_q_b", "self_attn.q_proj": "attn_q",
    "self_attn.kv_a_proj_with_mqa": "attn_kv_a_mqa", "self_attn.kv_a_layernorm": "attn_kv_a_norm",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "mlp.gate": "ffn_gate_inp",
    "mlp.shared_experts.gate_proj": "ffn_gate_shexp", "mlp.shared_experts.up_proj": "ffn_up_shexp",
    "mlp.shared_experts.down_proj": "ffn_down_shexp",
}  # fmt: skip
TOP_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


def write_gguf(checkpoint: Path, target: Path, q8_0: bool) -> None:
    """Convert `checkpoint` (config.json, model.safetensors in float32) to `target`."""
    config = json.loads((checkpoint / "config.json").read_text())
    tensors = load_file(checkpoint / "model.safetensors")
    writer = gguf.GGUFWriter(str(target), "deepseek2")
    _write_config(writer, config)

    def add(name: str, value: Array) -> None:
        quantise = q8_0 and value.ndim >= 2 and "gate_inp" not in name and value.shape[-1] % 32 == 0
        if quantise:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quants.quantize(value, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, value)

    for name, target_name in TOP_NAMES.items():
        add(target_name, tensors[name])
    for layer in range(config["num_hidden_layers"]):
        _write_layer(add, tensors, layer, config)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_layer(
    add: Callable[[str, Array], None], tensors: dict[str, Array], layer: int, config: dict[str, Any]
) -> None:
    source, target = f"model.layers.{layer}.", f"blk.{layer}."
    for ours, theirs in LAYER_NAMES.items():
        if f"{source}{ours}.weight" in tensors:
            add(f"{target}{theirs}.weight", tensors[f"{source}{ours}.weight"])
    nope, v = config["qk_nope_head_dim"], config["v_head_dim"]
    kv_b = tensors[f"{source}self_attn.kv_b_proj.weight"].reshape(
        -1, nope + v, config["kv_lora_rank"]
    )
    add(f"{target}attn_k_b.weight", np.ascontiguousarray(kv_b[:, :nope].transpose(0, 2, 1)))
    add(f"{target}attn_v_b.weight", np.ascontiguousarray(kv_b[:, nope:]))
    if f"{source}mlp.gate.weight" not in tensors:
        return
    add(f"{target}exp_probs_b.bias", tensors[f"{source}mlp.gate.e_score_correction_bias"])
    for kind in ("gate", "up", "down"):
        experts = [
            tensors[f"{source}mlp.experts.{e}.{kind}_proj.weight"]
            for e in range(config["n_routed_experts"])
        ]
        add(f"{target}ffn_{kind}_exps.weight", np.stack(experts))


def _write_config(writer: Any, config: dict[str, Any]) -> None:
    latent, rope = config["kv_lora_rank"], config["qk_rope_head_dim"]
    scaling = config["rope_scaling"]
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_q_lora_rank(config["q_lora_rank"])
    writer.add_kv_lora_rank(latent)
    writer.add_key_length(latent + rope)
    writer.add_value_length(latent)
    writer.add_key_length_mla(config["qk_nope_head_dim"] + rope)
    writer.add_value_length_mla(config["v_head_dim"])
    writer.add_rope_dimension_count(rope)
    writer.add_rope_freq_base(float(config["rope_theta"]))
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(float(scaling["factor"]))
    writer.add_rope_scaling_orig_ctx_len(scaling["original_max_position_embeddings"])
    writer.add_rope_scaling_yarn_log_mul(0.1 * scaling["mscale_all_dim"])
    writer.add_leading_dense_block_count(config["first_k_dense_replace"])
    writer.add_expert_count(config["n_routed_experts"])
    writer.add_expert_used_count(config["num_experts_per_tok"])
    writer.add_expert_shared_count(config["n_shared_experts"])
    writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    writer.add_expert_weights_scale(config["routed_scaling_factor"])
    writer.add_expert_weights_norm(config["norm_topk_prob"])
    writer.add_expert_group_count(config["n_group"])
    writer.add_expert_group_used_count(config["topk_group"])
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    writer.add_tokenizer_model("none")
