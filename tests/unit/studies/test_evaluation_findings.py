"""Sentences say what the tables say."""

import pandas as pd
import pytest

from editkit.studies.evaluation_findings import evaluation_findings, locating_findings

EFFECTS = pd.DataFrame(
    [
        {"kind": kind, "position": position, "layer": layer, "value": value, "low": value - 0.1, "high": value + 0.1}
        for kind, position, layer, value in (
            ("mlp", "last subject", 4, 0.3),
            ("mlp", "last", 9, 0.2),
            ("attention", "last", 20, 0.25),
            ("attention", "last subject", 1, 0.05),
        )
    ]
)
TOTAL = {"clean": 0.62, "corrupted": 0.04, "n": 10}


def test_tracing_names_its_places_and_the_layer_that_it_would_choose():
    agreed = {"rank_correlation": -0.31, "n_layers": 4, "traced_layer": 4, "swept_layer": 9}
    agreed |= {"difference": -0.2, "low": -0.3, "high": -0.1}
    noise, mlps, attention, layers = locating_findings(EFFECTS, TOTAL, pd.DataFrame({"layer": [4, 9]}), agreed)
    assert "P = 0.62 to 0.04 (10 facts" in noise
    assert "MLPs brings back most at the last subject token around layer 4: 0.30 [0.20, 0.40]" in mlps
    assert "attention brings back most at the last token around layer 20" in attention
    assert "tracing would choose layer 4, where S is −0.20 [−0.30, −0.10], the sweep layer 9" in layers
    assert layers.endswith("rank correlation is −0.31.")
    assert len(locating_findings(EFFECTS, TOTAL, pd.DataFrame(), {})) == 3


@pytest.fixture
def scores():
    rows = [("pre", 0.0, 5.8), ("memit", 0.9, 5.5), ("grace", 1.0, 5.7)]
    about = {"seed": 1, "n_facts": 16, "n_texts": 8, "PS": 0.5, "NS": 0.5, "S": 0.5}
    return pd.DataFrame([{"method": method, "ES": es, "GE": ge, **about} for method, es, ge in rows])


def test_each_rung_and_its_turns_are_told(scores):
    values = {("pre", "success"): 0, ("memit", "success"): 0.9, ("grace", "success"): 1.0}
    values |= {("pre", "said"): 0, ("memit", "said"): 0.5, ("grace", "said"): 0.4}
    ladder = pd.DataFrame([{"method": m, "rung": r, "kind": "rewrite", "value": v} for (m, r), v in values.items()])
    changes = pd.DataFrame({"kind": ["rewrite"], "rung": ["said"], "swapped": ["MEMIT / look-up of v* (GRACE)"]})
    told = evaluation_findings(scores, ladder, changes, pd.DataFrame(), pd.DataFrame())
    assert told[0] == "16 facts of each of 1 seed, held all at once by everyone."
    assert "MEMIT 90% → 50%" in told[1] and "no edit" not in told[1]
    assert told[2] == "Pairs whose order by success turns round, without a test of each: rewrite by said, 1."
    assert "no edit 5.80; MEMIT 5.50" in told[3] and "(8 facts a seed)" in told[3]
    alike = evaluation_findings(scores, ladder, changes.assign(swapped=""), pd.DataFrame(), pd.DataFrame())
    assert "No rung turns the order by success of any two methods round." in alike


def test_consequences_and_abilities_are_named_with_what_is_behind_them(scores):
    about = {"kind": "two_hop", "score": "accuracy", "asked": 40, "known": 12}
    probes = pd.DataFrame(
        [
            {"method": method, "value": value, "low": value - 0.1, "high": value + 0.1} | about
            for method, value in (("pre", 0.0), ("memit", 0.1), ("grace", 0.2))
        ]
    )
    tasks = pd.DataFrame(
        [
            {"task": "sst2", "metric": "acc", "method": method, "value": value, "stderr": 0.02}
            for method, value in (("pre", 0.8), ("memit", 0.6), ("grace", 0.79))
        ]
    )
    nothing = pd.DataFrame(columns=["kind", "rung", "method", "value", "swapped"])
    told = evaluation_findings(scores, nothing, nothing, probes, tasks)
    [hops] = [one for one in told if one.startswith("Two hops")]
    assert "(accuracy, 12 of 40 probes known before): from MEMIT 10% [0%, 20%] to look-up of v* (GRACE) 20%" in hops
    assert told[-1] == "sst2 (acc 0.80 ± 0.02 before any edit): MEMIT −0.20."
    quiet = evaluation_findings(scores, nothing, nothing, probes, tasks.assign(value=0.8))
    assert quiet[-1].endswith("nobody moves it beyond twice its standard error.")
