"""What tables of repairs say in words: every number is the table's, and what is not resolved is said to be so."""

import pandas as pd
import pytest

from editkit.studies.repair_findings import vision_findings

NAN = float("nan")
COLUMNS = ["method", "seed", "n_edits", "fixed", "kept", "test_kept", "generality", "test_accuracy", "heldout_change"]
REPORT = pd.DataFrame(
    [
        ("pre", 0, 20, 0.0, 1.0, 1.0, 0.25, 0.9, 0.0),
        ("pre", 1, 30, 0.0, 1.0, 1.0, 0.35, 0.92, 0.0),
        ("memit", 0, 20, 1.0, 0.98, 0.96, 0.6, 0.91, 1.0),
        ("memit", 1, 30, 0.9, 1.0, 0.98, 0.8, 0.9, -2.0),
    ],
    columns=COLUMNS,
)
TRACED = pd.DataFrame(
    [("mlp", 0, 0.1), ("mlp", 1, 0.3), ("residual", 0, 0.2), ("residual", 1, 0.9)], columns=["kind", "layer", "value"]
)
PLACES = pd.DataFrame(
    [
        ("memit", "[1]", "traced", 1.0, 0.9, 0.88, -1.0, 0.4),
        ("memit", "[2]", "the last three", 0.8, 1.0, 0.9, 0.0, NAN),
    ],
    columns=["method", "layers", "chosen", "fixed", "kept", "test_kept", "heldout_change", "p_holm"],
)
LEAKS = pd.DataFrame(
    [
        ("memit", "none", NAN, 0.01, 0.9, 1.0, 1.0, 2.0),
        ("alphaedit", "threshold", 0.1, 0.02, 1.0, 1.0, 1.0, 1.0),
        ("alphaedit", "threshold", 0.01, 0.004, 0.5, 1.0, 1.0, 1.0),
        ("alphaedit", "kept", NAN, 0.03, 0.7, 0.95, 0.91, 1.0),
    ],
    columns=["method", "nullspace", "threshold", "leakage", "success", "kept", "test_kept", "norm"],
)


def certain(**changes):
    row = {
        "method": "memit",
        "seeds": 2,
        "test_images": 600,
        "test_fixed": 9,
        "test_broken": 6,
        "p": 0.6,
        "p_holm": 0.6,
    }
    for name, share, low, high, n in (
        ("fixed", 0.95, 0.81, 0.99, 45),
        ("kept", 0.99, 0.975, 0.997, 500),
        ("test_kept", 0.97, 0.95, 0.983, 540),
    ):
        row |= {name: share, f"{name}_low": low, f"{name}_high": high, f"{name}_n": n}
    return pd.DataFrame([row | changes])


def test_findings_on_repairs_say_what_the_tables_say():
    found = vision_findings(REPORT, certain(), TRACED, PLACES, LEAKS)
    first, memit, protocol, tracing, where, leak, kept = found
    assert "accuracy is 91.0%; 20 to 30 misclassified" in first and "(2 seeds)" in first and "30% are right" in first
    assert "MEMIT fixes 95% [81–99] of 45 (worst seed 90%) and gets 70%" in memit
    assert "keeps 99.0% [97.5–99.7] of 500 (worst seed 98.0%) on validation" in memit
    assert "97.0% [95.0–98.3] of 540 (worst seed 96.0%) on held-out images" in memit
    assert (
        "changes by -0.5 points (worst seed -2.0): of 600 held-out images 9 are newly right, 6 newly wrong, p = 0.6"
        in memit
    )
    assert "Holm's correction over 1 methods" in protocol
    assert tracing.endswith("restoring: mlp at layer 1 (+0.30); residual at layer 0 (+0.20).")
    assert "MEMIT: layers [1] (traced) 100% fixed, 90.0% kept on validation and 88.0% on held-out images" in where
    assert "MEMIT's, 0.01 at success 90%" in leak and "0.02, at threshold 0.1: not lower" in leak
    assert "0.50 times" in leak
    assert "AlphaEdit fixes 70%, keeps 95.0% on validation and 91.0% on held-out images, and leaks 0.03" in kept


@pytest.mark.parametrize(
    "changes, verdict",
    [
        ({"p_holm": 0.051}, "p = 0.051, not resolved: no difference from no edit can be claimed."),
        ({"p_holm": 0.01}, "p = 0.01, a gain."),
        ({"p_holm": 0.01, "test_fixed": 2, "test_broken": 13}, "2 are newly right, 13 newly wrong, p = 0.01, a loss."),
    ],
)
def test_a_change_of_held_out_accuracy_is_claimed_where_it_is_resolved(changes, verdict):
    assert vision_findings(REPORT, certain(**changes), TRACED, PLACES, LEAKS)[1].endswith(verdict)


def test_other_layers_are_claimed_to_differ_where_that_is_resolved():
    unsure, sure = (
        vision_findings(REPORT, certain(), TRACED, PLACES.assign(p_holm=[p, NAN]), LEAKS)[4] for p in (0.4, 0.002)
    )
    assert unsure.endswith("On held-out images, not resolved against the last three (smallest p = 0.4).")
    assert sure.endswith("On held-out images, other than in the last three: traced (p = 0.002).")


def test_what_was_not_measured_is_not_told():
    (leak,) = vision_findings(REPORT, certain(), TRACED, PLACES[:0], LEAKS.iloc[[0, 2]])[4:]
    assert leak.endswith("AlphaEdit reaches that success at no threshold tried.")
    assert len(vision_findings(REPORT, certain(), TRACED, PLACES[:0], LEAKS[:1])) == 4
