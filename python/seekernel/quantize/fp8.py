"""Conversions of whole checkpoints between plain weights, FP8 blocks and NVFP4 experts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from seekernel import ops
from seekernel.model.weights import is_quantised_name, num_blocks
from seekernel.quantize.convert import (
    Conversion,
    copied,
    existing,
    index_of,
    planned,
    read_json,
    split_by_size,
)
from seekernel.quantize.formats import NVFP4_GROUP, quantize_nvfp4
from seekernel.quantize.shard_writer import PlannedTensor, QuantizeError
from seekernel.quantize.source import EXPERT_WEIGHT, SCALE_INV, SourceCheckpoint

MAX_SHARD_BYTES = 5 << 30
FP8_CONFIG = {
    "quant_method": "fp8",
    "fmt": "e4m3",
    "activation_scheme": "dynamic",
    "weight_block_size": [128, 128],
}
Convert = Callable[[SourceCheckpoint, str], "Sequence[PlannedTensor] | None"]


def plan(
    kind: str,
    model_dir: Path,
    output_dir: Path,
    convert: Convert,
    json_files: dict[str, Any],
    max_shard_bytes: int,
) -> Conversion:
    """Every tensor is what `convert` says, or copied where it says None; scales go with their weights."""
    source = SourceCheckpoint(model_dir)
    tensors: list[PlannedTensor] = []
    for name in source:
        made = convert(source, name)
        if made is not None:
            tensors += made
        elif not source.is_scale(name) or _weight_kept(source, name, convert):
            tensors.append(copied(source, name))
    shards = split_by_size(tensors, max_shard_bytes)
    return Conversion(
        output_dir,
        shards,
        [kind, *source.fingerprint()],
        {**json_files, "model.safetensors.index.json": index_of(shards, {})},
        existing(model_dir),
    )


def _weight_kept(source: SourceCheckpoint, scale: str, convert: Convert) -> bool:
    for suffix in (SCALE_INV, "_scale_2", "_scale"):
        weight = scale.removesuffix(suffix)
        if weight != scale and weight in source:
            return convert(source, weight) is None
    return True


def plan_fp8(
    model_dir: Path, output_dir: Path, max_shard_bytes: int = MAX_SHARD_BYTES
) -> Conversion:
    """Plain weights to e4m3 with 128x128 scales, as DeepSeek publishes them; embedding, head, gate, norms stay."""

    def convert(source: SourceCheckpoint, name: str) -> Sequence[PlannedTensor] | None:
        if not is_quantised_name(name) or source.entry(name).dtype == "F8_E4M3":
            return None
        n, k = _matrix(source, name)
        return planned(
            lambda: ops.quantize_fp8_128x128(source.read_float(name)),
            [
                (name, torch.float8_e4m3fn, (n, k)),
                (name + SCALE_INV, torch.float32, (num_blocks(n), num_blocks(k))),
            ],
        )

    config = {**read_json(model_dir / "config.json"), "quantization_config": FP8_CONFIG}
    files = {"config.json": config}
    return plan("fp8", model_dir, output_dir, convert, files, max_shard_bytes)


def plan_nvfp4(
    model_dir: Path, output_dir: Path, max_shard_bytes: int = MAX_SHARD_BYTES
) -> Conversion:
    """Routed experts to NVFP4 (`weight`, `weight_scale`, `weight_scale_2`); the rest stays as it is."""

    def convert(source: SourceCheckpoint, name: str) -> Sequence[PlannedTensor] | None:
        if not EXPERT_WEIGHT.fullmatch(name):
            return None
        n, k = _matrix(source, name)
        if k % NVFP4_GROUP:
            raise QuantizeError(f"{name}: expected k a multiple of {NVFP4_GROUP}, got {[n, k]}")
        return planned(
            lambda: quantize_nvfp4(source.read_float(name)),
            [
                (name, torch.uint8, (n, k // 2)),
                (name + "_scale", torch.float8_e4m3fn, (n, k // NVFP4_GROUP)),
                (name + "_scale_2", torch.float32, ()),
            ],
        )

    config = read_json(model_dir / "config.json")
    quantization = {
        "quant_algo": "MIXED_PRECISION",
        "kv_cache_quant_algo": None,
    }
    files = {
        "config.json": config,
        "hf_quant_config.json": {
            "producer": {"name": "seekernel"},
            "quantization": quantization,
        },
        "quant_cfg.json": {
            **quantization,
            "quantized_layers": {"model.layers.*.mlp.experts": {"quant_algo": "NVFP4"}},
        },
    }
    return plan("nvfp4", model_dir, output_dir, convert, files, max_shard_bytes)


def plan_dequantize(
    model_dir: Path, output_dir: Path, max_shard_bytes: int = MAX_SHARD_BYTES
) -> Conversion:
    """Every quantised weight to bfloat16; activation scales and quantisation configs are left out."""

    def convert(source: SourceCheckpoint, name: str) -> Sequence[PlannedTensor] | None:
        if name.endswith(".input_scale"):
            return []
        if not source.scales_of(name):
            return None
        k = source.entry(name).shape[1] * (2 if source.entry(name).dtype in ("I8", "U8") else 1)
        shape = (source.entry(name).shape[0], k)
        return planned(
            lambda: (source.read_float(name).to(torch.bfloat16),),
            [(name, torch.bfloat16, shape)],
        )

    config = read_json(model_dir / "config.json")
    config.pop("quantization_config", None)
    files = {"config.json": config}
    return plan("dequantize", model_dir, output_dir, convert, files, max_shard_bytes)


def _matrix(source: SourceCheckpoint, name: str) -> tuple[int, int]:
    shape = source.entry(name).shape
    if len(shape) != 2:
        raise QuantizeError(f"{name}: expected [n, k], got {list(shape)}")
    return shape[0], shape[1]
