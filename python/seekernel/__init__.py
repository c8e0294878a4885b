"""DeepSeek-V3/R1 inference, kernel by kernel: ops, model, engine."""

from seekernel import _extension as _extension
from seekernel._version import __version__

__all__ = ["__version__"]
