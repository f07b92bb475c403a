"""Scores of facts: which row belongs to which fact."""

from dataclasses import replace

import pytest

from editkit import evaluate
from editkit.language.metrics import places


def test_rows_belong_to_facts_by_their_places(tiny, facts):
    several = [facts[0], replace(facts[1], paraphrases=(), neighbours=()), facts[0]]
    frame = evaluate(tiny(), several)
    assert places(several).tolist() == [0, 0, 0, 1, 2, 2, 2] and len(frame) == 7
    assert frame.fact.tolist() == [several[place].id for place in places(several)]


def test_different_facts_of_one_name_are_refused(tiny, facts):
    with pytest.raises(ValueError, match="two facts are called 'mine'"):
        evaluate(tiny(), [replace(fact, id="mine") for fact in facts[:2]])
