"""The record of one fact: its checks, its texts, its id and hash."""

from unicodedata import normalize

import pytest
from hypothesis import given
from hypothesis import strategies as st

from editkit.facts import Fact, data_hash, part_of
from editkit.facts.fact import cut, last_word

CAPITAL = {
    "subject": "France",
    "prompt": "The capital of {} is",
    "target_new": "Rome",
    "target_true": "Paris",
}


def test_text_puts_the_subject_in_place():
    fact = Fact(id="a", relation="capital", **CAPITAL)
    assert fact.text == "The capital of France is"
    assert fact.paraphrases == fact.neighbours == fact.generation == ()
    assert fact.neighbour_target is None


@given(st.text(min_size=1).filter(str.strip))
def test_any_subject_survives(subject):
    fact = Fact.make(**CAPITAL | {"subject": subject})
    assert fact.text == f"The capital of {normalize('NFC', subject).strip()} is"


@pytest.mark.parametrize("subject", ["{}", "a {} b", "{0}", "{name}", "100% {sure}"])
def test_braces_in_a_literal_prompt_are_the_subjects(subject):
    fact = Fact.make(**CAPITAL | {"subject": subject, "prompt": f"The capital of {subject} is"})
    assert fact.text == f"The capital of {subject} is"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prompt": "no slot"}, ["'no slot'", "0 times", "one is needed"]),
        ({"prompt": "{} and {}"}, ["'{} and {}'", "2 times", "one is needed"]),
        ({"subject": "  "}, ["subject", "'  '", "non-empty"]),
        ({"target_new": " "}, ["target_new", "non-empty"]),
        ({"target_true": ""}, ["target_true", "non-empty"]),
        ({"target_new": " Paris"}, ["'Paris'", "differ"]),
        ({"target_new": 5}, ["target_new", "5", "text"]),
        ({"paraphrases": "one text"}, ["paraphrases", "'one text'", "list"]),
        ({"neighbours": ("fine", "")}, ["neighbours", "list of texts"]),
        ({"neighbour_target": " "}, ["neighbour_target", "None"]),
        ({"subject": None}, ["subject", "None", "text"]),
        ({"relation": 36}, ["relation", "36", "text"]),
        ({"generation": None}, ["generation", "None", "list of texts"]),
        ({"paraphrases": {"a": 1}}, ["paraphrases", "list of texts"]),
        ({"target_new": "\ud83d"}, ["target_new", "ud83d"]),
    ],
)
def test_bad_fields_are_named(change, words):
    with pytest.raises((ValueError, TypeError)) as error:
        Fact(**{"id": "x", "relation": "r"} | CAPITAL | change)
    assert all(word in str(error.value) for word in words)


def test_targets_lose_their_spaces():
    fact = Fact.make(**CAPITAL | {"target_new": " Rome ", "target_true": " Paris"})
    assert (fact.target_new, fact.target_true) == ("Rome", "Paris")


def test_make_takes_a_prompt_that_names_the_subject():
    fact = Fact.make(**CAPITAL | {"prompt": "The capital of France is"})
    assert fact == Fact.make(**CAPITAL)


@pytest.mark.parametrize(("of_subject", "of_prompt"), [("NFC", "NFD"), ("NFD", "NFC"), ("NFD", "NFD")])
def test_a_fact_has_one_unicode_form(of_subject, of_prompt):
    subject, prompt = "S\u00e3o Tom\u00e9", "The island of S\u00e3o Tom\u00e9 lies in"
    given = {"subject": normalize(of_subject, subject), "prompt": normalize(of_prompt, prompt)}
    texts = {"target_new": "\u00c5land", "target_true": "C\u00f4te", "neighbour_target": "\u00e9"}
    other = {name: normalize(of_prompt, text) for name, text in texts.items()}
    lists = {name: [normalize(of_prompt, "\u00e9t\u00e9")] for name in ("paraphrases", "neighbours", "generation")}
    fact = Fact.make(**given, **other, **lists)
    assert fact.text == prompt and fact == Fact.make(subject=subject, prompt=prompt, **texts, **lists)
    assert {name: getattr(fact, name) for name in texts} == texts and fact.paraphrases == ("\u00e9t\u00e9",)
    with pytest.raises(ValueError, match="both '\u00c5land'"):
        Fact.make(**given, target_new=normalize("NFD", "\u00c5land"), target_true="\u00c5land")


def test_white_space_does_not_come_between_a_prompt_and_what_follows():
    spaced = {
        "subject": " France ",
        "prompt": "The capital of {} is \t",
        "target_new": "Rome\n",
        "target_true": "Paris ",
    }
    fact = Fact.make(**spaced, paraphrases=["France's capital is "], neighbours=["Q:\nA:\n "], neighbour_target=" x ")
    assert fact.text == "The capital of France is" and fact.target_new == "Rome"
    assert (fact.paraphrases, fact.neighbours) == (("France's capital is",), ("Q:\nA:\n",)), "a line stays"
    assert fact.neighbour_answer == "x"


def test_braces_in_a_prompt_that_names_its_subject_are_text():
    prompt = '{"country": "France", "is": {"capital": "'
    assert Fact.make(**CAPITAL | {"prompt": prompt}).text == prompt
    with pytest.raises(ValueError, match="2 times"):
        Fact.make(**CAPITAL | {"prompt": "{} = set(); the capital of {} is"})
    with pytest.raises(ValueError, match="2 times"):
        Fact(id="", relation="", **CAPITAL | {"prompt": cut("{} is a set; the capital of France is", "France")})


def test_what_is_asked_makes_a_topic():
    one, reworded = (Fact.make(**CAPITAL | {"prompt": p}, relation="P36") for p in ("{} is ruled from", "{}:"))
    other = Fact.make(**CAPITAL | {"prompt": "{} lies in"}, relation="P30")
    assert one.topic == reworded.topic != other.topic
    plain = [Fact.make(**CAPITAL | {"prompt": prompt}) for prompt in ("{} is ruled from", "{} lies in")]
    assert plain[0].topic != plain[1].topic


def test_make_refuses_a_prompt_without_the_subject():
    with pytest.raises(ValueError, match="'France'.*'The capital of Spain is'"):
        Fact.make(**CAPITAL | {"prompt": "The capital of Spain is"})


def test_ids_and_hashes_follow_content():
    one, same = Fact.make(**CAPITAL), Fact.make(**CAPITAL)
    other = Fact.make(**CAPITAL | {"target_new": "Oslo"})
    assert one.id == same.id != other.id
    assert data_hash([one]) == data_hash([same]) != data_hash([other])
    assert data_hash([one, other]) != data_hash([other, one])
    assert len(data_hash([])) == 64


def test_a_third_of_the_subjects_is_for_tuning_whatever_is_asked_about_them():
    made = [Fact.make(**CAPITAL | {"subject": f"Country {i}"}) for i in range(3000)]
    parts = [part_of(fact) for fact in made]
    assert 0.30 < parts.count("tune") / len(parts) < 0.37 and set(parts) == {"tune", "test"}
    for fact, part in zip(made[:50], parts, strict=False):
        for subject in (fact.subject, fact.subject.upper(), fact.subject.replace("o", "\u00f4")):
            assert part_of(Fact.make(subject=subject, prompt="{} is", target_new="a", target_true="b")) == part


@pytest.mark.parametrize(
    ("text", "word"), [("Rome", "rome"), ("Los \u00c1ngeles", "angeles"), ("Guinea-Bissau", "bissau")]
)
def test_the_last_word_is_what_an_edit_acts_at(text, word):
    assert last_word(text) == word
