"""`seekernel jit`: look at, empty and fill the cache of kernels compiled at run time."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from seekernel.jit import KernelSpec


@click.group()
def jit() -> None:
    """Kernels compiled at run time: list, clear, precompile."""


@jit.command("ls")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
def ls(as_json: bool) -> None:
    """List the kernels in the cache, the last used first."""
    from seekernel.jit import KernelCache

    cache = KernelCache.from_env()
    entries = cache.entries()
    for entry in entries:
        meta = entry.artifact.meta if entry.artifact else None
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.last_used))
        if as_json:
            row = {"key": entry.key, "bytes": entry.bytes, "last_used": used}
            row |= {"damaged": True} if meta is None else {"name": meta.name}
            row |= {} if meta is None else {"compiler": meta.compiler, "registers": meta.registers}
            click.echo(json.dumps(row))
        elif meta is None:
            click.echo(f"{used}  {entry.bytes:>8}  damaged, will be rebuilt: {entry.key}")
        else:
            click.echo(f"{used}  {entry.bytes:>8}  {meta.name}  {meta.compiler[:12]}  {entry.key}")
    if not as_json:
        total = sum(entry.bytes for entry in entries)
        click.echo(f"{len(entries)} kernels, {total} bytes in {cache.root}")


@jit.command("clear")
def clear() -> None:
    """Remove all kernels from the cache."""
    from seekernel.jit import KernelCache

    cache = KernelCache.from_env()
    click.echo(f"removed {cache.clear()} kernels from {cache.root}")


@jit.command("precompile")
@click.option(
    "--model_dir",
    required=True,
    metavar="DIR",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Checkpoint directory; only its config.json is read.",
)
@click.option("--jobs", type=click.IntRange(1), help="Compilers at a time.  [default: cores]")
@click.option(
    "--max_tokens",
    type=click.IntRange(1),
    default=8192,
    show_default=True,
    help="Most tokens in one step.",
)
@click.option(
    "--num_sms",
    type=click.IntRange(1),
    help="SMs of the GPU.  [default: 132, those of an H100 or H200]",
)
def precompile(model_dir: Path, jobs: int | None, max_tokens: int, num_sms: int | None) -> None:
    """Compile every kernel that a model needs, so that no request waits for a compiler."""
    from tqdm import tqdm

    from seekernel.jit import JitError, default_jit

    specs = model_specs(read_config(model_dir / "config.json"), max_tokens, num_sms or 132)
    try:
        service = default_jit()
        with tqdm(total=len(specs), unit="kernel", desc="seekernel jit") as bar:
            service.precompile(specs, jobs or os.cpu_count() or 1, lambda spec: bar.update())
    except JitError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{len(specs)} kernels, {service.num_compiled} compiled, in {service.cache.root}")


def read_config(path: Path) -> Mapping[str, int]:
    """The integers of a config.json. Errors: click.ClickException naming the file."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise click.ClickException(f"{path}: {error}") from error
    if not isinstance(values, dict):
        raise click.ClickException(f"{path}: expected a JSON object")
    return {name: value for name, value in values.items() if type(value) is int}


def gemm_shapes(config: Mapping[str, int]) -> list[tuple[int, int]]:
    """(n, k) of the dense FP8 GEMMs of a DeepSeek-V3 layer, with the fused projections as one.

    Errors: click.ClickException naming a missing field.
    """
    try:
        hidden, heads = config["hidden_size"], config["num_attention_heads"]
        latent, value = config["kv_lora_rank"], config["v_head_dim"]
        nope, rope = config["qk_nope_head_dim"], config["qk_rope_head_dim"]
        query = config.get("q_lora_rank", 0)
        shapes = [
            (query + latent + rope, hidden),
            (heads * (nope + rope), query or hidden),
            (heads * (nope + value), latent),
            (hidden, heads * value),
            (2 * config["intermediate_size"], hidden),
            (hidden, config["intermediate_size"]),
        ]
    except KeyError as error:
        raise click.ClickException(f"config.json: expected a field {error}") from error
    shared = config.get("n_shared_experts", 0) * config.get("moe_intermediate_size", 0)
    return shapes + ([(2 * shared, hidden), (hidden, shared)] if shared else [])


def model_specs(config: Mapping[str, int], max_tokens: int, num_sms: int) -> list[KernelSpec]:
    """The distinct kernels that the config chooser may ask for, for 1 to max_tokens tokens."""
    from seekernel import _jit
    from seekernel.jit.families import kernel_spec

    # Every batch size of decode, then a step of 64, the smallest tile, for prefill.
    tokens = [*range(1, min(256, max_tokens) + 1), *range(320, max_tokens + 1, 64), max_tokens]
    configs = {
        _jit.choose_gemm(m, n, k, num_sms=num_sms)
        for n, k in gemm_shapes(config)
        if n % 8 == 0 and k % 128 == 0
        for m in tokens
    }
    return [kernel_spec("sm90_fp8_gemm_nt", c) for c in sorted(c.parameters for c in configs)]
