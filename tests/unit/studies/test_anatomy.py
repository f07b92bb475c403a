"""The anatomy of edits: classes against a plain loop, shares and intervals against the scores' own."""

import numpy as np
import pandas as pd
import pytest

from editkit.studies import anatomy
from editkit.studies.intervals import holm, interval, paired_difference, proportion

CASES = {  # rewrite, paraphrases, neighbours before, neighbours after → class
    "clean": (1, (1, 1), (1, 0), (1, 0)),
    "spills": (1, (1, 1), (1, 0), (0, 1)),
    "narrow": (1, (1, 0), (0, 1), (0, 1)),
    "both": (1, (0, 0), (1, 1), (0, 1)),
    "does not hold": (0, (1, 1), (1, 1), (0, 0)),
}


def rows(method, fact, rewrite, paraphrases, neighbours, **columns):
    """The prompts of one edit, with its relation named after the first letter of the fact."""
    right = {"rewrite": (rewrite,), "paraphrase": paraphrases, "neighbourhood": neighbours}
    about = {"method": method, "seed": 1, "fact": fact, "relation": fact[0], "protocol": "p", "facts": "h", **columns}
    return [
        about | {"kind": kind, "prompt": f"{fact} {kind} {n}", "success": bool(value), "accuracy": False}
        for kind, values in right.items()
        for n, value in enumerate(values)
    ]


def asked(cases, method="memit", **columns):
    found = []
    for fact, (rewrite, paraphrases, before, after) in cases.items():
        found += rows("pre", fact, 0, (0,) * len(paraphrases), before, moment="pre", **columns)
        found += rows(method, fact, rewrite, paraphrases, after, moment="immediate", **columns)
    return pd.DataFrame(found)


def test_each_class_from_prompts_by_hand():
    edits = anatomy.classified(asked(CASES)).set_index("fact")
    assert edits["class"].to_dict() == {name: name for name in CASES}
    assert set(CASES) == set(anatomy.CLASSES)
    assert edits.broke["both"] == "both neighbourhood 0" and edits.broke["clean"] == ""
    assert edits.loc["does not hold", ["paraphrases", "missed", "watched", "broken"]].tolist() == [2, 0, 2, 2]


def test_classes_of_random_prompts_are_those_of_a_plain_loop():
    generator = np.random.default_rng(0)

    def draw(n):
        return tuple(generator.integers(0, 2, n))

    cases = {f"{'abcd'[i % 4]}{i}": (draw(1)[0], draw(2), draw(3), draw(3)) for i in range(60)}
    edits = anatomy.classified(asked(cases)).set_index("fact")
    for fact, (rewrite, paraphrases, before, after) in cases.items():
        spilt = any(was and not now for was, now in zip(before, after, strict=True))
        name = ("both" if spilt else "narrow") if not all(paraphrases) else "spills" if spilt else "clean"
        name = name if rewrite else "does not hold"
        assert edits["class"][fact] == name if any(before) else pd.isna(edits["class"][fact])


def test_what_cannot_break_or_generalise_does_not_count():
    cases = CASES | {"nothing right": (1, (1, 1), (0, 0), (0, 0)), "no paraphrase": (1, (), (1,), (1,))}
    table = anatomy.anatomy(anatomy.classified(asked(cases)))
    assert table["count"].tolist() == [1] * 5 and set(table.n) == {5} and set(table.left_out) == {2}
    bare = anatomy.classified(asked({"no neighbour": (1, (1,), (), ())}))
    assert anatomy.anatomy(bare).empty and anatomy.clean_gaps(bare).empty and anatomy.broken_neighbours(bare).empty


def test_a_prompt_that_was_not_asked_before_is_refused():
    prompts = asked(CASES)
    with pytest.raises(ValueError, match="clean rewrite 0.*was not asked"):
        anatomy.classified(prompts[(prompts.method != "pre") | (prompts.fact != "clean")])


