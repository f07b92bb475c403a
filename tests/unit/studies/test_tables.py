"""Tables of the chapters, from small frames by hand."""

import math

import pandas as pd
import pytest

from editkit.studies import tables
from editkit.studies.intervals import holm, interval, paired_difference
from tests.unit.studies.conftest import named, prompts_of

RETENTION = pd.DataFrame(
    [(1, 1, 1.0), (1, 2, 0.8), (1, 3, 0.4), (2, 2, 0.9), (2, 3, 0.6), (3, 3, 1.0)],
    columns=["edited_at", "measured_at", "ES"],
)
RUNS = [("a", "EMMET, none", "emmet", "none"), ("b", "EMMET, hold", "emmet", "hold"), ("c", "X, none", "x", "none")]


@pytest.fixture
def whole():
    """Scores, steps, retention and prompts of three runs that hold 4, 6 and 8 of 8 facts after two steps."""
    frames = {"scores": [], "steps": [], "retention": [], "prompts": []}
    for run, right in zip(RUNS, (4, 6, 8), strict=True):
        share = right / 8
        rows = [
            {"moment": moment, "seed": seed, "batch_size": 4, "n_facts": 8} | dict.fromkeys(tables.SCORES, value)
            for seed in (1, 2)
            for moment, value in (("pre", 0.0), ("immediate", 1.0), ("final", share + (seed - 1.5) / 100))
        ]
        frames["scores"].append(named(pd.DataFrame(rows), run))
        steps = pd.DataFrame({"seed": [1, 1], "step": [1, 2], "measured": [False, True], "replayed": [0, 4]})
        for kind, perplexity in (("text", 30.0), ("prose", 300.0 - 20 * right), ("subjects", 40.0)):
            steps[f"perplexity_before_{kind}"], steps[f"perplexity_{kind}"] = 20.0, [math.nan, perplexity]
            steps[f"kl_{kind}"] = [math.nan, 0.5]
        steps = steps.assign(growth=[1.1, 1.2], old_residual=[math.nan, 0.25], memory_mb=[1.0, 2.0])
        steps = steps.assign(condition_before=1e6, condition=1e3, seconds_keys=1.0, seconds_solve=0.5)
        frames["steps"].append(named(steps, run))
        kept = pd.DataFrame({"edited_at": [1, 1, 2], "measured_at": [1, 2, 2], "ES": [1.0, share, 1.0]})
        frames["retention"].append(named(kept, run))
        prompts = pd.concat([prompts_of(0, "pre"), prompts_of(8, "immediate"), prompts_of(right)])
        frames["prompts"].append(named(prompts, run))
    return {name: pd.concat(parts, ignore_index=True) for name, parts in frames.items()}


def test_retention_matrix_curve_and_half_life_by_hand():
    matrix = tables.retention_matrix(RETENTION)
    assert matrix.loc[1, 3] == 0.4 and math.isnan(matrix.loc[3, 1])
    sparse = RETENTION[(RETENTION.edited_at != 1) | (RETENTION.measured_at != 2)]
    sparse = tables.retention_matrix(sparse)
    assert list(sparse.columns) == [1, 3] and list(sparse.index) == [1, 2, 3]
    curve = tables.forgetting_curve(RETENTION)
    assert curve.tolist() == pytest.approx([2.9 / 3, 0.7, 0.4])
    assert tables.half_life(curve, 0.0) == 2 and math.isnan(tables.half_life(curve, -2.0))


def test_the_step_of_collapse_is_the_first_measured_one_beyond_ten_times():
    steps = pd.DataFrame({"step": [1, 2, 3, 4], "measured": [True, False, True, True], "perplexity_text": 1e9})
    steps = steps.assign(perplexity_before_text=1.0, perplexity_before_prose=20.0, perplexity_before_subjects=math.nan)
    steps = steps.assign(perplexity_subjects=math.nan, perplexity_prose=[20.0, math.nan, 150.0, math.nan])
    assert tables.collapse_step(steps) == 4  # not a number: gone; C's own text and what was not probed do not count
    assert tables.collapse_step(steps.assign(perplexity_before_prose=10.0)) == 3
    subjects = steps.assign(perplexity_before_subjects=1.0, perplexity_subjects=[10.0, math.nan, 10.1, 1.0])
    assert tables.collapse_step(subjects) == 3
    assert math.isnan(tables.collapse_step(steps[:1]))


