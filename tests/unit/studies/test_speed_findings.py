"""Sentences of the speed appendix."""

import json
from pathlib import Path

import pandas as pd

from editkit.studies.speed_findings import (
    AGREED,
    MEASURED,
    search_findings,
    speed_findings,
    thousands_findings,
    token_findings,
)

BENCHMARKS = Path(__file__).parents[3] / "benchmarks/results.json"


def test_what_was_measured_has_a_name_for_people():
    found = json.loads(BENCHMARKS.read_text())["measurements"]
    assert found.keys() == MEASURED.keys()
    checks = {name for one in found.values() for name in one if "error" in name or "difference" in name}
    assert checks == AGREED.keys()


def test_findings_on_speed_name_the_least_and_the_most():
    ratios = pd.DataFrame({"what": ["targets", "solve"], "ratio": [7.44, 286.3], "lowest": [0.9, 271.0]})
    edits = pd.DataFrame(
        [(8, 1.0, 1.0, 1.0, 5.0), (32, 18.0, 1.0, 1.0, 5.0)], columns=["edits", "targets", "keys", "solve", "scoring"]
    )
    faster, share = speed_findings(ratios, edits)
    assert faster.startswith("1 of 2") and "by 7.4 (targets) to 286 times (solve)" in faster
    assert "With 32 edits in one batch, the targets take 90%" in share


def test_findings_on_the_text_behind_c_are_told_by_kind():
    rows = [("mine", 1, 0.5, 0.4), ("mine", 10, 0.8, 0.7), ("mine", 20, 0.82, 0.69), ("other", 10, 0.7, 0.6)]
    frame = pd.DataFrame([*rows, ("other", 20, 0.7, 0.65)], columns=["text", "tokens_per_dimension", "S", "NS"])
    first, emmet = token_findings(frame.assign(method="emmet", edits=32), 10)
    assert "32 facts of one seed in one batch" in first and "no order of texts can be named" in first
    head, mine, other = emmet.split("\n  - ")
    assert head == "EMMET, 10 tokens for each dimension:"
    assert mine == "mine: S 0.800, NS 0.700; with 20 S +0.020, NS -0.010; lowest NS 0.400, at 1"
    assert other == "other: S 0.700, NS 0.600; with 20 S 0.000, NS +0.050; lowest NS 0.600, at 10"


def test_shorter_searches_are_told_by_what_they_lose():
    columns = ["search", "method", "edits", "targets", "S_change", "S_low", "S_high"]
    rows = [("exact", "memit", 10, 20.0, 0.0, 0.0, 0.0), ("fast", "memit", 10, 4.0, 0.01, -0.02, 0.04)]
    rows.append(("two steps", "memit", 10, 2.0, -0.3, -0.4, -0.2))
    (told,) = search_findings(pd.DataFrame(rows, columns=columns))
    head, fast, two = told.split("\n  - ")
    assert "no S that is resolved: fast. These do: two steps.**" in head
    assert fast == "fast, 5 times as fast: MEMIT +0.01 [-0.02, +0.04]"
    assert two.startswith("two steps, 10 times as fast") and "-0.30 [-0.40, -0.20]" in two


def test_thousands_are_told_at_every_size_with_what_ten_thousand_would_take():
    columns = ["editor", "edits", "S", "perplexity", "targets", "keys", "solve", "peak_memory_mb"]
    rows = [("EMMET", 100, 0.8, 20.0, 20.0, 4.0, 1.0, 900.0), ("EMMET", 4000, 0.2, 2000.0, 800.0, 160.0, 40.0, 1200.0)]
    frame = pd.DataFrame(rows, columns=columns).assign(d_k=1536, judged=50, perplexity_before=10.0)
    scores, cost = thousands_findings(frame.assign(S_low=frame.S - 0.1, S_high=frame.S + 0.1))
    head, emmet = scores.splitlines()
    assert head.startswith(
        "**From 100 to 4,000 edits in one batch, where a key has 1,536 dimensions.** S of the first 50,"
    )
    assert emmet.startswith(
        "  - EMMET: 100 edits S 0.80 [0.70, 0.90], perplexity × 2.0; 4,000 edits S 0.20 [0.10, 0.30], "
    )
    assert emmet.endswith("perplexity × 200.0")
    assert cost.startswith(
        "4,000 edits take 4.0 edits a second or more, 40.0 s of it in the solve; keys and solve need "
    )
    assert "1,200 MB at most (100 edits: 900 MB)" in cost and cost.endswith("10,000 would take 42 minutes.")
