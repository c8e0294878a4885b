"""Our model through its own forward pass: FP8 weights, bfloat16 cache. Arguments: checkpoint, threads."""

from __future__ import annotations

import sys

import torch

import seekernel
from benchmarks.workers.protocol import serve
from seekernel.model import Batch, DeepseekV3ForCausalLM

PAGE_SIZE, PAGES_PER_SEQUENCE, MAX_SEQUENCES = 64, 16, 8


class SeekernelEngine:
    """One page table per sequence, no scheduler: what is measured is the model."""

    version = seekernel.__version__

    def __init__(self, model_dir: str) -> None:
        self.model = DeepseekV3ForCausalLM.from_pretrained(model_dir)
        self.cache = self.model.allocate_kv_cache(PAGES_PER_SEQUENCE * MAX_SEQUENCES, PAGE_SIZE)
        self.lengths: list[int] = []
        self.next = torch.empty(0)

    def _run(self, new: list[int], tokens: torch.Tensor) -> None:
        tables = [
            list(range(i * PAGES_PER_SEQUENCE, (i + 1) * PAGES_PER_SEQUENCE))
            for i in range(len(new))
        ]
        batch = Batch.build("cpu", PAGE_SIZE, tables, self.lengths, new)
        hidden = self.model.forward(tokens, batch, self.cache)
        last = torch.tensor(new).cumsum(0) - 1
        self.next = self.model.compute_logits(hidden[last]).argmax(-1)
        self.lengths = [a + b for a, b in zip(self.lengths, new, strict=True)]

    def prefill(self, prompts: list[list[int]]) -> None:
        self.lengths = [0] * len(prompts)
        self._run([len(p) for p in prompts], torch.tensor([t for p in prompts for t in p]))

    def decode(self, num_steps: int) -> list[list[int]]:
        steps = []
        for _ in range(num_steps):
            steps.append(self.next.tolist())
            self._run([1] * len(self.lengths), self.next)
        return [list(tokens) for tokens in zip(*steps, strict=True)]


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[2]))
    serve(SeekernelEngine(sys.argv[1]))
