"""A decode step is a fixed list of operations on fixed buffers: recorded once, it can be replayed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from seekernel.engine.graphs import Function, GraphSet
from seekernel.engine.request import TokenSequence
from seekernel.model import Batch, DeepseekV3ForCausalLM
from tests.engine_testing import make_core, make_sequence, model_dir, run_core

# Reading a value, or making a tensor of host values, has no place in a graph.
FORBIDDEN = (
    "aten._local_scalar_dense",
    "aten.item",
    "aten.lift_fresh",
    "aten.nonzero",
    "aten.equal",
)
UNDEFINED = ("aten.empty", "aten.new_empty", "aten.empty_like")


def storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


class Tape(TorchDispatchMode):
    """Notes every operation with the tensors themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = str(func)
        if name.startswith(FORBIDDEN):
            raise RuntimeError(f"{name} cannot be part of a graph")
        outputs = func(*args, **(kwargs or {}))
        written = any(
            r.alias_info is not None and r.alias_info.is_write for r in func._schema.returns
        )
        # A schema says where an output may be a view; that it is one is seen from its memory.
        inputs = {storage(item) for item in args if isinstance(item, Tensor)}
        is_view = isinstance(outputs, Tensor) and not written and storage(outputs) in inputs
        if not is_view and not name.startswith(UNDEFINED):
            self.calls.append((func, args, kwargs or {}, outputs))
        return outputs


class Recorded:
    """What CudaReplay is on a GPU: replay repeats the operations and nothing else of the function."""

    made = 0

    def __init__(self, function: Function) -> None:
        Recorded.made += 1
        tape = Tape()
        with tape:
            self.outputs = function()
        self._calls = tape.calls

    @torch.inference_mode()
    def replay(self) -> None:
        for func, args, kwargs, outputs in self._calls:
            again = func(*args, **kwargs)
            old = outputs if isinstance(outputs, tuple | list) else (outputs,)
            new = again if isinstance(again, tuple | list) else (again,)
            for target, value in zip(old, new, strict=True):
                if isinstance(target, Tensor) and target.data_ptr() != value.data_ptr():
                    target.copy_(value)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> DeepseekV3ForCausalLM:
    folder: Path = model_dir("fp8_blocks", tmp_path_factory.mktemp("graphs"))
    return DeepseekV3ForCausalLM.from_pretrained(folder)


def run(model: DeepseekV3ForCausalLM, nextn: int, record: Any, overlap: bool = False) -> list[Any]:
    options: dict[str, Any] = {}
    if record is not None:
        options = {"use_cuda_graph": True, "cuda_graph_padding_enabled": True,
                   "cuda_graph_batch_sizes": [2, 4]}  # fmt: skip
    core = make_core(
        model, max_batch_size=4, max_seq_len=64, batch_invariant=True, spec_decode_algo="MTP",
        spec_decode_nextn=nextn, disable_overlap_scheduler=not overlap, **options,
    )  # fmt: skip
    if record is not None:
        assert core.runner.graphs is not None
        core.runner.graphs._record = record
    state = core.runner.state
    buffers = [state.tokens, state.lengths, state.block_table, state.rows, *core.runner.kv_cache]
    before = [buffer.data_ptr() for buffer in buffers]
    sequences: list[TokenSequence] = [
        make_sequence([(7 * i + j) % 300 for j in range(3 + i)], 6 + i) for i in range(7)
    ]
    try:
        run_core(core, sequences)
    finally:
        core.close()
    assert [buffer.data_ptr() for buffer in buffers] == before
    if record is not None:
        assert core.runner.graphs is not None
        assert core.runner.graphs.num_replays > 5
    return [sequence.output.token_ids for sequence in sequences]


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("nextn", [0, 1, 3])
def test_a_recorded_step_replayed_gives_the_same_tokens(
    model: DeepseekV3ForCausalLM, nextn: int, overlap: bool
) -> None:
    want = run(model, nextn, None)
    Recorded.made = 0
    assert run(model, nextn, Recorded, overlap) == want
    assert Recorded.made <= 4, "two kinds of step for each of two batch sizes"


def test_a_step_that_keeps_host_values_is_caught(
    model: DeepseekV3ForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lengths read on the host stay those of the recording; a value read is refused."""
    decode = Batch.decode
    want = run(model, 1, None)

    def frozen(table: Tensor, lengths: Tensor, *rest: Any) -> Batch:
        kept = torch.full_like(lengths, int(lengths.numpy()[0]) if len(lengths) else 0)
        return decode(table, kept, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Batch, "decode", staticmethod(frozen))
        assert run(model, 1, Recorded) != want

    def reading(table: Tensor, lengths: Tensor, *rest: Any) -> Batch:
        return decode(table, lengths + 0 * int(lengths.sum()), *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Batch, "decode", staticmethod(reading))
        with pytest.raises(RuntimeError, match="cannot be part of a graph"):
            run(model, 1, Recorded)


def test_sizes_are_clipped_and_padded() -> None:
    def sizes(wanted: list[int] | None, padding: bool, limit: int) -> GraphSet:
        return GraphSet(wanted, padding, limit, Recorded)

    assert sizes([1, 2, 4, 8, 384], True, 6).sizes == [1, 2, 4, 6]
    assert sizes([1, 2], True, 6).sizes == [1, 2]
    assert sizes(None, True, 20).sizes == [1, 2, 4, 8, 16, 20]
    padded, exact = sizes([2, 4], True, 8), sizes([2, 4], False, 8)
    assert [padded.size_for(n) for n in (1, 2, 3, 4, 5)] == [2, 2, 4, 4, None]
    assert [exact.size_for(n) for n in (1, 2, 3, 4, 5)] == [None, 2, None, 4, None]
