"""Runs one kernel by hand and prints its report and counters.

    python -m tests.emulator kernel.ptx --list
    python -m tests.emulator kernel.ptx --grid 4 --block 128 --arg f32:1024:random --arg f32:1024 \
        --arg int32=1024 --shared 49152 --schedules 9 --dump 1

Arguments are given in the kernel's order: `TYPE:COUNT[:zeros|ones|random|arange]` is a buffer
(uninitialised unless filled), `TYPE=VALUE` a scalar.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click
import ml_dtypes
import numpy as np

from tests.emulator.emulator_backend import Emulator, EmulatorBuffer
from tests.emulator.frontend.statements import PtxError
from tests.emulator.launch import Argument, Array, KernelFault, LaunchError
from tests.emulator.schedules import NINE_SCHEDULES, Schedule

_TYPES: dict[str, np.dtype[np.generic]] = {
    "f32": np.dtype(np.float32),
    "f64": np.dtype(np.float64),
    "f16": np.dtype(np.float16),
    "bf16": np.dtype(ml_dtypes.bfloat16),
    "e4m3": np.dtype(ml_dtypes.float8_e4m3fn),
    "e5m2": np.dtype(ml_dtypes.float8_e5m2),
    **{
        f"{sign}int{bits}": np.dtype(f"{sign}int{bits}")
        for sign in ("", "u")
        for bits in (8, 16, 32, 64)
    },
}


def _dtype(name: str) -> np.dtype[np.generic]:
    if name not in _TYPES:
        raise click.BadParameter(f"type: expected one of {', '.join(_TYPES)}, got {name}")
    return _TYPES[name]


def _contents(kind: str, count: int, dtype: np.dtype[np.generic]) -> Array:
    if kind == "zeros":
        return np.zeros(count, dtype)
    if kind == "ones":
        return np.ones(count, dtype)
    if kind == "arange":
        return np.arange(count).astype(dtype)
    if kind == "random":
        random = np.random.default_rng(0)
        if np.issubdtype(dtype, np.integer):
            return random.integers(0, 100, count).astype(dtype)
        return random.standard_normal(count).astype(dtype)
    raise click.BadParameter(f"contents: expected zeros, ones, arange or random, got {kind}")


def _argument(device: Emulator, text: str) -> Argument:
    if "=" in text:
        name, value = text.split("=", 1)
        dtype = _dtype(name)
        number = int(value, 0) if np.issubdtype(dtype, np.integer) else float(value)
        return np.array([number]).astype(dtype).tobytes()
    name, count, *kind = text.split(":")
    if kind:
        return device.buffer(_contents(kind[0], int(count), _dtype(name)))
    return device.empty(int(count), _dtype(name))


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(int(size) for size in text.split(","))


def _run(
    schedule: Schedule, ptx: Path, kernel: str, args: tuple[str, ...], dump: tuple[int, ...],
    shape: dict[str, tuple[int, ...]], shared: int, hopper: bool,
) -> bool:  # fmt: skip
    device = Emulator(schedule, hopper_accumulate=hopper)
    given = [_argument(device, text) for text in args]
    try:
        function = device.load(ptx).function(kernel)
        result = device.launch(
            function,
            grid=shape["grid"],
            block=shape["block"],
            cluster=shape["cluster"],
            args=given,
            shared_bytes=shared,
        )
    except KernelFault as fault:
        click.echo(f"[{schedule}] {fault}")
        return False
    click.echo(f"[{schedule}] {function.name}: no report")
    for name, value in result.counters.items():
        if value:
            click.echo(f"    {name:24} {value}")
    for index in dump:
        buffer = given[index]
        if isinstance(buffer, EmulatorBuffer):
            unwritten = buffer.unwritten_bytes()
            click.echo(f"    argument {index} ({unwritten} bytes unwritten): {buffer.numpy()}")
    return True


@click.command(help=__doc__)
@click.argument("ptx", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--list", "list_only", is_flag=True, help="Print the kernels and their parameters.")
@click.option("--kernel", default="", help="Name or part of it; needed if there are several.")
@click.option("--grid", default="1", help="CTAs: x[,y[,z]].")
@click.option("--block", default="32", help="Threads: x[,y[,z]].")
@click.option("--cluster", default="1", help="CTAs of a cluster, unless the kernel fixes it.")
@click.option("--shared", default=0, help="Dynamic shared memory in bytes.")
@click.option("--arg", "args", multiple=True, help="One kernel argument.")
@click.option("--dump", multiple=True, type=int, help="Print the argument with this index after.")
@click.option("--schedules", default=1, type=click.IntRange(1, 9), help="How many schedules.")
@click.option("--hopper", is_flag=True, help="Add like the tensor cores do, bit by bit.")
def main(
    ptx: Path, list_only: bool, kernel: str, grid: str, block: str, cluster: str, shared: int,
    args: tuple[str, ...], dump: tuple[int, ...], schedules: int, hopper: bool,
) -> None:  # fmt: skip
    """Entry point."""
    try:
        if list_only:
            module = Emulator().load(ptx)
            for name in module.functions():
                found = module.function(name).kernel
                sizes = ", ".join(f"{p.num_bytes}" for p in found.parameters)
                click.echo(f"{name}: parameters of {sizes or 'no'} bytes, {len(found.insns)} insns")
            return
        shape = {"grid": _sizes(grid), "block": _sizes(block), "cluster": _sizes(cluster)}
        clean = [
            _run(schedule, ptx, kernel, args, dump, shape, shared, hopper)
            for schedule in NINE_SCHEDULES[:schedules]
        ]
    except (PtxError, LaunchError, ValueError) as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(2)
    sys.exit(0 if all(clean) else 1)


if __name__ == "__main__":
    main()
