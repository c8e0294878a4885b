"""The engine's loop: schedule, launch, and turn what was chosen into tokens of the sequences."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from seekernel.engine.device_state import DeviceState
from seekernel.engine.graphs import CudaReplay, EagerReplay, GraphSet
from seekernel.engine.kv_manager import KVManager
from seekernel.engine.kv_pages import PagePool, available_memory_bytes, pages_for, size_pool
from seekernel.engine.metrics import EngineMetrics
from seekernel.engine.options import EngineOptions
from seekernel.engine.outputs import Logprob
from seekernel.engine.request import TokenSequence
from seekernel.engine.runner import ModelRunner, Result
from seekernel.engine.sampler import Choice, LogprobsOfToken
from seekernel.engine.scheduler import Chunk, Decode, Scheduler, StepPlan, extra_rows
from seekernel.engine.speculation import relaxed_rule
from seekernel.engine.step import PageWrites, Step, prepare
from seekernel.errors import CapacityError
from seekernel.model import DeepseekV3ForCausalLM
from seekernel.tokenizer import Tokenizer

DEVICE = "cpu"
NO_BEST = "the model gave NaN or infinite logits"


@dataclass
class InFlight:
    """A launched step: on the worker thread, or (future None) done when launched."""

    plan: StepPlan
    step: Step
    begun: Future[Result] | Result
    finished: Future[None] | None = None

    def result(self) -> Result:
        if self.finished is not None:
            self.finished.result()
        return self.begun.result() if isinstance(self.begun, Future) else self.begun


class EngineCore:
    """A model, its cache, and the sequences that share them. Not thread-safe."""

    def __init__(
        self, model: DeepseekV3ForCausalLM, options: EngineOptions, tokenizer: Tokenizer | None
    ) -> None:
        self._model, self._options, self._tokenizer = model, options, tokenizer
        page_size, dtype = options.page_size, options.kv_cache_dtype
        self.num_drafts = options.num_drafts
        bytes_per_page = sum(layer.nbytes for layer in model.allocate_kv_cache(1, page_size, dtype))
        num_pages, self.max_seq_len = size_pool(
            bytes_per_page=bytes_per_page,
            page_size=page_size,
            max_batch_size=min(options.max_batch_size, options.max_num_tokens),
            max_seq_len=options.max_seq_len,
            max_position_embeddings=model.config.max_position_embeddings,
            limit_bytes=self._limit_bytes(bytes_per_page),
            extra_rows=extra_rows(self.num_drafts),
        )
        self.kv = KVManager(
            num_pages,
            page_size,
            options.enable_block_reuse,
            options.enable_partial_reuse,
            look_ahead=int(self.num_drafts > 0),
        )
        self.scheduler = Scheduler(
            self.kv,
            options.max_batch_size,
            options.max_num_tokens,
            options.scheduler_policy,
            self.num_drafts,
            options.enable_chunked_prefill,
        )
        max_running = self.scheduler.max_running
        max_pages = pages_for(self.max_seq_len + extra_rows(self.num_drafts), page_size)
        self._relaxed = relaxed_rule(options, tokenizer)
        graphs = None
        if options.use_cuda_graph:
            graphs = GraphSet(
                options.cuda_graph_batch_sizes,
                options.cuda_graph_padding_enabled,
                max_running,
                CudaReplay if model.device.type == "cuda" else EagerReplay,
            )
        self.runner = ModelRunner(
            model,
            model.allocate_kv_cache(num_pages, page_size, dtype),
            DeviceState(max_running, self.num_drafts, max_pages, model.device),
            page_size,
            options.batch_invariant,
            self._relaxed,
            graphs,
        )
        self.metrics = EngineMetrics(num_pages, options.print_iter_log)
        self._overlaps = not options.overlap_disabled(model.device.type)
        self._worker: ThreadPoolExecutor | None = None
        if self._overlaps and model.device.type == "cpu":
            self._worker = ThreadPoolExecutor(1, thread_name_prefix="seekernel-device")
        self.output_lock = threading.Lock()  # held while sequences get tokens or end
        self._in_flight: InFlight | None = None
        self._pages_sent: dict[TokenSequence, tuple[int, int]] = {}
        self._exchanged: dict[TokenSequence, list[int]] = {}

    @property
    def pool(self) -> PagePool:
        return self.kv.pool

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_work or self._in_flight is not None

    def close(self) -> None:
        """Stop the worker thread; steps under way end first."""
        if self._worker is not None:
            self._worker.shutdown(wait=True)

    def add(self, sequence: TokenSequence) -> None:
        """Queue a sequence. Errors: CapacityError if it can never run."""
        self.check(sequence)
        self.scheduler.add(sequence)

    def check(self, sequence: TokenSequence) -> None:
        """Errors: CapacityError if its pages are more than there are, or its chunk does not fit."""
        num_prompt = len(sequence.prompt_token_ids)
        if not self.scheduler.fits(sequence):
            wanted = pages_for(self.scheduler.max_rows(sequence), self._options.page_size)
            raise CapacityError(
                f"prompt: {num_prompt} tokens and max_tokens "
                f"{sequence.max_tokens} need {wanted} pages of the KV cache, it has "
                f"{self.pool.num_pages}"
            )
        limit = self._options.max_num_tokens
        if not self._options.enable_chunked_prefill and num_prompt > limit:
            raise CapacityError(
                f"prompt: {num_prompt} tokens do not fit into one step of max_num_tokens {limit}, "
                f"and enable_chunked_prefill is off"
            )

    def abort(self, sequences: Iterable[TokenSequence]) -> None:
        """End sequences that have not finished and free their pages at once."""
        with self.output_lock:
            for sequence in sequences:
                if not sequence.finished:
                    self._drop(sequence)
                    sequence.finish("abort")
                    self.metrics.count_finished("abort")

    def reset(self) -> list[TokenSequence]:
        """Forget all work after an error that no single sequence is the cause of; return its owners."""
        left = self.scheduler.sequences()
        self._in_flight = None
        for sequence in left:
            self._drop(sequence)
        self.kv.clear()
        return left

    def step(self) -> list[TokenSequence]:
        """Launch one step and return the sequences that got tokens or ended meanwhile.

        With overlap the step before is processed while the new one runs.
        """
        begin = time.perf_counter()
        plan = self.scheduler.schedule()
        if not plan and self._in_flight is None and self.scheduler.has_work:
            plan = self.scheduler.schedule()  # the first call made room by preempting
        previous, launched = self._in_flight, self._launch(plan) if plan else None
        changed: list[TokenSequence] = []
        if self._overlaps:
            if previous is not None:
                changed = self._process(previous)
            if launched is not None:
                self._finish(launched)
            self._in_flight = launched
            if launched is not None and not self.scheduler.has_work:
                # All that it runs has ended by what was just processed.
                self._in_flight = None
                changed += self._process(launched)
        elif launched is not None:
            self._finish(launched)
            changed = self._process(launched)
        if plan:
            self.metrics.iteration(
                plan, self.scheduler, self.kv, 1 + self.num_drafts, time.perf_counter() - begin
            )
        return changed

    def _limit_bytes(self, bytes_per_page: int) -> int:
        """Return the bytes that the options leave to the cache; see EngineOptions."""
        options = self._options
        limit = options.kv_cache_bytes
        if limit is None:
            fraction = options.kv_cache_free_gpu_memory_fraction
            limit = int(available_memory_bytes() * (0.25 if fraction is None else fraction))
        if options.kv_cache_max_tokens is not None:
            pages = pages_for(options.kv_cache_max_tokens, options.page_size)
            limit = min(limit, pages * bytes_per_page)
        return limit

    def _launch(self, plan: StepPlan) -> InFlight:
        step = prepare(plan, self._page_writes(plan), self.num_drafts, self._relaxed)
        if self._worker is not None:
            return InFlight(plan, step, self._worker.submit(self.runner.begin, step))
        return InFlight(plan, step, self.runner.begin(step))

    def _page_writes(self, plan: StepPlan) -> PageWrites:
        """Return which entries of the device's block table changed since they were sent."""
        writes: PageWrites = []
        sequences = [item.sequence for item in plan.decodes]
        sequences += [chunk.sequence for chunk in plan.chunks if chunk.samples]
        for sequence in sequences:
            epoch, sent = self._pages_sent.get(sequence, (-1, 0))
            if epoch != sequence.epoch:
                sent = 0
            pages = sequence.pages
            for index in self._exchanged.pop(sequence, ()):
                if index < sent:
                    writes.append((sequence.slot, index, [pages[index]]))
            if sent < len(pages):
                writes.append((sequence.slot, sent, pages[sent:]))
                self._pages_sent[sequence] = (sequence.epoch, len(pages))
        return writes

    def _finish(self, launched: InFlight) -> None:
        if launched.step.on_device:
            return
        begun = launched.begun
        if self._worker is None or not isinstance(begun, Future):
            self.runner.finish(launched.result())
        else:
            # The choice reads the sequences as they are now, so it is made before anything changes.
            result = begun.result()
            launched.finished = self._worker.submit(self.runner.finish, result)
            launched.finished.result()

    def _process(self, launched: InFlight) -> list[TokenSequence]:
        """Append what a step chose, and free what ended."""
        result, plan = launched.result(), launched.plan
        choices = self._choices(result)
        with self.output_lock:
            if result.prompt_logprobs:
                self._take_prompt_logprobs(launched, result.prompt_logprobs)
            return self._take(plan, choices)

    def _take_prompt_logprobs(
        self, launched: InFlight, found: dict[int, list[LogprobsOfToken]]
    ) -> None:
        for chunk, given in zip(launched.plan.chunks, launched.step.chunks, strict=True):
            known = chunk.sequence.prompt_logprobs
            if known is not None:
                # A preempted sequence runs its prompt again: what is known stays.
                for scores in found.get(given.slot, [])[max(len(known) - chunk.begin, 0) :]:
                    known.append(self._named(scores))

    def _take(self, plan: StepPlan, choices: list[list[Choice | None]]) -> list[TokenSequence]:
        items: list[Chunk | Decode] = [*plan.decodes]
        for chunk in plan.chunks:
            if chunk.samples:
                items.append(chunk)
            elif self.scheduler.processed(chunk):
                chunk.sequence.num_cached = chunk.end
                self._publish(chunk.sequence)
        changed = []
        for item, row in zip(items, choices, strict=True):
            sequence = item.sequence
            live = self.scheduler.processed(item)
            if sequence.finished:
                continue
            changed.append(sequence)
            self._extend(sequence, row, isinstance(item, Decode))
            if live and sequence.output.error is None:
                sequence.num_cached = sequence.num_tokens - 1
                self._publish(sequence)
            reason = sequence.output.finish_reason
            if reason is not None:
                self._drop(sequence)
                self.metrics.count_finished(reason)
        return changed

    def _choices(self, result: Result) -> list[list[Choice | None]]:
        if result.choices is not None:
            return result.choices
        chosen = result.chosen
        if chosen is None:
            return []
        rows: list[list[Choice | None]] = []
        for tokens, count, usable in zip(
            chosen.tokens.tolist(), chosen.num_new.tolist(), chosen.usable.tolist(), strict=True
        ):
            rows.append([Choice(token) for token in tokens[:count]] if usable else [None])
        return rows

    def _extend(self, sequence: TokenSequence, row: list[Choice | None], decoded: bool) -> None:
        count = 0
        for choice in row:
            if choice is None:
                self.kv.forget(sequence)
                sequence.fail(NO_BEST)
                break
            self._append(sequence, choice)
            count += 1
            if sequence.finished:
                break
        self.metrics.count_tokens(count)
        if decoded and self.num_drafts:
            sequence.output.count_drafts(self.num_drafts, max(len(row) - 1, 0))
            self.metrics.count_drafts(self.num_drafts, max(len(row) - 1, 0))

    def _append(self, sequence: TokenSequence, choice: Choice) -> None:
        output = sequence.output
        if choice.logprobs is not None:
            if output.logprobs is None:
                output.logprobs = []
            output.logprobs.append(self._named(choice.logprobs))
            chosen = choice.logprobs[choice.token_id][0]
            output.cumulative_logprob = (output.cumulative_logprob or 0.0) + chosen
        sequence.append(choice.token_id)

    def _publish(self, sequence: TokenSequence) -> None:
        exchanged = self.kv.publish(sequence)
        if exchanged:
            self._exchanged[sequence] = [*self._exchanged.get(sequence, ()), *exchanged]

    def _drop(self, sequence: TokenSequence) -> None:
        self.scheduler.remove(sequence)
        self._pages_sent.pop(sequence, None)
        self._exchanged.pop(sequence, None)

    def _named(self, logprobs: LogprobsOfToken) -> dict[int, Logprob]:
        return {
            token: Logprob(value, rank, self._spell(token))
            for token, (value, rank) in logprobs.items()
        }

    def _spell(self, token: int) -> str:
        return "" if self._tokenizer is None else self._tokenizer.decode([token], False)
