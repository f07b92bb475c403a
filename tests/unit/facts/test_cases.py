"""What several readers share: texts in lists, and records put together."""

import pytest

from editkit.facts import Fact, Probe
from editkit.facts.cases import Case, one_text, optional, texts_in, to_case


def test_texts_lie_in_lists_of_lists():
    assert texts_in("a", "x") == ("a",) and texts_in([["a", " "], "b"], "x") == ("a", "b") and texts_in([], "x") == ()
    assert one_text([["", "a"]], "x") == "a"
    for value in (5, None, {"a": 1}, ["a", 5], [[["a"]]]):
        with pytest.raises(TypeError, match="x is .*list of texts"):
            texts_in(value, "x")
    with pytest.raises(ValueError, match=r"x is \['']; a non-empty text"):
        one_text([""], "x")


def test_what_is_missing_or_null_is_empty():
    assert optional({}, "a", dict) == {} and optional({"a": None}, "a", list) == [] and optional({"a": [1]}, "a", list)
    with pytest.raises(TypeError, match="a is 5; a list"):
        optional({"a": 5}, "a", list)


def test_facts_of_one_id_stay_apart_with_their_own_probes():
    def convert(index, record):
        fact = Fact("x:0", "", record["s"], "{} is in", "Rome", "Oslo")
        return Case((fact,), (Probe("two_hop", "x:0", f"{record['s']}?", "a", "b"),))

    case = to_case("file", [{"s": "Ann"}, {"s": "Bob"}], convert, "layout")
    assert [fact.id for fact in case.facts] == ["x:0", "x:0:1"] == [probe.fact for probe in case.probes]
