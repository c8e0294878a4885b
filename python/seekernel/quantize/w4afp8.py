"""W4AFP8: routed experts in int4 with scales per 128 of K, the rest of the checkpoint unchanged.

Files, names and packing are those of TensorRT-LLM's converter, and three things it leaves out: the MTP
layer is converted too, an all-zero group has scale 1, and activation scales come from one file only.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from seekernel.quantize.act_scales import FILE_NAME, read_act_scales, wanted_names
from seekernel.quantize.convert import (
    Conversion,
    copied,
    existing,
    index_of,
    planned,
    read_json,
    tensor_bytes,
)
from seekernel.quantize.formats import INT4_GROUP, quantize_int4_g128
from seekernel.quantize.shard_writer import PlannedTensor, QuantizeError
from seekernel.quantize.source import EXPERT_WEIGHT, SCALE_INV, SourceCheckpoint, layer_of


def quantize_expert(w: Tensor) -> tuple[Tensor, Tensor]:
    """Float32 [n, k] -> packed int4 and scales, after the rounding to bfloat16 that the format prescribes."""
    return quantize_int4_g128(w.to(torch.bfloat16).float())


def plan_w4afp8(
    model_dir: Path, output_dir: Path, act_scales: Path, parts: int, scales_from: str | None = None
) -> Conversion:
    """What `seekernel quantize w4afp8` writes: `parts` weight files, the activation scales, the configs.

    Errors: QuantizeError, WeightError, naming file and tensor.
    """
    source = SourceCheckpoint(model_dir)
    config = read_json(model_dir / "config.json")
    layers = int(config["num_hidden_layers"]) + int(config.get("num_nextn_predict_layers", 0))
    if not 1 <= parts <= layers:
        raise QuantizeError(f"parts: expected 1 to {layers}, the number of layers, got {parts}")
    names = wanted_names(source)
    if not names:
        raise QuantizeError(f"{model_dir}: expected routed experts, found none")
    scales = read_act_scales(act_scales, names)
    shards = {
        f"model-{rank:05d}-of-{parts:05d}.safetensors": tensors
        for rank, tensors in enumerate(_part_tensors(source, layers, parts))
    }
    scale_tensors = [
        PlannedTensor(name, "F32", (1,), lambda scale=scale: tensor_bytes(scale))  # type: ignore[misc]
        for name, scale in sorted(scales.items())
    ]
    digest = json.dumps({name: float(scale) for name, scale in sorted(scales.items())})
    quantization = quantization_config(source, config)
    return Conversion(
        output_dir,
        {**shards, FILE_NAME: scale_tensors},
        ["w4afp8", digest, *source.fingerprint()],
        {
            "config.json": {k: v for k, v in config.items() if k != "quantization_config"},
            "quant_cfg.json": quantization,
            "hf_quant_config.json": {
                "producer": {"name": "seekernel"},
                "quantization": {"quant_algo": "MIXED_PRECISION", "kv_cache_quant_algo": None},
            },
            "model.safetensors.index.json": index_of({**shards, FILE_NAME: scale_tensors}, {}),
        },
        existing(model_dir),
    )


def _part_tensors(source: SourceCheckpoint, layers: int, parts: int) -> list[list[PlannedTensor]]:
    """Layers in equal runs; what belongs to no layer goes with the first."""
    per_part = -(-layers // parts)
    result: list[list[PlannedTensor]] = [[] for _ in range(parts)]
    for name in source:
        if EXPERT_WEIGHT.fullmatch(name.removesuffix(SCALE_INV)) and source.is_scale(name):
            continue
        layer = layer_of(name)
        part = result[0 if layer is None else min(layer // per_part, parts - 1)]
        if EXPERT_WEIGHT.fullmatch(name):
            part.extend(_expert(source, name))
        else:
            part.append(copied(source, name))
    return result


def _expert(source: SourceCheckpoint, name: str) -> list[PlannedTensor]:
    shape = source.entry(name).shape
    if len(shape) != 2 or shape[1] % INT4_GROUP:
        raise QuantizeError(
            f"{name}: expected [n, k] with k a multiple of {INT4_GROUP}, got {list(shape)}"
        )
    n, k = shape
    return planned(
        lambda: quantize_expert(source.read_float(name)),
        [
            (name, torch.int8, (n, k // 2)),
            (name + SCALE_INV, torch.float32, (n, k // INT4_GROUP)),
        ],
    )


def quantization_config(source: SourceCheckpoint, config: dict[str, Any]) -> dict[str, Any]:
    """quant_cfg.json: the format of each fused module of each layer."""
    first_dense = int(config.get("first_k_dense_replace", 0))
    layers = sorted({layer for name in source if (layer := layer_of(name)) is not None})
    modules: dict[str, dict[str, str]] = {}
    attention = ("fused_a", "q_b_proj", "kv_b_proj", "o_proj")
    for layer in layers:
        prefix = f"model.layers.{layer}"
        fp8 = [f"{prefix}.self_attn.{name}" for name in attention]
        if layer < first_dense:
            fp8 += [f"{prefix}.mlp.{name}" for name in ("gate_up_proj", "down_proj")]
        else:
            fp8 += [f"{prefix}.mlp.shared_experts.{name}" for name in ("gate_up_proj", "down_proj")]
            modules[f"{prefix}.mlp.experts"] = {"quant_algo": "W4A8_AWQ"}
        modules.update({name: {"quant_algo": "FP8_BLOCK_SCALES"} for name in fp8})
    return {
        "quant_algo": "MIXED_PRECISION",
        "kv_cache_quant_algo": None,
        "quantized_layers": dict(sorted(modules.items())),
    }
