"""Measured ratios against a floor or a peer of the same run; see docs/benchmarks.md."""
