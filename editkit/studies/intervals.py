"""How certain a number is: the one room that says it, for every table and sentence of a report.

Scores are read off the ``prompts`` of runs, see :func:`editkit.studies.sequences.run_sequence`: every fact weighs the
same, facts of all seeds are pooled, and S is made of the pooled scores (:func:`editkit.language.metrics.harmonic`).

*Clusters.* Facts are no independent witnesses: those of a relation share their templates, and those of a draw share
context prefixes and, within a batch, one ΔW. So not facts are drawn again but clusters, relation × draw, as Cameron and
Miller advise ("A Practitioner's Guide to Cluster-Robust Inference", Journal of Human Resources 50, 2015, sections II
and IV). Runs in many batches have a second grouping, batch × draw; it counts where there are ``MIN_GROUPS`` of them,
since standard errors from fewer say little (section VI there); the wider interval is taken then. The facts of a source
without relations are clusters of their own, one that several seeds draw a single one. What all facts of a draw have in
common shows between seeds alone, and with a handful of seeds in no interval: tables therefore name their seeds.

*Intervals* are value ± t × standard error, the error from ``RESAMPLES`` cluster bootstraps (times √(G / (G − 1)), t
with G − 1 degrees of freedom for G clusters), on the logit scale for scores, so that they stay inside [0, 1]. The
percentile intervals of so few clusters are too narrow. Coverage is simulated in the tests.

*Borders.* Where all facts score the same, a sample shows no error. The exact binomial bound then says what share of
other facts may still do otherwise (:func:`proportion`). Its n is the number of facts: how much less than that clusters
are worth (Korn and Graubard, Survey Methodology 24, 1998) cannot be estimated where nothing varies, so there an
interval is, if anything, too narrow.
"""

import warnings
from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.special import expit, logit
from scipy.stats import binomtest, t

from editkit.language.metrics import LETTER, harmonic
from editkit.studies.protocol import check_one

RESOLVED = 0.05  # a comparison is resolved by a p, adjusted over its family, below this
RESAMPLES = 1000
MIN_GROUPS = 10
TINY = 1e-9  # a half-width that is rounding alone
BATCH = ("edited_at", "batch")  # columns that number a draw's batches
NAMES = [*(f"{letter}S" for letter in LETTER.values()), "S"]


def fact_scores(prompts: pd.DataFrame, moment: str = "final") -> pd.DataFrame:
    """Average success over the prompts of each fact: columns ES, PS and NS, one row a seed and fact.

    A score is nan for a fact without such prompts, or where success is missing in all of them.
    """
    part = prompts[prompts.moment == moment]
    wide = part.groupby(["seed", "fact", "kind"]).success.mean().unstack("kind")
    return wide.reindex(columns=list(LETTER)).set_axis(NAMES[:3], axis=1)


def interval(prompts: pd.DataFrame, moment: str = "final", seed: int = 0) -> pd.DataFrame:
    """Score one run with 95 % intervals.

    Returns columns value, low, high, n (facts), seeds and clusters (of the coarsest grouping), index ES, PS, NS, S.
    """
    check_one(prompts)
    scores = fact_scores(prompts, moment)
    return _table(scores, scores.to_numpy(float)[:, None], _groupings(prompts, moment, scores), seed)


def paired_difference(
    prompts: pd.DataFrame, reference: pd.DataFrame, moment: str = "final", seed: int = 0
) -> pd.DataFrame:
    """Subtract the scores of another run on the same facts from those of a run, with 95 % intervals.

    Clusters are drawn again with all their facts, each fact with its scores in both runs.

    Returns the columns of :func:`interval` and p, two-sided, of no difference; p is below 0.05 where the interval
    excludes 0. Where several runs are compared, :func:`holm` adjusts it. Raises ``ValueError`` where the runs do not
    hold the same facts, or were measured by other protocols.
    """
    check_one(prompts, reference)
    ours, theirs = fact_scores(prompts, moment), fact_scores(reference, moment)
    if not ours.index.equals(theirs.index):
        raise ValueError("a paired difference needs the same facts and seeds in both runs")
    both = np.stack([ours.to_numpy(float), theirs.to_numpy(float)], axis=1)
    return _table(ours, both, _groupings(prompts, moment, ours), seed)


def score_intervals(prompts: pd.DataFrame) -> pd.DataFrame:
    """Return :func:`interval` with EA, accuracy on rewrite prompts, below it; names are in column score."""
    return with_accuracy(interval(prompts), interval(by_accuracy(prompts))).reset_index()


