"""Where weights come from: a checkpoint directory, or random numbers of the same shapes.

A layer asks for its tensors by their checkpoint names and says the shape it needs; each tensor is
read once, straight into its final place. Checkpoints are data: only safetensors are opened.
"""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from seekernel.model.config import BLOCK, ModelConfig
from seekernel.model.errors import WeightError
from seekernel.model.safetensors_file import DTYPES, SafetensorsFile

FP8 = torch.float8_e4m3fn
FLOAT_DTYPES = (torch.float32, torch.bfloat16)
SCALE_SUFFIX = "_scale_inv"  # despite the name a multiplier: w = fp8 * scale_inv


def num_blocks(size: int) -> int:
    """Return how many scale blocks cover `size` rows or columns."""
    return -(-size // BLOCK)


class WeightSource(ABC):
    """Gives tensors by checkpoint name."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    @abstractmethod
    def dtype(self, name: str) -> torch.dtype:
        """Return the stored dtype: float8_e4m3fn, bfloat16 or float32. Errors: WeightError."""

    def check_shape(self, name: str, shape: Sequence[int]) -> None:
        """Refuse a stored shape other than this one, before memory is taken for it."""
        return  # a source that makes its tensors can make any shape

    @abstractmethod
    def read_into(self, name: str, destination: Tensor) -> None:
        """Write the tensor into `destination`, whose shape and dtype must be the stored ones."""

    @abstractmethod
    def __contains__(self, name: str) -> bool: ...

    def read(self, name: str, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> Tensor:
        """Return a new tensor, in the stored dtype, converted to `dtype` if one is given."""
        stored = self.dtype(name)
        if stored == FP8 and dtype is not FP8:
            raise WeightError(f"{name}: expected dtype bfloat16 or float32, got float8_e4m3fn")
        self.check_shape(name, shape)
        tensor = torch.empty(shape, dtype=stored, device=self.device)
        self.read_into(name, tensor)
        return tensor if dtype is None else tensor.to(dtype)

    def read_scale_into(self, name: str, destination: Tensor) -> None:
        """Read block scales, which must be finite."""
        self.read_into(name, destination)
        if not bool(torch.isfinite(destination).all()):
            raise WeightError(f"{name}: expected finite scales, got NaN or infinity")


class CheckpointSource(WeightSource):
    """The tensors of a Hugging Face directory: model.safetensors, or shards with an index."""

    def __init__(self, model_dir: str | Path, device: torch.device) -> None:
        super().__init__(device)
        self.model_dir = Path(model_dir)
        self._files = {name: SafetensorsFile(self.model_dir / name) for name in self._file_names()}
        self._where: dict[str, SafetensorsFile] = {}
        for file in self._files.values():
            for name in file.entries:
                if name in self._where:
                    raise WeightError(
                        f"{name}: stands in both {self._where[name].path.name} and {file.path.name}"
                    )
                self._where[name] = file
        self._used: set[str] = set()

    def _file_names(self) -> list[str]:
        index = self.model_dir / "model.safetensors.index.json"
        if index.is_file():
            try:
                weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
                names = sorted(set(weight_map.values()))
            except (
                OSError,
                ValueError,
                KeyError,
                TypeError,
                AttributeError,
                RecursionError,
            ) as error:
                raise WeightError(f"{index}: expected a weight_map, got {error!r:.200}") from None
            for name in names:
                if not isinstance(name, str) or Path(name).name != name:
                    raise WeightError(
                        f"{index}: expected file names without a folder, got {name!r}"
                    )
                if not name.endswith(".safetensors"):
                    raise WeightError(f"{index}: expected .safetensors files, got {name!r}")
                if not (self.model_dir / name).is_file():
                    raise WeightError(f"{index}: shard {name} is missing")
            return names
        if (self.model_dir / "model.safetensors").is_file():
            return ["model.safetensors"]
        others = sorted(
            p.name for p in self.model_dir.glob("*") if p.suffix in (".bin", ".pt", ".pth")
        )
        hint = f"; {others[0]} is a pickle, which is never opened" if others else ""
        raise WeightError(
            f"{self.model_dir}: expected model.safetensors or model.safetensors.index.json, "
            f"found neither{hint}"
        )

    def __contains__(self, name: str) -> bool:
        return name in self._where

    def _file(self, name: str) -> SafetensorsFile:
        file = self._where.get(name)
        if file is None:
            raise WeightError(f"{name}: missing from {self.model_dir}")
        return file

    def dtype(self, name: str) -> torch.dtype:
        stored = self._file(name).entries[name].dtype
        allowed = (*FLOAT_DTYPES, FP8)
        if DTYPES.get(stored) not in allowed:
            raise WeightError(f"{name}: expected dtype F8_E4M3, BF16 or F32, got {stored}")
        return DTYPES[stored]

    def check_shape(self, name: str, shape: Sequence[int]) -> None:
        entry = self._file(name).entries[name]
        if entry.shape != tuple(shape):
            raise WeightError(f"{name}: expected shape {list(shape)}, got {list(entry.shape)}")

    def read_into(self, name: str, destination: Tensor) -> None:
        entry = self._file(name).entries[name]
        self.check_shape(name, destination.shape)
        if self.dtype(name) != destination.dtype:
            raise WeightError(f"{name}: expected dtype {destination.dtype}, got {entry.dtype}")
        self._file(name).copy_to(name, destination)
        self._used.add(name)

    def ignore(self, *prefixes: str) -> None:
        """Take tensors with these name prefixes as known and not needed."""
        self._used.update(name for name in self._where if name.startswith(prefixes))

    def check_all_used(self) -> None:
        """Errors: WeightError naming a tensor that no layer asked for."""
        extra = sorted(self._where.keys() - self._used)
        if extra:
            more = f" and {len(extra) - 1} more" if len(extra) > 1 else ""
            raise WeightError(f"{extra[0]}{more}: not part of the model that config.json describes")


class DummySource(WeightSource):
    """Random weights of the shapes asked for: no file is read. For benchmarks and sizing."""

    def __init__(self, config: ModelConfig, device: torch.device, seed: int = 0) -> None:
        super().__init__(device)
        self._fp8 = config.fp8_weights
        self._generator = torch.Generator(device).manual_seed(seed)
        codes = torch.arange(256, dtype=torch.uint8)
        finite = codes[(codes & 0x7F) < 0x78]
        self._codes = finite.to(device)
        self._code_rms = finite.view(FP8).float().square().mean().sqrt().item()

    def __contains__(self, name: str) -> bool:
        if name.endswith(SCALE_SUFFIX):
            return self._fp8 and is_quantised_name(name.removesuffix(SCALE_SUFFIX))
        return True

    def dtype(self, name: str) -> torch.dtype:
        if name.endswith((SCALE_SUFFIX, "e_score_correction_bias")):
            return torch.float32
        return FP8 if self._fp8 and is_quantised_name(name) else torch.bfloat16

    def read_into(self, name: str, destination: Tensor) -> None:
        if destination.dtype == FP8:
            picks = torch.randint(
                len(self._codes), destination.shape, generator=self._generator, device=self.device
            )
            destination.copy_(self._codes[picks].view(FP8))
        elif name.endswith(SCALE_SUFFIX):
            # A weight's fan-in is not known from its scales; 0.02 is the usual initial deviation.
            spread = torch.rand(destination.shape, generator=self._generator, device=self.device)
            destination.copy_((0.5 + spread) * (0.02 / self._code_rms))
        elif "norm" in name:
            destination.fill_(1.0)
        elif name.endswith("e_score_correction_bias"):
            destination.zero_()
        else:
            deviation = 1.0 / math.sqrt(destination.shape[-1])
            destination.normal_(0.0, deviation, generator=self._generator)


def is_quantised_name(name: str) -> bool:
    """Whether DeepSeek's FP8 checkpoints quantise this weight (embedding, head, norms, gate stay)."""
    return (name.endswith("_proj.weight") and not name.endswith("eh_proj.weight")) or name.endswith(
        "kv_a_proj_with_mqa.weight"
    )
