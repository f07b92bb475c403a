"""How certain a number is: bootstrap intervals of scores, paired differences of runs, and t intervals of means.

Scores are read off the ``prompts`` of a run, see :func:`editkit.studies.sequences.run_sequence`.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.stats import bootstrap, t

from editkit.language.metrics import LETTER

RESAMPLES = 2000


def fact_scores(prompts: pd.DataFrame, moment: str = "final") -> pd.DataFrame:
    """Average success over the prompts of each fact: columns ES, PS and NS, one row a seed and fact."""
    part = prompts[prompts.moment == moment]
    wide = part.pivot_table(index=["seed", "fact"], columns="kind", values="success", aggfunc="mean")
    return wide[list(LETTER)].set_axis([f"{letter}S" for letter in LETTER.values()], axis=1)


def interval(prompts: pd.DataFrame, moment: str = "final", seed: int = 0) -> pd.DataFrame:
    """Score one run with 95 % bootstrap intervals over facts and seeds.

    Returns columns value, low and high, with the index ES, PS, NS, S.
    """
    return _table([fact_scores(prompts, moment)], seed)


def paired_difference(
    prompts: pd.DataFrame, reference: pd.DataFrame, moment: str = "final", seed: int = 0
) -> pd.DataFrame:
    """Subtract the scores of another run on the same facts from those of a run, with 95 % intervals.

    Facts (of all seeds together) are drawn again with replacement, each with its scores in both runs.

    Returns columns value, low and high, with the index ES, PS, NS, S. Raises ``ValueError`` where the runs do not hold
    the same facts.
    """
    ours, theirs = fact_scores(prompts, moment), fact_scores(reference, moment)
    if not ours.index.equals(theirs.index):
        raise ValueError("a paired difference needs the same facts and seeds in both runs")
    return _table([ours, theirs], seed)


def mean_interval(values: Sequence[float] | np.ndarray) -> tuple[float, float, float]:
    """Return the mean of values and the ends of its 95 % t interval, which are nan for one value."""
    values = np.asarray(values, dtype=float)
    mean = float(values.mean())
    if len(values) == 1:
        return mean, float("nan"), float("nan")
    half = float(t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5)
    return mean, mean - half, mean + half


def _table(runs: list[pd.DataFrame], seed: int) -> pd.DataFrame:
    """Tabulate value, low and high of one run, or of the first minus the second."""

    def statistic(*columns: np.ndarray, axis: int = -1) -> np.ndarray:
        means = [np.mean(column, axis=axis) for column in columns]
        scores = [_with_harmonic(means[i : i + 3]) for i in range(0, len(means), 3)]
        return scores[0] - scores[1] if len(scores) == 2 else scores[0]

    data = [run[name].to_numpy(float) for run in runs for name in ("ES", "PS", "NS")]
    value = statistic(*data)
    found = bootstrap(
        data, statistic, n_resamples=RESAMPLES, paired=True, vectorized=True, method="percentile", rng=seed
    ).confidence_interval
    return pd.DataFrame({"value": value, "low": found.low, "high": found.high}, index=["ES", "PS", "NS", "S"])


def _with_harmonic(means: list[np.ndarray]) -> np.ndarray:
    """Stack ES, PS, NS and S along a new first axis; S is 0 where one of them is."""
    stack = np.stack(means)
    with np.errstate(divide="ignore"):
        return np.concatenate([stack, (3 / (1 / stack).sum(0))[None]])
