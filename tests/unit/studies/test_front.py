"""The first screen's sentences, from a small run by hand: verdicts, numbers, and what is left out."""

import pandas as pd
import pytest

from editkit.studies import front
from editkit.studies.intervals import paired_difference
from tests.unit.studies.conftest import front_tables


@pytest.fixture
def tables():
    return front_tables()


def test_five_sentences_with_verdict_number_and_interval(tables):
    told = front.abstract(tables)
    assert told[0] == (
        "**MEMIT is cleaner than EMMET.** With 20 edits at once, 60% [55–65%] hold, generalise and spare every "
        "neighbour with MEMIT, 40% [35–45%] with EMMET."
    )
    assert told[1].startswith(
        "**Preferred is not yet said.** On paraphrases MEMIT prefers the new object 9 of 10 times and says it 2: −70"
    )
    assert told[2] == (
        "**Neighbours are lost with MEMIT.** An edit breaks 0.25 [0.20–0.30] of its 4.0 right neighbours with MEMIT, "
        "0.50 [0.45–0.55] with EMMET."
    )
    assert told[3] == (
        "**Old edits are lost.** One after another, 10 of 20 [30–70%] hold at the end with EMMET; as adapter rank 8 "
        "keeps 95% of 10 edits."
    )
    assert told[4] == (
        "**Image repairs are a net gain.** ROME fixes 18 of 20 [70–100%] and keeps 99% [97–100%]; 9 of 200 held-out "
        "images turn right, 2 wrong."
    )
    assert len(told) == 5 and len(" ".join(told).split()) <= 120


def test_what_is_not_resolved_is_said_to_be_so(tables):
    unsure = {name: table.assign(p_holm=0.5) if "p_holm" in table else table for name, table in tables.items()}
    unsure["evaluation_prompts"] = tables["evaluation_prompts"].assign(said=lambda table: table.success)
    assert [text.partition(".**")[0].strip("*") for text in front.abstract(unsure)] == [
        "No editor is surely cleaner",
        "That less is said than preferred is not resolved",
        "Neighbours show no resolved loss",
        "Forgetting is not resolved",
        "Image repairs show no resolved gain",
    ]
    assert front.anatomy_title(unsure) == "No editor is surely cleaner: 40% to 60% of edits are clean"


def test_where_no_fewer_edits_hold_at_the_end_nothing_is_forgotten_even_if_some_never_held(tables):
    losses = tables["sequence_losses"]
    kept = tables | {"sequence_losses": losses.assign(value=0.0)}
    assert "**Nothing is forgotten.** One after another, 10 of 20 " in front.lasting_sentence(kept)


@pytest.mark.parametrize("missing", sorted(front_tables()))
def test_a_run_without_a_table_tells_the_rest(tables, missing):
    for gone in ({}, {missing: tables[missing].iloc[:0]}):
        rest = {name: table for name, table in tables.items() if name != missing} | gone
        told = front.abstract(rest)
        assert 4 <= len(told) <= 5 and "nan" not in " ".join([*told, front.about(rest), front.anatomy_title(rest)])


def test_a_run_of_nothing_tells_nothing():
    assert front.abstract({}) == [] and front.about({}) == ""
    assert front.anatomy_title({}) == "What became of each edit"


def test_one_editor_alone_is_compared_with_none(tables):
    one = tables | {"anatomy": tables["anatomy"].query("method == 'memit'")}
    assert front.clean_gap(one) is None
    assert front.abstract(one)[0].startswith("**Clean edits.** With 20 edits at once, 60% [55–65%] hold")


def test_a_comparison_is_turned_round(tables):
    gap = front.clean_gap(tables)
    assert (gap.method, gap.reference, gap.value) == ("memit", "emmet", 0.2)
    assert gap.low == pytest.approx(0.15) and gap.high == pytest.approx(0.25) and gap.p_holm == 0.01


def test_said_against_preferred_is_paired_by_fact(tables):
    prompts = tables["evaluation_prompts"]
    expected = paired_difference(prompts.assign(success=prompts.said.astype(float)), prompts, "immediate").loc["PS"]
    found = front.said_gap(tables)
    assert [found.value, found.low, found.high] == [expected.value, expected.low, expected.high]
    assert found.preferred == (9, 10) and found.said == (2, 10)
    rewrites = prompts.assign(kind="rewrite")
    assert front.said_gap({"evaluation_prompts": rewrites}).kind == "rewrite"
    assert front.said_gap({"evaluation_prompts": prompts.drop(columns="said")}) is None


def test_the_line_above_says_what_can_be_resolved(tables):
    assert front.about(tables) == (
        "tiny on made up · 20 edits at once: 60 facts of 2 seeds · "
        "**one comparison alone resolves differences of ≥ 0.05 in NS**"
    )
    named = tables | {"evaluation_prompts": tables["evaluation_prompts"].assign(model="<b>*x*")}
    assert front.about(named).startswith("&lt;b&gt;\\*x\\* on made up")


def test_the_lowest_rank_that_keeps_enough(tables):
    assert front.enough_rank(tables).lora_rank == 8
    low = tables["lora_ablation"].query("lora_fit in ['raw', 'svd']")
    assert front.enough_rank({"lora_ablation": low}).lora_rank == 0
    assert "no rank keeps 95% of 10 edits" in front.lasting_sentence(tables | {"lora_ablation": low}).lower()
    assert front.enough_rank({"lora_ablation": low.assign(ES=0.0)}) is None


def test_numbers_are_written_for_readers():
    few = pd.Series({"value": 17 / 18, "low": 0.7, "high": 1.0, "n": 18})
    assert front.share(few) == "17 of 18 [70–100%]"
    assert front.share(few.copy().replace(18, 100).replace(0.7, float("nan"))) == "94%"
    assert [front.signed(value) for value in (-0.4, 0.4, -3.2, 7)] == ["0", "0", "−3", "+7"]
    assert front.times((3, 4)) == "3 of 4 times" and front.times((30, 60), bare=True) == "50%"
