"""Tables of the chapter on edits of one batch, from prompts by hand."""

import math
import re

import pandas as pd
import pytest

from editkit.language.metrics import summarize
from editkit.studies import baseline_tables
from editkit.studies.findings import baseline_findings
from editkit.studies.intervals import holm, interval, paired_difference
from editkit.studies.tables import SCORES
from tests.unit.studies.conftest import prompts_of


@pytest.fixture
def prompts():
    """Of eight facts, two methods and a control are right on 8, 6 and 5 of eight at once, and on all one by one."""
    frames = [prompts_of(1, "pre", method="pre", batch_size=0)]
    for method, right in (("memit", 8), ("emmet", 6), ("memit_control", 5)):
        for size, n in ((1, 8), (8, right)):
            frame = prompts_of(n, "immediate", method=method, batch_size=size)
            frames.append(frame.assign(batch=frame.fact.str[1:].astype(int) // size + 1))
    return pd.concat(frames, ignore_index=True)


def test_kinds_of_prompts_that_no_fact_has_are_left_open():
    runs = (("pre", "pre", 0, 0), ("memit", "immediate", 8, 6), ("emmet", "immediate", 8, 4))
    prompts = pd.concat([prompts_of(n, moment, method=name, batch_size=size) for name, moment, size, n in runs])
    prompts = prompts[prompts.kind == "rewrite"].assign(relation="")
    scores = baseline_tables.baseline_scores(prompts)
    keys = prompts[["method", "batch_size", "moment", "seed"]].drop_duplicates()
    missing = dict.fromkeys(("PS", "NS", "S", "PA", "NA"), math.nan)
    baselines = keys.assign(ES=0.5, EA=0.5, **missing, dataset="mine", n_facts=8)
    baselines = baselines.assign(seconds_targets=1.0, seconds_keys=1.0, seconds_solve=1.0)
    table = baseline_tables.baseline_shown(scores, baselines)
    assert (table[["PS", "NS", "S"]] == "–").all(axis=None) and (table.n == 8).all()
    relations = baseline_tables.relations_shown(prompts, 8)
    assert relations.facts.tolist() == [8] and relations.MEMIT.tolist() == ["0.75 / – / –"]
    gaps, changes = baseline_tables.baseline_differences(prompts), baseline_tables.baseline_changes(prompts)
    told = baseline_findings(baselines, scores, gaps, changes)
    assert "8 facts of 1 seed" in told[0] and not [text for text in told if re.search(r"\bnan", text)]


def test_scores_are_a_row_a_cell_and_score(prompts):
    scores = baseline_tables.baseline_scores(prompts)
    assert scores.score.tolist() == SCORES * 7 and scores.batch_size.tolist()[::4] == [0, 1, 8, 1, 8, 1, 8]
    rows = scores[(scores.method == "emmet") & (scores.batch_size == 8)].set_index("score")
    expected = interval(prompts_of(6))
    assert rows[list(expected)].equals(expected.rename_axis("score")) and set(rows.clusters) == {4}


def test_scores_are_shown_with_intervals_accuracies_and_sample(prompts):
    scores = baseline_tables.baseline_scores(prompts)
    cells = scores[scores.score == "S"][["method", "batch_size"]].assign(
        ES=1.0, PS=1.0, NS=1.0, EA=0.5, PA=0.25, NA=0.125
    )
    table = baseline_tables.baseline_shown(scores, cells)
    assert "GE" not in table and set(baseline_tables.baseline_shown(scores, cells.assign(GE=5.5)).GE) == {5.5}
    assert table.index.tolist()[:3] == [("no edit", 0), ("MEMIT", 1), ("MEMIT", 8)]
    low, high = interval(prompts_of(6)).loc["PS", ["low", "high"]]
    assert table.PS[("EMMET", 8)] == f"0.75 [{low:.2f}, {high:.2f}]"
    assert table.loc[("EMMET", 8), ["EA", "PA", "NA", "n", "seeds", "clusters"]].tolist() == [0.5, 0.25, 0.125, 8, 1, 4]


def test_every_two_methods_are_compared_at_each_size(prompts):
    gaps = baseline_tables.baseline_differences(prompts)
    rows = gaps[(gaps.batch_size == 8) & (gaps.score == "S")]
    pairs = [("memit", "emmet", 0.25), ("memit", "memit_control", 0.375), ("emmet", "memit_control", 0.125)]
    assert list(zip(rows.method, rows.reference, rows.value.round(9), strict=True)) == pairs
    expected = paired_difference(prompts_of(8), prompts_of(6)).loc["S"]
    assert (rows.low.iloc[0], rows.p.iloc[0]) == (expected.low, expected.p)
    assert rows.p_holm.tolist() == pytest.approx(holm(rows.p)) and len(gaps) == 2 * 3 * 4
    alone = baseline_tables.baseline_differences(prompts[prompts.method.isin(["pre", "memit"])])
    assert alone.empty and set(alone) == set(gaps)


def test_the_largest_batch_is_compared_with_no_edit_and_with_the_smallest(prompts):
    changes = baseline_tables.baseline_changes(prompts)
    rows = changes[changes.score == "NS"]
    assert list(zip(rows.method, rows.reference, rows.value.round(9), strict=True)) == [
        ("memit", 0, 0.875),
        ("memit", 1, 0.0),
        ("emmet", 0, 0.625),
        ("emmet", 1, -0.25),
        ("memit_control", 0, 0.5),
        ("memit_control", 1, -0.375),
    ]
    against_none = rows[rows.reference == 0]
    assert against_none.p_holm.tolist() == pytest.approx(holm(against_none.p))
    one_size = baseline_tables.baseline_changes(prompts[prompts.batch_size != 1])
    assert set(one_size.reference) == {0}


def test_relations_have_a_cell_a_method(prompts):
    table = baseline_tables.relations_shown(prompts, 8)
    assert list(table) == ["facts", "no edit", "MEMIT", "EMMET", "MEMIT at EMMET's layer and weight"]
    assert table.loc["r2"].tolist()[:3] == [2, "0.00 / 0.00 / 0.00", "1.00 / 1.00 / 1.00"]
    assert table["no edit"]["r0"] == "0.50 / 0.50 / 0.50"
    assert table.iloc[2, -1] == "0.50 / 0.50 / 0.50" and table.EMMET["r2"] == "1.00 / 1.00 / 1.00"


@pytest.fixture
def promising(prompts):
    """Baselines and prompts with a fixed λ, and under the promise to keep 0.9 of NS, which is 0.5 before."""
    before = prompts[prompts.method == "pre"]
    before = before.assign(success=[int(fact[1:]) < 4 for fact in before.fact])
    fixed = pd.concat([before, prompts[prompts.method.isin(["memit", "emmet"])]], ignore_index=True)
    held = [prompts_of(n, "immediate", method=m, batch_size=8, batch=1) for m, n in (("memit", 4), ("emmet", 3))]
    budget = pd.concat([before, *held], ignore_index=True)

    def cells(frame, **columns):
        return pd.DataFrame(
            {"method": m, "batch_size": size, "seed": 1, **summarize(part), "seconds": 2.0, **columns}
            for (m, size), part in frame.groupby(["method", "batch_size"], sort=False)
        )

    took = {"neighbour_budget": 0.9, "weight": 3.0, "neighbour_kept": 0.92, "neighbour_kept_unweighted": 0.6}
    return (cells(fixed), fixed), (cells(budget, **took, unwritten=0), budget)


def test_each_method_has_a_row_with_its_fixed_weight_and_one_under_the_promise(promising):
    table = baseline_tables.budget_table(*promising)
    rows = [("memit", "fixed λ"), ("memit", "budget"), ("emmet", "fixed λ"), ("emmet", "budget")]
    assert list(zip(table.method, table.by, strict=True)) == rows and set(table.promised) == {0.9}
    assert table.weight.fillna(-1).tolist() == [-1, 3, -1, 3] and table.tune_kept.tolist() == [0.6, 0.92] * 2
    assert table.NS.tolist() == [1.0, 0.5, 0.75, 0.375] and table.NS_kept.tolist() == [2.0, 1.0, 1.5, 0.75]
    assert table["S"].tolist() == table.NS.tolist() and table.seconds.tolist() == [2.0] * 4
    assert table.value.tolist() == pytest.approx([0.55, 0.05, 0.3, -0.075])  # NS minus 0.9 · 0.5
    assert table.p_holm.tolist() == pytest.approx(holm(table.p)) and set(table.n) == {8}


def test_budgets_are_shown_with_their_distance_from_the_promise(promising):
    table = baseline_tables.budget_table(*promising)
    shown = baseline_tables.budgets_shown(table)
    assert shown.index.tolist()[:2] == [("MEMIT", "fixed λ"), ("MEMIT", "budget")]
    low, high = table.loc[1, ["low", "high"]]
    assert shown["NS against it"].iloc[1] == f"+0.05 [{low:+.2f}, {high:+.2f}]"


def test_without_a_promise_the_table_of_budgets_is_empty(promising):
    fixed, (baselines, prompts) = promising
    none = baselines[baselines.method == "pre"], prompts[prompts.method == "pre"]
    table = baseline_tables.budget_table(fixed, none)
    assert table.empty and list(table) == list(baseline_tables.budget_table(*promising))
    assert baseline_tables.budgets_shown(table).empty
