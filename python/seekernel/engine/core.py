"""The engine's loop: schedule, forward, sample, append."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from seekernel.engine.kv_pages import PagePool, available_memory_bytes, pages_for, size_pool
from seekernel.engine.options import EngineOptions
from seekernel.engine.outputs import Logprob
from seekernel.engine.request import TokenSequence
from seekernel.engine.sampler import Choice, sample
from seekernel.engine.scheduler import Chunk, Scheduler
from seekernel.errors import CapacityError
from seekernel.model import Batch, DeepseekV3ForCausalLM
from seekernel.tokenizer import Tokenizer

DEVICE = "cpu"


class EngineCore:
    """A model, its cache, and the sequences that share them. Not thread-safe."""

    def __init__(
        self, model: DeepseekV3ForCausalLM, options: EngineOptions, tokenizer: Tokenizer | None
    ) -> None:
        self._model, self._options, self._tokenizer = model, options, tokenizer
        page_size, dtype = options.page_size, options.kv_cache_dtype
        one_page = model.allocate_kv_cache(1, page_size, dtype)
        limit = options.kv_cache_bytes
        num_pages, self.max_seq_len = size_pool(
            bytes_per_page=sum(layer.nbytes for layer in one_page),
            page_size=page_size,
            max_batch_size=min(options.max_batch_size, options.max_num_tokens),
            max_seq_len=options.max_seq_len,
            max_position_embeddings=model.config.max_position_embeddings,
            limit_bytes=available_memory_bytes() // 4 if limit is None else limit,
        )
        self._kv_cache = model.allocate_kv_cache(num_pages, page_size, dtype)
        self.pool = PagePool(num_pages)
        self._scheduler = Scheduler(
            self.pool, page_size, options.max_batch_size, options.max_num_tokens
        )

    @property
    def has_work(self) -> bool:
        return self._scheduler.has_work

    def add(self, sequence: TokenSequence) -> None:
        """Queue a sequence. Errors: CapacityError if its pages are more than there are."""
        if not self._scheduler.fits(sequence):
            wanted = pages_for(sequence.max_cached, self._options.page_size)
            raise CapacityError(
                f"prompt: {len(sequence.prompt_token_ids)} tokens and max_tokens "
                f"{sequence.max_tokens} need {wanted} pages of the KV cache, it has "
                f"{self.pool.num_pages}"
            )
        self._scheduler.add(sequence)

    def abort(self, sequences: Iterable[TokenSequence]) -> None:
        """End sequences that have not finished and free their pages."""
        for sequence in sequences:
            self._scheduler.remove(sequence)
            sequence.finish("abort")

    def step(self) -> list[TokenSequence]:
        """Run one forward and return the sequences that finished in it."""
        chunks = self._scheduler.schedule()
        choices = self._forward(chunks)
        finished = []
        for chunk in chunks:
            sequence = chunk.sequence
            sequence.num_cached += chunk.num_new
            if not chunk.samples:
                continue
            self._append(sequence, choices.pop(0))
            if sequence.finished:
                self._scheduler.remove(sequence)
                finished.append(sequence)
        return finished

    @torch.inference_mode()
    def _forward(self, chunks: list[Chunk]) -> list[Choice | None]:
        sequences = [chunk.sequence for chunk in chunks]
        num_new = [chunk.num_new for chunk in chunks]
        batch = Batch.build(
            DEVICE,
            self._options.page_size,
            [sequence.pages for sequence in sequences],
            [sequence.num_cached for sequence in sequences],
            num_new,
        )
        tokens = [
            token for chunk in chunks for token in chunk.sequence.uncached_tokens(chunk.num_new)
        ]
        hidden = self._model.forward(torch.tensor(tokens, device=DEVICE), batch, self._kv_cache)
        last_rows = torch.tensor(num_new).cumsum(0) - 1
        rows = [int(row) for row, chunk in zip(last_rows, chunks, strict=True) if chunk.samples]
        if not rows:
            return []
        logits = self._model.compute_logits(hidden[torch.tensor(rows, device=DEVICE)])
        return sample(logits, [chunk.sequence for chunk in chunks if chunk.samples])

    def _append(self, sequence: TokenSequence, choice: Choice | None) -> None:
        if choice is None:
            sequence.fail("the model gave NaN or infinite logits")
            return
        output = sequence.output
        if choice.logprobs is not None:
            named = {
                token: Logprob(value, rank, self._spell(token))
                for token, (value, rank) in choice.logprobs.items()
            }
            output.logprobs = [*(output.logprobs or []), named]
            chosen = choice.logprobs[choice.token_id][0]
            output.cumulative_logprob = (output.cumulative_logprob or 0.0) + chosen
        sequence.append(choice.token_id)

    def _spell(self, token: int) -> str:
        return "" if self._tokenizer is None else self._tokenizer.decode([token], False)
