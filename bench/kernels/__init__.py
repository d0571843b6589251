"""Loops without the GIL for benchmarks and tests; not in the wheel."""
