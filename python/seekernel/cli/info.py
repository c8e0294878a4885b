"""`seekernel info`: what a bug report needs."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import click

from seekernel._version import __version__
from seekernel.errors import SeekernelError

PACKAGES = ("torch", "numpy", "tokenizers", "safetensors", "jinja2", "click", "tqdm")
VARIABLES = ("OMP_", "MKL_", "GOMP_", "KMP_", "SEEKERNEL_", "CUDA_", "NCCL_")


@click.command()
@click.option(
    "--model_dir", metavar="DIR", help="Checkpoint directory.  [default: the bundled one]"
)
@click.option("--ops", "with_ops", is_flag=True, help="Show which implementation serves each op.")
@click.option("--layer", "with_layer", is_flag=True, help="Count the op calls of a decoder layer.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def info(model_dir: str | None, with_ops: bool, with_layer: bool, as_json: bool) -> None:
    """Show versions, what was built, CPU, GPUs and the checkpoint found."""
    report: dict[str, dict[str, Any] | list[str]] = {
        "versions": versions(),
        "build": build(),
        "cpu": cpu(),
        "gpus": gpus(),
        "checkpoint": checkpoint(model_dir),
        "environment": {
            name: value for name, value in sorted(os.environ.items()) if name.startswith(VARIABLES)
        },
    }
    if with_ops:
        report["ops"] = ops()
    if with_layer:
        report["layer"] = layer(model_dir)
    if as_json:
        click.echo(json.dumps(report, ensure_ascii=False, indent=2))
        return
    for section, content in report.items():
        if isinstance(content, dict):
            click.echo(f"{section}:")
            width = max(12, *map(len, content)) if content else 12
            for name, value in content.items():
                click.echo(f"  {name:<{width}} {value}")
        else:
            click.echo(f"{section}: {', '.join(content) or 'none'}")


def layer(model_dir: str | None) -> dict[str, str]:
    """Return the op calls of one decode step, in all and by name, of each kind of layer."""
    from seekernel.engine.checkpoint import resolve_model_dir
    from seekernel.model import ModelConfig
    from seekernel.model.op_count import layer_ops

    report = {}
    for kind, calls in layer_ops(ModelConfig.from_dir(resolve_model_dir(model_dir))).items():
        names = (f"{count} {name}" if count > 1 else name for name, count in calls.items())
        report[kind] = f"{sum(calls.values())} calls: {', '.join(names)}"
    return report


def versions() -> dict[str, str]:
    """Return the versions of this package, of Python and of what it runs on."""
    found = {"seekernel": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    found["system"] = f"{platform.system()} {platform.release()} {platform.machine()}"
    found["libc"] = " ".join(platform.libc_ver())
    return found


def build() -> dict[str, str]:
    """Return what the compiled extension holds, or why it does not load."""
    try:
        from seekernel._extension import build_info

        compiled = build_info()
    except (ImportError, RuntimeError) as error:
        return {"error": " ".join(str(error).split())}
    return {
        "kernels": "CPU and CUDA sm_90a" if compiled["cuda_version"] else "CPU only",
        "cuda": compiled["cuda_version"] or "not built",
        "compiler": compiled["compiler"],
        "cpu_isa": compiled["cpu_isa"],
    }


def cpu() -> dict[str, str | int]:
    """Return the processor's name, the cores this process may use, and torch's threads."""
    name = platform.processor() or platform.machine()
    for line in _read_lines(Path("/proc/cpuinfo")):
        if line.startswith("model name"):
            name = line.partition(":")[2].strip()
            break
    report: dict[str, str | int] = {
        "name": name,
        "cores": len(os.sched_getaffinity(0)),
        "memory_mib": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20,
    }
    try:
        import torch

        report["threads"] = torch.get_num_threads()
        report["torch_isa"] = torch.backends.cpu.get_cpu_capability()
    except ImportError:
        pass
    return report


def gpus() -> list[str]:
    """Return a line per GPU, from the driver's own tool: a CPU build of torch sees none."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    query = "--query-gpu=name,compute_cap,memory.total,driver_version"
    try:
        result = subprocess.run(
            [tool, query, "--format=csv,noheader"], capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return result.stdout.splitlines() if result.returncode == 0 else []


def ops() -> dict[str, str]:
    """Return what serves each op: on the CPU, on this machine's GPUs, else on an H100."""
    import torch

    from seekernel.ops import paths

    chains = {chain.op: chain for chain in paths.chains()}
    count = torch.cuda.device_count()
    devices = {f"cuda:{i}": paths.capability(i) for i in range(count)} or {"sm_90": (9, 0)}
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    names = sorted(
        name.removeprefix("seekernel::").split(".")[0]
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("seekernel::")
    )
    report: dict[str, str] = {}
    for name in names:
        parts = ["cpu: compiled" if has_kernel(f"seekernel::{name}", "CPU") else "cpu: none"]
        for device, capability in devices.items():
            if name in chains:
                path, skipped = chains[name].skips(capability)
                why = f" ({'; '.join(skipped)})" if skipped else ""
                parts.append(f"{device}: {path.value}{why}")
            elif capability == (9, 0) and has_kernel(f"seekernel::{name}", "CUDA"):
                parts.append(f"{device}: aot")
            else:
                parts.append(f"{device}: none")
        report[name] = ", ".join(parts)
    return report


def checkpoint(model_dir: str | None) -> dict[str, Any]:
    """Return what the checkpoint directory holds; the reason if it is not usable.

    Errors: none for the bundled checkpoint; a directory the user named must be right.
    """
    from seekernel.engine.checkpoint import resolve_model_dir

    try:
        folder = resolve_model_dir(model_dir)
    except SeekernelError as error:
        if model_dir is not None:
            raise
        return {"error": str(error)}
    from seekernel.model import ModelConfig
    from seekernel.tokenizer import Tokenizer

    config = ModelConfig.from_dir(folder)
    tokenizer = Tokenizer.from_dir(folder, config.vocab_size, config.eos_token_ids)
    shards = sorted(folder.glob("*.safetensors"))
    return {
        "directory": str(folder),
        "layers": config.num_hidden_layers,
        "mtp_layers": config.num_nextn_predict_layers,
        "hidden_size": config.hidden_size,
        "heads": config.num_attention_heads,
        "experts": config.n_routed_experts,
        "vocab_size": config.vocab_size,
        "tokens": tokenizer.size,
        "max_seq_len": config.max_position_embeddings,
        "weights": "fp8 blocks" if config.fp8_weights else "unquantised",
        "files": len(shards),
        "size_mib": round(sum(path.stat().st_size for path in shards) / 2**20, 1),
        "eos_ids": list(tokenizer.special.eos_token_ids),
        "chat": tokenizer.chat_template is not None,
    }


def _read_lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
