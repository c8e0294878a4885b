"""What one forward pass is about: which tokens of which requests, and where their cache pages are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

MAX_ABSORBED_TOKENS = 16  # per request: up to here attention in latent space does less work


@dataclass(frozen=True)
class Segment:
    """Consecutive requests of a batch that take the same attention form."""

    tokens: slice  # of the batch's tokens
    cu_seqlens_q: Tensor  # [b + 1] int32, starting at 0
    cu_seqlens_kv: Tensor  # [b + 1] int32
    seq_lens: Tensor  # [b] int32, cached and new tokens
    block_table: Tensor  # [b, max_pages] int32
    num_kv: int  # cu_seqlens_kv[-1], known on the host


@dataclass(frozen=True)
class Batch:
    """Tokens of several requests, concatenated; short requests (decode) and long ones (prefill)."""

    num_tokens: int
    num_positions: int  # 1 + the largest position
    positions: Tensor  # [num_tokens] int32
    slots: Tensor  # [num_tokens] int64: page * page_size + offset
    absorbed: tuple[Segment, ...]
    naive: tuple[Segment, ...]

    @classmethod
    def build(
        cls,
        device: torch.device | str,
        page_size: int,
        block_tables: Sequence[Sequence[int]],
        num_cached: Sequence[int],
        num_new: Sequence[int],
    ) -> Batch:
        """Lay out a batch.

        Args: per request its cache pages in order, its tokens already cached, its new tokens (>= 1).
        Errors: ValueError if the pages of a request do not hold its tokens.
        """
        positions: list[int] = []
        slots: list[int] = []
        for request, pages in enumerate(block_tables):
            first, last = num_cached[request], num_cached[request] + num_new[request]
            if num_new[request] < 1 or last > len(pages) * page_size:
                raise ValueError(
                    f"request {request}: expected 1 to {len(pages) * page_size - first} new tokens "
                    f"after {first} cached in {len(pages)} pages, got {num_new[request]}"
                )
            span = range(first, last)
            positions += span
            slots += [pages[p // page_size] * page_size + p % page_size for p in span]
        absorbed: list[Segment] = []
        naive: list[Segment] = []
        begin = token = 0
        while begin < len(block_tables):
            short = num_new[begin] <= MAX_ABSORBED_TOKENS
            end = begin
            while end < len(block_tables) and (num_new[end] <= MAX_ABSORBED_TOKENS) == short:
                end += 1
            span_ = slice(begin, end)
            segment = _segment(
                device, token, block_tables[span_], num_cached[span_], num_new[span_]
            )
            (absorbed if short else naive).append(segment)
            token = segment.tokens.stop
            begin = end
        return cls(
            num_tokens=len(positions),
            num_positions=max(positions, default=-1) + 1,
            positions=torch.tensor(positions, dtype=torch.int32, device=device),
            slots=torch.tensor(slots, dtype=torch.int64, device=device),
            absorbed=tuple(absorbed),
            naive=tuple(naive),
        )


def _segment(
    device: torch.device | str,
    first_token: int,
    block_tables: Sequence[Sequence[int]],
    num_cached: Sequence[int],
    num_new: Sequence[int],
) -> Segment:
    lengths = [cached + new for cached, new in zip(num_cached, num_new, strict=True)]
    width = max(len(pages) for pages in block_tables)
    padded = [[*pages, *([-1] * (width - len(pages)))] for pages in block_tables]

    def int32(values: Sequence[int] | Sequence[Sequence[int]]) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, device=device)

    return Segment(
        tokens=slice(first_token, first_token + sum(num_new)),
        cu_seqlens_q=int32(_cumulative(num_new)),
        cu_seqlens_kv=int32(_cumulative(lengths)),
        seq_lens=int32(lengths),
        block_table=int32(padded),
        num_kv=sum(lengths),
    )


def _cumulative(values: Sequence[int]) -> list[int]:
    total = [0]
    for value in values:
        total.append(total[-1] + value)
    return total
