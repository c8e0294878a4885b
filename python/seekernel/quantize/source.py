"""The checkpoint that a conversion reads: any safetensors directory, weights as float32 whatever their format."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from seekernel import ops
from seekernel.model.errors import WeightError
from seekernel.model.safetensors_file import DTYPES, SafetensorsFile, TensorEntry
from seekernel.quantize import formats

EXPERT_WEIGHT = re.compile(
    r"(?P<layer>model\.layers\.(?P<index>\d+))\.mlp\.experts\.(?P<expert>\d+)\.(?P<proj>gate|up|down)_proj\.weight"
)
LAYER = re.compile(r"model\.layers\.(\d+)\.")
SCALE_INV = "_scale_inv"
NVFP4_SCALES = ("_scale", "_scale_2")
_TORCH = {**DTYPES, "I8": torch.int8, "U8": torch.uint8}


class SourceCheckpoint:
    """Tensors by name. Errors: WeightError naming file and tensor, a truncated file included."""

    def __init__(self, model_dir: Path) -> None:
        self.model_dir = model_dir
        paths = sorted(model_dir.glob("*.safetensors"))
        if not paths:
            raise WeightError(f"{model_dir}: expected *.safetensors files, found none")
        self._where: dict[str, SafetensorsFile] = {}
        self.files = [SafetensorsFile(path) for path in paths]
        for file in self.files:
            for name in file.entries:
                if name in self._where:
                    other = self._where[name].path.name
                    raise WeightError(f"{name}: stands in both {other} and {file.path.name}")
                self._where[name] = file
        self._require_indexed()

    def _require_indexed(self) -> None:
        index = self.model_dir / "model.safetensors.index.json"
        if not index.is_file():
            return
        try:
            listed = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise WeightError(f"{index}: expected a weight_map, got {error!r:.200}") from None
        for name in listed:
            if name not in self._where:
                raise WeightError(f"{name}: in {index.name} but in none of the files")

    def __contains__(self, name: str) -> bool:
        return name in self._where

    def __iter__(self) -> Iterator[str]:
        """Names, layers in order, and within a layer by name."""
        return iter(sorted(self._where, key=lambda name: (layer_of(name) or 0, name)))

    def entry(self, name: str) -> TensorEntry:
        """Dtype, shape and place of a tensor."""
        if name not in self._where:
            raise WeightError(f"{name}: missing from {self.model_dir}")
        return self._where[name].entries[name]

    def chunks(self, name: str) -> Iterator[bytes]:
        """The tensor's bytes as they are."""
        return self._where[name].chunks(name)

    def read(self, name: str) -> Tensor:
        """The tensor as stored."""
        entry = self.entry(name)
        if entry.dtype not in _TORCH:
            raise WeightError(f"{name}: expected one of {', '.join(_TORCH)}, got {entry.dtype}")
        raw = b"".join(self.chunks(name))
        flat = torch.frombuffer(bytearray(raw), dtype=torch.uint8) if raw else torch.empty(0)
        return flat.view(_TORCH[entry.dtype]).view(entry.shape)

    def scales_of(self, name: str) -> tuple[str, ...]:
        """Names of the tensors that belong to a weight and mean nothing without it."""
        return tuple(name + s for s in (SCALE_INV, *NVFP4_SCALES) if name + s in self)

    def is_scale(self, name: str) -> bool:
        """Whether a tensor is the scale of another one that is here."""
        for suffix in (SCALE_INV, "_scale_2", "_scale"):
            if name.endswith(suffix) and name.removesuffix(suffix) in self:
                return True
        return False

    def read_float(self, name: str) -> Tensor:
        """The values that a weight stands for, float32: FP8 blocks, int4 and NVFP4 expanded."""
        stored = self.read(name)
        if stored.dtype == torch.float8_e4m3fn:
            scale = self.read(name + SCALE_INV)
            if not bool(torch.isfinite(scale).all()):
                raise WeightError(f"{name}{SCALE_INV}: expected finite scales, got NaN or infinity")
            return ops.dequantize_fp8_128x128(stored, scale, torch.float32)
        if stored.dtype == torch.int8:
            return formats.dequantize_int4_g128(stored, self.read(name + SCALE_INV))
        if stored.dtype == torch.uint8:
            scale, global_scale = (self.read(name + suffix) for suffix in NVFP4_SCALES)
            return formats.dequantize_nvfp4(stored, scale, global_scale)
        return stored.float()

    def fingerprint(self) -> list[str]:
        """What identifies the input: names, sizes and headers of the files."""
        return [
            f"{file.path.name} {file.path.stat().st_size} "
            + hashlib.sha256(repr(sorted(file.entries.items())).encode()).hexdigest()
            for file in self.files
        ]


def layer_of(name: str) -> int | None:
    """Number of the layer that a tensor belongs to; None for the embedding, the last norm and the head."""
    found = LAYER.match(name)
    return int(found[1]) if found else None
