"""A request from outside: wait for its end, follow its progress, or abort it. Any thread may."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from dataclasses import replace
from typing import Any

from seekernel.engine.outputs import CompletionOutput, RequestOutput, Timing
from seekernel.engine.request import TokenSequence
from seekernel.engine.sampling_params import SamplingParams


class RequestHandle:
    """A request on its way.

        handle = llm.generate_async("Once upon a time")
        async for output in handle: ...     # or: for output in handle
        output = await handle               # or: handle.result()

    Iterating gives the output so far, each time it has grown; a slow reader skips states and never
    holds up the engine. Each output is a copy that does not change any more.
    """

    def __init__(
        self, output: RequestOutput, sequences: list[TokenSequence], params: SamplingParams
    ) -> None:
        self.sequences, self._params = sequences, params
        self.arrived_at = time.perf_counter()
        self._output = output
        self._changed = threading.Condition()
        self._version = 0
        self._done = False
        self._error: BaseException | None = None
        self._waiters: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []
        self._on_done: list[Callable[[RequestHandle], None]] = []
        self._abort: Callable[[RequestHandle], None] | None = None
        self._output_lock: threading.Lock | None = None
        self._left = len(sequences)
        for sequence in sequences:
            sequence.owner = self

    @property
    def request_id(self) -> int:
        return self._output.request_id

    @property
    def done(self) -> bool:
        return self._done

    @property
    def error(self) -> BaseException | None:
        """What ended the engine's work as a whole, if that is what ended this request."""
        return self._error

    def bind(self, abort: Callable[[RequestHandle], None], output_lock: threading.Lock) -> None:
        """Give the handle to an engine: how to abort it, and what guards its sequences."""
        self._abort, self._output_lock = abort, output_lock

    def abort(self) -> None:
        """End the request: what it has so far is its output, finish_reason "abort"."""
        if self._abort is not None and not self._done:
            self._abort(self)

    def result(self, timeout: float | None = None) -> RequestOutput:
        """Wait for the end and return the output. Errors: TimeoutError; what ended the engine."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._done, timeout):
                raise TimeoutError(f"request {self.request_id} did not end in {timeout} s")
        if self._error is not None:
            raise self._error
        return self.snapshot()

    def __iter__(self) -> Iterator[RequestOutput]:
        seen = 0
        while True:
            with self._changed:
                while self._version == seen and not self._done:
                    self._changed.wait()
                seen, done = self._version, self._done
            if done and self._error is not None:
                raise self._error
            yield self.snapshot()
            if done:
                return

    async def __aiter__(self) -> AsyncIterator[RequestOutput]:
        seen = 0
        waiter = (asyncio.get_running_loop(), asyncio.Event())
        with self._changed:
            self._waiters.append(waiter)
        try:
            while True:
                waiter[1].clear()
                with self._changed:
                    changed, done = self._version > seen or self._done, self._done
                    seen = self._version
                if not changed:
                    await waiter[1].wait()
                    continue
                if done and self._error is not None:
                    raise self._error
                yield self.snapshot()
                if done:
                    return
        finally:
            with self._changed:
                self._waiters.remove(waiter)

    def __await__(self) -> Generator[Any, None, RequestOutput]:
        return self._last().__await__()

    async def _last(self) -> RequestOutput:
        waiter = (asyncio.get_running_loop(), asyncio.Event())
        with self._changed:
            self._waiters.append(waiter)
            done = self._done
        try:
            while not done:
                await waiter[1].wait()
                waiter[1].clear()
                done = self._done
        finally:
            with self._changed:
                self._waiters.remove(waiter)
        return self.result()

    def snapshot(self) -> RequestOutput:
        """Return a copy of the output as it is now."""
        lock = self._output_lock
        if lock is None or self._done:
            return self._copy()
        with lock:
            return self._copy()

    def _copy(self) -> RequestOutput:
        outputs = []
        for sequence in self.sequences:
            item = sequence.output
            logprobs = None if item.logprobs is None else list(item.logprobs)
            speculation = None if item.speculation is None else replace(item.speculation)
            outputs.append(
                replace(
                    item,
                    token_ids=list(item.token_ids),
                    logprobs=logprobs,
                    speculation=speculation,
                )
            )
        if len(outputs) > self._params.n:
            outputs = self._best(outputs)
        known = self.sequences[0].prompt_logprobs
        prompt_logprobs = None if known is None else [None, *known]
        starts = [s.first_scheduled_at for s in self.sequences if s.first_scheduled_at is not None]
        firsts = [s.first_token_at for s in self.sequences if s.first_token_at is not None]
        ends = [s.finished_at for s in self.sequences if s.finished_at is not None]
        timing = Timing(
            scheduled=min(starts) - self.arrived_at if starts else None,
            first_token=min(firsts) - self.arrived_at if firsts else None,
            finished=max(ends) - self.arrived_at if len(ends) == len(self.sequences) else None,
        )
        cached = max((sequence.num_reused for sequence in self.sequences), default=0)
        return replace(
            self._output,
            outputs=outputs,
            prompt_logprobs=prompt_logprobs,
            timing=timing,
            cached_tokens=cached,
        )

    def _best(self, outputs: list[CompletionOutput]) -> list[CompletionOutput]:
        """Return the n samples of largest log-probability, once all have ended; until then the first."""
        if self._done:
            outputs.sort(key=lambda item: -(item.cumulative_logprob or 0.0))
        wanted = self._params.logprobs is not None
        return [
            replace(item, index=index, logprobs=item.logprobs if wanted else None)
            for index, item in enumerate(outputs[: self._params.n])
        ]

    def when_done(self, call: Callable[[RequestHandle], None]) -> None:
        """Call a function once the request has ended, on the thread that ends it."""
        with self._changed:
            if not self._done:
                self._on_done.append(call)
                return
        call(self)

    def notify(self, error: BaseException | None = None) -> None:
        """Tell whoever waits that the sequences have changed. Called by the engine's thread."""
        with self._changed:
            if self._done:
                return
            self._version += 1
            self._error = error
            self._done = error is not None or all(item.finished for item in self.sequences)
            calls = self._on_done if self._done else []
            if self._done:
                self._on_done = []
            self._changed.notify_all()
            for loop, event in self._waiters:
                try:
                    loop.call_soon_threadsafe(event.set)
                except RuntimeError:  # the loop was closed under a reader that is gone
                    continue
        for call in calls:
            call(self)
