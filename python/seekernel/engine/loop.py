"""The engine's own thread: takes requests in, steps while there is work, tells who waits."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from queue import SimpleQueue

from seekernel.engine.core import EngineCore
from seekernel.engine.handle import RequestHandle
from seekernel.engine.request import TokenSequence
from seekernel.errors import CapacityError


class EngineLoop:
    """Runs an EngineCore on a thread; requests come from any other.

    What goes wrong in a step is no single request's fault: it ends all of them with that error, and
    the loop goes on with what comes next. Nobody is left waiting, at a shutdown neither.
    """

    def __init__(self, core: EngineCore) -> None:
        self.core = core
        self._inbox: SimpleQueue[tuple[str, Sequence[RequestHandle]]] = SimpleQueue()
        self._live: dict[int, RequestHandle] = {}
        self._gate = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="seekernel-engine", daemon=True)
        self._thread.start()

    def submit(self, handles: Sequence[RequestHandle]) -> None:
        """Queue requests. Errors: RuntimeError after close."""
        for handle in handles:
            handle.bind(self.abort, self.core.output_lock)
        with self._gate:
            if self._closed:
                raise RuntimeError("this LLM was shut down")
            self._inbox.put(("add", handles))

    def abort(self, handle: RequestHandle) -> None:
        """Abort a request; it has ended when its handle says so, after the step under way."""
        self._inbox.put(("abort", [handle]))

    def close(self, wait: bool = True) -> None:
        """Abort what runs and end the thread; twice does no harm."""
        with self._gate:
            self._closed = True
            self._inbox.put(("close", ()))
        if wait and threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self) -> None:
        core = self.core
        try:
            while True:
                while not core.has_work or not self._inbox.empty():
                    command, handles = self._inbox.get()
                    if command == "close":
                        return
                    for handle in handles:
                        self._add(handle) if command == "add" else self._end(handle)
                try:
                    self._tell(core.step())
                except Exception as error:
                    core.reset()
                    self._fail_all(error)
        except BaseException as error:
            self._fail_all(error)
            raise
        finally:
            self._closed = True
            self._end_all()
            core.close()

    def _add(self, handle: RequestHandle) -> None:
        self._live[id(handle)] = handle
        for sequence in handle.sequences:
            try:
                self.core.add(sequence)
            except CapacityError as error:
                sequence.fail(str(error))
        if all(sequence.finished for sequence in handle.sequences):
            self._live.pop(id(handle))
            handle.notify()

    def _tell(self, sequences: Sequence[TokenSequence]) -> None:
        changed = {id(item.owner): item.owner for item in sequences if item.owner is not None}
        for handle in changed.values():
            handle.notify()
            if handle.done:
                self._live.pop(id(handle), None)

    def _end(self, handle: RequestHandle) -> None:
        if self._live.pop(id(handle), None) is not None:
            self.core.abort(handle.sequences)
            handle.notify()

    def _fail_all(self, error: BaseException) -> None:
        handles, self._live = list(self._live.values()), {}
        for handle in handles:
            for sequence in handle.sequences:
                if not sequence.finished:
                    sequence.fail(f"{type(error).__name__}: {error}")
            handle.notify(error)

    def _end_all(self) -> None:
        while not self._inbox.empty():
            command, handles = self._inbox.get()
            if command == "add":
                self._live.update((id(handle), handle) for handle in handles)
        for handle in list(self._live.values()):
            self._end(handle)
