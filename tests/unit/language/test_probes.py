"""Scores of probes: against a full pass each, and which of them count."""

from dataclasses import replace

import pandas as pd
import pytest
import torch

from editkit.facts import Probe, read_probes
from editkit.facts.probe import Condition
from editkit.language import probes as module
from editkit.language.probes import evaluate_probes, known_probes, summarize_probes
from tests.conftest import FAMILIES

ASKED = [
    Probe("two_hop", "f1", "The city of Rome lies in", "Spain", "Italy", aliases=["a b", "Spain ."], relation="r"),
    Probe("alias", "f1", "People in Paris speak", "Spanish ,", "Swedish", relation="r"),
    Probe("relation", "f2", "The mother tongue of Anna is", "Swedish", "Swedish", "Spanish", relation="s"),
    Probe("logical", "f2", "a b c d", "e", None, relation="s"),
    Probe("negation", "f2", "It is not true that Rome lies in", "Italy", "Spain", relation="s"),
]


def table(lm, prompt: str, text: str) -> tuple[float, bool]:
    """Mean log-probability of a continuation and whether it is greedy, from one plain pass."""
    ids, more = lm.encode(prompt)[0], lm.encode_continuation(prompt, text)
    with torch.no_grad():
        found = lm.model(torch.tensor([ids + more])).logits[0, len(ids) - 1 : -1].log_softmax(-1)
    return found[range(len(more)), more].mean().item(), found.argmax(-1).tolist() == more


@pytest.fixture
def saying(tiny):
    """A random model, a prompt, and the word that it says next, which makes the same token again after the prompt."""
    for seed in range(30):
        lm = tiny(seed=seed)
        for prompt in ("The city of Rome lies in", "People in Paris speak", "a b c d"):
            with torch.no_grad():
                token = lm.model(torch.tensor([lm.encode(prompt)[0]])).logits[0, -1].argmax().item()
            word = lm.tokenizer.decode([token])
            if word[:1] == " " and word.strip() and lm.encode_continuation(prompt, word.strip()) == [token]:
                return lm, prompt, word.strip()
    raise AssertionError("no random model says a word")


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_those_of_full_passes(tiny, family):
    lm = tiny(family)
    frame = evaluate_probes(lm, ASKED, [True] * len(ASKED))
    assert frame.kind.tolist() == [probe.kind for probe in ASKED] and frame.changes.tolist() == [1, 1, 0, 1, 1]
    for probe, row in zip(ASKED, frame.itertuples(), strict=True):
        answer, said = table(lm, probe.prompt, probe.answer)
        assert row.logprob_answer == pytest.approx(answer, abs=1e-5)
        ways = [said, *(table(lm, probe.prompt, alias)[1] for alias in probe.aliases)]
        assert row.accuracy == any(ways)
        if probe.rival is None:
            assert row.success is pd.NA and pd.isna(row.logprob_rival)
        else:
            rival, _ = table(lm, probe.prompt, probe.rival)
            assert row.logprob_rival == pytest.approx(rival, abs=1e-5) and row.success == (answer > rival)


def test_an_alias_that_is_said_is_accurate(saying):
    lm, prompt, said = saying
    one = Probe("two_hop", "f", prompt, "g g g", "Italy", aliases=["x", said])
    assert evaluate_probes(lm, [one], [True]).accuracy.tolist() == [True]
    assert evaluate_probes(lm, [replace(one, aliases=("x",))], [True]).accuracy.tolist() == [False]


def test_a_question_of_two_answers_is_known_by_the_likelier_one(tiny):
    lm = tiny()
    prompt = "It is not true that Rome lies in"
    likelier = sorted(("Italy", "Spain"), key=lambda text: -table(lm, prompt, text)[0])
    right = Probe("negation", "f", prompt, likelier[1], likelier[0])
    kept = Probe("distracting_neighbourhood", "f", prompt, likelier[0], likelier[0], likelier[1])
    wrong = Probe("negation", "f", prompt, likelier[0], likelier[1])
    assert known_probes(lm, [right, kept, wrong]) == [True, True, False]
    said = [replace(probe, kind="two_hop") for probe in (right, wrong)]
    assert known_probes(lm, said) == [table(lm, prompt, probe.before)[1] for probe in said]


