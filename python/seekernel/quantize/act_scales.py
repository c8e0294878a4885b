"""Activation scales of expert projections: `<layer>.mlp.experts.E.w{1,2,3}.input_scale`, float32 [1], amax / 448.

w1 is gate, w2 down, w3 up; gate and up see the same input, so they share the larger of their maxima.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from seekernel.model.errors import WeightError
from seekernel.model.safetensors_file import SafetensorsFile
from seekernel.quantize.formats import E4M3_MAX
from seekernel.quantize.shard_writer import QuantizeError
from seekernel.quantize.source import EXPERT_WEIGHT, SourceCheckpoint

FILE_NAME = "act_scales.safetensors"
PROJECTIONS = {"gate": "w1", "down": "w2", "up": "w3"}
_RANK_FILE = re.compile(r"amax_dict_rank\d+-mp\d+\.pt")
_AMAX = re.compile(
    r"(?:model\.)?layers\.(\d+)\.(?:mlp|ffn)\.experts\.(\d+)\.(gate_proj|down_proj|up_proj|w1|w2|w3)"
    r"\.input_quantizer\._amax"
)


def scale_name(layer: int, expert: int, projection: str) -> str:
    """Name of a scale; projection is gate, down or up."""
    return f"model.layers.{layer}.mlp.experts.{expert}.{PROJECTIONS[projection]}.input_scale"


def wanted_names(source: SourceCheckpoint) -> list[str]:
    """The scales that a checkpoint's routed experts need."""
    found = (EXPERT_WEIGHT.fullmatch(name) for name in source)
    return [scale_name(int(m["index"]), int(m["expert"]), m["proj"]) for m in found if m]


def read_act_scales(path: Path, names: list[str]) -> dict[str, Tensor]:
    """Scales from a safetensors file or from a directory of ModelOpt's amax files.

    Args:
        names: the scales that must be there.
    Errors: QuantizeError naming the missing or impossible scale.
    """
    scales = _from_amax_folder(path) if path.is_dir() else _from_file(path)
    missing = [name for name in names if name not in scales]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise QuantizeError(f"{path}: no {missing[0]}{more}; `seekernel calibrate` makes them")
    chosen = {name: scales[name].float().reshape(1) for name in names}
    for name, scale in chosen.items():
        if not bool(torch.isfinite(scale).all()) or float(scale) <= 0:
            raise QuantizeError(f"{path}: {name}: expected a positive number, got {float(scale)}")
    return chosen


def _from_file(path: Path) -> dict[str, Tensor]:
    try:
        file = SafetensorsFile(path)
        result = {}
        for name, entry in file.entries.items():
            if name.endswith(".input_scale"):
                if entry.dtype != "F32" or entry.shape not in ((), (1,)):
                    raise QuantizeError(
                        f"{path}: {name}: expected F32 [1], got {entry.dtype} {list(entry.shape)}"
                    )
                result[name] = torch.empty(entry.shape)
                file.copy_to(name, result[name])
        return result
    except WeightError as error:
        raise QuantizeError(str(error)) from None


def _from_amax_folder(folder: Path) -> dict[str, Tensor]:
    files = sorted(path for path in folder.iterdir() if _RANK_FILE.fullmatch(path.name))
    if not files:
        raise QuantizeError(f"{folder}: expected amax_dict_rank*-mp*.pt files, found none")
    return scales_of(merge_amax([_read_amax(path) for path in files]))


def _read_amax(path: Path) -> dict[str, Tensor]:
    try:
        # ModelOpt writes torch's format; weights_only admits tensors and containers, no code.
        values = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise QuantizeError(f"{path}: not readable as tensors: {error}") from None
    if not isinstance(values, dict):
        raise QuantizeError(f"{path}: expected a dictionary of tensors")
    return {name: t.float() for name, t in values.items() if isinstance(t, Tensor)}


def merge_amax(ranks: list[Mapping[str, Tensor]]) -> dict[tuple[int, int, str], float]:
    """The largest amax over all ranks by (layer, expert, w1, w2 or w3)."""
    spelled = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}
    merged: dict[tuple[int, int, str], float] = {}
    for rank in ranks:
        for name, amax in rank.items():
            found = _AMAX.fullmatch(name)
            if found:
                key = (int(found[1]), int(found[2]), spelled.get(found[3], found[3]))
                merged[key] = max(merged.get(key, 0.0), float(amax.abs().max()))
    return merged


def scales_of(amax: Mapping[tuple[int, int, str], float]) -> dict[str, Tensor]:
    """Scales by name; w1 and w3 of an expert share the larger maximum, a maximum of 0 counts as 1."""
    result = {}
    for (layer, expert, w), own in amax.items():
        value = own
        if w != "w2":
            value = max(amax.get((layer, expert, other), 0.0) for other in ("w1", "w3"))
        name = f"model.layers.{layer}.mlp.experts.{expert}.{w}.input_scale"
        result[name] = torch.tensor([(value or 1.0) / E4M3_MAX])
    return result
