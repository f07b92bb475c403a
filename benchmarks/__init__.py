"""Timings as ratios: the package against the published algorithms in ``editkit.reference``, in one run.

    python -m benchmarks --json benchmarks/results.json

Absolute times drift with the machine, so ours and the reference's alternate, and their ratio is reported:
the median over repeats, with the lowest and the highest.
"""
