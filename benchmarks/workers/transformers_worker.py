"""transformers' DeepseekV3ForCausalLM, float32, sdpa, dynamic cache. Arguments: checkpoint, threads."""

from __future__ import annotations

import sys
from typing import Any

import torch
import transformers

from benchmarks.workers.protocol import serve


class TransformersEngine:
    """Greedy steps through the model's own cache, without generate()'s bookkeeping."""

    version = transformers.__version__

    def __init__(self, model_dir: str) -> None:
        load = transformers.DeepseekV3ForCausalLM.from_pretrained
        self.model = load(model_dir, dtype=torch.float32, attn_implementation="sdpa").eval()
        self.cache: Any = None
        self.next = torch.empty(0)

    @torch.inference_mode()
    def _run(self, tokens: torch.Tensor) -> None:
        result = self.model(tokens, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        self.cache = result.past_key_values
        self.next = result.logits[:, -1].argmax(-1)

    def prefill(self, prompts: list[list[int]]) -> None:
        self.cache = None
        self._run(torch.tensor(prompts))

    def decode(self, num_steps: int) -> list[list[int]]:
        steps = []
        for _ in range(num_steps):
            steps.append(self.next.tolist())
            self._run(self.next[:, None])
        return [list(tokens) for tokens in zip(*steps, strict=True)]


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[2]))
    serve(TransformersEngine(sys.argv[1]))
