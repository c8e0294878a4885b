"""LLM: prompts in, text out."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Any, TypeAlias, overload

import torch
from tqdm import tqdm

from seekernel._extension import build_info
from seekernel.engine.checkpoint import checkpoint_kv_cache_dtype, resolve_model_dir
from seekernel.engine.core import DEVICE, EngineCore
from seekernel.engine.handle import RequestHandle
from seekernel.engine.loop import EngineLoop
from seekernel.engine.metrics import Sample
from seekernel.engine.options import EngineOptions
from seekernel.engine.outputs import CompletionOutput, RequestOutput
from seekernel.engine.request import TokenSequence
from seekernel.engine.sampling_params import SamplingParams
from seekernel.errors import CapacityError, OptionError, RequestError
from seekernel.model import DeepseekV3ForCausalLM, ModelConfig
from seekernel.tokenizer import IncrementalDetokenizer, Tokenizer

Prompts: TypeAlias = (
    list[str] | tuple[str, ...] | list[list[int]] | tuple[list[int], ...] | list[str | list[int]]
)
Messages: TypeAlias = list[dict[str, Any]]
# Odd multipliers far apart keep the seeds of requests and of their samples from meeting.
REQUEST_STRIDE, SAMPLE_STRIDE = 0x9E3779B97F4A7C15, 0xD1B54A32D192ED03


class LLM:
    """A DeepSeek-V3 checkpoint ready to generate.

        with LLM("path/to/checkpoint") as llm:
            for output in llm.generate(["Once upon a time"], SamplingParams(max_tokens=64)):
                print(output.outputs[0].text)

    Args:
        model: a checkpoint directory in Hugging Face's layout; None is the bundled one.
        options: the fields of EngineOptions.
    Errors: SeekernelError, in one line, for everything wrong with the directory or the options.
    """

    def __init__(self, model: str | Path | None = None, **options: Any) -> None:
        self.options = EngineOptions.from_keywords(options)
        try:
            build_info()
        except RuntimeError as error:  # SEEKERNEL_CPU_ISA names what there is not
            raise OptionError(str(error)) from None
        self.model_dir = resolve_model_dir(model)
        self.config = ModelConfig.from_dir(self.model_dir)
        if self.options.kv_cache_dtype == "auto":
            asked = checkpoint_kv_cache_dtype(self.model_dir)
            self.options = replace(self.options, kv_cache_dtype=asked)
        limit = self.config.max_position_embeddings
        if self.options.max_seq_len is not None and self.options.max_seq_len > limit:
            raise OptionError.expected(
                "max_seq_len", f"at most the model's {limit}", self.options.max_seq_len
            )
        self._tokenizer = None
        if not self.options.skip_tokenizer_init:
            self._tokenizer = Tokenizer.from_dir(
                self.model_dir, self.config.vocab_size, self.config.eos_token_ids
            )
        loaded = DeepseekV3ForCausalLM.from_pretrained(
            self.model_dir,
            device=DEVICE,
            dtype=self.options.dtype,
            load_format=self.options.load_format,
        )
        loaded.set_moe_max_num_tokens(self.options.moe_max_num_tokens)
        if self.options.num_drafts == 0:
            loaded.mtp = None  # neither its weights nor its cache are needed
        elif loaded.mtp is None:
            raise OptionError(
                "spec_decode_algo: MTP needs a module of multi-token prediction, and the checkpoint "
                "has none (num_nextn_predict_layers is 0)"
            )
        self._loop: EngineLoop | None = EngineLoop(
            EngineCore(loaded, self.options, self._tokenizer)
        )
        self._request_ids = itertools.count()

    @property
    def tokenizer(self) -> Tokenizer:
        if self._tokenizer is None:
            raise OptionError("skip_tokenizer_init: this LLM has no tokenizer; give token ids")
        return self._tokenizer

    @property
    def max_seq_len(self) -> int:
        return self._live_core().max_seq_len

    @overload
    def generate(
        self,
        prompts: Prompts,
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]: ...

    @overload
    def generate(
        self,
        prompts: str | list[int],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = True,
    ) -> RequestOutput: ...

    def generate(
        self,
        prompts: str | list[int] | Prompts,
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = True,
    ) -> RequestOutput | list[RequestOutput]:
        """Complete prompts; all are checked before the first one runs.

        Args:
            prompts: one or a list; each a string, or a list of token ids.
            sampling_params: one for all, or one per prompt; by default greedy.
            use_tqdm: show a progress bar on standard error.
        Returns: outputs in the order of the prompts; a single one for a single prompt.
        Errors: RequestError, CapacityError naming prompt or field. A sequence that fails while it
        runs ends with finish_reason "error", and the others go on.
        """
        loop = self._live_loop()
        if not isinstance(prompts, str | list | tuple):
            raise RequestError.expected(
                "prompts", "a string, token ids, or a list of them", prompts
            )
        single = isinstance(prompts, str) or (
            len(prompts) > 0 and all(isinstance(item, int) for item in prompts)
        )
        many: Sequence[Any] = [prompts] if single else prompts
        params = self._params_per_prompt(sampling_params, len(many))
        handles = [
            self._make_request(prompt, params[index], "prompt" if single else f"prompt {index}")
            for index, prompt in enumerate(many)
        ]
        outputs = self._run(loop, handles, use_tqdm)
        return outputs[0] if single else outputs

    def generate_async(
        self, prompt: str | list[int], sampling_params: SamplingParams | None = None
    ) -> RequestHandle:
        """Start a request and return at once; the handle streams, waits and aborts.

        Errors: as generate.
        """
        loop = self._live_loop()
        handle = self._make_request(prompt, sampling_params or SamplingParams(), "prompt")
        loop.submit([handle])
        return handle

    def abort(self, request: RequestHandle) -> None:
        """End a request; its pages are free after the step under way."""
        request.abort()

    def metrics(self) -> list[Sample]:
        """Return the engine's counters under their Prometheus names."""
        core = self._live_core()
        return core.metrics.samples(core.scheduler, core.kv)

    @overload
    def chat(
        self,
        messages: Messages,
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = True,
        **template_variables: Any,
    ) -> RequestOutput: ...

    @overload
    def chat(
        self,
        messages: list[Messages],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = True,
        **template_variables: Any,
    ) -> list[RequestOutput]: ...

    def chat(
        self,
        messages: Messages | list[Messages],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = True,
        **template_variables: Any,
    ) -> RequestOutput | list[RequestOutput]:
        """Answer a conversation, or a list of them, through the checkpoint's chat template.

        messages: [{"role": ..., "content": ...}, ...].  template_variables: such as thinking=True.
        Errors: as generate, and ChatTemplateError.
        """
        single = len(messages) == 0 or isinstance(messages[0], Mapping)
        conversations: Sequence[Any] = [messages] if single else messages
        texts = [
            self.tokenizer.apply_chat_template(conversation, **template_variables)
            for conversation in conversations
        ]
        ids = [self.tokenizer.encode(text, add_special_tokens=False) for text in texts]
        outputs = self.generate(ids, sampling_params, use_tqdm)
        for output, text in zip(outputs, texts, strict=True):
            output.prompt = text
        return outputs[0] if single else outputs

    def shutdown(self) -> None:
        """Abort what runs, free weights and cache. A second call does nothing."""
        loop, self._loop = self._loop, None
        if loop is not None:
            loop.close()

    def __del__(self) -> None:
        loop = getattr(self, "_loop", None)
        if loop is not None:
            loop.close(wait=False)

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.shutdown()

    def _live_loop(self) -> EngineLoop:
        if self._loop is None:
            raise RuntimeError("this LLM was shut down")
        return self._loop

    def _live_core(self) -> EngineCore:
        return self._live_loop().core

    def _params_per_prompt(
        self, params: SamplingParams | Sequence[SamplingParams] | None, count: int
    ) -> Sequence[SamplingParams]:
        if params is None or isinstance(params, SamplingParams):
            return [params or SamplingParams()] * count
        if len(params) != count or not all(isinstance(item, SamplingParams) for item in params):
            raise RequestError.expected(
                "sampling_params", f"one SamplingParams, or {count} of them, one per prompt", params
            )
        return params

    def _make_request(self, prompt: object, params: SamplingParams, name: str) -> RequestHandle:
        core = self._live_core()
        ids = self._prompt_ids(prompt, name)
        if len(ids) >= core.max_seq_len:
            raise CapacityError(
                f"{name}: expected at most {core.max_seq_len - 1} tokens, to leave one of "
                f"max_seq_len {core.max_seq_len} for the answer, got {len(ids)}"
            )
        ends: dict[int, int | None] = {token: token for token in params.stop_token_ids}
        for token in ends:
            if token >= self.config.vocab_size:
                raise RequestError.expected(
                    "stop_token_ids", f"ids below vocab_size {self.config.vocab_size}", token
                )
        for token in dict(params.logit_bias):
            if token >= self.config.vocab_size:
                raise RequestError.expected(
                    "logit_bias", f"ids below vocab_size {self.config.vocab_size}", token
                )
        if params.stop and self._tokenizer is None:
            raise RequestError("stop: stop strings need a tokenizer (skip_tokenizer_init is set)")
        if not params.ignore_eos:
            eos = self.config.eos_token_ids
            if self._tokenizer is not None:
                eos = self._tokenizer.special.eos_token_ids
            ends.update(dict.fromkeys(eos))
        request_id = next(self._request_ids)
        seed = params.seed
        if seed is None:
            seed = self.options.seed + (request_id + 1) * REQUEST_STRIDE
        if params.num_samples > params.n and params.logprobs is None:
            own = replace(params, logprobs=0)  # the samples are compared by it
        else:
            own = params
        group = []
        for index in range(params.num_samples):
            generator = torch.Generator().manual_seed((seed + index * SAMPLE_STRIDE) % 2**64)
            group.append(
                TokenSequence(
                    prompt_token_ids=ids,
                    params=own,
                    max_tokens=min(params.max_tokens, core.max_seq_len - len(ids)),
                    end_ids=ends,
                    output=CompletionOutput(index),
                    generator=generator,
                    detokenizer=None
                    if self._tokenizer is None
                    else IncrementalDetokenizer(self._tokenizer),
                )
            )
        for sequence in group:
            core.check(sequence)
        text = prompt if isinstance(prompt, str) else None
        return RequestHandle(RequestOutput(request_id, text, ids, []), group, params)

    def _prompt_ids(self, prompt: object, name: str) -> list[int]:
        if isinstance(prompt, str):
            if not prompt:
                raise RequestError(f"{name}: expected some text, got an empty string")
            ids = self.tokenizer.encode(prompt)
        elif isinstance(prompt, list | tuple):
            ids = list(prompt)
        else:
            raise RequestError.expected(name, "a string or token ids", prompt)
        vocab_size = self.config.vocab_size
        for token in ids:
            if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < vocab_size:
                raise RequestError.expected(name, f"token ids from 0 to {vocab_size - 1}", token)
        if not ids:
            raise RequestError(f"{name}: expected at least one token, got none")
        return ids

    def _run(
        self, loop: EngineLoop, handles: list[RequestHandle], use_tqdm: bool
    ) -> list[RequestOutput]:
        ended: SimpleQueue[RequestHandle] = SimpleQueue()
        for handle in handles:
            handle.when_done(ended.put)
        loop.submit(handles)
        try:
            with tqdm(
                total=len(handles), desc="Processed requests", disable=not use_tqdm
            ) as progress:
                for _ in handles:
                    error = ended.get().error
                    if error is not None:
                        raise error
                    progress.update(1)
        except BaseException:
            for handle in handles:
                handle.abort()
            raise
        return [handle.snapshot() for handle in handles]
