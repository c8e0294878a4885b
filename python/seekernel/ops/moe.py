"""Mixture-of-experts routing: choose experts, sort tokens by expert, sum what comes back."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from seekernel import _extension as _extension
from seekernel.ops._fakes import register_fakes

_moe_gate = torch.ops.seekernel.moe_gate.default
_moe_plan = torch.ops.seekernel.moe_plan.default
_moe_finalize = torch.ops.seekernel.moe_finalize.default


class MoePlan(NamedTuple):
    """Where every routed row goes: the inputs of grouped GEMMs and of moe_finalize."""

    offsets: Tensor
    row_token: Tensor
    token_row: Tensor


def moe_gate(
    logits: Tensor,
    bias: Tensor | None,
    top_k: int,
    n_group: int = 1,
    topk_group: int = 1,
    scoring_func: str = "sigmoid",
    norm_topk_prob: bool = True,
    routed_scaling_factor: float = 1.0,
    weights: Tensor | None = None,
    ids: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Group-limited top-k choice of experts.

        score = sigmoid(logits) or softmax(logits);  choice = score + bias
        group score = sum of the group's two largest choices (bias given) or its largest (none)
        ids = top_k of choice within the topk_group best groups
        weights = score[ids] (/ (sum + 1e-20) if norm_topk_prob) * routed_scaling_factor

    Args:
        logits: [m, e] float32, last dim contiguous, e <= 1024.  bias: [e] float32 or None; it
            selects and never weighs.  n_group divides e; topk_group <= n_group; top_k <= 16 and at
            most the experts of topk_group groups.  scoring_func: "sigmoid" or "softmax".
        weights: [m, top_k] float32.  ids: [m, top_k] int32.  Both allocated when not given.
    Returns: (weights, ids), by descending choice. Ties, between groups too, go to the lower index.
        Experts of other groups are never chosen. A NaN choice ranks below -inf: it is taken last,
        and its weight is NaN; softmax leaves NaN logits out of its sum.
    Errors: RuntimeError naming the argument, expected and got.  Writes: weights, ids.
    Source: DeepSeek-V3 technical report, section 2.1.2; without bias: DeepSeek-V2, section 2.2.
    """
    m = logits.shape[0]
    if weights is None:
        weights = logits.new_empty(m, top_k, dtype=torch.float32)
    if ids is None:
        ids = logits.new_empty(m, top_k, dtype=torch.int32)
    _moe_gate(
        logits,
        bias,
        n_group,
        topk_group,
        scoring_func,
        norm_topk_prob,
        routed_scaling_factor,
        weights,
        ids,
    )
    return weights, ids


def moe_plan(
    ids: Tensor, num_local: int, first_expert: int = 0, plan: MoePlan | None = None
) -> MoePlan:
    """Sort the routed rows by expert, stably, without padding.

        row r of expert first_expert + i: offsets[i] <= r < offsets[i + 1]
        row_token[token_row[t, j]] = t

    Args:
        ids: [m, top_k] int32, contiguous. Ids outside first_expert .. first_expert + num_local - 1
            (-1 for one) get no row.
        plan: offsets [num_local + 1], row_token [m * top_k], token_row [m, top_k], all int32;
            allocated when not given.
    Returns: plan. Rows of one expert are in the order of ids. token_row is -1 for an id without a
        row; row_token is -1 from offsets[num_local] on.
    Errors: RuntimeError naming the tensor, expected and got.  Writes: all of plan.
    """
    if plan is None:
        plan = MoePlan(
            ids.new_empty(num_local + 1), ids.new_empty(ids.numel()), torch.empty_like(ids)
        )
    _moe_plan(ids, first_expert, *plan)
    return plan


def moe_finalize(
    y: Tensor,
    token_row: Tensor,
    weights: Tensor,
    shared: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Weighted sum of each token's routed rows, plus the shared expert.

        out[t] = sum_j weights[t, j] * y[token_row[t, j]] + shared[t]

    Args:
        y: [rows, n] float32 or bfloat16, last dim contiguous.  token_row: [m, top_k] int32, -1 for
            a term to leave out.  weights: [m, top_k] float32.  shared: [m, n] in the dtype of y.
        out: [m, n] in the dtype of y; allocated when not given.
    Returns: out. Summed in float32 in the order of j, shared last, rounded once.
    Errors: RuntimeError naming the tensor, expected and got.  Writes: out.
    """
    if out is None:
        out = y.new_empty(token_row.shape[0], y.shape[1])
    _moe_finalize(y, token_row, weights, shared, out)
    return out


register_fakes("moe_gate", "moe_plan", "moe_finalize")
