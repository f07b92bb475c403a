"""Intervals: that they hold the value, are as wide as theory says, and that pairing narrows them."""

import math

import numpy as np
import pandas as pd
import pytest

from editkit.studies.intervals import fact_scores, interval, mean_interval, paired_difference


def prompts_of(success: np.ndarray) -> pd.DataFrame:
    rows = [
        {"seed": 1, "fact": f"f{i}", "kind": kind, "moment": "final", "success": bool(value)}
        for i, triple in enumerate(success)
        for kind, value in zip(("rewrite", "paraphrase", "neighbourhood"), triple, strict=True)
    ]
    return pd.DataFrame(rows)


def test_intervals_hold_the_value_and_paired_differences_are_narrower():
    generator = np.random.default_rng(0)
    base = generator.random((200, 3)) < 0.7
    better = base | (generator.random((200, 3)) < 0.3)
    alone, other = interval(prompts_of(better)), interval(prompts_of(base))
    means = better.mean(0)
    assert alone.value[:3].tolist() == pytest.approx(means) and alone.value["S"] == pytest.approx(3 / (1 / means).sum())
    assert ((alone.low < alone.value) & (alone.value < alone.high)).all()
    # The mean of n yes-or-no answers has the standard error sqrt(p (1 - p) / n).
    width = 2 * 1.96 * np.sqrt(means[0] * (1 - means[0]) / 200)
    assert alone.high["ES"] - alone.low["ES"] == pytest.approx(width, rel=0.15)
    difference = paired_difference(prompts_of(better), prompts_of(base))
    assert difference.value["S"] == pytest.approx(alone.value["S"] - other.value["S"]) and (difference.low > 0).all()
    assert (difference.high - difference.low < alone.high - other.low).all()
    nothing = paired_difference(prompts_of(base), prompts_of(base))
    assert (nothing == 0).all(axis=None)
    with pytest.raises(ValueError, match="same facts"):
        paired_difference(prompts_of(base), prompts_of(base[:10]))


def test_fact_scores_average_the_prompts_of_a_kind():
    frame = pd.concat([prompts_of(np.array([[1, 1, 0]])), prompts_of(np.array([[1, 0, 0]]))])
    assert fact_scores(frame).loc[(1, "f0")].tolist() == [1.0, 0.5, 0.0]


def test_the_interval_of_a_mean_is_student_s():
    mean, low, high = mean_interval([1.0, 2.0, 3.0])
    assert (
        mean == 2 and high - mean == pytest.approx(4.302653 / math.sqrt(3)) and mean - low == pytest.approx(high - mean)
    )
    assert mean_interval([5.0])[0] == 5 and all(math.isnan(end) for end in mean_interval([5.0])[1:])
