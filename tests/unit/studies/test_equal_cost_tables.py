"""What is said of equal cost, on points and prompts made by hand."""

import math

import pandas as pd
import pytest

from editkit.studies.equal_cost import Found
from editkit.studies.equal_cost_tables import at_kl, comparisons, findings, points, told, within_seconds
from editkit.studies.intervals import paired_difference

FACTS = 200


def many(right: int, method: str, variant: str, seed: int = 1) -> pd.DataFrame:
    """200 facts, each a cluster of its own, of which the first ``right`` are right in every way."""
    kinds = ("rewrite", "paraphrase", "neighbourhood")
    rows = [{"seed": seed, "fact": f"f{i}", "relation": f"r{i}", "kind": kind, "success": i < right}
            for i in range(FACTS) for kind in kinds]  # fmt: skip
    frame = pd.DataFrame(rows).assign(moment="final", method=method, variant=variant)
    return frame.assign(accuracy=frame.success)


POINTS = pd.DataFrame(
    [  # seconds, KL, S on facts for tuning, facts that are right
        ("pre", "pre", 0.0, 0.0, None, 20),
        ("memit", "exact", 50.0, 0.1, None, 180),
        ("memit", "fast", 5.0, 0.2, None, 176),
        ("locft", "1 epoch", 10.0, 0.02, 0.3, 40),
        ("locft", "2 epochs", 20.0, 0.08, 0.7, 120),
        ("locft", "4 epochs", 40.0, 0.32, 0.6, 160),
        ("lora", "8 steps", 60.0, 0.4, 0.5, 100),
    ],
    columns=["method", "variant", "seconds", "kl", "tuned_S", "right"],
).assign(seed=1, perplexity=20.0, forward=100.0, backward=50.0)


@pytest.fixture(scope="module")
def found() -> Found:
    prompts = [many(row.right, row.method, row.variant) for row in POINTS.itertuples()]
    return Found(POINTS.drop(columns="right"), pd.concat(prompts, ignore_index=True), pd.DataFrame())


def test_at_equal_seconds_the_best_budget_on_facts_for_tuning_is_taken():
    curve = POINTS[POINTS.method == "locft"]
    assert within_seconds(curve, pd.Series({"seconds": 50.0})) == {"2 epochs": 1.0}
    assert within_seconds(curve, pd.Series({"seconds": 10.0})) == {"1 epoch": 1.0}
    assert not within_seconds(curve, pd.Series({"seconds": 9.9}))


def test_at_equal_kl_neighbours_are_weighed_by_its_logarithm_and_nothing_is_extrapolated():
    curve = POINTS[POINTS.method == "locft"]
    assert at_kl(curve, pd.Series({"kl": 0.16})) == pytest.approx({"2 epochs": 0.5, "4 epochs": 0.5})
    first = math.log(0.08 / 0.03) / math.log(0.08 / 0.02)
    assert at_kl(curve, pd.Series({"kl": 0.03})) == pytest.approx({"1 epoch": first, "2 epochs": 1 - first})
    assert at_kl(curve, pd.Series({"kl": 0.08})) == {"2 epochs": 1.0}
    for outside in (0.019, 0.33, 0.0, math.nan):
        assert not at_kl(curve, pd.Series({"kl": outside}))


def test_differences_are_paired_with_what_is_interpolated(found):
    gaps = comparisons(found)
    row = gaps.set_index(["equal", "method", "targets", "control", "score"]).sort_index()
    part = {(m, v): rows for (m, v), rows in found.prompts.groupby(["method", "variant"])}
    known = paired_difference(part["memit", "exact"], part["locft", "2 epochs"])
    for score in ("ES", "PS", "NS", "S"):
        own = row.loc[("seconds", "memit", "exact", "locft", score)]
        assert own["value":"p"].tolist() == known.loc[score, "value":"p"].tolist()
    share = math.log(0.2 / 0.08) / math.log(0.32 / 0.08)  # of 4 epochs
    at = row.loc[("kl", "memit", "fast", "locft", "EA")]
    assert at.value == pytest.approx((176 - (1 - share) * 120 - share * 160) / FACTS)
    assert at.tuned_kl == pytest.approx((1 - share) * 0.08 + share * 0.32) and at.against == "2 epochs and 4 epochs"
    missed = gaps[gaps.score.isna()].set_index(["equal", "targets", "control"]).against
    assert missed["seconds", "fast", "locft"] == "none: the smallest budget takes 10 s"
    assert missed["kl", "exact", "lora"] == "none: its KL goes from 0.4 to 0.4"
    assert len(missed) == 5 and gaps.p_holm[gaps.score.notna()].notna().all()


def test_every_seed_has_its_own_curve(found):
    other = found.scores.assign(seed=2, seconds=found.scores.seconds * 4)
    other.loc[other.method == "memit", "seconds"] = 50.0
    both = Found(
        pd.concat([found.scores, other]), pd.concat([found.prompts, found.prompts.assign(seed=2)]), found.rates
    )
    row = comparisons(both).set_index(["equal", "targets", "control", "score"]).loc[("seconds", "exact", "locft", "ES")]
    assert row.against == "2 epochs or 1 epoch" and row.n == 2 * FACTS and row.seeds == 2
    assert row.value == pytest.approx((2 * 180 - 120 - 40) / (2 * FACTS))


def test_what_is_said_has_a_verdict_and_names_what_is_not_compared(found):
    gaps = comparisons(found)
    seconds, kl = findings(gaps)
    assert seconds.startswith("**At equal seconds S of closed forms is higher in 1 of 1 comparisons, resolved.**")
    assert "MEMIT, exact targets, against LocFT-BF (2 epochs) +0.30 [" in seconds and "200 facts" in seconds
    assert "Not compared: MEMIT, exact targets, against LoRA fine-tuning (none: the smallest budget" in seconds
    assert kl.startswith("**At equal KL S of closed forms is higher in 2 of 2 comparisons, resolved.**")
    nothing = Found(found.scores.assign(kl=[0, 1, 2, 5, 6, 7, 8]), found.prompts, found.rates)
    assert findings(comparisons(nothing))[1].startswith("**At equal KL nothing can be compared**: MEMIT, exact")
    same = found.prompts.assign(success=True, accuracy=True)
    verdict = findings(comparisons(Found(found.scores, same, found.rates)))[0]
    assert verdict.startswith("**At equal seconds no difference of S is resolved in 1 comparisons.**")


def test_points_and_the_table_say_what_each_took(found):
    of = points(found).set_index(["method", "variant", "score"]).sort_index()
    assert of.value["locft", "4 epochs", "EA"] == 0.8 and of.seconds["memit", "fast", "S"] == 5
    assert of.backward["memit", "fast", "S"] == 50
    table = told(comparisons(found))
    row = table.loc[("seconds", "MEMIT", "exact", "LocFT-BF")]
    assert row.seconds == "50, 20" and row.KL == "0.100, 0.080" and row.S.startswith("+0.30 [")
    assert len(table) == 8 and table.loc[("KL", "MEMIT", "fast", "LoRA fine-tuning")].S == "–"
