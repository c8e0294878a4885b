"""llama.cpp through llama-cpp-python, float32 or Q8_0. Arguments: checkpoint, threads[, q8_0]."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import llama_cpp
import numpy as np

from benchmarks.workers.gguf_file import write_gguf
from benchmarks.workers.protocol import serve

MAX_SEQUENCES, MAX_LENGTH = 8, 1024


class LlamaCppEngine:
    """Its C interface directly: batches of several sequences, one logits row per sequence."""

    version = llama_cpp.__version__

    def __init__(self, checkpoint: Path, threads: int, q8_0: bool) -> None:
        target = checkpoint / ("model-q8_0.gguf" if q8_0 else "model-f32.gguf")
        if not target.exists():
            write_gguf(checkpoint, target, q8_0)
        llama_cpp.llama_backend_init()
        model_params = llama_cpp.llama_model_default_params()
        self.model = llama_cpp.llama_model_load_from_file(str(target).encode(), model_params)
        if not self.model:
            raise RuntimeError(f"llama.cpp cannot load {target}")
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = MAX_SEQUENCES * MAX_LENGTH
        params.n_batch = MAX_SEQUENCES * MAX_LENGTH
        params.n_ubatch = 512
        params.n_seq_max = MAX_SEQUENCES
        params.n_threads = params.n_threads_batch = threads
        params.type_k = params.type_v = 0  # float32, as our peers' caches
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        vocab = llama_cpp.llama_model_get_vocab(self.model)
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(vocab)
        self.batch = llama_cpp.llama_batch_init(MAX_SEQUENCES * MAX_LENGTH, 0, 1)
        self.lengths: list[int] = []
        self.next: list[int] = []

    def _run(self, new: list[list[int]]) -> None:
        count, rows = 0, []
        for sequence, tokens in enumerate(new):
            for i, token in enumerate(tokens):
                self.batch.token[count] = token
                self.batch.pos[count] = self.lengths[sequence] + i
                self.batch.n_seq_id[count] = 1
                self.batch.seq_id[count][0] = sequence
                self.batch.logits[count] = i == len(tokens) - 1
                count += 1
            rows.append(count - 1)
            self.lengths[sequence] += len(tokens)
        self.batch.n_tokens = count
        if llama_cpp.llama_decode(self.context, self.batch) != 0:
            raise RuntimeError("llama_decode failed")
        self.next = []
        for row in rows:
            pointer = llama_cpp.llama_get_logits_ith(self.context, row)
            logits = np.ctypeslib.as_array(
                ctypes.cast(pointer, ctypes.POINTER(ctypes.c_float)), (self.vocab_size,)
            )
            self.next.append(int(logits.argmax()))

    def prefill(self, prompts: list[list[int]]) -> None:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
        self.lengths = [0] * len(prompts)
        self._run(prompts)

    def decode(self, num_steps: int) -> list[list[int]]:
        steps = []
        for _ in range(num_steps):
            steps.append(self.next)
            self._run([[token] for token in self.next])
        return [list(tokens) for tokens in zip(*steps, strict=True)]


if __name__ == "__main__":
    serve(LlamaCppEngine(Path(sys.argv[1]), int(sys.argv[2]), "q8_0" in sys.argv[3:]))
