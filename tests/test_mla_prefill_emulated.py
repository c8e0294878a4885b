"""sm90_mla_prefill through its compiled PTX: right in every schedule, with the same bits, nothing to report."""

from __future__ import annotations

import pytest

from tests.kernel_testing import BACKENDS, devices
from tests.mla_prefill_testing import Case, built, check, launch, make
from tests.mla_testing import BF16, F32

RAGGED = dict(s_q=(130, 5, 0, 7, 40), s_kv=(200, 3, 9, 0, 40))
CASES = [
    Case(**RAGGED, h=2, ctas=2),
    Case((3,), (389,), causal=False, ramp=1),  # four blocks: twice around the ring
    Case((129,), (257,), h=3, ctas=2, section=2, ramp=-1),  # chunked; sections of unequal size
    Case((64, 1), (64, 130), out=F32, previous=F32),
    Case((70, 4), (5, 40), previous=BF16),  # queries that see no key of this call
    Case((1,) * 35, (0, 1, 2, 127, 128) * 7, ctas=3),  # more sequences than lanes
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_schedule_gives_the_same_right_bits(backend: str, case: Case) -> None:
    inputs, kernel = make(case), built(case)
    first = None
    for device in devices(backend):
        got = launch(device, kernel, case, inputs)
        if first is None:
            first = got
            check(case, inputs, got)
        assert all(a.tobytes() == b.tobytes() for a, b in zip(got, first, strict=True))
