"""router_gemm, moe_gate, moe_plan, moe_route on a Hopper GPU: against the CPU ops and float64."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from seekernel import _extension, ops, reference
from seekernel.ops import MoePlan
from tests.op_testing import assert_rejects, assert_repeatable
from tests.test_moe import GATES, Gate, gate_inputs, options

HAS_HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability()[0] == 9
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not HAS_HOPPER, reason="no Hopper GPU"),
    pytest.mark.skipif(not _extension.build_info()["cuda_version"], reason="built without CUDA"),
]
TOKENS = (0, 1, 5, 8, 9, 32, 33, 64, 65, 128, 129, 1000)


def inputs(m: int, e: int, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """x, weight, bias on the GPU."""
    generator = torch.Generator().manual_seed(m + e)
    x = torch.randn(m, k, generator=generator).bfloat16()
    weight = (torch.randn(e, k, generator=generator) / k**0.5).bfloat16()
    return x.cuda(), weight.cuda(), (torch.randn(e, generator=generator) * 0.1).cuda()


def counter() -> Tensor:
    return torch.zeros(1, dtype=torch.int32, device="cuda")


@pytest.mark.parametrize("m", TOKENS)
@pytest.mark.parametrize(("e", "k"), [(256, 7168), (8, 64), (33, 520), (384, 2048), (1024, 264)])
def test_router_gemm(m: int, e: int, k: int) -> None:
    x, weight, _ = inputs(m, e, k)
    got = ops.router_gemm(x, weight)
    want = x.double() @ weight.double().t()
    bound = k * 2.0**-24 * (x.double().abs() @ weight.double().abs().t())
    assert (got.double() - want).abs().le(bound).all()
    assert_repeatable(lambda: ops.router_gemm(x, weight))


def test_decode_logits_do_not_depend_on_the_batch() -> None:
    x, weight, _ = inputs(128, 256, 7168)
    everything = ops.router_gemm(x, weight)
    for m in (1, 8, 9, 32, 33, 64):
        assert torch.equal(ops.router_gemm(x[:m], weight), everything[:m])


@pytest.mark.parametrize("m", TOKENS)
@pytest.mark.parametrize("case", GATES, ids=str)
def test_moe_gate(case: Gate, m: int) -> None:
    logits, bias = gate_inputs(case, seed=m)
    logits = logits.repeat(-(-m // case.m), 1)[:m].clone()
    logits[1::3] = logits[1::3].round()  # ties
    want_weights, want = ops.moe_gate(logits, bias, *options(case))
    args = (logits.cuda(), None if bias is None else bias.cuda())
    weights, ids = ops.moe_gate(*args, *options(case))
    same = (ids.cpu() == want).all(1)
    _, choices = reference.moe_choices(logits, bias, *options(case)[1:4])
    for row in (~same).nonzero().flatten().tolist():
        a, b = (choices[row, i[row].cpu().long()] for i in (ids, want))
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    assert m == 0 or same.float().mean() > 0.9
    torch.testing.assert_close(weights.cpu()[same], want_weights[same], rtol=3e-6, atol=1e-9)
    assert_repeatable(lambda: ops.moe_gate(*args, *options(case)))


def test_gate_reports_faults() -> None:
    for value, bits in ((float("nan"), 1), (float("-inf"), 2), (1.0, 0)):
        logits, error = torch.zeros(70, 256).cuda(), counter()
        logits[69, 255] = value
        _, ids = ops.moe_gate(logits, None, 8, 8, 4, error=error)
        assert error.item() == bits
        assert ((ids >= 0) & (ids < 256)).all()


@pytest.mark.parametrize("m", [*TOKENS, 4096, 16384])
def test_moe_plan(m: int) -> None:
    generator = torch.Generator().manual_seed(m)
    table = torch.tensor(
        [[i, 256 + i % 32 if i % 5 else -1] for i in range(257)], dtype=torch.int32
    )
    for first, num_local, replicas in ((0, 257, None), (32, 32, None), (64, 200, table)):
        ids = torch.randint(-1, 257, (m, 9), generator=generator, dtype=torch.int32)
        ids[m // 2 :, 3] = 70  # one expert with much of everything
        loads = [torch.full((257,), 5) for _ in range(2)]
        options = {"block_rows": 64, "first_expert": first}
        want = ops.moe_plan(ids, num_local, replicas=replicas, loads=loads[0], **options)
        on_gpu = None if replicas is None else replicas.cuda()
        seen = loads[1].cuda()
        got = ops.moe_plan(ids.cuda(), num_local, replicas=on_gpu, loads=seen, **options)
        assert torch.equal(seen.cpu(), loads[0])
        assert_same_plan(got, want)
        call = partial(ops.moe_plan, ids.cuda(), num_local, first)
        assert_repeatable(lambda call=call: call()[:3])


def assert_same_plan(got: MoePlan, want: MoePlan) -> None:
    for name in ("offsets", "row_token", "token_row", "num_tiles"):
        assert torch.equal(getattr(got, name).cpu(), getattr(want, name).cpu()), name
    assert got.tiles is not None
    assert want.tiles is not None
    assert want.num_tiles is not None
    count = int(want.num_tiles)
    assert torch.equal(got.tiles[:count].cpu(), want.tiles[:count].cpu())


@pytest.mark.parametrize("m", TOKENS)
@pytest.mark.parametrize(("e", "groups", "kept", "k"), [(256, 8, 4, 7168), (64, 1, 1, 512), (384, 1, 1, 1024), (160, 8, 3, 520)])  # fmt: skip
def test_fused_route_has_the_bits_of_three_kernels(m: int, e: int, groups: int, kept: int, k: int) -> None:  # fmt: skip
    x, weight, bias = inputs(m, e, k)
    ticket = counter()
    args = (x, weight, bias, 6, groups, kept)
    for _ in range(3):
        got = ops.moe_route(*args, num_shared=1, block_rows=64, counter=ticket)
        assert ticket.item() == 0
        logits = ops.router_gemm(x, weight)
        weights, ids = ops.moe_gate(logits, bias, 6, groups, kept, num_shared=1)
        plan = ops.moe_plan(ids, e + 1, block_rows=64)
        for a, b in ((got.logits, logits), (got.weights, weights), (got.ids, ids)):
            assert torch.equal(a, b)
        assert_same_plan(got.plan, plan)


def test_route_in_a_graph_follows_its_inputs() -> None:
    x, weight, bias = inputs(64, 256, 7168)
    ticket = counter()
    route = partial(ops.moe_route, x, weight, bias, 8, 8, 4, num_shared=1, block_rows=64)
    route(counter=ticket)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = route(counter=ticket)
    for seed in range(20):
        x.copy_(torch.randn(64, 7168, generator=torch.Generator().manual_seed(seed)))
        graph.replay()
        want = route()
        assert torch.equal(got.ids, want.ids)
        assert torch.equal(got.weights, want.weights)
        assert_same_plan(got.plan, want.plan)


def test_many_routes_in_a_row() -> None:
    """Dependent launches that overlap share one counter."""
    x, weight, bias = inputs(33, 256, 7168)
    ticket = counter()
    call = partial(ops.moe_route, x, weight, bias, 8, 8, 4, block_rows=64)
    want = call()
    for got in [call(counter=ticket) for _ in range(200)]:
        assert torch.equal(got.ids, want.ids)
        assert_same_plan(got.plan, want.plan)


def test_rejects() -> None:
    x, weight, bias = inputs(3, 16, 64)
    assert_rejects("x: expected dtype bfloat16", ops.router_gemm, x.float(), weight)
    assert_rejects("k a multiple of 8", ops.router_gemm, x[:, :63].contiguous(), weight[:, :63].contiguous())  # fmt: skip
    assert_rejects("16 bytes", ops.router_gemm, x[:, 4:44], weight[:, 4:44])
    assert_rejects("bias: expected the device of logits", ops.moe_gate, x[:, :16].float(), bias.cpu(), 2)  # fmt: skip
    assert_rejects("counter: expected dtype int32", ops.moe_route, x, weight, bias, 2, counter=counter().long())  # fmt: skip
