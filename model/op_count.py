"""How many op calls a decoder layer makes: on a GPU, where decode is bound by launches, its cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from seekernel.model.batch import Batch
from seekernel.model.config import ModelConfig
from seekernel.model.layer import DecoderLayer
from seekernel.model.rope import RopeTable
from seekernel.model.weights import DummySource

# torch ops that only make or view memory: none of them is a launch.
_NO_WORK = frozenset(
    ["empty", "empty_like", "empty_strided", "new_empty", "view", "slice", "select", "transpose", "t", "unsqueeze", "squeeze", "split", "detach", "_unsafe_view", "as_strided", "expand", "permute", "alias", "reshape", "unbind", "view_as"]
)  # fmt: skip


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[str] = []

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        namespace, _, name = func.name().partition("::")
        if namespace == "seekernel" or name.split(".")[0] not in _NO_WORK:
            self.calls.append(name if namespace == "seekernel" else func.name())
        return func(*args, **(kwargs or {}))


def layer_ops(config: ModelConfig, num_tokens: int = 2) -> dict[str, Counter[str]]:
    """Count the calls of one decode step in a "dense" and a "moe" layer of this architecture.

    The layers are made small: what is called depends on the architecture, not on its sizes.
    Ops of torch itself are listed as aten::name. A layer applies the norm of what follows it.
    """
    small = replace(
        config,
        vocab_size=64,
        hidden_size=128,
        intermediate_size=128,
        moe_intermediate_size=128,
        num_attention_heads=2,
        num_hidden_layers=2,
        first_k_dense_replace=1,
        moe_layer_freq=1,
    )
    source = DummySource(small, torch.device("cpu"))
    batch = Batch.build("cpu", 16, [[i] for i in range(num_tokens)], [3] * num_tokens, [1] * num_tokens)  # fmt: skip
    cos_sin = RopeTable(small, source.device).cos_sin(batch.num_positions)
    kinds = {"dense": 0} if small.n_routed_experts == 0 else {"dense": 0, "moe": 1}
    counts = {}
    for kind, index in kinds.items():
        layer = DecoderLayer(small, source, index)
        cache = torch.zeros(num_tokens, 16, small.latent_dim, dtype=torch.bfloat16)
        residual = torch.randn(num_tokens, small.hidden_size)
        with torch.inference_mode(), _Recorder() as recorder:
            x = layer.input_norm(None, residual)
            recorder.calls.clear()  # that norm is counted with the layer before
            layer(x, residual, batch, cos_sin, cache, layer.input_norm)
        counts[kind] = Counter(recorder.calls)
    return counts
