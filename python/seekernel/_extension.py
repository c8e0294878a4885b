"""Loads the compiled ops. Importing this module registers torch.ops.seekernel.*."""

import torch

try:
    from seekernel import _C
except ImportError as error:
    raise ImportError(
        f"seekernel._C, the compiled extension, cannot be loaded with torch {torch.__version__}: "
        f"{error}. Install from source with 'pip install --no-build-isolation .'"
    ) from error


def build_info() -> dict[str, str]:
    """Return what was compiled in: cpu_isa (the one in use), cuda_version ('' for none), compiler."""
    return dict(_C.build_info())
