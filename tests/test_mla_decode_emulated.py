"""The decode kernels' PTX in every schedule: right numbers, the same bits, nothing to report."""

from __future__ import annotations

import pytest
import torch

from tests.kernel_testing import BACKENDS, devices
from tests.mla_decode_testing import Case, check, kernels, make, run
from tests.mla_testing import assert_same_bits

EDGES = (0, 1, 63, 64, 65, 127, 128, 129)
CASES = [
    Case(EDGES, h_q=64, parts=3),
    Case(EDGES, (1, 2, 3, 4, 1, 2, 3, 4), h_q=16, page_size=16, parts=5),
    Case((129, 64, 3), (4, 3, 4), h_q=63, page_size=32, parts=4),
    Case((200, 129), h_q=128, page_size=128, parts=2, ramp=True),
    Case((300, 70), (1, 3), h_q=128, parts=3, causal=False),
    Case((100, 90), (0, 2), h_q=8, page_size=16, parts=1),
    Case((1000,), h_q=1, page_size=32, parts=7, ramp=True),
    Case((1000, 30), h_q=32, parts=2, split_tokens=192, ramp=True),
    Case((3, 600, 0), (5, 2, 1), h_q=40, parts=3, split_tokens=128, page_size=16),
    Case((260,), (2,), h_q=32, parts=2, dtype=torch.float16),
    Case((1, 200, 0, 64), (1, 2, 1, 1), h_q=40, page_size=16, parts=2, cache="blocks", ramp=True),
    Case((300, 129), h_q=128, parts=2, cache="blocks"),
    Case((65, 190), h_q=16, page_size=128, parts=3, cache="flat"),
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_step(case: Case, backend: str) -> None:
    inputs, built = make(case), kernels(case.dtype, case.cache)
    first = None
    for device in devices(backend):
        got = run(device, built, case, inputs)
        if first is None:
            check(got, inputs, case.causal)
            first = got
        assert_same_bits(got, first)
