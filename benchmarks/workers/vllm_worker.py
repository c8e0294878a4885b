"""vLLM on a CPU, float32, expanded keys (its latent path takes few widths). Arguments: checkpoint, threads."""

from __future__ import annotations

import os
import sys

os.environ.update(
    VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_MLA_DISABLE="1", VLLM_TARGET_DEVICE="cpu",
    VLLM_CPU_KVCACHE_SPACE="2", VLLM_CPU_OMP_THREADS_BIND="nobind", HF_HUB_OFFLINE="1",
)  # fmt: skip

from vllm import LLM, SamplingParams, TokensPrompt
from vllm import __version__ as vllm_version

from benchmarks.workers.protocol import serve


class VllmEngine:
    """Its engine stepped by hand, so that prefill and decode are timed apart."""

    version = vllm_version

    def __init__(self, checkpoint: str) -> None:
        self.engine = LLM(
            checkpoint, dtype="float32", skip_tokenizer_init=True, max_model_len=1024,
            enforce_eager=True, enable_prefix_caching=False, max_num_batched_tokens=8192,
            max_num_seqs=8,
        ).llm_engine  # fmt: skip
        self.tokens: dict[str, list[int]] = {}
        self.count = 0

    def _step(self) -> None:
        for output in self.engine.step():
            self.tokens[output.request_id] = list(output.outputs[0].token_ids)

    def prefill(self, prompts: list[list[int]]) -> None:
        if self.tokens:
            self.engine.abort_request(list(self.tokens))
        self.tokens = {}
        params = SamplingParams(temperature=0, max_tokens=500, ignore_eos=True, detokenize=False)
        for prompt in prompts:
            self.count += 1
            self.engine.add_request(str(self.count), TokensPrompt(prompt_token_ids=prompt), params)
        while len(self.tokens) < len(prompts):
            self._step()

    def decode(self, num_steps: int) -> list[list[int]]:
        want = len(next(iter(self.tokens.values()))) + num_steps
        while min(map(len, self.tokens.values())) < want:
            self._step()
        return [tokens[-num_steps - 1 : -1] for tokens in self.tokens.values()]


if __name__ == "__main__":
    serve(VllmEngine(sys.argv[1]))
