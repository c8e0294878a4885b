"""Thin DeepSeek-V3/R1 model over seekernel.ops: configuration, weights, layers."""