def score_differences(prompts: pd.DataFrame, reference: pd.DataFrame) -> pd.DataFrame:
    """Return :func:`paired_difference` with EA, accuracy on rewrite prompts, below it; names are in column score."""
    exact = paired_difference(by_accuracy(prompts), by_accuracy(reference))
    return with_accuracy(paired_difference(prompts, reference), exact).reset_index()


def by_accuracy(prompts: pd.DataFrame) -> pd.DataFrame:
    """Let prompts count by accuracy in place of success."""
    return prompts.assign(success=prompts.accuracy)


def with_accuracy(found: pd.DataFrame, exact: pd.DataFrame) -> pd.DataFrame:
    """Add EA to what was found of each score: it is what was found of ES where prompts count by accuracy."""
    return pd.concat([found, exact.loc[["ES"]].rename(index={"ES": "EA"})])


def proportion(successes: int, n: int) -> tuple[float, float]:
    """Return the ends of the exact 95 % interval of a share (Clopper and Pearson, Biometrika 26, 1934).

    18 of 18 is [0.815, 1]: that nothing failed in a sample does not mean that nothing fails.
    """
    found = binomtest(successes, n).proportion_ci(0.95, method="exact")
    return float(found.low), float(found.high)


def holm(p: Sequence[float] | np.ndarray) -> np.ndarray:
    """Adjust the p values of a family of comparisons (Holm, Scandinavian Journal of Statistics 6, 1979).

    The chance that any true null hypothesis of the family has an adjusted p below 0.05 is at most 5 %, however the
    comparisons depend on each other. A p of nan, of a comparison that was not made, stays so and is not counted.
    """
    p = np.asarray(p, dtype=float)
    order = np.argsort(p)[: np.isfinite(p).sum()]  # nan is sorted last
    adjusted = np.full(len(p), np.nan)
    steps = p[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1) if len(order) else steps
    return adjusted


def mean_interval(values: Sequence[float] | np.ndarray) -> tuple[float, float, float]:
    """Return the mean of values and the ends of its 95 % t interval, which are nan for one value."""
    values = np.asarray(values, dtype=float)
    mean = float(values.mean())
    if len(values) == 1:
        return mean, float("nan"), float("nan")
    half = float(t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5)
    return mean, mean - half, mean + half


def clustered_mean_interval(
    values: Sequence[float] | np.ndarray, clusters: Sequence | np.ndarray
) -> tuple[float, float, float]:
    """Return the mean of values and the ends of its 95 % interval, which are nan for one cluster.

    The error is the cluster-robust one of a mean, √(G / (G − 1) Σ over clusters of (Σ (x − mean))²) / n for G clusters,
    and t has G − 1 degrees of freedom (Cameron and Miller, section II); where every value is a cluster of its own, this
    is :func:`mean_interval`.

    Args:
        clusters: the name of each value's cluster.
    """
    values = np.asarray(values, dtype=float)
    mean, number = float(values.mean()), len(set(clusters))
    if number == 1:
        return mean, float("nan"), float("nan")
    sums = pd.Series(values - mean).groupby(np.asarray(clusters)).sum()
    error = (number / (number - 1) * float((sums**2).sum())) ** 0.5 / len(values)
    half = float(t.ppf(0.975, number - 1)) * error
    return mean, mean - half, mean + half


def estimate(scores: np.ndarray, groupings: Sequence[np.ndarray], seed: int = 0) -> dict[str, np.ndarray]:
    """Estimate ES, PS, NS and S of one run, or those of the first of two runs minus the second, with 95 % intervals.

    Args:
        scores: (facts, runs, 3), in [0, 1]; nan where a fact has no such prompt.
        groupings: numbers of clusters, from 0, one a fact; for each way of grouping the facts.
        seed: of the bootstrap.

    Returns ``value``, ``low``, ``high`` and ``p`` (two-sided, of the value 0), each of shape (4,).
    """
    generator, least = np.random.default_rng(seed), 1.0 - scores.shape[1]
    value = _statistic(*_sums(scores, np.zeros(len(scores), dtype=int)))[0]
    half, p = np.zeros(4), np.zeros(4)
    for groups in groupings:
        error, freedom = _standard_error(scores, groups, generator)
        half = np.maximum(half, error * (t.ppf(0.975, freedom) if freedom else 1))
        with np.errstate(divide="ignore", invalid="ignore"):
            p = np.maximum(p, 2 * t.sf(np.abs(value) / error, freedom) if freedom else 1)
    low, high = _on_logits(value, half) if least == 0 else (value - half, value + half)
    found = {"value": value, "low": np.maximum(low, least), "high": np.minimum(high, 1.0), "p": p}
    return _at_borders(found, half < TINY, np.isfinite(scores).all(axis=1).sum(axis=0), least)


