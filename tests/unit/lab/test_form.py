"""A fact that is being typed."""

from dataclasses import replace

import pytest

from editkit.lab.form import Form


def test_a_fact_that_was_picked_stays_itself_until_subject_prompt_or_truth_change(facts):
    form = Form.of(facts[0])
    assert form.fact() == facts[0] and form.fact().id == facts[0].id
    other = replace(form, new="Italian", neighbours="The city of Spain is\n\n People in Rome speak \n")
    assert other.fact() == replace(
        facts[0], target_new="Italian", neighbours=("The city of Spain is", "People in Rome speak")
    )
    assert replace(form, true="German").fact().id != facts[0].id


def test_a_prompt_names_its_subject_or_has_a_place_for_it():
    named = Form("Rome", "People say that Rome lies in", "France", "Italy")
    assert named.fact().prompt == named.template == "People say that {} lies in"
    assert replace(named, prompt="People say that {} lies in").fact() == named.fact()


@pytest.mark.parametrize(
    ("form", "reason"),
    [
        (Form(), "type the subject, a prompt, the new object, the true object"),
        (Form("Rome", "{} lies in", "", "Italy"), "type the new object"),
        (Form("Rome", "{} lies in", "Italy", " Italy"), "the new object is the true one, 'Italy'"),
        (Form("Rom", "Paris lies in", "France", "Italy"), "subject 'Rom' is not in the prompt 'Paris lies in'"),
    ],
)
def test_what_is_missing_is_told(form, reason):
    [told] = form.reasons()
    assert told.startswith(reason)
    with pytest.raises(ValueError, match="."):
        form.fact()
