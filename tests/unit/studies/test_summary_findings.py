"""Sentences and titles of the summary, from a small table by hand."""

import numpy as np
import pandas as pd
import pytest

from editkit.studies import summary_findings as findings
from tests.unit.studies.conftest import summarised


@pytest.fixture
def gaps():
    return pd.DataFrame([{"batch_size": 8, "method": "memit", "reference": "emmet", "score": "S", "p_holm": 0.01}])


@pytest.fixture
def changes():
    rows = [("memit", 0, "NS", -0.1, 0.01), ("emmet", 0, "NS", -0.2, 0.3), ("memit", 1, "S", -0.1, 0.02)]
    table = pd.DataFrame(rows, columns=["method", "reference", "score", "value", "p_holm"])
    return table.assign(low=table.value - 0.05, high=table.value + 0.05)


@pytest.fixture
def compared():
    rows = [("EMMET, history", 0.05, 0.04), ("EMMET, hold", 0.01, 0.9)]
    table = pd.DataFrame(rows, columns=["run", "value", "p_holm"]).assign(method="emmet")
    return table.assign(low=table.value - 0.02, high=table.value + 0.02)


def test_titles_claim_what_is_resolved_and_no_more(gaps, changes):
    final = summarised()
    assert findings.methods_title(final, gaps) == "MEMIT leads at 8 edits at once: S 0.80"
    unsure = findings.methods_title(final, gaps.assign(p_holm=0.2))
    assert unsure == "No lead is resolved at 8 edits at once: S from 0.70 to 0.80"
    assert findings.sizes_title(changes) == "Against 1 at once, S of the largest batch falls for MEMIT"
    assert findings.sizes_title(changes.assign(p_holm=1.0)).endswith("changes for no method that is resolved")
    assert findings.sizes_title(changes.assign(reference=0)) == "S by the number of edits at once"
    assert findings.front_title(final) == "On the front of editors and controls: MEMIT"


def test_the_fastest_and_the_slowest_are_named():
    final = summarised()
    final.loc[final.method == "locft", "seconds_an_edit"] = 0.5
    assert findings.costs_title(final) == "An edit takes from 0.5 s (LocFT-BF) to 2 s (MEMIT)"


def test_five_answers_with_verdict_interval_sample_and_chapter(gaps, changes, compared):
    told = findings.summary_findings(summarised(), gaps, changes, compared)
    assert [text.partition(".**")[0].strip("*") for text in told] == [
        "MEMIT holds edits best",
        "Preferred is not yet said",
        "Neighbours break with MEMIT",
        "1 of 2 memories and restraints help",
        "A low rank costs",
    ]
    assert "Of 8 edits at once MEMIT has S 0.80 [0.70, 0.90], EMMET 0.70 [0.60, 0.80]" in told[0]
    assert "(16 facts of 1 seed, immediate; [baselines](01_baselines.ipynb))" in told[0]
    assert "prefers it on 0.80 [0.70, 0.90] of them and says it on 0.30 [0.20, 0.40]" in told[1]
    assert "with EMMET, by -0.20 [-0.25, -0.15], p 0.3, over 2 methods" in told[2]
    assert "4 a step, EMMET ends at S 0.70 [0.60, 0.80] without replay" in told[3]
    assert "EMMET, history, +0.05 [+0.03, +0.07], p 0.04" in told[3]
    assert "rank 2 (svd) has S 0.40 [0.30, 0.50], the raw edit 0.80 [0.70, 0.90]" in told[4]


def test_what_is_not_resolved_is_said_to_be_so(gaps, changes, compared):
    final = summarised()
    for name in ("S", "PS", "PSaid"):
        final[f"{name}_low"], final[f"{name}_high"] = 0.0, 1.0
    told = findings.summary_findings(final, *(table.assign(p_holm=0.5) for table in (gaps, changes, compared)))
    verdicts = [text.partition(".**")[0] for text in told]
    assert all("resolved" in verdict for verdict in verdicts) and len(verdicts) == 5


def test_facts_without_paraphrases_and_neighbours_leave_sentences_out(gaps, changes, compared):
    bare = summarised().assign(PS=np.nan, NS=np.nan, S=np.nan, PSaid=np.nan)
    told = findings.summary_findings(bare, gaps, changes.assign(value=np.nan), compared)
    assert told == []
    assert findings.front_title(bare) == "Nothing was both learnt and kept"
    assert findings.methods_title(bare, gaps) == "No lead is resolved at 8 edits at once: S from – to –"