def rank_areas(
    event: np.ndarray, predictors: np.ndarray, groupings: Sequence[np.ndarray], seed: int = 0
) -> dict[str, np.ndarray]:
    """Estimate the areas under the ROC curves (AUC) of predictors of one event, with 95 % intervals.

    An area is the share of pairs, one case with the event and one without, in which the predictor is higher for the
    one with; ties count half (Hanley and McNeil, Radiology 143, 1982). Pairs are counted once for every two clusters:
    drawing clusters again then only weighs these counts.

    Args:
        event: whether it happened, (n,); some must be true and some false.
        predictors: (n, k).
        groupings: as for :func:`estimate`.

    Returns ``value``, ``low``, ``high``, each (k,), and of the first predictor's area minus each other's ``gap``,
    ``gap_low``, ``gap_high`` and two-sided ``p``. Raises ``ValueError`` where all or none have the event.
    """
    if event.all() or not event.any():
        raise ValueError(f"an area needs cases with and without the event, and {event.sum()} of {len(event)} have it")
    generator = np.random.default_rng(seed)
    value = _areas(np.ones((1, 1)), *_pairs(event, predictors, np.zeros(len(event), dtype=int)))[0]
    gap, half, gap_half, p = value[0] - value, *np.zeros((3, len(value)))
    for groups in groupings:
        number = groups.max() + 1
        if number == 1:
            half, gap_half, p = (np.full(len(value), end) for end in (np.inf, np.inf, 1.0))
            continue
        found, reach = _areas(_redrawn(number, generator), *_pairs(event, predictors, groups)), t.ppf(0.975, number - 1)
        half = np.maximum(half, reach * _spread(found, number))
        error = _spread(found[:, :1] - found, number)
        gap_half = np.maximum(gap_half, reach * error)
        with np.errstate(divide="ignore", invalid="ignore"):
            p = np.fmax(p, 2 * t.sf(np.abs(gap) / error, number - 1))
    low, high = _on_logits(value, half)
    rarer = int(min(event.sum(), (~event).sum()))
    edge = proportion(0, rarer)[1]  # of an order without any exception
    low, high = np.where(value == 1, 1 - edge, low), np.where(value == 0, edge, high)
    flat, same = gap_half < TINY, np.abs(gap) < TINY
    p = np.where(flat, np.where(same, 1.0, min(1, 2 * 0.5**rarer)), p)
    gap_half = np.where(flat & ~same, edge, gap_half)
    ends = {"gap_low": np.maximum(gap - gap_half, -1), "gap_high": np.minimum(gap + gap_half, 1)}
    return {"value": value, "low": low, "high": high, "gap": gap, **ends, "p": p}


def _pairs(event: np.ndarray, predictors: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, ...]:
    """Count the pairs that predictors order rightly, by the clusters of both cases (k, G, G), and each side (G,)."""
    number = groups.max() + 1
    wins = np.zeros((predictors.shape[1], number, number))
    for wins_of, values in zip(wins, predictors.T, strict=True):
        for other in range(number):
            without = np.sort(values[~event & (groups == other)])
            below = (np.searchsorted(without, values[event], side) for side in ("left", "right"))
            np.add.at(wins_of[:, other], groups[event], sum(below) / 2)
    return wins, *(np.bincount(groups[side], minlength=number) for side in (event, ~event))


def _areas(times: np.ndarray, wins: np.ndarray, with_event: np.ndarray, without: np.ndarray) -> np.ndarray:
    """Make areas (…, k) of counts of pairs, each cluster counted ``times`` (…, G); nan without a pair."""
    with np.errstate(invalid="ignore"):
        won = np.einsum("bg,kgh,bh->bk", times, wins, times, optimize=True)
        return won / ((times @ with_event) * (times @ without))[:, None]


def _standard_error(scores: np.ndarray, groups: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, int]:
    """Draw clusters again: the standard error of each statistic (4,), inf for one cluster; and degrees of freedom."""
    sums, counts = _sums(scores, groups)
    number = len(sums)
    if number == 1:
        return np.full(4, np.inf), 0
    times = _redrawn(number, generator)
    return _spread(_statistic(np.tensordot(times, sums, 1), np.tensordot(times, counts, 1)), number), number - 1


def _redrawn(number: int, generator: np.random.Generator) -> np.ndarray:
    """Draw clusters with replacement: how often each is drawn, (RESAMPLES, number)."""
    drawn = generator.integers(number, size=(RESAMPLES, number)) + number * np.arange(RESAMPLES)[:, None]
    return np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape).astype(float)


