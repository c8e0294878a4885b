"""What the device knows of each running sequence: the inputs of a decode step, in fixed buffers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class DeviceState:
    """One row per slot, and a last one that pads a batch.

    tokens: [slots + 1, 1 + num_drafts] int64, the last chosen token and the drafts that follow it.
    lengths: [slots + 1] int32, rows in the cache before these tokens; negative for padding.
    block_table: [slots + 1, max_pages] int32, -1: no page.
    deltas: [slots + 1] float32, how much below the best a draft may be (relaxed acceptance).
    rows: [slots] int64, the slots of the step's requests.
    A step reads and writes these alone, so it can be launched before the last one's tokens are known
    on the host, and replayed as a CUDA graph.
    """

    def __init__(
        self, num_slots: int, num_drafts: int, max_pages: int, device: torch.device | str
    ) -> None:
        self.num_slots, self.num_drafts = num_slots, num_drafts
        self.padding = num_slots
        rows = num_slots + 1
        self.tokens = torch.zeros(rows, 1 + num_drafts, dtype=torch.int64, device=device)
        self.lengths = torch.full((rows,), self.padded_length, dtype=torch.int32, device=device)
        self.block_table = torch.full((rows, max_pages), -1, dtype=torch.int32, device=device)
        self.deltas = torch.zeros(rows, dtype=torch.float32, device=device)
        self.rows = torch.full((num_slots,), num_slots, dtype=torch.int64, device=device)

    @property
    def padded_length(self) -> int:
        """So low that no row of a padding request is ever one of the cache."""
        return -2 * (1 + self.num_drafts)

    def write_pages(self, slot: int, first: int, pages: Sequence[int]) -> None:
        """Put pages into a slot's row, from entry `first` on."""
        if pages:
            values = torch.tensor(pages, dtype=torch.int32)
            self.block_table[slot, first : first + len(pages)] = values.to(self.block_table.device)

    def set_rows(self, slots: Sequence[int], size: int) -> Tensor:
        """Name the slots of the step, padded to `size`; return the buffer's part that holds them."""
        padded = [*slots, *([self.padding] * (size - len(slots)))]
        self.rows[:size] = torch.tensor(padded, dtype=torch.int64).to(self.rows.device)
        return self.rows[:size]
