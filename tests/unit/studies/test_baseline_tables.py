"""Tables of the chapter on edits of one batch, from prompts by hand."""

import pandas as pd
import pytest

from editkit.studies import baseline_tables
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
    assert table.index.tolist()[:3] == [("no edit", 0), ("MEMIT", 1), ("MEMIT", 8)]
    low, high = interval(prompts_of(6)).loc["PS", ["low", "high"]]
    assert table.PS[("EMMET", 8)] == f"0.750 [{low:.3f}, {high:.3f}]"
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