def _spread(found: np.ndarray, number: int) -> np.ndarray:
    """Return the standard error of statistics (RESAMPLES, …) of so many clusters drawn again."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a score that no fact has
        return np.nanstd(found, axis=0, ddof=1) * (number / (number - 1)) ** 0.5


def _sums(scores: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Add up the scores of each cluster, and count them: twice (clusters, runs, 3)."""
    known, shape = np.isfinite(scores), (groups.max() + 1, *scores.shape[1:])
    sums, counts = np.zeros(shape), np.zeros(shape)
    np.add.at(sums, groups, np.where(known, scores, 0))
    np.add.at(counts, groups, known)
    return sums, counts


def _statistic(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Make ES, PS, NS and S (…, 4) of sums and counts (…, runs, 3); of two runs, the first minus the second."""
    with np.errstate(divide="ignore", invalid="ignore"):
        means = sums / counts
    scores = np.concatenate([means, harmonic(means)[..., None]], axis=-1)
    return scores[..., 0, :] - scores[..., 1, :] if scores.shape[-2] == 2 else scores[..., 0, :]


def _on_logits(value: np.ndarray, half: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Carry value ± half over to the logit scale, where the slope is 1 / (value (1 − value)), and back."""
    with np.errstate(divide="ignore", invalid="ignore"):
        reach = half / (value * (1 - value))
        low, high = expit(logit(value) - reach), expit(logit(value) + reach)
    flat, unknown = half < TINY, np.isinf(half) & np.isfinite(value)  # of one cluster
    return np.where(flat, value, np.where(unknown, 0, low)), np.where(flat, value, np.where(unknown, 1, high))


def _at_borders(
    found: dict[str, np.ndarray], flat: np.ndarray, facts: np.ndarray, least: float
) -> dict[str, np.ndarray]:
    """Where nothing varies (``flat``), let as many other facts be at the scale's ends as the binomial bound allows.

    Args:
        facts: how many there are of ES, PS and NS.
        least: the lower end of the scale; the upper one is 1.
    """
    if not flat.any():
        return found
    value = found["value"]
    numbers = [*facts, min(facts)]
    share = np.array([proportion(0, n)[1] if n else 0 for n in numbers])
    low, high = value - share * (value - least), value + share * (1 - value)
    if least == 0:  # S moves as far as the scores it is made of
        ends = (harmonic(np.where(flat, end, value)[:3]) for end in (low, high))
        low[3], high[3] = np.minimum(found["low"][3], next(ends)), np.maximum(found["high"][3], next(ends))
        flat = np.append(flat[:3], flat[:3].any())
    sign = np.minimum(1, 2 * 0.5 ** np.array(numbers, dtype=float))  # of facts that all differ in the same way
    p = np.where(np.abs(value) < TINY, 1.0, sign)
    new = {"low": low, "high": high, "p": p}
    return found | {name: np.where(flat, column, found[name]) for name, column in new.items()}


def clustered_by(facts: pd.DataFrame) -> str:
    """Name the column of clusters within a draw: relation, or fact where there is one relation alone, or none named."""
    return "relation" if facts.relation.nunique() > 1 else "fact"


def clusters(facts: pd.DataFrame) -> np.ndarray:
    """Number the clusters of facts (columns seed, fact, relation) from 0: relation × draw, or else facts.

    A fact that several seeds draw is one witness.
    """
    by = clustered_by(facts)
    return facts.groupby(["seed", by] if by == "relation" else by).ngroup().to_numpy()


def _groupings(prompts: pd.DataFrame, moment: str, scores: pd.DataFrame) -> list[np.ndarray]:
    """Number the clusters of the facts, by relation × draw and by batch × draw."""
    part = prompts[prompts.moment == moment]
    of = part.drop_duplicates(["seed", "fact"]).set_index(["seed", "fact"]).loc[scores.index].reset_index()
    found = [clusters(of)]
    for column in BATCH:
        if column in of and of[column].notna().all():
            groups = of.groupby(["seed", column]).ngroup().to_numpy()
            found += [groups] if groups.max() + 1 >= MIN_GROUPS else []
    return found


def _table(facts: pd.DataFrame, scores: np.ndarray, groupings: list[np.ndarray], seed: int) -> pd.DataFrame:
    """Tabulate what :func:`estimate` finds, with the facts, seeds and clusters behind it."""
    found = estimate(scores, groupings, seed)
    if scores.shape[1] == 1:
        del found["p"]
    counts = facts.notna().sum().to_numpy()
    about = {"n": [*counts, counts.min()], "seeds": facts.index.get_level_values("seed").nunique()}
    about["clusters"] = min(groups.max() + 1 for groups in groupings)
    return pd.DataFrame(found | about, pd.Index(NAMES, name="score"))
