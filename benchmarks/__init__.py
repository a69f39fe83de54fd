"""Benchmarks, a folder a theme: `python -m benchmarks.THEME.NAME` from the root of the repository."""
