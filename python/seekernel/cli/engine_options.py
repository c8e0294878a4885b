"""Flags of the engine that every command which runs a model has; imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])
UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def byte_count(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """Read a number of bytes written as 512M or 2G."""
    if value is None:
        return None
    text = value.strip().upper().removesuffix("B").removesuffix("I")
    number, unit = (text[:-1], text[-1]) if text and text[-1] in UNITS else (text, "")
    try:
        return int(float(number) * UNITS[unit])
    except (ValueError, OverflowError):
        raise click.BadParameter(
            f"expected a number of bytes such as 512M or 2G, got {value!r}", ctx, param
        ) from None


def int_list(
    ctx: click.Context, param: click.Parameter, value: tuple[str, ...]
) -> list[int] | None:
    """Read numbers given one by one, or several between commas or blanks."""
    words = " ".join(value).replace(",", " ").split()
    try:
        return [int(word) for word in words] or None
    except ValueError:
        raise click.BadParameter(f"expected numbers, got {' '.join(value)!r}", ctx, param) from None


def _flag(name: str, help_text: str) -> Callable[[F], F]:
    """An option that is given or not: None leaves a file's or the default value."""
    return click.option(name, is_flag=True, default=None, help=help_text)


_OPTIONS = [
    click.option("--max_batch_size", type=int, help="Sequences that run at once.  [default: 64]"),
    click.option("--max_num_tokens", type=int, help="Tokens of one step.  [default: 8192]"),
    click.option("--max_seq_len", type=int, help="Prompt and answer.  [default: the model's]"),
    click.option("--moe_max_num_tokens", type=int, help="Tokens of the experts at once.  [default: all]"),
    click.option(
        "--scheduler_policy", metavar="guaranteed_no_evict|max_utilization",
        help="[default: guaranteed_no_evict]",
    ),
    click.option(
        "--enable_chunked_prefill/--disable_chunked_prefill", default=None,
        help="Read long prompts over several steps.  [default: enabled]",
    ),
    click.option(
        "--enable_overlap_scheduler/--disable_overlap_scheduler", "overlap", default=None,
        help="Launch a step before the last is processed.  [default: on a GPU]",
    ),
    click.option(
        "--kv_cache_dtype", metavar="auto|bfloat16|float32|fp8|fp8_per_tensor",
        help="[default: auto, the checkpoint's]",
    ),
    click.option(
        "--kv_cache_bytes", callback=byte_count, help="Limit, as 2G.  [default: 1/4 of free memory]"
    ),
    click.option(
        "--kv_cache_free_gpu_memory_fraction", "--kv_cache_fraction", type=float,
        help="Limit, of what the weights leave.",
    ),
    click.option(
        "--disable_kv_cache_reuse", "--kv_cache_enable_block_reuse", "no_reuse", is_flag=True,
        default=None, help="Keep no pages of finished sequences (both spellings disable).",
    ),
    click.option("--spec_decode_algo", metavar="MTP", help="Draft with the MTP module."),
    click.option("--spec_decode_nextn", type=int, help="Tokens to draft, 0: none.  [default: 1]"),
    _flag("--use_relaxed_acceptance_for_thinking", "Keep nearly likeliest drafts in thinking."),
    click.option("--relaxed_topk", type=int, help="... among the K likeliest.  [default: 1]"),
    click.option("--relaxed_delta", type=float, help="... at most D less probable.  [default: 0]"),
    _flag("--use_cuda_graph", "Replay decode steps."),
    _flag("--cuda_graph_padding_enabled", "Fill a batch up to a recorded size."),
    click.option(
        "--cuda_graph_batch_sizes", multiple=True, callback=int_list,
        help="Sizes to record, as 1,2,4,8. May be repeated.",
    ),
    _flag("--batch_invariant", "The same bits for a token in any batch."),
    _flag("--print_iter_log", "Print a line per step."),
    click.option("--dtype", metavar="auto|bfloat16|float32", help="Of activations.  [default: auto]"),
    click.option("--load_format", metavar="auto|dummy", help="dummy: random weights.  [default: auto]"),
    click.option(
        "--extra_llm_api_options", metavar="FILE",
        help="YAML file of these options; what it says goes before flags.",
    ),
]  # fmt: skip


def engine_options(function: F) -> F:
    """Add the engine's flags to a command."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def given_options(options: dict[str, Any]) -> dict[str, Any]:
    """Return LLM's keyword arguments: the flags that were given, and the file's options over them."""
    from seekernel.engine.option_names import flatten, read_options_file

    options = dict(options)
    path = options.pop("extra_llm_api_options", None)
    overlap, no_reuse = options.pop("overlap", None), options.pop("no_reuse", None)
    given = {name: value for name, value in options.items() if value is not None}
    if overlap is not None:
        given["disable_overlap_scheduler"] = not overlap
    if no_reuse:
        given["enable_block_reuse"] = False
    return given if path is None else {**given, **flatten(read_options_file(path))}
