"""Tables about a model and its facts, before anything is edited."""

import dataclasses

import numpy as np
import pytest
import torch
from bs4 import BeautifulSoup

from editkit.language.inspection import fact_prompts, null_space_table, relation_table, spectra, subject_tokens
from editkit.report.safety import clean


def test_relations_are_counted_with_their_first_fact(facts):
    more = [dataclasses.replace(fact, relation="other") for fact in facts[2:]]
    table = relation_table([facts[1], *more, *facts[:1]])
    assert table.facts.to_dict() == {"made up": 2, "other": 2}
    assert table.loc["made up", "first prompt"] == facts[1].text == "Rome lies in"
    assert table.loc["other", ["true object", "new object"]].tolist() == ["Paris", "Rome"]


def test_every_prompt_of_a_fact_is_listed_with_its_use(facts):
    table = fact_prompts(facts[2])
    assert table.index.tolist() == ["prompt", "paraphrase", "neighbourhood"]
    assert table.columns[0].endswith("Paris → Rome") and table.iloc[0, 0] == "The capital of France is"


def test_the_null_space_is_what_lies_below_the_threshold():
    basis = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(0)).double())[0]
    C = basis @ torch.diag(torch.tensor([1.0, 8.0, 0.1, 0.9]).double()) @ basis.T
    values = spectra({3: C})
    np.testing.assert_allclose(values[3], [8.0, 1.0, 0.9, 0.1])
    (row,) = null_space_table(values, 0.95).to_dict("records")
    assert (row["layer"], row["directions (d_k)"], row["in null space"]) == (3, 4, 2)
    assert row["variance there"] == pytest.approx(0.1) and row["largest eigenvalue"] == pytest.approx(8.0)


def test_the_token_that_is_edited_is_marked_in_a_report_too(tiny, facts):
    """Its text is white: without its colour behind it nobody could read it."""
    shown = BeautifulSoup(clean(subject_tokens(tiny(), facts[:2])), "html.parser")
    for row, fact in zip(shown.find_all("div"), facts, strict=False):
        (marked,) = [chip for chip in row.find_all("code") if "white" in chip["style"]]
        assert "background-color:#b85c00" in marked["style"] and len(row.find_all("code")) > 1
        before = "".join(chip.get_text() for chip in [*marked.find_previous_siblings("code")[::-1], marked])
        assert before.replace("␣", " ").endswith(fact.subject)
