"""The loop every engine worker runs: JSON commands on standard input, JSON answers on standard output.

A worker may run in another interpreter, whose packages clash with ours: it imports nothing of
seekernel but this file, by path.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any, Protocol


class Engine(Protocol):
    """What a worker must offer. Prompts are lists of token ids, one per sequence."""

    version: str

    def prefill(self, prompts: list[list[int]]) -> None:
        """Run the prompts; the last logits of each must exist when it returns."""

    def decode(self, num_steps: int) -> list[list[int]]:
        """Continue the prompts of the last prefill greedily; return the tokens per sequence."""


def serve(engine: Engine) -> None:
    """Answer commands until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever an engine prints must not mix with the answers
    print(json.dumps({"version": engine.version}), file=answers, flush=True)
    for line in sys.stdin:
        command: dict[str, Any] = json.loads(line)
        start = time.perf_counter()
        tokens: list[list[int]] = []
        if command["do"] == "prefill":
            engine.prefill(command["prompts"])
        else:
            tokens = engine.decode(command["steps"])
        seconds = time.perf_counter() - start
        print(json.dumps({"seconds": seconds, "tokens": tokens}), file=answers, flush=True)
