"""Published numbers, and which of ours stand beside them."""

from statistics import harmonic_mean

import pandas as pd
import pytest

from editkit.methods import look
from editkit.studies import published
from tests.unit.studies.conftest import summarised


def test_a_printed_composite_is_the_harmonic_mean_of_what_is_printed_beside_it():
    whole = [row for row in published.PUBLISHED if len(row.scores) > 3]
    assert {row.method for row in whole} == {"rome", "memit"}
    for row in whole:
        assert harmonic_mean(row.scores[:3]) == pytest.approx(row.scores[3], abs=0.05)


def test_every_row_is_of_a_method_that_is_known_here():
    for row in published.PUBLISHED:
        assert look(row.method) and row.rung in (published.SUCCESS, published.SAID) and "table" in row.source


def test_the_nearest_of_ours_stands_beside_a_published_score():
    final = summarised().assign(GE=6.25)
    alpha = final[final.configuration == "MEMIT, none"].assign(method="alphaedit", configuration="AlphaEdit, hold")
    table = published.beside_published(pd.concat([final, alpha], ignore_index=True)).set_index(["method", "score"])
    memit = table.loc["memit"]
    assert memit.published.to_dict() == {"ES": 98.9, "PS": 88.6, "NS": 73.7, "S": 85.8, "GE": 619.9}
    assert memit.measured.to_dict() == dict.fromkeys(["ES", "PS", "NS", "S"], "0.80 [0.70, 0.90]") | {"GE": "6.25"}
    assert set(memit.ours) == {"m, d, 8 edits at once"} and set(memit.theirs) == {
        "GPT-J, CounterFact, 10,000 edits at once"
    }
    assert set(memit.apart) == {"model, data, number of edits"} and set(memit.n) == {"16"}
    assert table.measured["locft", "PSaid"] == "0.50 [0.40, 0.60]"
    assert table.apart["locft", "PSaid"].endswith("judge of the answers")
    assert (
        table.ours["alphaedit", "NS"] == "m, d, 8 edits in steps" and table.measured["alphaedit", "NS"][:5] == "0.60 "
    )


def test_what_a_run_lacks_is_left_open():
    table = published.beside_published(summarised()).set_index(["method", "score"])
    assert table.loc[("rome", "S")].to_dict() == {
        "source": "arXiv 2202.05262, table 4",
        "theirs": "GPT-J, CounterFact, a single edit",
        "ours": "not in this run",
        "apart": "–",
        "published": 91.5,
        "measured": "–",
        "n": "–",
    }
    assert table.measured["locft", "ESaid"] == "–", "the run has no such score"
    shown = published.beside_shown(published.beside_published(summarised()))
    assert list(shown) == ["published", "ours", "n"] and shown.published.iloc[0] == "99.9"
