"""Benchmarks: ours and its peers interleaved in one run, checked before they are timed."""
