"""References of moe_gate, moe_plan, moe_permute_fp8, moe_finalize."""

from __future__ import annotations

import torch
from torch import Tensor

_INF = float("inf")


def moe_choices(
    logits: Tensor,
    bias: Tensor | None,
    n_group: int,
    topk_group: int,
    scoring_func: str,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor]:
    """Return (scores, choices) [m, e] in `dtype`: the choices of lost groups are -inf."""
    logits = logits.to(dtype)
    scores = logits.sigmoid() if scoring_func == "sigmoid" else logits.softmax(-1)
    choices = scores if bias is None else scores + bias.to(dtype)
    if topk_group == n_group:
        return scores, choices
    groups = choices.view(choices.shape[0], n_group, choices.shape[1] // n_group)
    num_best = 1 if bias is None else min(2, groups.shape[-1])
    group_scores = groups.topk(num_best, dim=-1).values.sum(-1)
    kept = group_scores.sort(dim=-1, descending=True, stable=True).indices[:, :topk_group]
    lost = torch.ones_like(group_scores, dtype=torch.bool).scatter(1, kept, False)
    return scores, groups.masked_fill(lost[..., None], -_INF).flatten(1)


def moe_gate(
    logits: Tensor,
    bias: Tensor | None,
    top_k: int,
    n_group: int = 1,
    topk_group: int = 1,
    scoring_func: str = "sigmoid",
    norm_topk_prob: bool = True,
    routed_scaling_factor: float = 1.0,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor]:
    """Return (weights, ids) for finite logits and biases; ties go to the lower index."""
    scores, choices = moe_choices(logits, bias, n_group, topk_group, scoring_func, dtype)
    ids = choices.sort(dim=-1, descending=True, stable=True).indices[:, :top_k]
    weights = scores.gather(1, ids)
    if norm_topk_prob:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    return weights * routed_scaling_factor, ids.to(torch.int32)


def moe_plan(ids: Tensor, num_local: int, first_expert: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Return (offsets, row_token, token_row)."""
    offsets = [0]
    row_token: list[int] = []
    token_row = torch.full_like(ids, -1)
    entries = ids.tolist()
    for expert in range(first_expert, first_expert + num_local):
        for token, row in enumerate(entries):
            for j, chosen in enumerate(row):
                if chosen == expert:
                    token_row[token, j] = len(row_token)
                    row_token.append(token)
        offsets.append(len(row_token))
    row_token += [-1] * (ids.numel() - len(row_token))
    return ids.new_tensor(offsets), ids.new_tensor(row_token), token_row


def physical_ids(ids: Tensor, replicas: Tensor) -> Tensor:
    """Return replicas[id][(t + j) % their number] for each id, -1 where there is none."""
    result = torch.full_like(ids, -1)
    for t, row in enumerate(ids.tolist()):
        for j, chosen in enumerate(row):
            copies = [r for r in replicas[chosen].tolist() if r >= 0] if 0 <= chosen < len(replicas) else []  # fmt: skip
            if copies:
                result[t, j] = copies[(t + j) % len(copies)]
    return result


def tile_map(offsets: Tensor, block_rows: int) -> Tensor:
    """Return [num_tiles, 4] int32: {group, first row, rows, 0} per block of each group's rows."""
    ends = offsets.tolist()
    tiles = [
        (group, row, min(block_rows, ends[group + 1] - row), 0)
        for group in range(len(ends) - 1)
        for row in range(ends[group], ends[group + 1], block_rows)
    ]
    return offsets.new_tensor(tiles).view(-1, 4)


def moe_permute_fp8(
    q: Tensor, scale: Tensor, row_token: Tensor, q_out: Tensor, scale_out: Tensor
) -> tuple[Tensor, Tensor]:
    """Return q_out and scale_out with the rows that row_token names replaced."""
    q_out, scale_out = q_out.clone(), scale_out.clone()
    rows = (row_token >= 0).nonzero().flatten()
    tokens = row_token[rows].long()
    q_out.view(torch.uint8)[rows] = q.view(torch.uint8)[tokens]
    scale_out[:, rows] = scale[:, tokens]
    return q_out, scale_out


def moe_finalize(
    y: Tensor,
    token_row: Tensor,
    weights: Tensor,
    shared: Tensor | None = None,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Return sum_j weights[t, j] * y[token_row[t, j]] + shared[t], in `dtype`."""
    out = torch.zeros(token_row.shape[0], y.shape[1], dtype=dtype, device=y.device)
    for j in range(token_row.shape[1]):
        rows = token_row[:, j].long()
        present = rows >= 0
        terms = weights[present, j, None].to(dtype) * y[rows[present]].to(dtype)
        out[present] += terms
    return out if shared is None else out + shared.to(dtype)
