"""Probes of a fact's own text: what each asks, and what is right before and after the edit."""

import pytest

from editkit.facts import Fact
from editkit.facts.fact import NO_OBJECT
from editkit.facts.statements import statement_probes

FRANCE = Fact.make(
    subject="France",
    prompt="The capital of {} is",
    target_new="Rome",
    target_true="Paris",
    relation="P36",
    neighbours=["The Louvre is in", "Rome's rival is"],
)


def asked(fact: Fact, kind: str) -> list[str]:
    return [probe.prompt for probe in statement_probes(fact) if probe.kind == kind]


def test_what_becomes_false_is_what_a_negation_wants():
    probes = {probe.kind: probe for probe in statement_probes(FRANCE)}
    assert probes["negation"].prompt == "It is not true that the capital of France is"
    assert probes["negation_inside"].prompt == "The capital of France is not"
    for kind in ("negation", "negation_inside"):
        assert (probes[kind].before, probes[kind].answer) == ("Rome", "Paris") and probes[kind].rival == "Rome"
    assert all(probe.fact == FRANCE.id and probe.relation == "P36" for probe in probes.values())


@pytest.mark.parametrize(
    ("prompt", "subject", "outside", "inside"),
    [
        ("{} is a city in", "Paris", "Paris is a city in", "Paris is not a city in"),
        ("In the city of {}, most people speak", "Rome", "in the city of Rome, most people speak", None),
        ("The man who was called {} lies in", "Ian", "the man who was called Ian lies in", None),
        ("US shops of {} are in", "Is It", "US shops of Is It are in", "US shops of Is It are not in"),
        ("I know that {} is in", "Rome", "I know that Rome is in", "I know that Rome is not in"),
    ],
)
def test_the_verb_after_the_subject_is_negated(prompt, subject, outside, inside):
    fact = Fact.make(subject=subject, prompt=prompt, target_new="Spain", target_true="Italy")
    assert asked(fact, "negation") == [f"It is not true that {outside}"]
    assert asked(fact, "negation_inside") == ([inside] if inside else [])


@pytest.mark.parametrize(
    ("prompt", "true"),
    [("Where is {}?", "Oslo"), ("{} is in", NO_OBJECT)],
)
def test_a_question_is_no_statement_and_no_object_is_no_answer(prompt, true):
    about = {"subject": "Ann", "prompt": prompt, "target_new": "Rome", "target_true": true}
    fact = Fact.make(**about, neighbours=["Tom is in"])
    assert {probe.kind for probe in statement_probes(fact)} <= {"distracting_neighbourhood"}


def test_a_statement_ends_once_and_has_no_space_where_its_script_has_none():
    dotted = Fact.make(subject="Ann", prompt="{} lives in", target_new="Washington, D.C.", target_true="Oslo")
    assert asked(dotted, "true_false")[0] == "True or false? Ann lives in Washington, D.C.\nAnswer:"
    japanese = Fact.make(subject="安", prompt="{}の首都は", target_new="東京", target_true="大阪")
    assert asked(japanese, "true_false")[0].startswith("True or false? 安の首都は東京.")


def test_both_answers_occur_before_and_after():
    probes = [probe for probe in statement_probes(FRANCE) if probe.kind == "true_false"]
    told = {probe.prompt: (probe.before, probe.answer) for probe in probes}
    assert told == {
        "True or false? The capital of France is Rome.\nAnswer:": ("False", "True"),
        "True or false? The capital of France is Paris.\nAnswer:": ("True", "False"),
    }


def test_neighbours_follow_the_edit_as_counterfact_plus_has_them():
    probes = [probe for probe in statement_probes(FRANCE) if probe.kind == "distracting_neighbourhood"]
    # eval_utils_counterfact.py: f"{rewrite_prompt} {target_new}. " + neighbourhood prompt
    assert [probe.prompt for probe in probes] == [
        "The capital of France is Rome. The Louvre is in",
        "The capital of France is Rome. Rome's rival is",
    ]
    assert all((p.before, p.answer, p.rival, p.changes) == ("Paris", "Paris", "Rome", False) for p in probes)
