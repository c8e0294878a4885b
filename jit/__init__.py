"""Turns a kernel spec into a loaded kernel, once: compilers, cache, loader. Knows no ops."""
