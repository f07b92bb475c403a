"""Cases of loss and what foretells them, from small frames by hand."""

import math

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from editkit.studies.findings import foretelling_findings
from editkit.studies.foretold import OUTCOMES, PREDICTORS, areas, areas_shown, cases
from editkit.studies.sequences import run_sequence

RUN = {"run_id": "a", "run": "EMMET, none", "method": "emmet", "replay": "none", "seed": 1, "batch_size": 2}
COLUMNS = ["fact", "edited_at", "measured_at", "success", "accuracy", "interference"]


def edits_of(*rows) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=COLUMNS).assign(relation="r", taken_back=0.0, cosine=0.0)
    return frame.assign(**RUN)


def test_a_case_is_an_edit_that_held_and_is_measured_again():
    found = cases(
        edits_of(
            ("f", 1, 1, True, True, 0.0),
            ("g", 2, 2, True, False, 0.0),
            ("f", 1, 3, True, False, 0.1),  # held by success, lost by accuracy
            ("g", 2, 3, False, False, 0.2),  # lost by success; accuracy had nothing to lose
            ("f", 1, 5, False, True, 0.3),  # lost by success; accuracy came back, which is no loss
            ("g", 2, 5, True, True, 0.4),  # was gone already
        )
    ).set_index(["score", "fact", "measured_at"])
    assert found.lost.to_dict() == {
        ("success", "f", 3): False,
        ("success", "g", 3): True,
        ("success", "f", 5): True,
        ("accuracy", "f", 3): True,
    }
    assert found.loc["success"].age.to_dict() == {("f", 3): 0, ("g", 3): 0, ("f", 5): 4}, "edits until the step before"


def test_edits_of_one_fact_at_two_steps_are_two_and_what_wrote_nothing_is_no_case():
    found = cases(
        edits_of(
            ("f", 1, 1, True, False, 0.0),
            ("f", 2, 2, False, False, 0.0),
            ("f", 1, 2, True, False, 0.1),
            ("f", 1, 3, True, False, 0.1),
            ("f", 2, 3, True, False, 0.1),
            ("g", 1, 1, True, False, math.nan),
            ("g", 1, 2, False, False, math.nan),
        )
    )
    assert list(zip(found.fact, found.edited_at, found.measured_at, strict=True)) == [("f", 1, 2), ("f", 1, 3)]


def random_cases(n: int, lost: int, seed: int = 0) -> pd.DataFrame:
    generator = np.random.default_rng(seed)
    frame = pd.DataFrame(generator.standard_normal((n, 4)), columns=list(PREDICTORS))
    frame = frame.assign(lost=np.arange(n) < lost, relation=[f"r{i % 12}" for i in range(n)], fact=range(n))
    frame.loc[frame.lost, "interference"] += 1.0
    frame = frame.assign(measured_at=generator.integers(20, size=n), age=generator.integers(4, size=n))
    return pd.concat([frame.assign(**RUN, score=score) for score in OUTCOMES], ignore_index=True)


def test_areas_are_those_of_scikit_learn_and_lie_in_their_intervals():
    both = random_cases(300, 40)
    found = areas(both)
    part = both[both.score == "success"]
    for row in found[found.score == "success"].itertuples():
        assert row.value == pytest.approx(roc_auc_score(part.lost, part[row.predictor]), abs=1e-12)
        assert row.low < row.value < row.high
        if row.predictor != "interference":
            assert row.gap == pytest.approx(found.value[0] - row.value) and row.gap_low < row.gap < row.gap_high
            assert row.p <= row.p_holm
    assert found.gap[0] != found.gap[0] and (found[["lost", "n", "clusters"]] == [40, 300, 12]).all(axis=None)
    table = areas_shown(found)
    assert table.shape == (2, 4 + len(PREDICTORS)) and f"{found.value[0]:.2f} [" in table.iloc[0].to_string()


@pytest.mark.parametrize("lost", [0, 4, 296, 300])
def test_too_few_of_either_kind_have_no_area(lost):
    found = areas(random_cases(300, lost))
    assert found.value.isna().all() and found.p_holm.isna().all() and (found.lost == lost).all()
    assert areas_shown(found).iloc[0].tolist()[4:] == ["–"] * len(PREDICTORS)


def test_where_nothing_held_there_is_nothing_to_lose():
    found = areas(cases(edits_of(("f", 1, 1, False, False, 0.0), ("f", 1, 2, True, True, 0.1))))
    assert found.empty and areas_shown(found).empty and foretelling_findings(found) == []


def test_every_edit_that_holds_along_a_sequence_is_a_case_until_it_is_lost(setting, facts):
    one = setting(layers=[2], mom2_n_tokens=100, trust_heldout_samples=2)
    run = run_sequence(one, one.spec("memit"), 1, drift=False)
    found = cases(run.edits)
    for score in OUTCOMES:
        holds = run.edits.set_index(["edited_at", "measured_at"])[score]
        pairs = [(made, seen) for made in range(1, 5) for seen in range(made + 1, 5) if holds[made, seen - 1]]
        part = found[found.score == score]
        assert sorted(zip(part.edited_at, part.measured_at, strict=True)) == pairs
        assert part.set_index(["edited_at", "measured_at"]).lost.sort_index().tolist() == [not holds[p] for p in pairs]
    assert (found.age == found.measured_at - 1 - found.edited_at).all() and (found.interference > 0).all()
