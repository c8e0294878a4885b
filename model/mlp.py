"""Feed-forward layers: dense SwiGLU, and the mixture of experts (DeepSeek-V3 paper, section 2.1.2)."""

from __future__ import annotations

import torch
from torch import Tensor

from seekernel import ops
from seekernel.model.config import ModelConfig
from seekernel.model.linear import stack
from seekernel.model.weights import WeightSource


class Experts:
    """Stacked SwiGLU networks, y = down(silu(gate(x)) * up(x)), over rows grouped by expert."""

    def __init__(self, source: WeightSource, prefixes: list[str], width: int, hidden: int) -> None:
        pairs = [[f"{prefix}.gate_proj", f"{prefix}.up_proj"] for prefix in prefixes]
        self.gate_up, self.gate_up_scale = stack(source, pairs, width, hidden)
        downs = [[f"{prefix}.down_proj"] for prefix in prefixes]
        self.down, self.down_scale = stack(source, downs, hidden, width)

    def __call__(self, x: Tensor, offsets: Tensor, row_token: Tensor | None) -> Tensor:
        """Row r of expert e is x[row_token[r]] (x[r] without it), offsets[e] <= r < offsets[e + 1]."""
        if self.gate_up_scale is None or self.down_scale is None:
            inner = ops.grouped_gemm_swiglu_nt(x, self.gate_up, offsets, row_token)
            return ops.grouped_gemm_nt(inner, self.down, offsets)
        inner = ops.fp8_grouped_gemm_swiglu_nt(
            x, None, self.gate_up, self.gate_up_scale, offsets, row_token
        )
        return ops.fp8_grouped_gemm_nt(inner, None, self.down, self.down_scale, offsets)


class DenseMLP:
    """One SwiGLU network for every token."""

    def __init__(self, source: WeightSource, prefix: str, width: int, hidden: int) -> None:
        self.experts = Experts(source, [prefix], width, hidden)

    def __call__(self, x: Tensor) -> Tensor:
        # Not torch.tensor: a copy from the host has no place in a CUDA graph.
        offsets = torch.arange(2, dtype=torch.int32, device=x.device) * x.shape[0]
        return self.experts(x, offsets, None)


class MoE:
    """Group-limited top-k routing over experts, plus shared experts that see every token.

    max_num_tokens: more tokens than this take several rounds, so that the rows that experts work on
    (num_experts_per_tok for each token) do not outgrow memory; None: never.
    """

    max_num_tokens: int | None = None

    def __init__(self, config: ModelConfig, source: WeightSource, prefix: str) -> None:
        self.config = config
        hidden, width = config.hidden_size, config.moe_intermediate_size
        num_experts = config.n_routed_experts
        self.gate = source.read(f"{prefix}.gate.weight", (num_experts, hidden))
        self.bias = source.read(
            f"{prefix}.gate.e_score_correction_bias", (num_experts,), torch.float32
        )
        names = [f"{prefix}.experts.{expert}" for expert in range(num_experts)]
        # One shared expert has a routed expert's shape: as one more group that every token goes to,
        # with weight 1, it needs no launches of its own.
        self.shared_is_routed = config.n_shared_experts == 1
        if self.shared_is_routed:
            names.append(f"{prefix}.shared_experts")
        self.num_groups = len(names)
        self.experts = Experts(source, names, width, hidden)
        self.shared: DenseMLP | None = None
        if config.n_shared_experts > 1:
            shared_width = width * config.n_shared_experts
            self.shared = DenseMLP(source, f"{prefix}.shared_experts", shared_width, hidden)

    def __call__(self, x: Tensor) -> Tensor:
        limit = self.max_num_tokens
        if limit is not None and x.shape[0] > limit:
            return torch.cat([self._round(part) for part in torch.split(x, limit)])
        return self._round(x)

    def _round(self, x: Tensor) -> Tensor:
        weights, ids = self._route(x)
        plan = ops.moe_plan(ids, self.num_groups)
        y = self.experts(x, plan.offsets, plan.row_token)
        shared = None if self.shared is None else self.shared(x)
        return ops.moe_finalize(y, plan.token_row, weights, shared)

    def _route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return weights and group ids of each token, [m, num_experts_per_tok (+ 1)]."""
        config, top_k = self.config, self.config.num_experts_per_tok
        size = (x.shape[0], top_k + self.shared_is_routed)
        weights = torch.ones(size, dtype=torch.float32, device=x.device)
        ids = torch.full(size, config.n_routed_experts, dtype=torch.int32, device=x.device)
        ops.moe_gate(
            ops.router_gemm(x, self.gate),
            self.bias,
            top_k,
            config.n_group,
            config.topk_group,
            scoring_func=config.scoring_func,
            norm_topk_prob=config.norm_topk_prob,
            routed_scaling_factor=config.routed_scaling_factor,
            weights=weights[:, :top_k],
            ids=ids[:, :top_k],
        )
        return weights, ids
