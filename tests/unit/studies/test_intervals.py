"""Intervals: that they cover what they claim, hold the value, respect clusters and borders, and pair."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from editkit.language.metrics import harmonic, summarize
from editkit.studies import intervals
from editkit.studies.intervals import (
    clustered_mean_interval,
    estimate,
    fact_scores,
    holm,
    interval,
    mean_interval,
    paired_difference,
    proportion,
    rank_areas,
)

KINDS = ("rewrite", "paraphrase", "neighbourhood")
RATES = np.array([[0.95, 0.80, 0.65], [0.90, 0.75, 0.70]])  # ES, PS, NS of two methods
N_PROMPTS = (1, 2, 5)  # of a fact, by kind
DATA_SETS = 1500


def prompts_of(success: np.ndarray, relations: int = 10**6, **columns) -> pd.DataFrame:
    """A prompt of each kind for every row of ``success``; fact i belongs to relation i modulo ``relations``."""
    rows = [
        {"seed": 1, "fact": f"f{i}", "relation": f"r{i % relations}", "kind": kind, "moment": "final"}
        | {"success": bool(value), "accuracy": False, **columns}
        for i, triple in enumerate(success)
        for kind, value in zip(KINDS, triple, strict=True)
    ]
    return pd.DataFrame(rows)


def made_up(generator: np.random.Generator, groupings: list[tuple[np.ndarray, float]]) -> np.ndarray:
    """Scores (facts, 2 methods, 3) whose expected values are RATES exactly.

    A prompt succeeds where a standard normal variable lies below its rate's quantile. Parts of its variance are shared
    by the facts of a cluster (as given with each grouping) and by the prompts of a fact (.2), four fifths of each by
    both methods.
    """
    n = len(groupings[0][0])
    parts = [*groupings, (np.arange(n), 0.2)]
    scores = np.empty((n, *RATES.shape))
    for kind, prompts in enumerate(N_PROMPTS):
        effects = []
        for groups, variance in parts:
            both, own = (
                generator.standard_normal((groups.max() + 1, 1)),
                generator.standard_normal((n, 2))[: groups.max() + 1],
            )
            effects.append(((0.8**0.5 * both + 0.2**0.5 * own) * variance**0.5)[groups])
        left = 1 - sum(variance for _, variance in parts)
        z = sum(effects)[..., None] + left**0.5 * generator.standard_normal((n, 2, prompts))
        scores[..., kind] = (z < norm.ppf(RATES[:, kind])[:, None]).mean(-1)
    return scores


def even(generator: np.random.Generator) -> list[tuple[np.ndarray, float]]:
    """14 relations × 3 draws of one to three facts each."""
    return [(np.repeat(np.arange(42), generator.integers(1, 4, 42)), 0.15)]


def uneven(generator: np.random.Generator) -> list[tuple[np.ndarray, float]]:
    """14 relations × 3 draws, some with a dozen facts; facts of a relation are much alike."""
    return [(np.repeat(np.arange(42), generator.geometric(0.35, 42)), 0.3)]


def in_batches(generator: np.random.Generator) -> list[tuple[np.ndarray, float]]:
    """14 relations × 3 draws of two facts each, edited in batches of four that have something in common too."""
    relations = np.repeat(np.arange(42), 2).reshape(3, 28)
    relations = generator.permuted(relations, axis=1).ravel()
    return [(relations, 0.1), (np.arange(84) // 4, 0.15)]


@pytest.mark.parametrize("draw", [even, uneven, in_batches])
def test_intervals_of_95_percent_cover_92_to_97_percent(draw, monkeypatch):
    monkeypatch.setattr(intervals, "RESAMPLES", 400)
    generator = np.random.default_rng(0)
    S = harmonic(RATES)
    truth = {"one method": [*RATES[0], S[0]], "difference": [*(RATES[0] - RATES[1]), S[0] - S[1]]}
    held = {name: np.zeros(4) for name in truth}
    for number in range(DATA_SETS):
        groupings = draw(generator)
        scores, groups = made_up(generator, groupings), [groups for groups, _ in groupings]
        for name, part in (("one method", scores[:, :1]), ("difference", scores)):
            found = estimate(part, groups, number)
            held[name] += (found["low"] <= truth[name]) & (truth[name] <= found["high"])
    coverage = {name: (100 * counts / DATA_SETS).round(1).tolist() for name, counts in held.items()}
    print(draw.__name__, coverage)
    assert all(92 <= share <= 97 for shares in coverage.values() for share in shares), coverage


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
    assert (difference.high - difference.low < alone.high - other.low).all() and (difference.p < 0.05).all()
    with pytest.raises(ValueError, match="same facts"):
        paired_difference(prompts_of(base), prompts_of(base[:10]))


def test_facts_of_a_relation_are_one_cluster_of_each_draw():
    success = np.repeat(np.random.default_rng(0).random((20, 3)) < 0.7, 5, axis=0)  # five facts that do the same
    apart, alike = prompts_of(success), prompts_of(success).assign(relation=lambda frame: frame.fact.str[:-1])
    alike["relation"] = alike.fact.map({f"f{i}": f"r{i // 5}" for i in range(100)})
    facts, clusters = interval(apart), interval(alike)
    assert facts.clusters.tolist() == [100] * 4 and clusters.clusters.tolist() == [20] * 4
    assert set(clusters.n) == {100} and set(clusters.seeds) == {1}
    # A hundred facts that are twenty times the same five are worth twenty.
    ratio = (clusters.high - clusters.low) / (facts.high - facts.low)
    assert ratio["NS"] == pytest.approx(5**0.5, rel=0.15)
    twice = pd.concat([alike, alike.assign(seed=2)])
    assert set(interval(twice).clusters) == {40} and set(interval(twice).seeds) == {2}


def test_batches_count_where_there_are_enough_of_them():
    success = np.repeat(np.random.default_rng(0).random((12, 3)) < 0.7, 4, axis=0)
    frame = prompts_of(success)
    frame["edited_at"] = frame.fact.map({f"f{i}": i // 4 + 1 for i in range(48)})
    alone, batches = interval(frame.drop(columns="edited_at")), interval(frame)
    assert set(alone.clusters) == {48} and set(batches.clusters) == {12}
    assert (batches.high - batches.low > 1.5 * (alone.high - alone.low)).all()
    few = frame.assign(edited_at=frame.edited_at % 4)
    assert interval(few).equals(alone)
    assert interval(frame.assign(edited_at=math.nan)).equals(alone), "the untouched model has no batches"


def test_a_source_without_relations_has_its_facts_for_clusters():
    success = np.random.default_rng(0).random((30, 3)) < 0.7
    once = interval(prompts_of(success, relations=1))
    assert set(once.clusters) == {30}
    # A second draw of the same facts with the same outcome is no further witness, and one of other facts is.
    again, others = prompts_of(success, relations=1, seed=2), prompts_of(success, relations=1, seed=2)
    others["fact"] = "other " + others.fact
    same, more = (interval(pd.concat([prompts_of(success, relations=1), seen])) for seen in (again, others))
    assert set(same.clusters) == {30} and set(same.n) == {60} and set(more.clusters) == {60}
    assert (same.high - same.low).to_numpy() == pytest.approx((once.high - once.low).to_numpy(), rel=0.1)
    assert ((more.high - more.low) < 0.85 * (same.high - same.low)).all()


def test_at_the_borders_intervals_are_exact():
    assert proportion(18, 18) == pytest.approx((0.8147, 1), abs=1e-4)  # (.025)^(1/18)
    assert proportion(5, 10) == pytest.approx((0.1871, 0.8129), abs=1e-4)  # Clopper and Pearson's table
    success = np.ones((18, 3), dtype=bool)
    whole = interval(prompts_of(success))
    assert whole.low.to_numpy() == pytest.approx(0.8147, abs=1e-4) and (whole.high == 1).all()
    success[:, 2] = np.arange(18) < 9
    half = interval(prompts_of(success))
    assert half.low["PS"] == pytest.approx(0.8147, abs=1e-4) and half.low["S"] < half.value["S"] < half.high["S"]
    nothing = interval(prompts_of(~np.ones((18, 3), dtype=bool)))
    assert (nothing.low == 0).all() and nothing.high.to_numpy() == pytest.approx(1 - 0.8147, abs=1e-4)


def test_equal_runs_are_not_proved_equal():
    same = prompts_of(np.random.default_rng(0).random((18, 3)) < 0.5)
    gap = paired_difference(same, same)
    assert (gap.value == 0).all() and (gap.p == 1).all()
    assert gap.high.to_numpy() == pytest.approx(1 - 0.8147, abs=1e-4) and (gap.low == -gap.high).all()


@pytest.mark.parametrize("facts", [5, 6])
def test_runs_that_differ_in_every_fact_are_told_apart_by_a_sign_test(facts):
    ones = np.ones((facts, 3), dtype=bool)
    gap = paired_difference(prompts_of(ones), prompts_of(~ones))
    assert (gap.value == 1).all() and (gap.high == 1).all() and gap.p.to_numpy() == pytest.approx(2 * 0.5**facts)
    assert ((gap.low > 0) == (gap.p < 0.05)).all() and (gap.low > 0).all() == (facts == 6)


def test_one_cluster_says_nothing_and_a_missing_kind_is_not_a_number():
    one = prompts_of(np.array([[1, 0, 1]]))
    one = pd.concat([one, one.assign(success=~one.success)])  # two prompts of each kind, one right
    table = interval(one)
    assert (table.value == 0.5).all() and (table.low == 0).all() and (table.high == 1).all()
    right = interval(prompts_of(np.array([[1, 1, 1]])))
    assert (right.value == 1).all() and (right.low == 0).all() and (right.high == 1).all()
    gap = paired_difference(one, one.assign(success=True))
    assert (gap.value == -0.5).all() and (gap.p == 1).all()
    without = interval(prompts_of(np.eye(3)[[0, 1, 2, 0]].astype(bool)).query("kind != 'neighbourhood'"))
    assert without.loc[["NS", "S"], ["value", "low", "high"]].isna().all(axis=None) and without.n["NS"] == 0
    assert without.loc[["ES", "PS"], ["value", "low", "high"]].notna().all(axis=None)


def test_s_of_an_interval_is_that_of_summarize_over_all_seeds():
    generator = np.random.default_rng(0)
    both = [prompts_of(generator.random((n, 3)) < 0.7).assign(seed=seed) for seed, n in ((1, 20), (2, 30))]
    pooled, table = summarize(pd.concat(both)), interval(pd.concat(both))
    assert {name: pooled[name] for name in table.index} == pytest.approx(table.value.to_dict())
    assert table.n["S"] == 50


def test_fact_scores_average_the_prompts_of_a_kind():
    frame = pd.concat([prompts_of(np.array([[1, 1, 0]])), prompts_of(np.array([[1, 0, 0]]))])
    assert fact_scores(frame).loc[(1, "f0")].tolist() == [1.0, 0.5, 0.0]
    unknown = fact_scores(pd.concat([frame, frame.assign(seed=2, success=np.nan)]))
    assert list(unknown.index) == [(1, "f0"), (2, "f0")] and unknown.loc[2].isna().all(axis=None)


def test_holm_steps_down_the_family():
    # Multiplied by 4, 3, 2, 1 from the smallest on, and never below one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == pytest.approx([1, 1]) and len(holm([])) == 0
    assert holm([math.nan, 0.02]) == pytest.approx([math.nan, 0.02], nan_ok=True)


def test_the_interval_of_a_mean_is_student_s():
    mean, low, high = mean_interval([1.0, 2.0, 3.0])
    assert (
        mean == 2 and high - mean == pytest.approx(4.302653 / math.sqrt(3)) and mean - low == pytest.approx(high - mean)
    )
    assert mean_interval([5.0])[0] == 5 and all(math.isnan(end) for end in mean_interval([5.0])[1:])


def test_a_clustered_mean_is_the_plain_one_where_every_value_is_a_cluster():
    values = np.random.default_rng(0).standard_normal(12)
    plain = mean_interval(values)
    assert clustered_mean_interval(values, range(12)) == pytest.approx(plain)
    repeated = np.repeat(values, 5)
    assert clustered_mean_interval(repeated, np.repeat(np.arange(12), 5)) == pytest.approx(plain), "no more evidence"
    shuffled = np.random.default_rng(1).permutation(60)
    names = np.repeat([f"r{i}" for i in range(12)], 5)[shuffled]
    assert clustered_mean_interval(repeated[shuffled], names) == pytest.approx(plain)
    mean, *ends = clustered_mean_interval([1.0, 3.0], ["a", "a"])
    assert mean == 2.0 and np.isnan(ends).all()


def test_a_clustered_mean_covers_what_clusters_share():
    generator, held = np.random.default_rng(0), {"clusters": 0, "values": 0}
    groups = np.arange(60) % 10
    for _ in range(DATA_SETS):
        values = generator.standard_normal(10)[groups] + generator.standard_normal(60)
        for name, (_, low, high) in {
            "clusters": clustered_mean_interval(values, groups),
            "values": mean_interval(values),
        }.items():
            held[name] += low <= 0 <= high
    assert 0.93 < held["clusters"] / DATA_SETS < 0.97 and held["values"] / DATA_SETS < 0.75


def test_areas_of_clusters_drawn_again_are_those_of_scikit_learn_with_weights():
    generator = np.random.default_rng(3)
    groups = generator.integers(6, size=80)
    event, predictors = generator.random(80) < 0.3, generator.integers(5, size=(80, 2)).astype(float)  # with ties
    times = intervals._redrawn(6, generator)[:20]
    found = intervals._areas(times, *intervals._pairs(event, predictors, groups))
    for row, areas in zip(times, found, strict=True):
        kept = row[groups] > 0
        known = [roc_auc_score(event[kept], x[kept], sample_weight=row[groups][kept]) for x in predictors.T]
        assert areas.tolist() == pytest.approx(known, abs=1e-12)


def test_intervals_of_areas_and_of_their_differences_cover_what_they_claim():
    """A binormal predictor, d' = 1, and one of noise alone; a third of the variance is shared within a cluster."""
    generator, covered, data_sets = np.random.default_rng(4), np.zeros(2), 300
    true = norm.cdf(1 / 2**0.5)
    for _ in range(data_sets):
        groups = np.repeat(np.arange(30), generator.integers(4, 12, 30))
        event = generator.random(len(groups)) < 0.25
        shared = generator.standard_normal((30, 2))[groups]
        values = (2 / 3) ** 0.5 * generator.standard_normal((len(groups), 2)) + (1 / 3) ** 0.5 * shared
        values[:, 0] += event
        found = rank_areas(event, values, [groups])
        covered[0] += found["low"][0] <= true <= found["high"][0]
        covered[1] += found["gap_low"][1] <= true - 0.5 <= found["gap_high"][1]
    assert (covered / data_sets > 0.92).all()


def test_areas_at_borders_within_one_cluster_and_of_no_order():
    event, groups = np.arange(20) < 10, np.arange(20) % 5
    predictors = np.stack([event.astype(float), ~event, np.ones(20)], axis=1)
    found = rank_areas(event, predictors, [groups])
    bound = proportion(0, 10)[1]
    assert found["value"].tolist() == [1, 0, 0.5]
    assert found["low"].tolist() == pytest.approx([1 - bound, 0, 0.5])
    assert found["high"].tolist() == pytest.approx([1, bound, 0.5]) and found["gap"].tolist() == [0, 1, 0.5]
    assert found["p"].tolist() == pytest.approx([1, 2 * 0.5**10, 2 * 0.5**10])
    assert found["gap_low"].tolist() == pytest.approx([0, 1 - bound, 0.5 - bound])
    alone = rank_areas(event, predictors + np.linspace(0, 1.5, 20)[:, None], [np.zeros(20, dtype=int)])
    assert (alone["low"] <= 0.5).all() and (alone["p"] == 1).all()
    with pytest.raises(ValueError, match="20 of 20 have it"):
        rank_areas(np.ones(20, dtype=bool), predictors, [groups])
