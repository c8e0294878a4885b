"""Runs steps on the device: forward, choice, drafts. What a decode needs never leaves it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from seekernel import ops
from seekernel.engine.acceptance import Relaxed, accept, accept_relaxed, update_deltas
from seekernel.engine.device_state import DeviceState
from seekernel.engine.graphs import GraphSet
from seekernel.engine.sampler import Choice, LogprobsOfToken, top_logprobs
from seekernel.engine.step import Layout, Step, with_chunks
from seekernel.engine.step_sampling import choose_on_host
from seekernel.model import Batch, DeepseekV3ForCausalLM
from seekernel.model.model import KVCache

SCORED_AT_ONCE = 512  # rows of logits that prompt_logprobs hold at a time


@dataclass
class Chosen:
    """Tokens [s, 1 + n], how many of them count [s], and whether their logits were finite [s]."""

    tokens: Tensor
    num_new: Tensor
    usable: Tensor


@dataclass
class Result:
    """A step that runs or ran. choices: what the host chose, per sequence, instead of `chosen`.
    prompt_logprobs: by slot, of the tokens after those of its chunk."""

    step: Step
    layout: Layout
    hidden: Tensor
    logits: Tensor
    chosen: Chosen | None = None
    choices: list[list[Choice | None]] | None = None
    prompt_logprobs: dict[int, list[LogprobsOfToken]] | None = None


class ModelRunner:
    """A model, its cache, and the buffers of the running sequences.

    begin() runs the forward and, where every choice is made on the device, choice and drafts;
    else finish() chooses on the host and drafts. Both may run on a thread of their own.
    """

    def __init__(
        self,
        model: DeepseekV3ForCausalLM,
        kv_cache: KVCache,
        state: DeviceState,
        page_size: int,
        only_absorbed: bool,
        relaxed: Relaxed | None = None,
        graphs: GraphSet | None = None,
    ) -> None:
        self.model, self.kv_cache, self.state = model, kv_cache, state
        self.graphs = graphs
        self._page_size, self._only_absorbed, self._relaxed = page_size, only_absorbed, relaxed
        self._num_drafts, self._wide = state.num_drafts, 1 + state.num_drafts
        self._limit = model.config.max_position_embeddings
        # Zeros for every parameter of sampling: the greedy choice, by a kernel that beats argmax.
        most = state.num_slots * (1 + self._wide)
        self._unsampled = tuple(
            torch.zeros(most, dtype=dtype, device=model.device)
            for dtype in (torch.float32, torch.int32, torch.int64)
        )
        self._none = torch.empty(0, dtype=torch.int64, device=model.device)

    @torch.inference_mode()
    def begin(self, step: Step) -> Result:
        for source, destination in step.copies:
            for layer in self.kv_cache:
                layer[destination] = layer[source]
        for write in step.page_writes:
            self.state.write_pages(*write)
        count = len(step.decode_slots)
        size = None
        if self.graphs is not None and not step.chunks:
            size = self.graphs.size_for(count)
        if self.graphs is not None and size is not None:
            return self._begin_graph(step, self.graphs, size)
        layout = self._decodes(self.state.set_rows(step.decode_slots, count), step.num_rows)
        if step.chunks:
            self._start_thinking(step)
            layout = with_chunks(layout, step.chunks, self._page_size, self._only_absorbed)
        hidden, logits = self._forward(layout)
        result = Result(step, layout, hidden, logits)
        if any(chunk.num_scored for chunk in step.chunks):
            result.prompt_logprobs = self._score_prompts(step, layout, hidden)
        if step.on_device:
            if logits.shape[0]:
                result.chosen = self._choose(layout, logits)
            self._draft(layout, hidden, result.chosen)
        return result

    @torch.inference_mode()
    def finish(self, result: Result) -> None:
        """Choose on the host where the device could not, then draft."""
        step, layout, logits = result.step, result.layout, result.logits
        if step.on_device:
            return
        count = len(step.decode_slots)
        first_rows = [index * self._wide for index in range(count)]
        first_rows += range(layout.num_decodes * self._wide, logits.shape[0])
        drafts = self.state.tokens[layout.decode_slots[:count], 1:].tolist()
        drafts += [[] for _ in range(len(first_rows) - count)]
        result.choices = choose_on_host(logits, step.sequences, first_rows, drafts)
        rows = [
            [0 if choice is None else choice.token_id for choice in row] for row in result.choices
        ]
        rows[count:count] = [[0]] * (layout.num_decodes - count)  # padding of a graph
        padded = [[*row, *([0] * (self._wide - len(row)))] for row in rows]
        num_new = torch.tensor([len(row) for row in rows], dtype=torch.int64).to(logits.device)
        tokens = torch.tensor(padded, dtype=torch.int64).to(logits.device)
        chosen = Chosen(tokens, num_new, torch.ones_like(num_new, dtype=torch.bool))
        self._follow_thinking(layout.slots, chosen)
        self._draft(layout, result.hidden, chosen)

    def _begin_graph(self, step: Step, graphs: GraphSet, size: int) -> Result:
        """Replay the decode step of `size` requests: the forward, then choice and drafts."""
        if not graphs.knows(("rest", size)):
            self._record(graphs, size)
        rows = self.state.set_rows(step.decode_slots, size)
        hidden, logits = graphs.replay(("forward", size))
        result = Result(step, self._decodes(rows, None), hidden, logits)
        if step.on_device:
            outputs = graphs.replay(("rest", size))
            # The next replay writes these again, before they are read perhaps.
            count = len(step.decode_slots)
            result.chosen = Chosen(*(output[:count].clone() for output in outputs))
        return result

    def _record(self, graphs: GraphSet, size: int) -> None:
        rows = self.state.set_rows([], size)  # all padding: nothing is written

        def forward() -> tuple[Tensor, ...]:
            return self._forward(self._decodes(rows, None))

        def rest() -> tuple[Tensor, ...]:
            hidden, logits = graphs.outputs(("forward", size))
            layout = self._decodes(rows, None)
            chosen = self._choose(layout, logits)
            self._draft(layout, hidden, chosen)
            return chosen.tokens, chosen.num_new, chosen.usable

        self.model.rope.cos_sin(self._limit)  # the whole table, before it can be part of a graph
        graphs.record(("forward", size), forward)
        if not graphs.outputs(("forward", size)):
            graphs.replay(("forward", size))
        graphs.record(("rest", size), rest)

    def _decodes(self, rows: Tensor, num_rows: int | None) -> Layout:
        """Lay out a decode of the slots in `rows`; num_rows bounds the block table, None: all of it."""
        state = self.state
        table, num_positions = self._bounds(num_rows)
        batch = Batch.decode(
            table[rows], state.lengths[rows], self._wide, self._page_size, num_positions
        )
        token_ids = state.tokens[rows].flatten()
        none = self._none
        return Layout(batch, token_ids, rows, none, None, none, none, none, num_rows)

    def _bounds(self, num_rows: int | None) -> tuple[Tensor, int]:
        table = self.state.block_table
        if num_rows is None:
            return table, self._limit
        return table[:, : -(-num_rows // self._page_size)], max(min(num_rows, self._limit), 1)

    def _forward(self, layout: Layout) -> tuple[Tensor, Tensor]:
        """Return hidden states, and logits of the rows that choose (none while prompts are read)."""
        hidden = self.model.forward(layout.token_ids, layout.batch, self.kv_cache)
        wanted = hidden if layout.logit_rows is None else hidden[layout.logit_rows]
        return hidden, self.model.compute_logits(wanted)

    def _score_prompts(
        self, step: Step, layout: Layout, hidden: Tensor
    ) -> dict[int, list[LogprobsOfToken]]:
        """Return the log-probabilities of prompt tokens, a part of the rows at a time."""
        scores: dict[int, list[LogprobsOfToken]] = {}
        row = layout.num_decodes * self._wide
        for chunk in step.chunks:
            following = [*chunk.tokens[1:], chunk.following or 0]
            found = scores.setdefault(chunk.slot, [])
            for begin in range(0, chunk.num_scored, SCORED_AT_ONCE):
                end = min(begin + SCORED_AT_ONCE, chunk.num_scored)
                logits = self.model.compute_logits(hidden[row + begin : row + end])
                found += top_logprobs(logits, following[begin:end], chunk.num_top)
            row += len(chunk.tokens)
        return scores

    def _choose(self, layout: Layout, logits: Tensor) -> Chosen:
        """Choose the likeliest tokens, and keep the drafts that foretold them."""
        d, wide = layout.num_decodes, self._wide
        best, finite = self._best(logits)
        tokens, num_new, usable = best[: d * wide].view(d, wide), None, finite
        if wide > 1:
            drafts = self.state.tokens[layout.decode_slots, 1:]
            if self._relaxed is None:
                num_new = accept(tokens, drafts)
            else:
                deltas = self.state.deltas[layout.decode_slots]
                tokens, num_new = accept_relaxed(
                    logits[: d * wide].view(d, wide, logits.shape[1]),
                    drafts,
                    deltas,
                    self._relaxed.top_k,
                )
            counted = torch.arange(wide, device=logits.device) < num_new[:, None]
            usable = (finite[: d * wide].view(d, wide) | ~counted).all(dim=1)
        else:
            num_new = torch.ones_like(best[:d])
        if layout.chunk_slots.shape[0]:
            first = best[d * wide :, None]
            tokens = torch.cat([tokens, first.expand(-1, wide)])
            num_new = torch.cat([num_new, torch.ones_like(first[:, 0])])
            usable = torch.cat([usable[:d], finite[d * wide :]])
        chosen = Chosen(tokens, num_new, usable)
        self._follow_thinking(layout.slots, chosen)
        return chosen

    def _start_thinking(self, step: Step) -> None:
        if self._relaxed is None:
            return
        for chunk in step.chunks:
            if chunk.following is None:
                self.state.deltas[chunk.slot] = self._relaxed.delta if chunk.thinking else 0.0

    def _follow_thinking(self, slots: Tensor, chosen: Chosen) -> None:
        """What is chosen now bounds the drafts of the next step, not of this one."""
        if self._relaxed is not None:
            deltas = self.state.deltas
            deltas[slots] = update_deltas(
                deltas[slots], chosen.tokens, chosen.num_new, self._relaxed
            )

    def _draft(self, layout: Layout, hidden: Tensor, chosen: Chosen | None) -> None:
        """Note the chosen tokens in the buffers, and what the MTP module expects to follow them."""
        state, d, wide = self.state, layout.num_decodes, self._wide
        if chosen is None:
            if self._num_drafts:
                self.model.forward_mtp(layout.shifted, hidden, layout.batch, self.kv_cache)
            return
        slots = layout.slots
        last = chosen.tokens.gather(1, chosen.num_new[:, None] - 1)
        lengths = state.lengths[layout.decode_slots] + chosen.num_new[:d].to(torch.int32)
        if layout.chunk_slots.shape[0]:
            lengths = torch.cat([lengths, layout.ends])
        columns = [last]
        if self._num_drafts:
            following, picks = chosen.tokens[:d].flatten(), None
            if d:
                steps = torch.arange(d, device=hidden.device) * wide
                picks = steps + chosen.num_new[:d] - 1
            if layout.shifted.shape[0]:
                shifted = layout.shifted.clone()
                shifted[layout.last_rows - d * wide] = chosen.tokens[d:, 0]
                following = torch.cat([following, shifted])
                picks = layout.last_rows if picks is None else torch.cat([picks, layout.last_rows])
            drafted = self.model.forward_mtp(following, hidden, layout.batch, self.kv_cache)[picks]
            columns.append(self._likeliest(drafted))
            table, num_positions = self._bounds(layout.num_rows)
            for index in range(self._num_drafts - 1):
                one = Batch.decode(table[slots], lengths + index, 1, self._page_size, num_positions)
                drafted = self.model.forward_mtp(columns[-1][:, 0], drafted, one, self.kv_cache)
                columns.append(self._likeliest(drafted))
        state.tokens[slots] = torch.cat(columns, dim=1) if self._num_drafts else last
        state.lengths[slots] = lengths
        state.lengths[state.padding :].fill_(state.padded_length)

    def _likeliest(self, hidden: Tensor) -> Tensor:
        return self._best(self.model.compute_logits(hidden))[0][:, None]

    def _best(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return the likeliest token of each row (0 where there is none), and whether there is one."""
        rows, none = logits.shape[0], self._unsampled
        floats, ints = none[0][:rows], none[1][:rows]
        ids, status = ops.sample(
            logits, floats, ints, floats, floats, none[2][:rows], none[2][:rows]
        )
        return ids.clamp(min=0).to(torch.int64), status == ops.STATUS_OK
