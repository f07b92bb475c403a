"""Facts that a model knows: counts, orders, and how many are tried."""

import json
import logging
from collections import Counter
from pathlib import Path

import pytest

from editkit.facts import part_of
from editkit.language import known
from editkit.language.forward.scoring import score
from editkit.language.known import known_facts, knows, load_facts
from tests.unit.conftest import COUNTERFACT


@pytest.fixture
def sample(tmp_path) -> Path:
    path = tmp_path / "cf.json"
    rewrite = COUNTERFACT["requested_rewrite"]
    records = [{"case_id": i, "requested_rewrite": rewrite | {"subject": f"Land {i}"}} for i in range(150)]
    path.write_text(json.dumps([COUNTERFACT | record for record in records]), encoding="utf-8")
    return path


def load(sample: Path, **wanted):
    """Load from both parts unless told otherwise."""
    return load_facts("counterfact", path=sample, **{"part": "all"} | wanted)


def test_order_and_seeds(sample):
    own = load(sample)
    assert [f.id for f in own] == [f"counterfact:{i}" for i in range(150)]
    assert load(sample, seed=None, n=5) == own[:5]
    drawn = load(sample, seed=1)
    assert drawn != own and Counter(drawn) == Counter(own)
    assert load(sample, seed=1, n=5) == drawn[:5]
    assert load(sample, seed=2) != drawn


@pytest.mark.parametrize("n", [0, -1, 2.5, True, "3"])
def test_bad_counts_are_named(n, sample):
    with pytest.raises(ValueError, match=f"n is {n!r}"):
        load(sample, n=n)


def test_too_large_a_count_names_both_numbers(sample):
    with pytest.raises(ValueError, match="151.*150 facts$"):
        load(sample, n=151)
    with pytest.raises(ValueError, match="150, but .* facts in its test part$"):
        load_facts("counterfact", path=sample, n=150)


def test_the_test_part_is_what_is_loaded_unless_told_otherwise(sample):
    own, tune = load(sample), load(sample, part="tune")
    assert load_facts("counterfact", path=sample) == [fact for fact in own if part_of(fact) == "test"]
    assert tune == [fact for fact in own if part_of(fact) == "tune"] and 0 < len(tune) < len(own)


@pytest.fixture
def every_third_known(monkeypatch):
    """A scorer that knows every third case; it records the sizes of what it is asked."""
    sizes = []

    def knows(lm, facts):
        sizes.append(len(facts))
        return [int(fact.id.split(":")[1]) % 3 == 0 for fact in facts]

    monkeypatch.setattr(known, "knows", knows)
    return sizes


def test_known_only_works_in_chunks_until_enough(sample, every_third_known, caplog):
    with caplog.at_level(logging.INFO, logger="editkit"):
        facts = load(sample, n=32, known_only=object())
    assert [f.id for f in facts] == [f"counterfact:{3 * i}" for i in range(32)]
    assert every_third_known == [64, 64]
    assert "known_only: kept 32 of 94 facts tried" in caplog.messages


def test_known_only_warns_when_too_few_are_known(sample, every_third_known):
    with pytest.warns(UserWarning, match="knows 50 of 150 .* fewer than the 60"):
        assert len(load(sample, n=60, known_only=object())) == 50


def test_known_facts_without_a_count_tries_all(sample, every_third_known):
    found, tried = known_facts(object(), load(sample))
    assert (len(found), tried) == (50, 150)
    assert every_third_known == [64, 64, 22]


def test_a_fact_is_known_where_greedy_decoding_says_it(tiny, facts):
    lm = tiny()
    assert knows(lm, facts) == [s[0].greedy for s in score(lm, [(f.text, [f.target_true]) for f in facts])]
