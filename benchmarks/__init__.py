"""Timings as ratios: the package against the plain implementations in ``tests/oracles.py``, in one run.

    python -m benchmarks --json benchmarks/results.json

Absolute times drift with the machine, so ours and the reference's alternate, and their ratio is reported:
the median over repeats, with the lowest and the highest.
"""
