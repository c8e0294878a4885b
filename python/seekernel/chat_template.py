"""Chat templates, rendered in a process of their own that can be killed.

A template is a program from the checkpoint: it runs in jinja2's immutable sandbox, with limits on
time, memory and output that only another process can enforce.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from seekernel.errors import ChatTemplateError, RequestError

TIME_LIMIT_S = 2.0
START_LIMIT_S = 60.0
MAX_SOURCE_CHARACTERS = 1 << 20
MAX_RESPONSE_BYTES = 64 << 20
ALLOWED_VARIABLES = frozenset({"documents", "enable_thinking", "thinking", "tools"})
# The worker sees the modules this process sees, and nothing of the current directory.
_LAUNCH = (
    "import sys, json; sys.path[:] = json.loads(sys.argv[1]); "
    "from seekernel.chat_worker import main; main()"
)


class ChatTemplate:
    """One template. Errors of render: ChatTemplateError, RequestError; both are one line."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        if len(source) > MAX_SOURCE_CHARACTERS:
            raise ChatTemplateError(
                f"chat template: expected at most {MAX_SOURCE_CHARACTERS} characters, "
                f"got {len(source)}"
            )
        self.source = source
        self._special_tokens = dict(special_tokens)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> str:
        """Return the conversation as text; `variables` are those in ALLOWED_VARIABLES."""
        check_messages(messages)
        for name in variables:
            if name not in ALLOWED_VARIABLES:
                raise RequestError.expected(
                    "chat template variable", f"one of {sorted(ALLOWED_VARIABLES)}", name
                )
        context = {
            **self._special_tokens,
            **variables,
            "messages": list(messages),
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            job = json.dumps({"source": self.source, "context": context}).encode("ascii")
        except (TypeError, ValueError, RecursionError) as error:
            raise RequestError(f"messages: expected JSON values: {error}") from None
        return _WORKER.render(job)


def check_messages(messages: object) -> None:
    """Refuse anything but a non-empty list of objects with a role. Errors: RequestError."""
    if not isinstance(messages, list | tuple) or not messages:
        raise RequestError.expected("messages", "a list of at least one message", messages)
    for message in messages:
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise RequestError.expected("messages", "objects with a role and a content", message)


class _Worker:
    """The process that renders, started at the first use and again after it was killed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def render(self, job: bytes) -> str:
        with self._lock:
            process = self._start()
            try:
                answer = json.loads(self._exchange(process, job, TIME_LIMIT_S))
            except (OSError, ValueError, ChatTemplateError) as error:
                self.stop()
                if isinstance(error, ChatTemplateError):
                    raise
                raise ChatTemplateError("chat template: its process ended") from None
        if "error" in answer:
            raise ChatTemplateError(f"chat template: {answer['error']}")
        return str(answer["text"])

    def _start(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-c", _LAUNCH, json.dumps(sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
        )
        try:
            self._exchange(self._process, b"", START_LIMIT_S)
        except (OSError, ChatTemplateError):
            self.stop()
            raise RuntimeError("the process that renders chat templates did not start") from None
        return self._process

    def stop(self) -> None:
        if self._process is not None:
            _kill(self._process)
            self._process = None

    def _exchange(self, process: subprocess.Popen[bytes], job: bytes, limit_s: float) -> bytes:
        """Send one line and receive one line, both before the deadline."""
        deadline = time.monotonic() + limit_s
        if process.stdin is None or process.stdout is None:
            raise RuntimeError("the process has no pipes")
        out_fd, in_fd = process.stdin.fileno(), process.stdout.fileno()
        os.set_blocking(out_fd, False)
        pending, received = memoryview(job + b"\n" if job else b""), bytearray()
        while not received.endswith(b"\n"):
            left = deadline - time.monotonic()
            readable, writable, _ = select.select(
                [in_fd], [out_fd] if pending else [], [], max(left, 0.0)
            )
            if not readable and not writable:
                raise ChatTemplateError(f"chat template: not done after {limit_s:g} s")
            if writable:
                pending = pending[os.write(out_fd, pending[:65536]) :]
            if readable:
                piece = os.read(in_fd, 1 << 20)
                if not piece or len(received) + len(piece) > MAX_RESPONSE_BYTES:
                    raise OSError("the process ended")
                received += piece
        return bytes(received)


def _kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


_WORKER = _Worker()
atexit.register(_WORKER.stop)
