"""Where the model comes from, and what it asks of the cache: a directory, or the bundled checkpoint."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

from seekernel.errors import OptionError

KV_CACHE_ALGORITHMS = {None: "auto", "FP8": "fp8"}


def default_model_dir() -> Path:
    """Return the bundled checkpoint's directory. Errors: OptionError if it was not installed."""
    try:
        folder = Path(str(files("seekernel.model.demo") / "checkpoint"))
    except ModuleNotFoundError:
        folder = Path()
    if not (folder / "config.json").is_file():
        raise OptionError(
            "model_dir: this installation has no bundled checkpoint; name a directory"
        )
    return folder


def resolve_model_dir(model: str | Path | None) -> Path:
    """Return the directory of `model`, by default the bundled one. Errors: OptionError."""
    if model is None:
        return default_model_dir()
    folder = Path(model).expanduser()
    if not folder.is_dir():
        raise OptionError.expected("model_dir", "a directory with a config.json", str(model))
    return folder


def checkpoint_kv_cache_dtype(folder: Path) -> str:
    """Return the cache's dtype that hf_quant_config.json asks for, "auto" where it asks for none.

    With quant_algo MIXED_PRECISION quant_cfg.json says it too, and must agree.
    Errors: OptionError naming file and key.
    """
    path = folder / "hf_quant_config.json"
    if not path.exists():
        return "auto"
    quantization = _read_object(path).get("quantization", {})
    if not isinstance(quantization, dict):
        raise OptionError.expected(f"{path}: quantization", "an object", quantization)
    asked = quantization.get("kv_cache_quant_algo")
    if asked not in KV_CACHE_ALGORITHMS:
        raise OptionError.expected(f"{path}: kv_cache_quant_algo", "null or FP8", asked)
    other_path = folder / "quant_cfg.json"
    if quantization.get("quant_algo") == "MIXED_PRECISION" and other_path.exists():
        other = _read_object(other_path).get("kv_cache_quant_algo")
        if other != asked:
            raise OptionError(
                f"{other_path}: kv_cache_quant_algo: expected {asked!r} as in {path.name}, "
                f"got {other!r}"
            )
    return KV_CACHE_ALGORITHMS[asked]


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise OptionError(f"{path}: no JSON: {error}") from None
    if not isinstance(value, dict):
        raise OptionError.expected(str(path), "an object", value)
    return value
