"""Spellings of the options: flat, in sections, and in a file of them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from seekernel.errors import OptionError

MAX_FILE_BYTES = 1 << 20
# Section: its keys that are spelled otherwise here. All other keys keep their names.
SECTIONS: dict[str, dict[str, str]] = {
    "pytorch_backend_config": {},
    "kv_cache_config": {
        "free_gpu_memory_fraction": "kv_cache_free_gpu_memory_fraction",
        "max_tokens": "kv_cache_max_tokens",
        "dtype": "kv_cache_dtype",
        "tokens_per_block": "page_size",
    },
    "speculative_config": {
        "decoding_type": "spec_decode_algo",
        "num_nextn_predict_layers": "spec_decode_nextn",
    },
    "cuda_graph_config": {
        "enable_padding": "cuda_graph_padding_enabled",
        "batch_sizes": "cuda_graph_batch_sizes",
    },
    "scheduler_config": {"capacity_scheduler_policy": "scheduler_policy"},
    "moe_config": {"max_num_tokens": "moe_max_num_tokens"},
}
# What a section may hold at most; pytorch_backend_config takes every option.
MEMBERS: dict[str, set[str]] = {
    "kv_cache_config": {"enable_block_reuse", "enable_partial_reuse"},
    "speculative_config": {"use_relaxed_acceptance_for_thinking", "relaxed_topk", "relaxed_delta"},
}
FLAT = {
    "kv_cache_free_gpu_mem_fraction": "kv_cache_free_gpu_memory_fraction",
    "kv_cache_fraction": "kv_cache_free_gpu_memory_fraction",
    "tokens_per_block": "page_size",
}


def flatten(keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Return options under their own names.

    Errors: OptionError for a section that is no mapping, a key it cannot hold, or an option that is
    given twice with different values.
    """
    flat: dict[str, Any] = {}
    for name, value in keywords.items():
        if name in SECTIONS:
            if value is None:
                continue
            if not isinstance(value, Mapping):
                raise OptionError.expected(name, "a mapping of options", value)
            if name == "cuda_graph_config":
                _put(flat, "use_cuda_graph", True, name)
            for key, inner in value.items():
                _put(flat, _own_name(name, key), inner, f"{name}.{key}")
        else:
            _put(flat, str(name), value, str(name))
    return flat


def _own_name(section: str, key: object) -> str:
    names = SECTIONS[section]
    if key in names:
        return names[str(key)]
    if section == "pytorch_backend_config":
        return str(key)
    members = MEMBERS.get(section, set())
    if key not in members:
        raise unknown(str(key), [*names, *members], section)
    return str(key)


def _put(flat: dict[str, Any], name: str, value: Any, spelled: str) -> None:
    if name == "enable_overlap_scheduler":
        if not isinstance(value, bool):
            raise OptionError.expected(spelled, "true or false", value)
        name, value = "disable_overlap_scheduler", not value
    name = FLAT.get(name, name)
    if name == "scheduler_policy" and isinstance(value, str):
        value = value.lower()
    if name in flat and flat[name] != value:
        raise OptionError(f"{spelled}: {name} is given twice, as {flat[name]!r} and {value!r}")
    flat[name] = value


def unknown(name: str, known: Iterable[str], section: str = "") -> OptionError:
    """Return the error for a name that is no option, with the nearest one that is."""
    names = [*known] if section else [*known, *SECTIONS]
    nearest = difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean {nearest[0]}?" if nearest else ""
    return OptionError(f"{section + '.' if section else ''}{name}: no such option{hint}")


def read_options_file(path: str | Path) -> dict[str, Any]:
    """Return the options of a YAML file (--extra_llm_api_options). Errors: OptionError."""
    import yaml

    try:
        with open(path, "rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise OptionError(f"extra_llm_api_options: {path}: {error.strerror}") from None
    if len(content) > MAX_FILE_BYTES:
        raise OptionError(f"extra_llm_api_options: {path}: more than {MAX_FILE_BYTES} bytes")
    try:
        values = yaml.safe_load(content)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise OptionError(f"extra_llm_api_options: {path}: no YAML: {reason}") from None
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise OptionError.expected(f"extra_llm_api_options: {path}", "options by name", values)
    return values
