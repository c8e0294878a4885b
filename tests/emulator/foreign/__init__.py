"""Kernels that nobody here wrote, built from headers inside PyPI wheels when a test wants them."""
