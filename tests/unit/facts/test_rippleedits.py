"""RippleEdits' layout: sentences that hold an edit, and tests by criteria."""

import pytest

from editkit.facts import Fact, rippleedits
from editkit.facts.fact import NO_OBJECT
from editkit.facts.probe import Condition
from tests.unit.facts.samples import CAPITAL, RIPPLE, query, ripple_test, write


def read(tmp_path, *records):
    return rippleedits.read_case(write(tmp_path / "popular.json", list(records)))


def edited(sentence: str, before: str | None = None, **more) -> dict:
    earlier = {} if before is None else {"previous_fact": {"prompt": before}}
    return {"example_type": "popular", "edit": {"prompt": sentence, **earlier, **more}}


def test_sentences_become_an_edit(tmp_path):
    (fact,) = read(tmp_path, RIPPLE).facts
    assert fact == Fact(
        id="rippleedits:0",
        relation="COUNTRY_OF_CITIZENSHIP",
        subject="Ann Lee",
        prompt="The name of the country of citizenship of {} is",
        target_new="Libya",
        target_true="United States of America",
    )


# The relations as src/relation.py words them, with subjects and objects that hold verbs and prepositions themselves.
@pytest.mark.parametrize(
    ("prompt", "subject"),
    [
        ("The name of the mother of {} is", "Ann of Cleves"),
        ("The names of the siblings of {} are", "Ann"),
        ("The number of children {} has is", "Ann Lee"),
        ("The gender of {} is", "Ann"),
        ("The place of birth of {} is", "Ann is Great"),
        ("The name of the country which {} is associated with is", "The Isle of Man"),
        ("The name of the country of citizenship of {} is", "Leonardo DiCaprio"),
        ("The name of the position held by {} is", "Ann Lee"),
        ("The name of the sports team which {} is a member of is", "Ann"),
        ("The name of the league which {} plays in is", "Ann"),
        ("The mother tongue of {} is", "Ann"),
        ("The name of the award {} won is", "Ann Lee"),
        ("{} follows", "Season 2"),
        ("{} is followed by", "Love is Blue"),
        ("The name of the ethnic group which {} is associated with is", "Ann"),
        ("The eye color of {} is", "Ann"),
        ("The date of death of {} is", "Ann"),
        ("The name of the head of government of {} is", "Bosnia"),
        ("The name of the continent which {} is part of is", "Chad"),
        ("The name of the capital city of {} is", "Chad"),
        ("The name of the currency in {} is", "Chad"),
        ("The name of the anthem that is most likely to be performed in {} is", "Chad"),
        ("The name of the country which {} is the capital of is", "Oslo"),
        ("The names of the cast members of {} are", "Life of Pi"),
        ("The name of the author of {} is", "Life Is Elsewhere"),
    ],
)
def test_every_wording_gives_its_subject(prompt, subject, tmp_path):
    sentence = prompt.replace("{}", subject)
    (fact,) = read(tmp_path, edited(f"{sentence} United Kingdom.", f"{sentence} United States.")).facts
    assert (fact.prompt, fact.subject) == (prompt, subject)
    assert (fact.target_new, fact.target_true) == ("United Kingdom", "United States")


def test_recent_facts_have_no_earlier_object(tmp_path):
    sentence = "The name of the author of Anna is She who is not."
    (fact,) = read(tmp_path, edited(sentence)).facts
    assert (fact.prompt, fact.subject) == ("The name of the author of {} is", "Anna")
    assert (fact.target_new, fact.target_true) == ("She who is not", NO_OBJECT)


def test_a_named_subject_and_the_other_release_are_read(tmp_path):
    record = edited("In Chad one is led by Ada.", subject="Chad")
    record["edit"]["original_fact"] = {"prompt": "In Chad one is led by Bob."}
    (fact,) = read(tmp_path, record).facts
    assert (fact.prompt, fact.target_new, fact.target_true) == ("In {} one is", "led by Ada", "led by Bob")


def test_a_sentence_of_no_known_wording_is_skipped_with_its_reason(tmp_path):
    records = [edited("Ada rules Chad.", "Bob rules Chad."), RIPPLE]
    with pytest.warns(UserWarning, match="record 0: no subject is found in 'Ada rules Chad.'"):
        assert len(read(tmp_path, *records).facts) == 1


def test_criteria_are_kinds_of_probes(tmp_path):
    probes = {probe.kind: probe for probe in read(tmp_path, RIPPLE).probes}
    assert set(probes) == {"relation", "alias", "two_hop", "two_hop_into", "forgetfulness"}
    relation, alias = probes["relation"], probes["alias"]
    assert (relation.answer, relation.before, relation.rival) == ("Eve Lee", "Eve Lee", "Libya")
    assert relation.aliases == relation.before_aliases == ("E. Lee",) and not relation.changes
    assert relation.conditions == (Condition("The name of the mother of Ann Lee is", ("Eve Lee", "E. Lee")),)
    assert (alias.answer, alias.aliases, alias.before) == ("Libya", ("LY",), "United States of America")
    assert (probes["two_hop"].prompt, probes["two_hop"].before) == (CAPITAL["prompt"], None)
    assert probes["two_hop"].conditions == (Condition("The capital of Libya is", ("Tripoli",)),)
    assert probes["forgetfulness"].aliases == ("TD", "Mali"), "one of several answers is enough"


def test_the_readmes_spelling_is_read_and_queries_without_answers_are_not_asked(tmp_path):
    record = {name: value for name, value in RIPPLE.items() if name != "Relation_Specificity"}
    empty = query("The father of Ann Lee is", ("",))
    record |= {"Relation_Specifity": [ripple_test(empty, query("The son of Ann Lee is", ("Al",)))]}
    probes = [probe for probe in read(tmp_path, record).probes if probe.kind == "relation"]
    assert [probe.answer for probe in probes] == ["Al"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"edit": "x"}, ["edit is 'x'", "object"]),
        ({"edit": {"prompt": 5}}, ["edit.prompt is 5"]),
        ({"edit": RIPPLE["edit"] | {"previous_fact": {}}}, ["previous_fact.prompt"]),
        ({"edit": RIPPLE["edit"] | {"relation": 7}}, ["relation", "7"]),
        ({"Forgetfulness": {"a": 1}}, ["Forgetfulness is", "a list"]),
        ({"Forgetfulness": [5]}, ["Forgetfulness is 5"]),
        ({"Forgetfulness": [{"condition_queries": []}]}, ["Forgetfulness.test_queries"]),
        ({"Forgetfulness": [{"test_queries": [{"prompt": "a"}]}]}, ["Forgetfulness.test_queries.answers"]),
        ({"Forgetfulness": [{"test_queries": [{"prompt": "a", "answers": ["b"]}]}]}, ["answers is 'b'"]),
    ],
)
def test_another_layout_names_file_record_and_key(change, words, tmp_path):
    with pytest.raises(ValueError) as error:
        read(tmp_path, RIPPLE, RIPPLE | change)
    message = str(error.value)
    assert all(word in message for word in ["popular.json", "record 1", *words, rippleedits.LAYOUT])
    assert len(message.splitlines()) == 1
