"""The record of one probe: its checks, and what it says of before and after."""

import pytest

from editkit.facts import KINDS, Probe
from editkit.facts.probe import Condition

TWO_HOP = {"kind": "two_hop", "fact": "f", "prompt": "The currency there is the", "answer": "yen", "before": "euro"}


def test_a_change_has_what_was_right_before_for_a_rival():
    probe = Probe(**TWO_HOP)
    assert probe.changes and probe.rival == "euro"
    assert Probe(**TWO_HOP | {"rival": "peso"}).rival == "peso"
    kept = Probe(**TWO_HOP | {"before": "yen"})
    assert not kept.changes and kept.rival is None
    open_ = Probe(**TWO_HOP | {"before": None})
    assert open_.changes and open_.rival is None


def test_texts_are_in_one_form_and_without_blanks():
    probe = Probe(
        **TWO_HOP | {"prompt": "Cafe\u0301 is \t", "answer": " yen\n"},
        aliases=["  JPY ", " "],
        conditions=(Condition(" Yes ", ["a\u0301", ""]),),
    )
    assert (probe.prompt, probe.answer, probe.aliases) == ("Caf\u00e9 is", "yen", ("JPY",))
    assert probe.conditions == (Condition(" Yes", ("\u00e1",)),)
    same = Probe(**TWO_HOP | {"prompt": probe.prompt}, aliases=("JPY",), conditions=probe.conditions)
    assert same == probe and hash(same) == hash(probe)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kind": "three_hop"}, ["'three_hop'", *KINDS]),
        ({"prompt": " "}, ["prompt", "non-empty"]),
        ({"answer": ""}, ["answer", "non-empty"]),
        ({"before": " "}, ["before", "non-empty"]),
        ({"answer": None}, ["None", "text"]),
        ({"rival": 5}, ["5", "text"]),
        ({"aliases": "one"}, ["aliases", "'one'", "list"]),
        ({"before_aliases": [None]}, ["before_aliases", "list"]),
        ({"answer": "\ud83d"}, ["ud83d"]),
    ],
)
def test_bad_fields_are_named(change, words):
    with pytest.raises((ValueError, TypeError)) as error:
        Probe(**TWO_HOP | change)
    assert all(word in str(error.value) for word in words)
