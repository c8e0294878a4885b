"""Errors a user can cause with a checkpoint directory: one line, naming what, expected and got."""

from seekernel.errors import SeekernelError


class CheckpointError(SeekernelError):
    """A checkpoint directory that cannot be used."""


class ConfigError(CheckpointError):
    """A config.json that describes no model this package runs; the text names the key."""


class WeightError(CheckpointError):
    """Weights that are missing, surplus, mis-shaped, of a wrong dtype, or damaged; names the tensor."""
