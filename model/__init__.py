"""Thin DeepSeek-V3/R1 model over seekernel.ops: configuration, weights, layers."""

from seekernel.model.batch import Batch
from seekernel.model.config import ModelConfig
from seekernel.model.errors import CheckpointError, ConfigError, WeightError
from seekernel.model.model import DeepseekV3ForCausalLM, KVCache

__all__ = [
    "Batch",
    "CheckpointError",
    "ConfigError",
    "DeepseekV3ForCausalLM",
    "KVCache",
    "ModelConfig",
    "WeightError",
]
