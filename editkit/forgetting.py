"""What became of earlier edits: retention, half-life, collapse, and differences between runs with intervals.

Everything here reads the tables of :func:`editkit.sequences.run_sequence`.
"""

import numpy as np
import pandas as pd
from scipy.stats import bootstrap

from editkit.language.metrics import LETTER

COLLAPSE = 10.0  # perplexity, as a multiple of that before any edit
RESAMPLES = 2000


def retention_matrix(retention: pd.DataFrame, score: str = "ES") -> pd.DataFrame:
    """A score of the edits of step i (rows) as measured at step j (columns); nan before they were made.

    Steps at which only their own edits were measured are left out.
    """
    matrix = retention.pivot_table(index="edited_at", columns="measured_at", values=score, aggfunc="mean")
    return matrix.loc[:, matrix.iloc[0].notna()]


def forgetting_curve(retention: pd.DataFrame, score: str = "ES") -> pd.Series:
    """Mean score of edits against their age in steps; age 0 is right after they were made."""
    age = (retention.measured_at - retention.edited_at).rename("age")
    return retention.groupby(age)[score].mean()


def half_life(curve: pd.Series, before: float) -> float:
    """First age at which half of what the edit gained over ``before`` (no edit) is lost; nan if never seen."""
    lost = curve.index[curve - before <= (curve.loc[0] - before) / 2]
    return float(lost[0]) if len(lost) else float("nan")


def collapse_step(steps: pd.DataFrame) -> float:
    """First measured step at which the perplexity passes ``COLLAPSE`` times the untouched model's; nan if none."""
    measured = steps[steps.measured]
    return float(measured.step[~(measured.perplexity <= COLLAPSE * measured.perplexity_before)].min())


def fact_scores(prompts: pd.DataFrame, moment: str = "final") -> pd.DataFrame:
    """ES, PS, NS of every fact, one row a seed and fact."""
    part = prompts[prompts.moment == moment]
    wide = part.pivot_table(index=["seed", "fact"], columns="kind", values="success", aggfunc="mean")
    return wide[list(LETTER)].set_axis([f"{letter}S" for letter in LETTER.values()], axis=1)


def interval(prompts: pd.DataFrame, moment: str = "final", seed: int = 0) -> pd.DataFrame:
    """Scores of one run with 95 % bootstrap intervals over facts and seeds; index ES, PS, NS, S."""
    return _table([fact_scores(prompts, moment)], seed)


def paired_difference(
    prompts: pd.DataFrame, reference: pd.DataFrame, moment: str = "final", seed: int = 0
) -> pd.DataFrame:
    """Scores of one run minus those of another on the same facts, with 95 % intervals; index ES, PS, NS, S.

    Facts (of all seeds together) are drawn again with replacement, each with its scores in both runs.
    Raises ``ValueError`` where the runs do not hold the same facts.
    """
    ours, theirs = fact_scores(prompts, moment), fact_scores(reference, moment)
    if not ours.index.equals(theirs.index):
        raise ValueError("a paired difference needs the same facts and seeds in both runs")
    return _table([ours, theirs], seed)


def _table(runs: list[pd.DataFrame], seed: int) -> pd.DataFrame:
    """Columns value, low, high: of one run, or of the first minus the second."""

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
    """ES, PS, NS and S along a new first axis; S is 0 where one of them is."""
    stack = np.stack(means)
    with np.errstate(divide="ignore"):
        return np.concatenate([stack, (3 / (1 / stack).sum(0))[None]])
