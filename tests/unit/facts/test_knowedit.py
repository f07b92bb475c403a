"""KnowEdit's four layouts: edits, and what must change with them and what must not."""

import pytest

from editkit.facts import Fact, knowedit, read_facts
from editkit.facts.fact import NO_OBJECT
from editkit.facts.probe import Condition
from tests.unit.facts.samples import KNOWEDIT, RECENT, WIKIBIO, write


def read(tmp_path, *records):
    return knowedit.read_case(write(tmp_path / "k.json", list(records)))


def test_a_record_is_an_edit(tmp_path):
    (fact,) = read(tmp_path, KNOWEDIT).facts
    assert fact == Fact(
        id="knowedit:0",
        relation="",
        subject="Ann Lee",
        prompt="The place of death of {} is",
        target_new="Berlin",
        target_true="Rome",
        paraphrases=("Where did Ann Lee die?",),
    )
    assert read_facts("knowedit", path=tmp_path / "k.json", part="all") == [fact]


def test_groups_are_kinds_of_probes(tmp_path):
    probes = {probe.kind: probe for probe in read(tmp_path, KNOWEDIT).probes}
    assert set(probes) == {"logical", "two_hop", "alias", "relation"}, "what has no answer is not asked"
    known = (Condition("The place of death of Ann Lee is", ("Rome", "Roma")),)
    assert (probes["logical"].answer, probes["logical"].aliases) == ("no", ("is dead",))
    assert (probes["two_hop"].answer, probes["two_hop"].aliases) == ("Asia", ("Asian continent",))
    for kind in ("logical", "two_hop"):
        assert (probes[kind].before, probes[kind].rival, probes[kind].conditions) == (None, None, known)
    alias, relation = probes["alias"], probes["relation"]
    assert (alias.answer, alias.before, alias.before_aliases) == ("Berlin", "Rome", ("Roma",))
    assert (relation.answer, relation.before, relation.rival) == ("Bob Lee", "Bob Lee", "Berlin")


def test_recent_facts_and_biographies_have_no_earlier_object(tmp_path):
    case = read(tmp_path, RECENT, WIKIBIO)
    assert [fact.target_true for fact in case.facts] == [NO_OBJECT, NO_OBJECT]
    assert (case.facts[1].subject, case.facts[1].target_new) == ("ann lee", "She was born in Rome.")
    assert case.facts[1].prompt.startswith("This is a Wikipedia passage about {}. Ann Lee")
    alias = next(probe for probe in case.probes if probe.kind == "alias")
    assert alias.before is None and not alias.conditions


def test_an_object_that_is_true_already_is_no_edit(tmp_path):
    with pytest.warns(UserWarning, match="record 0: fact 'knowedit:0': target_new and target_true are both 'Rome'"):
        assert len(read(tmp_path, KNOWEDIT | {"target_new": "Rome"}, RECENT).facts) == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prompt": 5}, ["prompt is 5", "a text"]),
        ({"target_new": {"str": "Rome"}}, ["target_new", "list of texts"]),
        ({"ground_truth": [["a", 5]]}, ["ground_truth", "list of texts"]),
        ({"portability": []}, ["portability is []", "object"]),
        ({"portability": {"Reasoning": "x"}}, ["portability.Reasoning is 'x'", "list of questions"]),
        ({"portability": {"Reasoning": ["x"]}}, ["portability.Reasoning holds 'x'"]),
        ({"portability": {"Reasoning": [{"prompt": "a"}]}}, ["ground_truth"]),
        ({"locality": {"New": {"prompt": ["a", "b"], "ground_truth": ["c"]}}}, ["locality.New.ground_truth", "2"]),
    ],
)
def test_another_layout_names_file_record_and_key(change, words, tmp_path):
    with pytest.raises(ValueError) as error:
        read(tmp_path, KNOWEDIT, KNOWEDIT | change)
    message = str(error.value)
    assert all(word in message for word in ["k.json", "record 1", *words, knowedit.LAYOUT])
    assert len(message.splitlines()) == 1


def test_an_edit_that_does_not_name_its_subject_is_skipped(tmp_path):
    with pytest.warns(UserWarning, match="record 1: subject 'Bob' is not in the prompt"):
        assert len(read(tmp_path, KNOWEDIT, KNOWEDIT | {"subject": "Bob"}).facts) == 1
