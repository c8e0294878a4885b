"""The kernel families that can be compiled at run time: header and names of the parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from seekernel.jit.spec import KernelSpec


@dataclass(frozen=True)
class Family:
    """A kernel template: the device header and its configuration's parameters in order."""

    header: str
    parameters: tuple[str, ...]


FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "sm90_fp8_gemm_nt": Family(
            "seekernel/gemm/sm90_fp8_gemm_nt.cuh",
            (
                "SHAPE_N",
                "SHAPE_K",
                "BLOCK_M",
                "BLOCK_N",
                "kStages",
                "kKind",
                "kOutput",
                "kMulticast",
                "kGather",
                "kPingPong",
            ),
        ),
    }
)


def kernel_spec(family: str, values: Sequence[int]) -> KernelSpec:
    """The spec of a family's instance. Errors: ValueError naming the family or the count."""
    if family not in FAMILIES:
        raise ValueError(f"kernel family: expected one of {', '.join(FAMILIES)}, got {family!r}")
    known = FAMILIES[family]
    if len(values) != len(known.parameters):
        raise ValueError(f"{family}: expected values for {known.parameters}, got {tuple(values)}")
    return KernelSpec(
        family, known.header, tuple(zip(known.parameters, map(int, values), strict=True))
    )