@pytest.fixture
def two():
    """Two methods on 24 facts of four relations; the first is clean on 18 of them, the second on 6."""
    cases = {f"{'abcd'[i % 4]}{i}": (1, (1,), (1,), (int(i < 18),)) for i in range(24)}
    fewer = {name: (1, (1,), (1,), (int(i < 6),)) for i, name in enumerate(cases)}
    both = pd.concat([asked(cases), asked(fewer, "emmet").query("method == 'emmet'")])
    return anatomy.classified(both), cases


def test_shares_have_the_intervals_of_a_score(two):
    edits, cases = two
    table = anatomy.anatomy(edits)
    assert np.allclose(table.groupby("method").value.sum(), 1)
    clean = table[table["class"] == "clean"].set_index("method")
    assert clean["count"].to_dict() == {"memit": 18, "emmet": 6} and set(clean.clusters) == {4}
    about = {"seed": 1, "kind": "rewrite", "moment": "final"}
    by_hand = [about | {"fact": f, "relation": f[0], "success": float(a[0])} for f, (*_, a) in cases.items()]
    expected = interval(pd.DataFrame(by_hand)).loc["ES"]
    assert clean.loc["memit", ["value", "low", "high"]].tolist() == expected[["value", "low", "high"]].tolist()
    assert table[table["class"] != "clean"].low.isna().all()


def test_gaps_are_paired_by_fact(two):
    edits, _ = two
    gap = anatomy.clean_gaps(edits).iloc[0]
    assert (gap.method, gap.reference, gap.value) == ("memit", "emmet", 0.5)
    parts = [
        edits[edits.method == name].assign(kind="rewrite", success=lambda t: t["class"].eq("clean").astype(float))
        for name in ("memit", "emmet")
    ]
    expected = paired_difference(*parts, "immediate").loc["ES"]
    assert [gap.low, gap.high, gap.p_holm] == [expected.low, expected.high, holm([expected.p])[0]]


def test_broken_neighbours_are_counted_by_edit(two):
    table = anatomy.broken_neighbours(two[0]).set_index("method")
    assert table.value.to_dict() == {"memit": 6 / 24, "emmet": 18 / 24}
    assert table.broken.to_dict() == {"memit": 6, "emmet": 18} and set(table.watched) == {24}
    assert (table.low >= 0).all() and (table.low < table.value).all() and (table.value < table.high).all()
    few = anatomy.broken_neighbours(anatomy.classified(asked({name: CASES[name] for name in ("clean", "spills")})))
    assert (few.low[0], few.value[0], few.high[0]) == (0, 0.5, 1), "no more than were right"
    none = anatomy.broken_neighbours(anatomy.classified(asked({"clean": CASES["clean"]})))
    assert none.value[0] == 0 and none.high[0] == proportion(0, 1)[1]


def test_a_run_has_a_panel_for_its_largest_batch_and_one_for_controls():
    small, large = (asked(CASES, batch_size=size) for size in (1, 5))
    large.loc[large.moment == "pre", "batch_size"] = 0
    batches = pd.concat([large, small[small.moment == "immediate"]])
    evaluated = asked({name: CASES[name] for name in ("clean", "both")}, "grace")
    edits = anatomy.of_run(batches, evaluated)
    assert edits.groupby("part").size().to_dict() == {"batches": 5, "evaluation": 2}
    assert edits.panel.unique().tolist() == [
        "5 edits at once: 5 facts of 1 seed",
        "editors and controls, 2 at once: 2 facts of 1 seed",
    ]
    table = anatomy.by_panel(anatomy.anatomy, edits)
    assert table.groupby("part")["count"].sum().to_dict() == {"batches": 5, "evaluation": 2}
    assert list(table)[:3] == ["part", "panel", "method"]
    nothing = anatomy.of_run(pd.DataFrame(), pd.DataFrame())
    assert nothing.empty and anatomy.by_panel(anatomy.anatomy, nothing).empty
