"""Options of the engine: names as in TensorRT-LLM's LLM class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from seekernel.engine.option_names import flatten, unknown
from seekernel.engine.scheduler import POLICIES
from seekernel.errors import OptionError

KV_CACHE_DTYPES = ("auto", "bfloat16", "float32", "fp8", "fp8_per_tensor")
WEIGHT_DTYPES = ("auto", "bfloat16", "float32")
LOAD_FORMATS = ("auto", "dummy")
PAGE_SIZES = (16, 32, 64, 128)
MAX_NEXTN = 15  # one decode runs 1 + nextn tokens, and attends to them in the absorbed form
FLAGS = (
    "skip_tokenizer_init", "enable_block_reuse", "enable_partial_reuse", "enable_chunked_prefill",
    "batch_invariant", "use_cuda_graph", "cuda_graph_padding_enabled", "print_iter_log",
    "use_relaxed_acceptance_for_thinking",
)  # fmt: skip


@dataclass(frozen=True)
class EngineOptions:
    """What an engine is built with. Errors: OptionError naming the option.

    max_batch_size: sequences that run at once.  max_num_tokens: tokens of one step, all sequences
    together; a longer prompt is prefilled over several steps (enable_chunked_prefill), without that
    it is refused.  max_seq_len: prompt and output of one sequence; None: the model's limit, or what
    the cache holds.  moe_max_num_tokens: tokens that the experts take at once; None: all.
    scheduler_policy: guaranteed_no_evict or max_utilization (see Scheduler).
    disable_overlap_scheduler: process a step before the next is launched; None: on a CPU, where
    both share the cores.

    kv_cache_dtype: "auto" is what the checkpoint's hf_quant_config.json asks for, else bfloat16;
    "fp8" has a multiplier per token and 128 values, "fp8_per_tensor" none.
    kv_cache_bytes: upper limit of the cache; None: kv_cache_free_gpu_memory_fraction of the memory
    left after the weights, by default 0.9 of a GPU's and a quarter of a CPU's.
    kv_cache_max_tokens: another upper limit.  page_size: tokens of a page.
    enable_block_reuse: keep pages of finished sequences and start new ones from them;
    enable_partial_reuse: copy the first rows of a page that does not fit as a whole.

    spec_decode_algo "MTP", spec_decode_nextn: draft so many tokens a step, 0: none.
    use_relaxed_acceptance_for_thinking, relaxed_topk, relaxed_delta: between the markers of thinking
    keep a draft among the relaxed_topk likeliest tokens, at most relaxed_delta less probable than
    the best; for greedy requests without log-probabilities. Else what is chosen is what would be
    chosen without drafts.

    use_cuda_graph: replay decode steps. cuda_graph_batch_sizes: those to record, cut at the batch
    limit; cuda_graph_padding_enabled: fill a batch up to the next of them.
    batch_invariant: a token's bits do not depend on how its tokens were batched or cut.
    print_iter_log: one line per step on standard output.
    dtype: of activations and unquantised weights.  load_format: "dummy" fills the weights with
    random numbers and reads config.json alone.  seed: base of the seeds of requests without one.
    skip_tokenizer_init: take and give token ids only.
    """

    max_batch_size: int = 64
    max_num_tokens: int = 8192
    max_seq_len: int | None = None
    moe_max_num_tokens: int | None = None
    scheduler_policy: str = "guaranteed_no_evict"
    enable_chunked_prefill: bool = True
    disable_overlap_scheduler: bool | None = None
    kv_cache_dtype: str = "auto"
    kv_cache_bytes: int | None = None
    kv_cache_free_gpu_memory_fraction: float | None = None
    kv_cache_max_tokens: int | None = None
    page_size: int = 64
    enable_block_reuse: bool = True
    enable_partial_reuse: bool = True
    spec_decode_algo: str | None = None
    spec_decode_nextn: int = 1
    use_relaxed_acceptance_for_thinking: bool = False
    relaxed_topk: int = 1
    relaxed_delta: float = 0.0
    use_cuda_graph: bool = False
    cuda_graph_padding_enabled: bool = False
    cuda_graph_batch_sizes: tuple[int, ...] | list[int] | None = None
    batch_invariant: bool = False
    print_iter_log: bool = False
    dtype: str = "auto"
    load_format: str = "auto"
    seed: int = 0
    skip_tokenizer_init: bool = False

    def __post_init__(self) -> None:
        _at_least("max_batch_size", self.max_batch_size, 1)
        _at_least("max_num_tokens", self.max_num_tokens, 1)
        if self.max_seq_len is not None:
            _at_least("max_seq_len", self.max_seq_len, 2)
        for name in ("kv_cache_bytes", "kv_cache_max_tokens", "moe_max_num_tokens"):
            if getattr(self, name) is not None:
                _at_least(name, getattr(self, name), 1)
        _at_least("seed", self.seed, 0)
        _one_of("kv_cache_dtype", self.kv_cache_dtype, KV_CACHE_DTYPES)
        _one_of("page_size", self.page_size, PAGE_SIZES)
        _one_of("dtype", self.dtype, WEIGHT_DTYPES)
        _one_of("load_format", self.load_format, LOAD_FORMATS)
        _one_of("scheduler_policy", self.scheduler_policy, POLICIES)
        _one_of("spec_decode_algo", self.spec_decode_algo, (None, "MTP"))
        _one_of("disable_overlap_scheduler", self.disable_overlap_scheduler, (None, True, False))
        for name in FLAGS:
            _one_of(name, getattr(self, name), (True, False))
        _at_least("spec_decode_nextn", self.spec_decode_nextn, 0)
        if self.spec_decode_nextn > MAX_NEXTN:
            raise OptionError.expected(
                "spec_decode_nextn", f"at most {MAX_NEXTN}", self.spec_decode_nextn
            )
        _at_least("relaxed_topk", self.relaxed_topk, 1)
        _fraction("relaxed_delta", self.relaxed_delta)
        if self.kv_cache_free_gpu_memory_fraction is not None:
            _fraction("kv_cache_free_gpu_memory_fraction", self.kv_cache_free_gpu_memory_fraction)
        self._check_graph_sizes()
        if self.max_num_tokens < 1 + self.num_drafts:
            raise OptionError.expected(
                "max_num_tokens",
                f"at least {1 + self.num_drafts}, the tokens of one decode with "
                f"spec_decode_nextn {self.num_drafts}",
                self.max_num_tokens,
            )

    def _check_graph_sizes(self) -> None:
        sizes = self.cuda_graph_batch_sizes
        if sizes is None:
            return
        if not isinstance(sizes, list | tuple) or not sizes:
            raise OptionError.expected("cuda_graph_batch_sizes", "batch sizes", sizes)
        for size in sizes:
            _at_least("cuda_graph_batch_sizes", size, 1)
        object.__setattr__(self, "cuda_graph_batch_sizes", tuple(sorted(set(sizes))))

    @property
    def num_drafts(self) -> int:
        """Tokens drafted per step."""
        return 0 if self.spec_decode_algo is None else self.spec_decode_nextn

    def overlap_disabled(self, device_type: str) -> bool:
        if self.disable_overlap_scheduler is None:
            return device_type == "cpu"
        return self.disable_overlap_scheduler

    @classmethod
    def from_keywords(cls, keywords: Mapping[str, Any]) -> EngineOptions:
        """Build from keyword arguments, flat or in TensorRT-LLM's nested sections.

        Errors: OptionError; an unknown name is refused with the nearest known one.
        """
        known = [field.name for field in fields(cls)]
        flat = flatten(keywords)
        for name in flat:
            if name not in known:
                raise unknown(name, known)
        return cls(**flat)


def _at_least(name: str, value: object, minimum: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value < 2**63:
        raise OptionError.expected(name, f"an integer of at least {minimum}", value)


def _fraction(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value <= 1.0:
        raise OptionError.expected(name, "a number from 0 to 1", value)


def _one_of(name: str, value: object, allowed: tuple[object, ...]) -> None:
    if not any(value == item and type(value) is type(item) for item in allowed):
        raise OptionError.expected(name, "one of " + ", ".join(map(str, allowed)), value)
