"""Answers, findings and advice of the first screen: what they say, and that what they lead to is there."""

import re
from pathlib import Path

import nbformat
import pytest

from editkit.studies import front_answers
from tests.unit.studies.conftest import front_tables

NOTEBOOKS = Path(__file__).parents[3] / "notebooks"


@pytest.fixture
def tables():
    return front_tables()


def test_every_link_leads_to_a_heading(tables):
    links = set(re.findall(r"\]\(([^)]*)\)", front_answers.below_abstract(tables)))
    assert len(links) >= 7
    for link in links | {front_answers.link(name, "x").split("(")[1][:-1] for name in front_answers.SECTIONS}:
        chapter, anchor = link.split("#")
        cells = nbformat.read(NOTEBOOKS / chapter, 4).cells
        titles = [line[3:] for cell in cells for line in cell.source.splitlines() if line.startswith("## ")]
        assert anchor in [title.replace(" ", "-") for title in titles], link


def test_five_answers_in_order(tables):
    told = front_answers.answers(tables)
    assert [text.split("**")[1] for text in told] == [
        "Does it write?",
        "Does it generalise?",
        "What breaks?",
        "Does it last?",
        "Can it be taken back?",
    ]
    assert "70% [65–75%] (EMMET) to 80% [75–85%] (MEMIT) of the prompts" in told[0]
    assert "asked to speak, MEMIT says it 2 of 10 times" in told[1]
    assert "4% turn wrong" in told[2] and "Neighbours are lost with MEMIT" in told[2]
    assert "Old edits are lost in 4 steps of 5: 10 of 20 [30–70%] hold at the end" in told[3]
    assert "none of its edits is left, and in 1 of 1 cases" in told[4]


def test_findings_have_three_forms(tables):
    sure = front_answers.findings(tables)
    assert len(sure) == 3
    assert sure[0].startswith("**MEMIT is surely cleaner than 1 of 1 controls.** Clean edits against the nearest")
    assert "+50 points [+45, +55] (" in sure[0]
    assert sure[1].startswith("**Many at once cost MEMIT.** S of the largest batch against 1 at once")
    assert sure[2].startswith("**1 of 1 memories and restraints help.**")
    unsure = {name: table.assign(p_holm=0.5) if "p_holm" in table else table for name, table in tables.items()}
    told = front_answers.findings(unsure)
    assert all("not resolved: p" in text and "less than 5 points cannot be seen here" in text for text in told)
    assert "cleaner than 0 of 1" in told[0] and "No cost" in told[1] and "No memory or restraint is resolved" in told[2]


def test_advice_speaks_of_six_situations_by_the_runs_numbers(tables):
    told = front_answers.advice(tables)
    assert len(told) == 6 and all("evidence" in text for text in told)
    assert "with 1 at once MEMIT carries it over to 85% of paraphrases" in told[0] and "(90% before" in told[0]
    assert "expect 60% [55–65%] clean ones from MEMIT" in told[1]
    assert "says it 2 of 10 times" in told[2] and "10 of 20 [30–70%] survive 20 edits in steps of 5" in told[3]
    assert "at rank 8 or more for 10 edits" in told[4] and "ROME nets +7 of 200 held-out images, resolved" in told[5]


@pytest.mark.parametrize("missing", sorted(front_tables()))
def test_a_run_without_a_table_tells_the_rest(tables, missing):
    rest = {name: table for name, table in tables.items() if name != missing}
    told = front_answers.below_abstract(rest)
    assert told and "nan" not in told and "None," not in told


def test_a_run_of_nothing_tells_nothing():
    assert front_answers.below_abstract({}) == ""
