"""Small hand-written PTX for the unit tests: a kernel around a body."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tests.emulator.emulator_backend import Emulator
from tests.emulator.launch import Argument, Array, KernelFault

REGISTERS = """
    .reg .pred %p<16>;
    .reg .b16 %rs<16>;
    .reg .b32 %r<64>;
    .reg .b64 %rd<32>;
    .reg .f32 %f<32>;
    .reg .f64 %fd<16>;
"""


def kernel(
    body: str,
    parameters: Sequence[str] = (".param .u64 out",),
    declarations: str = "",
    directives: str = "",
) -> str:
    """PTX of an entry `probe`; %rd0 is the global address of parameter `out` if there is one."""
    load_out = ""
    if any(parameter.endswith(" out") for parameter in parameters):
        load_out = "ld.param.u64 %rd0, [out];\n    cvta.to.global.u64 %rd0, %rd0;"
    return f"""
.version 8.6
.target sm_90a
.address_size 64
{declarations}
.visible .entry probe({", ".join(parameters)}) {directives}
{{
{REGISTERS}
    {load_out}
{body}
    ret;
}}
"""


# Stores %r1 of every thread to out[thread].
STORE_R1 = """
    mov.u32 %r60, %tid.x;
    mul.wide.u32 %rd20, %r60, 4;
    add.s64 %rd20, %rd0, %rd20;
    st.global.u32 [%rd20], %r1;
"""


def run_words(
    body: str,
    *args: Argument,
    block: int = 32,
    grid: int = 1,
    device: Emulator | None = None,
    parameters: Sequence[str] = (".param .u64 out",),
    declarations: str = "",
    shared_bytes: int = 0,
    cluster: int = 1,
) -> Array:
    """Run a body that fills out[block] with 32-bit words."""
    device = device or Emulator()
    out = device.empty(block, np.uint32)
    text = kernel(body, parameters, declarations)
    device.launch(
        device.load(text).function("probe"),
        grid=(grid,),
        block=(block,),
        args=(out, *args),
        shared_bytes=shared_bytes,
        cluster=(cluster,),
    )
    return out.numpy()


def reports_of(body: str, *args: Argument, **options: object) -> tuple[str, ...]:
    """The reports of a body; empty where it is clean."""
    try:
        run_words(body, *args, **options)
    except KernelFault as fault:
        return fault.reports
    return ()
