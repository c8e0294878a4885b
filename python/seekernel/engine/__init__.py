"""Inference on a model: continuous batching over a paged cache, sampling, the LLM class."""

from seekernel.engine.llm import LLM
from seekernel.engine.options import EngineOptions
from seekernel.engine.outputs import CompletionOutput, Logprob, RequestOutput
from seekernel.engine.sampling_params import SamplingParams

__all__ = [
    "LLM",
    "CompletionOutput",
    "EngineOptions",
    "Logprob",
    "RequestOutput",
    "SamplingParams",
]
