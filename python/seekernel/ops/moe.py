"""Mixture-of-experts routing: choose experts, sort tokens by expert, sum what comes back."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from seekernel import _extension as _extension
from seekernel.ops._fakes import register_fakes
from seekernel.ops.norm import NormedRows

_moe_gate = torch.ops.seekernel.moe_gate.default
_moe_plan = torch.ops.seekernel.moe_plan.default
_moe_route = torch.ops.seekernel.moe_route.default
_moe_finalize = torch.ops.seekernel.moe_finalize.default
_moe_permute_fp8 = torch.ops.seekernel.moe_permute_fp8.default


class MoePlan(NamedTuple):
    """Where every routed row goes: the inputs of grouped GEMMs and of moe_finalize.

    tiles, num_tiles: the tile map of grouped GEMMs, [>= num_tiles, 4] and [1] int32, if there is one:
    a row {group, first row, rows, 0} per block of at most `block_rows` rows, groups ascending.
    """

    offsets: Tensor
    row_token: Tensor
    token_row: Tensor
    tiles: Tensor | None = None
    num_tiles: Tensor | None = None

    @property
    def tile_map(self) -> tuple[Tensor, Tensor] | None:
        """(tiles, num_tiles) as grouped GEMMs take them."""
        if self.tiles is None or self.num_tiles is None:
            return None
        return self.tiles, self.num_tiles

    @staticmethod
    def empty(ids: Tensor, num_local: int, block_rows: int | None = None) -> MoePlan:
        """Allocate a plan of ids [m, top_k] for num_local experts, with a tile map if block_rows is given."""
        rows = ids.numel()
        plan = MoePlan(ids.new_empty(num_local + 1), ids.new_empty(rows), torch.empty_like(ids))
        if block_rows is None:
            return plan
        most = -(-rows // block_rows) + min(num_local, rows)
        return plan._replace(tiles=ids.new_empty(most, 4), num_tiles=ids.new_empty(1))


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
    error: Tensor | None = None,
    num_shared: int = 0,
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
        weights: [m, top_k + num_shared] float32.  ids: the same in int32.  Allocated when not given.
        error: [1] int32 or None: bit 0 is set if a logit is NaN, bit 1 if one is infinite, and
            nothing is ever cleared.
        num_shared: so many columns more, experts e, e + 1, ... with weight 1: shared experts as
            further groups of a grouped GEMM.
    Returns: (weights, ids), by descending choice. Ties, between groups too, go to the lower index.
        Experts of other groups are never chosen. A NaN choice ranks below -inf: it is taken last,
        and its weight is NaN; softmax leaves NaN logits out of its sum.
    Errors: RuntimeError naming the argument, expected and got.  Writes: weights, ids, error.
    Source: DeepSeek-V3 technical report, section 2.1.2; without bias: DeepSeek-V2, section 2.2.
    """
    size = (logits.shape[0], top_k + num_shared)
    if weights is None:
        weights = logits.new_empty(size, dtype=torch.float32)
    if ids is None:
        ids = logits.new_empty(size, dtype=torch.int32)
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
        error,
        num_shared,
    )
    return weights, ids


def moe_plan(
    ids: Tensor,
    num_local: int,
    first_expert: int = 0,
    plan: MoePlan | None = None,
    replicas: Tensor | None = None,
    block_rows: int | None = None,
    loads: Tensor | None = None,
) -> MoePlan:
    """Sort the routed rows by expert, stably, without padding.

        row r of expert first_expert + i: offsets[i] <= r < offsets[i + 1]
        row_token[token_row[t, j]] = t

    Args:
        ids: [m, top_k] int32, contiguous. Ids outside first_expert .. first_expert + num_local - 1
            (-1 for one) get no row.
        plan: offsets [num_local + 1], row_token [m * top_k], token_row [m, top_k], all int32, and
            with block_rows the tile map; allocated when not given.
        replicas: [num_logical, n] int32 or None: the physical experts of each logical one, then -1.
            An id becomes replicas[id][(t + j) % their number], -1 where there is none; expert
            numbers above are then physical ones.
        block_rows: rows of a tile of the tile map; None for no tile map.
        loads: [num_logical] int64 or None: the number of times each id occurs, whatever its rank,
            is added.
    Returns: plan. Rows of one expert are in the order of ids. token_row is -1 for an id without a
        row; row_token is -1 from offsets[num_local] on. tiles is not written from num_tiles on.
    Errors: RuntimeError naming the tensor, expected and got.  Writes: all of plan; loads.
    """
    if plan is None:
        plan = MoePlan.empty(ids, num_local, block_rows)
    _moe_plan(
        ids, first_expert, plan.offsets, plan.row_token, plan.token_row, replicas,
        _block_rows(plan, block_rows), plan.tiles, plan.num_tiles, loads,
    )  # fmt: skip
    return plan


def _block_rows(plan: MoePlan, block_rows: int | None) -> int:
    if plan.tiles is not None and block_rows is None:
        raise ValueError("block_rows: expected the rows of a tile, as plan has tiles, got None")
    return 1 if block_rows is None else block_rows


