"""Feed-forward layers: dense SwiGLU, and the mixture of experts (DeepSeek-V3 paper, section 2.1.2)."""

from __future__ import annotations

import torch
from torch import Tensor

from seekernel import ops
from seekernel.model.config import ModelConfig
from seekernel.model.linear import stack
from seekernel.model.norm import Norm
from seekernel.model.weights import WeightSource, num_blocks
from seekernel.ops import NormedRows, Routing

MAP_ROWS = 64  # of a tile in the map that grouped GEMMs take


class Experts:
    """Stacked SwiGLU networks, y = down(silu(gate(x)) * up(x)), over rows grouped by expert."""

    def __init__(self, source: WeightSource, prefixes: list[str], width: int, hidden: int) -> None:
        pairs = [[f"{prefix}.gate_proj", f"{prefix}.up_proj"] for prefix in prefixes]
        self.gate_up, self.gate_up_scale = stack(source, pairs, width, hidden)
        downs = [[f"{prefix}.down_proj"] for prefix in prefixes]
        self.down, self.down_scale = stack(source, downs, hidden, width)

    def __call__(
        self,
        x: NormedRows,
        offsets: Tensor,
        row_token: Tensor | None,
        tile_map: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Row r of expert e is x[row_token[r]] (x[r] without it), offsets[e] <= r < offsets[e + 1]."""
        if self.gate_up_scale is None or self.down_scale is None:
            inner = ops.grouped_gemm_swiglu_nt(x.x, self.gate_up, offsets, row_token)
            return ops.grouped_gemm_nt(inner, self.down, offsets)
        if x.q is None or x.scale is None:
            inner = ops.fp8_grouped_gemm_swiglu_nt(
                x.x, None, self.gate_up, self.gate_up_scale, offsets, row_token
            )
            return ops.fp8_grouped_gemm_nt(inner, None, self.down, self.down_scale, offsets)
        # What lies between the two products leaves the chip once, in e4m3.
        rows, width = len(x.q if row_token is None else row_token), self.down.shape[2]
        inner = x.q.new_empty(rows, width)
        inner_scale = x.scale.new_empty(num_blocks(width), (rows + 3) // 4 * 4)
        ops.fp8_grouped_gemm_swiglu_nt(
            x.q, x.scale, self.gate_up, self.gate_up_scale, offsets, row_token, inner,
            out_scale=inner_scale, tile_map=tile_map,
        )  # fmt: skip
        out = x.x.new_empty(rows, x.x.shape[1])
        return ops.fp8_grouped_gemm_nt(
            inner, inner_scale, self.down, self.down_scale, offsets, out, tile_map=tile_map
        )


class DenseMLP:
    """One SwiGLU network for every token."""

    def __init__(self, source: WeightSource, prefix: str, width: int, hidden: int) -> None:
        self.experts = Experts(source, [prefix], width, hidden)

    def __call__(self, x: NormedRows, residual: Tensor, next_norm: Norm) -> NormedRows:
        """Return next_norm of residual with the network's output added. Writes: residual."""
        return next_norm(self.project(x), residual)

    def project(self, x: NormedRows) -> Tensor:
        """The network's output alone."""
        # Not torch.tensor: a copy from the host has no place in a CUDA graph.
        offsets = torch.arange(2, dtype=torch.int32, device=x.x.device) * x.x.shape[0]
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
        self.experts = Experts(source, names, width, hidden)
        # What the single launch of moe_route counts with; it leaves 0 behind.
        self.counter = torch.zeros(1, dtype=torch.int32, device=source.device)
        self.shared: DenseMLP | None = None
        if config.n_shared_experts > 1:
            shared_width = width * config.n_shared_experts
            self.shared = DenseMLP(source, f"{prefix}.shared_experts", shared_width, hidden)

    def __call__(self, x: NormedRows, residual: Tensor, next_norm: Norm) -> NormedRows:
        """Return next_norm of residual with the experts' sum added. Writes: residual."""
        limit = self.max_num_tokens
        if limit is not None and x.x.shape[0] > limit:
            return next_norm(self._sum_in_rounds(x.x, limit), residual)
        routing, y, shared = self._experts(x)
        return ops.moe_finalize_norm(
            y, routing.plan.token_row, routing.weights, residual, next_norm.weight, next_norm.eps,
            shared, next_norm.quantize,
        )  # fmt: skip

    def _sum_in_rounds(self, x: Tensor, limit: int) -> Tensor:
        sums = []
        for part in torch.split(x, limit):
            quantized = (None, None) if x.device.type == "cpu" else ops.quantize_fp8_1x128(part)
            routing, y, shared = self._experts(NormedRows(part, *quantized))
            sums.append(ops.moe_finalize(y, routing.plan.token_row, routing.weights, shared))
        return torch.cat(sums)

    def _experts(self, x: NormedRows) -> tuple[Routing, Tensor, Tensor | None]:
        """Return the routing, the outputs of all routed rows, and those of unrouted shared experts."""
        routing = self._route(x.x)
        plan = routing.plan
        y = self.experts(x, plan.offsets, plan.row_token, plan.tile_map)
        return routing, y, None if self.shared is None else self.shared.project(x)

    def _route(self, x: Tensor) -> Routing:
        config = self.config
        return ops.moe_route(
            x,
            self.gate,
            self.bias,
            config.num_experts_per_tok,
            config.n_group,
            config.topk_group,
            scoring_func=config.scoring_func,
            norm_topk_prob=config.norm_topk_prob,
            routed_scaling_factor=config.routed_scaling_factor,
            num_shared=int(self.shared_is_routed),
            block_rows=None if x.device.type == "cpu" else MAP_ROWS,
            counter=self.counter,
        )
