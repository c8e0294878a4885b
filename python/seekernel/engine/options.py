"""Options of the engine: names as in TensorRT-LLM's LLM class."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from seekernel.errors import OptionError

KV_CACHE_DTYPES = ("auto", "bfloat16", "float32")
WEIGHT_DTYPES = ("auto", "bfloat16", "float32")
LOAD_FORMATS = ("auto", "dummy")
PAGE_SIZES = (16, 32, 64, 128)


@dataclass(frozen=True)
class EngineOptions:
    """What an engine is built with. Errors: OptionError naming the option.

    max_batch_size: sequences that run at once.  max_num_tokens: tokens of one step, all sequences
    together; a longer prompt is prefilled over several steps.  max_seq_len: prompt and output of
    one sequence; None: the model's limit, or what the cache holds.
    kv_cache_dtype: "auto" is the dtype of the activations.  kv_cache_bytes: upper limit of the
    cache; None: a quarter of the memory available after the weights are loaded.
    dtype: of activations and unquantised weights.  load_format: "dummy" fills the weights with
    random numbers and reads config.json alone.  seed: base of the seeds of requests without one.
    skip_tokenizer_init: take and give token ids only.
    """

    max_batch_size: int = 64
    max_num_tokens: int = 8192
    max_seq_len: int | None = None
    kv_cache_dtype: str = "auto"
    kv_cache_bytes: int | None = None
    page_size: int = 64
    dtype: str = "auto"
    load_format: str = "auto"
    seed: int = 0
    skip_tokenizer_init: bool = False

    def __post_init__(self) -> None:
        _at_least("max_batch_size", self.max_batch_size, 1)
        _at_least("max_num_tokens", self.max_num_tokens, 1)
        if self.max_seq_len is not None:
            _at_least("max_seq_len", self.max_seq_len, 2)
        if self.kv_cache_bytes is not None:
            _at_least("kv_cache_bytes", self.kv_cache_bytes, 1)
        _at_least("seed", self.seed, 0)
        _one_of("kv_cache_dtype", self.kv_cache_dtype, KV_CACHE_DTYPES)
        _one_of("page_size", self.page_size, PAGE_SIZES)
        _one_of("dtype", self.dtype, WEIGHT_DTYPES)
        _one_of("load_format", self.load_format, LOAD_FORMATS)
        _one_of("skip_tokenizer_init", self.skip_tokenizer_init, (True, False))

    @classmethod
    def from_keywords(cls, keywords: Mapping[str, Any]) -> EngineOptions:
        """Build from keyword arguments; an unknown one is refused with the nearest known name."""
        known = [field.name for field in fields(cls)]
        for name in keywords:
            if name not in known:
                nearest = difflib.get_close_matches(name, known, n=1)
                hint = f"; did you mean {nearest[0]}?" if nearest else ""
                raise OptionError(f"{name}: no such option{hint}")
        return cls(**keywords)


def _at_least(name: str, value: object, minimum: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value < 2**63:
        raise OptionError.expected(name, f"an integer of at least {minimum}", value)


def _one_of(name: str, value: object, allowed: tuple[object, ...]) -> None:
    if not any(value == item and type(value) is type(item) for item in allowed):
        raise OptionError.expected(name, "one of " + ", ".join(map(str, allowed)), value)
