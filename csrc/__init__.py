"""Compiled sources of seekernel, shipped so that the JIT finds the device headers."""
