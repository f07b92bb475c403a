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
SCORES = ["fixed", "generality", "kept", "test_kept", "heldout_change"]
TRACED = pd.DataFrame(
    [("mlp", 0, 0.1), ("mlp", 1, 0.3), ("residual", 0, 0.2), ("residual", 1, 0.9)], columns=["kind", "layer", "value"]
)
SWEEP = pd.DataFrame(
    [
        ("[0]", "one layer", 5.0, 9.0, 0.2, 0.1, 0.98, False),
        ("[1]", "one layer", 5.0, 3.0, 0.8, 0.5, 0.981, False),
        ("[2]", "one layer", 5.0, 4.0, 0.8, 0.4, 0.982, False),
        ("[0, 1]", "traced", 5.0, 2.0, 0.6, 0.3, 0.983, False),
        ("[1, 2, 3]", "the last three", 5.0, 2.0, 0.7, 0.35, 0.984, False),
        ("[1]", "margin", 2.0, 1.0, 0.85, 0.45, 0.985, True),
    ],
    columns=["layers", "chosen", "margin", "weight", "fixed", "generality", "kept", "best"],
)
FRONTIER = pd.DataFrame(
    [
        ("memit", 10, 1.0, True, 0.7, 0.5, 0.98, 0.97, -0.4),
        ("memit", 10, 0.1, False, 1.0, 0.9, 0.7, 0.7, -9.0),  # not at the budget
        ("emmet", 10, 1.0, True, 0.6, 0.6, 0.98, 0.98, -0.1),
        ("finetuning", 10, 5.0, True, 0.8, 0.7, 0.982, 0.975, 0.3),
        ("head_ewc", 10, 5.0, True, 0.1, 0.1, 1.0, 1.0, 0.0),
        ("memit", 1, 1.0, True, 1.0, 0.8, 0.99, 0.985, -0.2),
    ],
    columns=["method", "n_edits", "point", "at_budget", *SCORES],
)
MOVED = pd.DataFrame(
    [
        ("memit", "nevus", -2.0, 0.5, 0.1, 40),
        ("memit", "melanoma", 1.0, 0.5, 0.0, 10),
        ("memit", "keratosis", 0.5, 0.5, 0.02, 30),
        ("finetuning", "nevus", 0.2, 0.9, 0.01, 40),
    ],
    columns=["method", "class", "shift", "spread", "broken", "n"],
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


def findings(**tables):
    """Say what the tables say, some of them replaced."""
    given = {"report": REPORT, "certain": certain(), "traced": TRACED, "sweep": SWEEP}
    return vision_findings(**(given | {"frontier": FRONTIER, "moved": MOVED, "leaks": LEAKS} | tables))


def test_findings_on_repairs_say_what_the_tables_say():
    first, memit, protocol, tracing, where, why, reached, leak, kept = findings()
    assert "accuracy is 91.0%; 20 to 30 misclassified" in first and "(2 seeds)" in first and "30% are right" in first
    assert "  - MEMIT: fixed are 95% [81–99%] of 45 (worst seed 90%) and 70% of their" in memit
    assert memit.endswith("; of right ones stay 97.0% [95.0–98.3%] of 540 (worst seed 96.0%)")
    assert "; 9 of 600 held-out images turn right, 6 wrong: -0.5 points (worst seed -2.0), p = 0.6;" in memit
    assert "Holm's correction over 1 methods" in protocol
    assert tracing.endswith("aside: the MLP at layer 1 (+0.30); the residual stream at layer 0 (+0.20).")
    assert where.startswith("**Where to edit, first seed**")
    assert why.startswith("**As a bias would") and reached.startswith("At the")
    assert "MEMIT leaks least of the other editors, 0.01 at success 90%" in leak
    assert "0.02, at threshold 0.1: not lower" in leak
    assert "0.50 times" in leak
    assert "AlphaEdit fixes 70%, keeps 95.0% on validation and 91.0% on held-out images, and leaks 0.03" in kept


@pytest.mark.parametrize(
    "changes, verdict",
    [
        ({"p_holm": 0.051}, "Neither gain nor loss of held-out images is resolved for MEMIT"),
        ({"p_holm": 0.01}, "A gain of held-out images is resolved for MEMIT"),
        ({"p_holm": 0.01, "test_fixed": 2, "test_broken": 13}, "A loss of held-out images is resolved for MEMIT"),
    ],
)
def test_a_change_of_held_out_accuracy_is_claimed_where_it_is_resolved(changes, verdict):
    told = findings(certain=certain(**changes))[1]
    assert told.startswith(f"**{verdict}.**\n  - MEMIT: ") and f"p = {changes['p_holm']};" in told


def test_methods_of_one_verdict_stand_below_it():
    names = ("memit", "emmet", "rome")
    report = pd.concat([REPORT.assign(method=REPORT.method.replace("memit", name)) for name in names])
    alike = pd.concat([certain(method=name) for name in names], ignore_index=True)
    told = findings(report=report, certain=alike)[1]
    assert told.startswith("**Neither gain nor loss of held-out images is resolved for any of 3 methods.**\n  - MEMIT:")
    assert told.count("\n  - ") == 3
    unlike = alike.assign(p_holm=[0.01, 0.5, 0.5])
    gain, neither = findings(report=report, certain=unlike)[1:3]
    assert gain.startswith("**A gain of held-out images is resolved for MEMIT.**") and gain.count("\n") == 1
    assert "resolved for EMMET and ROME.**" in neither and neither.count("\n") == 2


def test_the_worst_seed_is_named_where_it_differs():
    same = REPORT.assign(fixed=0.95, kept=0.99, test_kept=0.97)
    told = findings(report=same)[1]
    assert "fixed are 95% [81–99%] of 45 and" in told and told.count("worst seed") == 1  # of the held-out change


@pytest.mark.parametrize("budget, verdict", [(0.98, "holds"), (0.985, "holds"), (0.99, "does not hold with MEMIT")])
def test_a_promise_is_compared_with_what_was_seen(budget, verdict):
    for tables in ({"certain": certain(budget=budget)}, {"report": REPORT.assign(budget=budget)}):
        told = findings(**tables)[2]
        assert f"the promise to keep {budget:.1%} {verdict}**, within 1.5 points" in told
        seen, found = (f"{100 * (share - budget):+.1f}".replace("+0.0", "0.0") for share in (0.99, 0.97))
        assert f"they show {found} points against it (the lowest interval begins at 95.0%); validation" in told
        assert told.endswith(f"validation images, on which it was held, {seen}.")


def test_nothing_is_said_of_a_promise_that_was_not_made():
    told = findings(certain=certain(budget=NAN), report=REPORT.assign(budget=NAN))
    assert not any("promise" in one for one in [*told, *findings()])


def test_layers_are_compared_with_sets_of_layers_and_with_tracing():
    (where,) = [told for told in findings() if told.startswith("**Where")]
    head, best, traced, last, edited = where.split("\n  - ")
    assert "of 3 single layers, each at the weight that the budget asks for, layer 1 fixed most images" in head
    assert "(1 more fixed as many, with no more copies right). They chose it: no test is made." in head
    assert head.endswith("Tracing's first choice, layer 1 (MLP), is the sweep's choice too.")
    assert best.startswith("layer 1: 80% fixed, 50% of copies right, 98.1% kept on validation")
    assert best.endswith("(worst: layer 0, 20% fixed)")
    assert traced.startswith("the traced layers, 0, 1: 60% fixed, 30% of copies right, 98.3% kept")
    assert last.startswith("the last three, 1, 2, 3: 70% fixed, 35% of copies right, 98.4% kept")
    assert edited == "edited, 1 with a margin of 2: 85% fixed, 45% of copies right, 98.5% kept on validation"
    other = TRACED.assign(value=[0.5, 0.3, 0.2, 0.9])
    assert "Tracing's first choice, layer 0 (MLP), is not the sweep's choice." in findings(traced=other)[4]
    without = SWEEP.assign(margin=[*SWEEP.margin[:-1], float("inf")])
    assert "edited, 1 with no margin: 85% fixed" in findings(sweep=without)[4]
    two = pd.concat([SWEEP.assign(dataset=name) for name in ("skin", "blood")])
    assert [told.partition("**:")[0] for told in findings(sweep=two)[4:6]] == [
        "**Where to edit (skin), first seed",
        "**Where to edit (blood), first seed",
    ]
    assert not any("Tracing" in told for told in findings(sweep=two)), "which of them it belongs to is not known"


def test_repairs_are_said_to_act_as_a_bias_where_they_move_images_alike():
    head, memit, finetuning = findings()[5].split("\n  - ")
    assert head.startswith("**As a bias would, whole classes are moved by MEMIT (2 of 3 classes)**")
    assert memit.startswith("MEMIT: class nevus by -2.00 logits (sd 0.50), 10.0% of 40 turn wrong")
    assert memit.endswith("; the other classes by +0.62, 1.5% of 40")
    assert finetuning == "fine-tuning: class nevus by +0.20 logits (sd 0.90), 1.0% of 40 turn wrong"
    assert findings(moved=MOVED[3:])[5].startswith("**As a bias would, whole classes are moved by no method**")


def test_the_best_editor_meets_the_best_control_at_the_budget_for_each_number_of_edits():
    head, one, ten = findings()[6].split("\n  - ")
    assert head == "At the budget, first seed, by images fixed and then copies, the best editor and the best control:"
    assert one.startswith("1 edit: MEMIT 100% fixed, ")
    assert one.endswith("99.0% kept on validation, 98.5% held out, -0.2 points")
    assert ten.startswith("10 edits: MEMIT 70% fixed, 50% of copies right, 98.0% kept on validation, 97.0% held out")
    assert "; fine-tuning 80% fixed" in ten


def test_what_was_not_measured_is_not_told():
    assert findings(leaks=LEAKS.iloc[[0, 2]])[-1].endswith("AlphaEdit reaches that success at no threshold tried.")
    some = {"sweep": SWEEP[:0], "frontier": FRONTIER[:0], "moved": MOVED[:0], "leaks": LEAKS[:1]}
    assert len(findings(**some)) == 4
    assert len(findings(**some, certain=pd.DataFrame(), traced=pd.DataFrame())) == 1
    assert len(findings(frontier=FRONTIER.assign(at_budget=False), traced=TRACED[:0])) == 7
    names = ("report", "certain", "traced", "sweep", "frontier", "moved", "leaks")
    assert vision_findings(**{name: pd.DataFrame() for name in names}) == []
    assert vision_findings(pd.DataFrame(columns=["method"]), *(pd.DataFrame() for _ in names[1:])) == []
