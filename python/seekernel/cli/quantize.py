"""`seekernel quantize`, `dequantize`, `verify`: checkpoints from one format into another."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from seekernel.quantize import Conversion

F = TypeVar("F", bound=Callable[..., Any])
DIRECTORY = click.Path(exists=True, file_okay=False, path_type=Path)


def directories(command: F) -> F:
    """The two options that every conversion has, and how many files it writes at a time."""
    for option in (
        click.option("--jobs", type=click.IntRange(1), default=1, show_default=True,
                     help="Files written at a time."),
        click.option("--output_dir", required=True, metavar="DIR",
                     type=click.Path(file_okay=False, path_type=Path), help="Where to write."),
        click.option("--model_dir", required=True, metavar="DIR", type=DIRECTORY,
                     help="Checkpoint to read."),
    ):  # fmt: skip
        command = option(command)
    return command


def run(conversion: Conversion, jobs: int, only: Iterable[str] | None = None) -> None:
    """Write with a progress bar and say what is there now."""
    from tqdm import tqdm

    names = list(conversion.shards if only is None else only)
    total = sum(t.num_bytes for name in names for t in conversion.shards[name])
    with tqdm(total=total, unit="B", unit_scale=True, desc="seekernel quantize") as bar:
        complete = conversion.write(names, jobs, lambda num_bytes: bar.update(num_bytes) and None)
    state = "complete" if complete else "not complete: other parts are still to be written"
    click.echo(f"{len(names)} files, {total} bytes; {conversion.output_dir} is {state}")


@click.group()
def quantize() -> None:
    """Convert a checkpoint: w4afp8, fp8, nvfp4. An interrupted run goes on where it was."""


@quantize.command("w4afp8")
@directories
@click.option("--act_scales", required=True, metavar="PATH", type=click.Path(exists=True, path_type=Path),
              help="act_scales.safetensors of `seekernel calibrate`, or a directory of ModelOpt's amax files.")  # fmt: skip
@click.option(
    "--parts", type=click.IntRange(1), default=1, show_default=True, help="Weight files to write."
)
@click.option(
    "--rank", type=click.IntRange(0), help="Write this part only, from 0; all by default."
)
def w4afp8(
    model_dir: Path, output_dir: Path, jobs: int, act_scales: Path, parts: int, rank: int | None
) -> None:
    """Routed experts to int4 with FP8 activations; everything else is copied."""
    from seekernel.quantize import QuantizeError, plan_w4afp8

    if rank is not None and rank >= parts:
        raise QuantizeError.expected("rank", f"0 to {parts - 1} (parts is {parts})", rank)
    conversion = plan_w4afp8(model_dir, output_dir, act_scales, parts)
    only = None
    if rank is not None:
        names = list(conversion.shards)
        only = [names[rank], names[-1]] if rank == 0 else [names[rank]]
    run(conversion, jobs, only)


@quantize.command("fp8")
@directories
def fp8(model_dir: Path, output_dir: Path, jobs: int) -> None:
    """Plain weights to e4m3 with a scale per 128x128 block."""
    from seekernel.quantize import plan_fp8

    run(plan_fp8(model_dir, output_dir), jobs)


@quantize.command("nvfp4")
@directories
def nvfp4(model_dir: Path, output_dir: Path, jobs: int) -> None:
    """Routed experts to NVFP4; everything else is copied."""
    from seekernel.quantize import plan_nvfp4

    run(plan_nvfp4(model_dir, output_dir), jobs)


@click.command()
@directories
def dequantize(model_dir: Path, output_dir: Path, jobs: int) -> None:
    """Every quantised weight to bfloat16."""
    from seekernel.quantize import plan_dequantize

    run(plan_dequantize(model_dir, output_dir), jobs)


@click.command()
@click.argument("a", type=DIRECTORY)
@click.argument("b", type=DIRECTORY)
@click.option(
    "--worst", type=click.IntRange(1), default=20, show_default=True, help="Rows to print."
)
@click.option(
    "--plot", type=click.Path(dir_okay=False, path_type=Path), help="Write a PNG of the errors."
)
def verify(a: Path, b: Path, worst: int, plot: Path | None) -> None:
    """Error of checkpoint B against A, tensor by tensor, the worst first."""
    from seekernel.quantize import verify as compare

    rows = sorted(compare(a, b), key=lambda row: -row.relative)
    click.echo(f"{'relative':>10} {'largest':>10}  formats          tensor")
    for row in rows[:worst]:
        formats = " -> ".join(row.formats)
        click.echo(f"{row.relative:10.2e} {row.largest:10.2e}  {formats:16} {row.name}")
    click.echo(f"{len(rows)} tensors, {sum(row.relative > 0 for row in rows)} differ")
    if plot is not None:
        draw([(row.name, row.relative) for row in rows], plot)


def draw(rows: list[tuple[str, float]], path: Path) -> None:
    """Sorted relative errors as a picture. Errors: click.ClickException without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        raise click.ClickException(
            "--plot: matplotlib is missing: pip install seekernel[plot]"
        ) from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5))
    axes.plot(range(len(rows)), [max(value, 1e-9) for _, value in rows])
    axes.set_yscale("log")
    axes.set_xlabel("tensor, worst first")
    axes.set_ylabel("||b - a|| / ||a||")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