def test_final_scores_are_a_row_a_run_and_shown_by_label(whole):
    final = tables.final_scores(whole["scores"], whole["prompts"])
    assert final.run_id.tolist() == ["a", "b", "c"] and final.method.tolist() == ["emmet", "emmet", "x"]
    assert final["immediate S"].tolist() == [1.0] * 3
    found = interval(prompts_of(6)).loc["PS"]
    assert final.PS[1] == f"0.75 [{found.low:.2f}, {found.high:.2f}]" and final.S[2] == "1.00 [0.63, 1.00]"
    assert final[tables.SAMPLE].values.tolist() == [[8, 1, 4]] * 3
    shown = tables.shown(final, "method", "replay")
    assert list(shown.index) == [("EMMET", "none"), ("EMMET", "hold"), ("x", "none")]
    assert list(shown.columns) == ["immediate S", "ES", "PS", "NS", "S", "n", "seeds", "clusters"]


def test_runs_are_compared_with_the_first_of_their_method(whole):
    gaps = tables.differences(whole["prompts"])
    assert set(gaps.run_id) == {"b"} and gaps.score.tolist() == ["ES", "PS", "NS", "S"]
    expected = paired_difference(prompts_of(6), prompts_of(4))
    assert gaps.set_index("score")[list(expected)].equals(expected.rename_axis("score"))
    assert gaps.p_holm.equals(gaps.p), "of each score, one comparison is all there is"
    table = tables.ablation(whole["scores"], gaps)
    assert table.run_id.tolist() == ["a", "a", "b", "b", "c", "c"] and set(table.moment) == {"final"}
    assert table["S value"][2:4].tolist() == [expected.value["S"]] * 2 and table["S value"].isna().sum() == 4
    assert {"ES low", "PS high", "NS value", "S p_holm"} <= set(table)


def test_what_a_run_loses_is_measured_fact_by_fact_against_each_edits_own_step(whole):
    lost = tables.losses(whole["prompts"])
    assert lost.run_id.unique().tolist() == whole["prompts"].run_id.unique().tolist()
    for run_id, gaps in lost.groupby("run_id"):
        own = whole["prompts"][whole["prompts"].run_id == run_id]
        expected = paired_difference(own, own[own.moment == "immediate"].assign(moment="final"))
        assert gaps.set_index("score")[list(expected)].equals(expected.rename_axis("score"))
        success = own[own.kind == "rewrite"].groupby("moment").success.mean()
        assert gaps.value[gaps.score == "ES"].item() == pytest.approx(success["final"] - success["immediate"])


def test_comparisons_of_a_score_are_one_family():
    gaps = pd.DataFrame(
        {"score": ["ES", "S"] * 3, "size": [1, 1, 1, 1, 2, 2], "p": [0.01, 0.5, 0.02, 0.03, 0.04, 0.01]}
    )
    adjusted = tables.adjusted(gaps)
    assert adjusted.p_holm[::2].tolist() == pytest.approx(holm([0.01, 0.02, 0.04]))
    assert adjusted.p_holm[1::2].tolist() == pytest.approx(holm([0.5, 0.03, 0.01]))
    assert tables.adjusted(gaps, "score", "size").p_holm[4:].tolist() == [0.04, 0.01]


def test_differences_are_shown_with_what_they_come_to():
    gaps = pd.DataFrame({"method": ["emmet", "x"], "value": [0.25, -0.1], "low": [0.1, -0.3], "high": [0.4, 0.1]})
    gaps = gaps.assign(p_holm=[0.01, 0.4], n=8, seeds=1, clusters=4, left="out")
    table = tables.gaps_shown(gaps, "method")
    assert table.index.tolist() == ["EMMET", "x"] and table.resolved.tolist() == ["yes", "no"]
    assert table.difference.tolist() == ["+0.25 [+0.10, +0.40]", "-0.10 [-0.30, +0.10]"]
    assert list(table) == ["difference", "p (Holm)", "resolved", "n", "seeds", "clusters"]
    assert tables.written(0.5, math.nan, math.nan) == "0.50 [not known]"


