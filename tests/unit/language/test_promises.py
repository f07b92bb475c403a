"""What of a language model is promised to stay: which questions are asked, and what is measured."""

from collections import Counter

import pytest
import torch

from editkit import Fact
from editkit.editing.budget import BudgetSpec
from editkit.language.drift import held_out
from editkit.language.promises import ASKED, FROM_ONE, PIECES, questions, watch
from tests.conftest import TEXTS


def known(relation, *answers, prompts=12):
    """Facts for tuning of one relation, with a right answer each."""
    return [
        Fact.make(
            subject="Spain",
            prompt="{} lies in",
            relation=relation,
            target_new="nowhere",
            target_true=answer,
            neighbours=[f"{relation} {answer} {i}" for i in range(prompts)],
        )
        for answer in answers
    ]


def asked_for(relation, *news, subject="Nobody"):
    make = dict(subject=subject, prompt="{} lies in", relation=relation, target_true="true")
    return [Fact.make(**make, target_new=new) for new in news]


TUNE = [*known("capital", "Paris", "Rome"), *known("tongue", "Swedish")]


def test_an_edit_is_asked_about_in_its_own_relation_against_its_own_new_object():
    found = questions([*asked_for("capital", "Oslo"), *asked_for("tongue", "Finnish")], TUNE)
    assert Counter(new for _, (new, _) in found) == {"Oslo": FROM_ONE, "Finnish": FROM_ONE}
    assert all(prompt.startswith(("capital", "tongue")[new == "Finnish"]) for prompt, (new, _) in found)
    assert all(prompt.split()[1] == right for prompt, (_, right) in found), "each prompt with its own right answer"


def test_what_an_edit_wants_is_never_the_right_answer():
    found = questions(asked_for("capital", "Rome", "Paris"), TUNE)
    assert {(new, right) for _, (new, right) in found} == {("Rome", "Paris"), ("Paris", "Rome")}


def test_no_prompt_names_an_edited_subject():
    items = [*asked_for("capital", "Oslo"), *asked_for("tongue", "Finnish", subject="Paris")]
    prompts = [prompt for prompt, _ in questions(items, TUNE)]
    assert not any("Paris" in prompt for prompt in prompts) and any("capital Rome" in prompt for prompt in prompts)
    assert any("Paris" in prompt for prompt, _ in questions(items[:1], TUNE))


def test_a_relation_without_facts_for_tuning_is_asked_about_in_all_others():
    rights = {right for _, (_, right) in questions(asked_for("unheard of", *"abcd"), known("x", "A", "B", prompts=3))}
    assert rights == {"A", "B"}
    assert questions(asked_for("capital", "Oslo"), [*asked_for("capital", "without neighbours")]) == []


def test_a_prompt_is_asked_once_for_an_edit_and_several_edits_share_them_out():
    few = questions(asked_for("capital", "Oslo"), known("capital", "Paris", prompts=3))
    assert len(few) == len({prompt for prompt, _ in few}) == 3
    many = questions(asked_for("capital", "Oslo", "Bern", "Bonn"), known("capital", "Paris", "Rome", prompts=12))
    assert Counter(prompt for prompt, _ in many).most_common(1)[0][1] == 1 and len(many) == 3 * FROM_ONE == 24


@pytest.mark.parametrize("n", [1, 31, 33, 255, 256, 257, 300, 511, 513, 1500])
def test_the_questions_are_limited_and_evenly_from_all_edits(n):
    names = [f"new {i}" for i in range(n)]
    counts = Counter(new for _, (new, _) in questions(asked_for("capital", *names), TUNE))
    total, each = sum(counts.values()), set(counts.values())
    assert total <= ASKED and each == {min(FROM_ONE, max(1, ASKED // n))}
    places = [i for i, name in enumerate(names) if name in counts]
    assert len(places) == min(n, ASKED)
    assert max(b - a for a, b in zip(places, [*places[1:], n], strict=True)) <= -(-n // ASKED), "no stretch is left out"


def log_probability(lm, prompt, text):
    head, ids = lm.encode(prompt)[0], lm.encode_continuation(prompt, text)
    table = lm.model(torch.tensor([head + ids], device=lm.device)).logits[0].log_softmax(-1)
    return sum(table[len(head) - 1 + i, token].item() for i, token in enumerate(ids)) / len(ids)


@torch.no_grad()
def plain(lm, asked, prose):
    """NS and perplexity by plain passes."""
    right = [log_probability(lm, prompt, true) > log_probability(lm, prompt, new) for prompt, (new, true) in asked]
    nll = []
    for row in held_out(lm, prose, 0, PIECES):
        table = lm.model(torch.tensor([row], device=lm.device)).logits[0].log_softmax(-1)
        nll += [-table[i, token].item() for i, token in enumerate(row[1:])]
    return sum(right) / len(right), torch.tensor(nll).mean().exp().item()


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_what_stays_is_measured_as_by_plain_passes(tiny, facts, family):
    lm, prose, tune = tiny(family), TEXTS * 8, known("made up", "Paris", "Italy", "Swedish", prompts=4)
    spec, asked = BudgetSpec(neighbour_budget=0.9, text_budget=0.9), questions(facts, tune)
    measure, (success, perplexity) = watch(lm, spec, facts, tune, prose), plain(lm, asked, prose)
    assert measure() == pytest.approx({"neighbour": 1.0, "text": 1.0}) and 0 < success < 1
    lm.weight(1).mul_(-3.0)
    now, later = plain(lm, asked, prose)
    assert now != success and later != perplexity
    assert measure() == pytest.approx({"neighbour": now / success, "text": perplexity / later}, rel=1e-4)


def test_only_what_is_promised_is_measured(tiny, facts):
    lm = tiny()
    for name in ("neighbour", "text"):
        spec = BudgetSpec(**{f"{name}_budget": 0.5})
        assert watch(lm, spec, facts, known("made up", "Paris", "Italy"), TEXTS * 8)().keys() == {name}


def test_a_promise_about_neighbours_that_the_model_does_not_know_is_refused(tiny, facts, monkeypatch):
    lm, spec = tiny(), BudgetSpec(neighbour_budget=0.9)
    with pytest.raises(ValueError, match=r"neighbour_budget = 0\.9: the model is right at none of 0 .* of 1 facts"):
        watch(lm, spec, facts, known("made up", "Paris", prompts=0), [])
    monkeypatch.setattr("editkit.language.promises._success", lambda *_: 0.0)
    with pytest.raises(
        ValueError, match=r"right at none of 8 .* of 1 facts .*give facts with neighbours that it knows"
    ):
        watch(lm, spec, facts[:1], known("made up", "Paris"), [])
