"""Tests of seekernel; a package so that `python -m tests.emulator` works from the root."""