def test_a_spectrum_is_a_row_an_eigenvalue_the_largest_first():
    table = tables.spectrum_table({4: [0.1, 0.5], 5: (2.0,)})
    assert table.to_dict("list") == {"layer": [4, 4, 5], "rank": [1, 2, 1], "eigenvalue": [0.5, 0.1, 2.0]}


def test_what_is_rounded_to_nothing_has_no_sign():
    assert tables.written(-0.0004, -0.02, 0.001, "+") == "0.00 [-0.02, 0.00]"
    assert [tables.number(value, "+.1f") for value in (-0.04, 0.04, -0.06, math.nan)] == ["0.0", "0.0", "-0.1", "–"]


def test_seeds_are_pooled_before_s_is_made_of_them():
    scores = pd.DataFrame({"run": "a", "seed": [1, 2], "ES": [1.0, 0.5], "PS": 0.5, "NS": [0.0, 1.0], "S": [0.0, 0.6]})
    pooled = tables.over_seeds(scores, "run").loc["a"]
    assert (pooled.ES, pooled.PS, pooled.NS) == (0.75, 0.5, 0.5) and pooled.S == pytest.approx(3 / (4 / 3 + 2 + 2))


def test_relations_have_scores_of_their_own_before_and_after():
    table = tables.by_relation(pd.concat([prompts_of(2, "pre"), prompts_of(5), prompts_of(8, "final", seed=2)]))
    assert table.relation.tolist() == ["r0", "r1", "r2", "r3"] and table.facts.tolist() == [4] * 4
    assert table.ES.tolist() == [1.0, 1.0, 0.75, 0.5] and table["pre NS"].tolist() == [1.0, 0.0, 0.0, 0.0]
    assert table.S.tolist() == pytest.approx(table.ES.tolist())


def test_two_runs_of_one_label_stay_apart(whole):
    for name, frame in whole.items():
        whole[name] = frame.assign(run="EMMET, none", method="emmet", replay="none")
    gaps = tables.differences(whole["prompts"])
    assert gaps.run_id.unique().tolist() == ["b", "c"]
    assert tables.ablation(whole["scores"], gaps)["S value"].notna().tolist() == [False] * 2 + [True] * 4
    assert len(tables.cost(whole["scores"], whole["steps"])) == 3


def test_wear_cost_and_sizes_by_hand(whole):
    wear = tables.wear(whole["scores"], whole["steps"], whole["retention"]).set_index("run_id")
    assert wear["final ES"].tolist() == pytest.approx([0.5, 0.75, 1.0])
    assert wear["half-life"]["a"] == 1 and wear["half-life"][1:].isna().all()
    assert wear["prose ×"].tolist() == [11.0, 9.0, 7.0] and wear["text ×"].tolist() == [1.5] * 3
    assert wear["subjects KL"].tolist() == [0.5] * 3 and wear.growth.tolist() == [1.2] * 3
    assert wear.collapse["a"] == 2 and wear.collapse[1:].isna().all()
    cost = tables.cost(whole["scores"], whole["steps"]).set_index("run")
    assert cost["final S"]["EMMET, hold"] == pytest.approx(0.75) and cost.seconds.tolist() == [3.0] * 3
    assert cost.loc["EMMET, none", ["edits used", "left undone", "MB"]].tolist() == [4.0, 0.25, 2.0]
    assert cost["condition before, after"].tolist() == ["1.0e+06, 1.0e+03"] * 3
    sizes = tables.sizes(whole["scores"])
    assert sizes["edits a step"].tolist() == [4] * 3 and sizes.replay.tolist() == ["none", "hold", "none"]
    assert sizes["final PS"].tolist() == pytest.approx([0.5, 0.75, 1.0]) and set(sizes["immediate S"]) == {1.0}
    assert set(sizes.n) == {16} and set(sizes.seeds) == {2}


def test_forgetting_curves_are_a_column_a_run(whole):
    curves = tables.forgetting_curves(whole["retention"])
    assert list(curves) == ["EMMET, none", "EMMET, hold", "X, none"] and curves["EMMET, none"].tolist() == [1.0, 0.5]
