"""Plans and writes a converted checkpoint: which tensor becomes what, in which file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from seekernel.quantize.shard_writer import (
    PlannedTensor,
    QuantizeError,
    fingerprint_of,
    is_complete,
    write_shard,
    write_text,
)
from seekernel.quantize.source import SourceCheckpoint

_NAMES = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.int8: "I8",
    torch.uint8: "U8",
}
COPIED_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "configuration_deepseek.py",
    "modeling_deepseek.py",
    "chat_template.jinja",
)
_CHUNK_BYTES = 16 << 20


def tensor_bytes(tensor: Tensor) -> Iterator[memoryview]:
    """A tensor's bytes in pieces."""
    flat = tensor.contiguous().view(-1).view(torch.uint8).numpy()
    for begin in range(0, flat.size, _CHUNK_BYTES):
        yield flat[begin : begin + _CHUNK_BYTES].data


class Recipe:
    """Several output tensors from one computation, which runs once for all that are written in a row."""

    def __init__(self, compute: Callable[[], Sequence[Tensor]]) -> None:
        self._compute = compute
        self._kept: dict[int, Tensor] = {}

    def part(self, index: int) -> Callable[[], Iterator[memoryview]]:
        """Gives output `index`; each is given once, then forgotten."""

        def chunks() -> Iterator[memoryview]:
            if index not in self._kept:
                self._kept = dict(enumerate(self._compute()))
            return tensor_bytes(self._kept.pop(index))

        return chunks


def copied(source: SourceCheckpoint, name: str) -> PlannedTensor:
    """A tensor as it is."""
    entry = source.entry(name)
    return PlannedTensor(name, entry.dtype, entry.shape, lambda: source.chunks(name))


def planned(
    compute: Callable[[], Sequence[Tensor]],
    outputs: Sequence[tuple[str, torch.dtype, tuple[int, ...]]],
) -> list[PlannedTensor]:
    """Several tensors from one computation."""
    recipe = Recipe(compute)
    return [
        PlannedTensor(name, _NAMES[dtype], shape, recipe.part(index))
        for index, (name, dtype, shape) in enumerate(outputs)
    ]


@dataclass(frozen=True)
class Conversion:
    """What to write.

    Args:
        shards: file name to tensors.
        inputs: what every file depends on, for its fingerprint.
        json_files: name to content, written last, the index among them.
        copies: further files, from where.
    """

    output_dir: Path
    shards: Mapping[str, Sequence[PlannedTensor]]
    inputs: Sequence[str]
    json_files: Mapping[str, Any] = field(default_factory=dict)
    copies: Sequence[Path] = ()

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(t.num_bytes for tensors in self.shards.values() for t in tensors)

    def write(
        self,
        only: Iterable[str] | None = None,
        jobs: int = 1,
        progress: Callable[[int], None] = lambda num_bytes: None,
    ) -> bool:
        """Write the named shards (all by default), and what completes the directory once all are there.

        Returns: whether the checkpoint is complete. Nothing can load it before: the index comes last.
        Errors: QuantizeError.
        """
        self.output_dir.mkdir(parents=True, exist_ok=True)
        names = list(self.shards if only is None else only)
        if len(names) == 1:  # in this thread, so that Ctrl-C ends it at once
            self._write(names[0], progress)
        else:
            with ThreadPoolExecutor(max_workers=jobs) as pool:
                for done in [pool.submit(self._write, name, progress) for name in names]:
                    done.result()
        for name, tensors in self.shards.items():
            fingerprint = fingerprint_of(tensors, self.inputs)
            if not is_complete(self.output_dir / name, fingerprint):
                return False
        for path in self.copies:
            temporary = self.output_dir / (path.name + ".partial")
            shutil.copyfile(path, temporary)
            temporary.replace(self.output_dir / path.name)
        for name, content in self.json_files.items():
            write_text(self.output_dir / name, json.dumps(content, indent=2) + "\n")
        return True

    def _write(self, name: str, progress: Callable[[int], None]) -> None:
        write_shard(self.output_dir / name, self.shards[name], self.inputs, progress)


def index_of(
    shards: Mapping[str, Sequence[PlannedTensor]], extra: Mapping[str, str]
) -> dict[str, Any]:
    """Content of model.safetensors.index.json; `extra` names tensors of further files."""
    weight_map = {t.name: name for name, tensors in shards.items() for t in tensors}
    total = sum(t.num_bytes for tensors in shards.values() for t in tensors)
    return {"metadata": {"total_size": total}, "weight_map": {**weight_map, **extra}}


def split_by_size(
    tensors: Sequence[PlannedTensor], max_bytes: int
) -> dict[str, list[PlannedTensor]]:
    """Files of at most `max_bytes` (or one tensor), named as Hugging Face names them."""
    groups: list[list[PlannedTensor]] = [[]]
    size = 0
    for tensor in tensors:
        if groups[-1] and size + tensor.num_bytes > max_bytes:
            groups.append([])
            size = 0
        groups[-1].append(tensor)
        size += tensor.num_bytes
    count = len(groups)
    return {f"model-{i:05d}-of-{count:05d}.safetensors": g for i, g in enumerate(groups, 1)}


def existing(model_dir: Path, names: Sequence[str] = COPIED_FILES) -> list[Path]:
    """Those of the side files that are there."""
    return [model_dir / name for name in names if (model_dir / name).is_file()]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Errors: QuantizeError naming the file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise QuantizeError(f"{path}: {error}") from None
    if not isinstance(value, dict):
        raise QuantizeError(f"{path}: expected a JSON object")
    return value