class Routing(NamedTuple):
    """What moe_route writes."""

    logits: Tensor
    weights: Tensor
    ids: Tensor
    plan: MoePlan

    @staticmethod
    def empty(
        x: Tensor,
        num_experts: int,
        top_k: int,
        num_shared: int = 0,
        num_local: int | None = None,
        block_rows: int | None = None,
    ) -> Routing:
        """Allocate for tokens x [m, k]; num_local is all experts, shared ones too, when not given."""
        size = (x.shape[0], top_k + num_shared)
        ids = x.new_empty(size, dtype=torch.int32)
        num_local = num_experts + num_shared if num_local is None else num_local
        return Routing(
            x.new_empty(x.shape[0], num_experts, dtype=torch.float32),
            x.new_empty(size, dtype=torch.float32),
            ids,
            MoePlan.empty(ids, num_local, block_rows),
        )


def moe_route(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    top_k: int,
    n_group: int = 1,
    topk_group: int = 1,
    scoring_func: str = "sigmoid",
    norm_topk_prob: bool = True,
    routed_scaling_factor: float = 1.0,
    num_shared: int = 0,
    first_expert: int = 0,
    num_local: int | None = None,
    replicas: Tensor | None = None,
    block_rows: int | None = None,
    loads: Tensor | None = None,
    error: Tensor | None = None,
    counter: Tensor | None = None,
    out: Routing | None = None,
) -> Routing:
    """router_gemm, moe_gate and moe_plan: the same bits, at decode sizes one launch on a CUDA device.

    Args:
        x: [m, k] and weight: [e, k] bfloat16 (CPU: or float32).  bias .. routed_scaling_factor,
            num_shared, error: as in moe_gate.  first_expert .. loads: as in moe_plan.
        num_local: experts that get rows; e + num_shared when not given.
        counter: [1] int32, zero before and after, for one call at a time: what the single launch
            needs (m <= 128, e <= 512, num_local <= 1024); without it there are three.
        out: allocated when not given.
    Returns: out.
    Errors: RuntimeError naming the tensor, expected and got.
    Writes: out, loads, error; counter, which it leaves at zero.
    """
    if out is None:
        out = Routing.empty(x, weight.shape[0], top_k, num_shared, num_local, block_rows)
    plan = out.plan
    _moe_route(
        x, weight, bias, n_group, topk_group, scoring_func, norm_topk_prob, routed_scaling_factor,
        first_expert, out.logits, out.weights, out.ids, plan.offsets, plan.row_token,
        plan.token_row, replicas, _block_rows(plan, block_rows), plan.tiles, plan.num_tiles, loads,
        error, num_shared, counter,
    )  # fmt: skip
    return out


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
        On a CUDA device y is bfloat16, n is a multiple of 8 up to 16384 and rows start at multiples
        of 16 bytes.
    Returns: out. Summed in float32 in the order of j, shared last, rounded once.
    Errors: RuntimeError naming the tensor, expected and got. A row beyond y is an error on the CPU
        and left out on a CUDA device.
    Writes: out.
    """
    if out is None:
        out = y.new_empty(token_row.shape[0], y.shape[1])
    _moe_finalize(y, token_row, weights, shared, out)
    return out


def moe_finalize_norm(
    y: Tensor,
    token_row: Tensor,
    weights: Tensor,
    residual: Tensor,
    norm_weight: Tensor,
    eps: float,
    shared: Tensor | None = None,
    quantize: bool = False,
    out: NormedRows | None = None,
) -> NormedRows:
    """moe_finalize, then add_rms_norm_quantize: the same bits in one launch.

        residual += moe_finalize(y, token_row, weights, shared)
        x = rms_norm(residual, norm_weight, eps);  q, scale = quantize_fp8_1x128(x)

    Args:
        y .. weights, shared: as in moe_finalize.  residual: [m, n] in the dtype of y.
        norm_weight: [n] float32 or bfloat16.  eps: as in rms_norm.
        quantize, out: as in add_rms_norm_quantize.
    Returns: out.
    Errors: as in moe_finalize.
    Writes: residual, out.
    """
    if out is None:
        out = NormedRows.empty(residual, quantize)
    _moe_finalize(y, token_row, weights, shared, None, residual, norm_weight, eps, *out)
    return out


def moe_permute_fp8(
    q: Tensor,
    scale: Tensor,
    row_token: Tensor,
    q_out: Tensor | None = None,
    scale_out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Rows of tokens into the order of a plan, with their scales.

        q_out[r] = q[row_token[r]];  scale_out[:, r] = scale[:, row_token[r]]

    Args:
        q: [m, n] float8_e4m3fn, last dim contiguous (CUDA: n a multiple of 16).
        scale: [ceil(n/128), round_up(m, 4)] float32.  row_token: [rows] int32, -1 for a row to
            leave alone.
        q_out: [rows, n], scale_out: [ceil(n/128), round_up(rows, 4)]; allocated when not given.
    Returns: (q_out, scale_out).
    Errors: RuntimeError naming the tensor, expected and got. A token beyond m is an error on the
        CPU and left alone on a CUDA device.
    Writes: q_out and scale_out, but for rows of -1.
    """
    rows = row_token.shape[0]
    if q_out is None:
        q_out = q.new_empty(rows, q.shape[1])
    if scale_out is None:
        scale_out = scale.new_empty(scale.shape[0], (rows + 3) // 4 * 4)
    _moe_permute_fp8(q, scale, row_token, q_out, scale_out)
    return q_out, scale_out


register_fakes("moe_gate", "moe_plan", "moe_route", "moe_finalize", "moe_permute_fp8")
