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
    seq_lens: Tensor  # [b] int32, cached and new tokens
    block_table: Tensor  # [b, max_pages] int32
    num_new: tuple[int, ...] = ()  # per request, naive form only
    lengths: tuple[int, ...] = ()  # per request, cached and new tokens, naive form only


@dataclass(frozen=True)
class Batch:
    """Tokens of several requests, concatenated; short requests (decode) and long ones (prefill)."""

    num_tokens: int
    num_positions: int  # 1 + the largest position
    positions: Tensor  # [num_tokens] int32
    slots: Tensor  # [num_tokens] int64: page * page_size + offset; -1: the row is not stored
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
        first_token: int = 0,
        only_absorbed: bool = False,
    ) -> Batch:
        """Lay out a batch.

        Args: per request its cache pages in order, its tokens already cached, its new tokens (>= 1).
        first_token: tokens of another batch that this one will be joined to.
        only_absorbed: one attention form for all, so that a token's bits do not depend on how many
        tokens came with it.
        Errors: ValueError if the pages of a request do not hold its tokens.
        """
        positions: list[Tensor] = []
        slots: list[Tensor] = []
        for request, pages in enumerate(block_tables):
            first, last = num_cached[request], num_cached[request] + num_new[request]
            if num_new[request] < 1 or last > len(pages) * page_size:
                raise ValueError(
                    f"request {request}: expected 1 to {len(pages) * page_size - first} new tokens "
                    f"after {first} cached in {len(pages)} pages, got {num_new[request]}"
                )
            span = torch.arange(first, last)
            positions.append(span)
            slots.append(torch.tensor(pages)[span // page_size] * page_size + span % page_size)
        limit = sum(num_new) if only_absorbed else MAX_ABSORBED_TOKENS
        absorbed: list[Segment] = []
        naive: list[Segment] = []
        begin, token = 0, first_token
        while begin < len(block_tables):
            short = num_new[begin] <= limit
            end = begin
            while end < len(block_tables) and (num_new[end] <= limit) == short:
                end += 1
            span_ = slice(begin, end)
            segment = _segment(
                device, token, block_tables[span_], num_cached[span_], num_new[span_], not short
            )
            (absorbed if short else naive).append(segment)
            token = segment.tokens.stop
            begin = end
        return cls(
            num_tokens=sum(num_new),
            num_positions=max(
                (cached + new for cached, new in zip(num_cached, num_new, strict=True)), default=0
            ),
            positions=_cat(positions, torch.int32).to(device),
            slots=_cat(slots, torch.int64).to(device),
            absorbed=tuple(absorbed),
            naive=tuple(naive),
        )

    @classmethod
    def decode(
        cls,
        block_table: Tensor,
        lengths: Tensor,
        num_new: int,
        page_size: int,
        num_positions: int,
    ) -> Batch:
        """Lay out a batch of requests with num_new tokens each, from the device's own numbers.

        Nothing is read or made on the host, so a CUDA graph of it can be replayed.
        Args:
            block_table: [b, max_pages] int32, -1 where there is no page.
            lengths: [b] int32, tokens already cached; a request of less than -num_new is padding: it
                stores nothing and attends to nothing.
            num_positions: of the rope table; a row beyond (a draft past the end) takes its last one.
        """
        b, device = lengths.shape[0], lengths.device
        step = torch.arange(num_new, dtype=torch.int32, device=device)
        rows = (lengths[:, None] + step).flatten()
        page = rows.div(page_size, rounding_mode="floor")
        inside = (rows >= 0) & (page < block_table.shape[1])
        index = page.clamp(0, block_table.shape[1] - 1).to(torch.int64).view(b, num_new)
        pages = block_table.gather(1, index).flatten().to(torch.int64)
        slots = torch.where(
            inside & (pages >= 0), pages * page_size + rows.remainder(page_size), -1
        )
        cu_seqlens = torch.arange(b + 1, dtype=torch.int32, device=device) * num_new
        seq_lens = (lengths + num_new).clamp(min=0)
        segment = Segment(slice(0, b * num_new), cu_seqlens, seq_lens, block_table)
        return cls(
            num_tokens=b * num_new,
            num_positions=num_positions,
            positions=rows.clamp(0, num_positions - 1),
            slots=slots,
            absorbed=(segment,),
            naive=(),
        )

    def join(self, other: Batch) -> Batch:
        """Put the tokens of `other`, built with first_token = self.num_tokens, behind these."""
        return Batch(
            num_tokens=self.num_tokens + other.num_tokens,
            num_positions=max(self.num_positions, other.num_positions),
            positions=torch.cat([self.positions, other.positions]),
            slots=torch.cat([self.slots, other.slots]),
            absorbed=self.absorbed + other.absorbed,
            naive=self.naive + other.naive,
        )


def _cat(parts: list[Tensor], dtype: torch.dtype) -> Tensor:
    return torch.cat(parts).to(dtype) if parts else torch.empty(0, dtype=dtype)


def _segment(
    device: torch.device | str,
    first_token: int,
    block_tables: Sequence[Sequence[int]],
    num_cached: Sequence[int],
    num_new: Sequence[int],
    naive: bool,
) -> Segment:
    lengths = [cached + new for cached, new in zip(num_cached, num_new, strict=True)]
    width = max(len(pages) for pages in block_tables)
    padded = [[*pages, *([-1] * (width - len(pages)))] for pages in block_tables]

    def int32(values: Sequence[int] | Sequence[Sequence[int]]) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, device=device)

    return Segment(
        tokens=slice(first_token, first_token + sum(num_new)),
        cu_seqlens_q=int32(cumulative(num_new)),
        seq_lens=int32(lengths),
        block_table=int32(padded),
        num_new=tuple(num_new) if naive else (),
        lengths=tuple(lengths) if naive else (),
    )


def cumulative(values: Sequence[int]) -> list[int]:
    """Return [0, v0, v0 + v1, ...]."""
    total = [0]
    for value in values:
        total.append(total[-1] + value)
    return total