def test_other_questions_are_known_by_what_is_said_of_before_or_another_way_to_say_it(saying):
    lm, prompt, said = saying
    plain = Probe("two_hop", "f", prompt, "g g g", said)
    other = Probe("two_hop", "f", prompt, "g g g", "f f f", before_aliases=[said])
    neither = Probe("two_hop", "f", prompt, said, "f f f")
    assert known_probes(lm, [plain, other, neither]) == [True, True, False], "what is right afterwards does not count"


def test_conditions_decide_where_there_are_some_and_everything_counts_where_nothing_is_said(saying):
    lm, prompt, said = saying
    true, false = Condition(prompt, ("f f f", said)), Condition(prompt, ("f f f",))
    open_ = Probe("logical", "f", "a b", "c", None)
    probes = [replace(open_, conditions=met) for met in ((true,), (true, false), (false,), ())]
    assert known_probes(lm, probes) == [True, False, False, True]
    assert known_probes(lm, [Probe("two_hop", "f", prompt, "c", said, conditions=(false,))]) == [False]


def test_probes_that_are_not_known_are_not_scored(tiny):
    frame = evaluate_probes(tiny(), ASKED, [True, False, True, False, False])
    assert frame.known.tolist() == [True, False, True, False, False]
    assert frame[~frame.known][["success", "accuracy", "logprob_answer", "logprob_rival"]].isna().all(axis=None)
    assert frame[frame.known][["success", "accuracy"]].notna().all(axis=None)
    nothing = evaluate_probes(tiny(), ASKED, [False] * 5)
    assert len(nothing) == 5 and nothing.success.isna().all() and summarize_probes(nothing).known.sum() == 0


def test_summary_by_hand():
    rows = [
        ("two_hop", "a", True, True, False), ("two_hop", "a", True, False, False), ("two_hop", "b", True, True, True),
        ("two_hop", "c", False, None, None), ("alias", "a", False, None, None),
        ("logical", "a", True, None, True),
    ]  # fmt: skip
    frame = pd.DataFrame(rows, columns=["kind", "fact", "known", "success", "accuracy"])
    frame = frame.astype({"success": "boolean", "accuracy": "boolean"})
    table = summarize_probes(frame)
    assert table.index.tolist() == ["alias", "two_hop", "logical"]
    assert table.asked.tolist() == [1, 4, 1] and table.known.tolist() == [0, 3, 1] and table.facts.tolist() == [0, 2, 1]
    assert table.success["two_hop"] == 0.75 and table.accuracy["two_hop"] == 0.5
    assert table.success[["alias", "logical"]].isna().all() and table.accuracy["logical"] == 1
    seeds = pd.concat([frame.assign(seed=1), frame[2:3].assign(seed=2)])
    assert summarize_probes(seeds).facts["two_hop"] == 3
    assert summarize_probes(seeds).success["two_hop"] == pytest.approx((0.5 + 1 + 1) / 3)


def test_answers_are_kept_by_model_and_question(tiny, store, monkeypatch):
    lm, asked = tiny(), []
    first = known_probes(lm, ASKED, store=store)
    assert first == known_probes(lm, ASKED)
    score = module.score
    monkeypatch.setattr(module, "score", lambda lm, items, **more: asked.extend(items) or score(lm, items, **more))
    assert known_probes(lm, ASKED, store=store) == first and asked == []
    known_probes(tiny(seed=1), ASKED, store=store)
    assert asked, "another model is asked itself"


def test_what_does_not_fit_is_refused(tiny):
    with pytest.raises(ValueError, match="no probes"):
        evaluate_probes(tiny(), [], [])
    with pytest.raises(ValueError, match="known tells of 1 probes, but there are 5"):
        evaluate_probes(tiny(), ASKED, [True])


def test_probes_of_facts_are_scored_from_end_to_end(tiny, facts):
    lm = tiny()
    probes = read_probes("worldfacts", facts)
    frame = evaluate_probes(lm, probes, known_probes(lm, probes))
    assert set(frame.fact) == {fact.id for fact in facts} and set(frame.relation) == {"made up"}
    assert {"negation", "true_false", "distracting_neighbourhood"} <= set(frame.kind)
