"""Scores of facts: which row belongs to which fact, and what each rung measures."""

import math
from dataclasses import replace

import pandas as pd
import pytest

from editkit import evaluate, summarize
from editkit.facts import read_probes
from editkit.language.fluency import fluency
from editkit.language.generation import generate
from editkit.language.metrics import places, scored_prompts
from editkit.language.probes import evaluate_probes, summarize_probes
from editkit.language.said import normalised

COLUMNS = ["fact", "relation", "kind", "prompt"]


def test_rows_belong_to_facts_by_their_places(tiny, facts):
    several = [facts[0], replace(facts[1], paraphrases=(), neighbours=()), facts[0]]
    frame = evaluate(tiny(), several)
    assert places(several).tolist() == [0, 0, 0, 1, 2, 2, 2] and len(frame) == 7
    assert frame.fact.tolist() == [several[place].id for place in places(several)]


def test_different_facts_of_one_name_are_refused(tiny, facts):
    with pytest.raises(ValueError, match="two facts are called 'mine'"):
        evaluate(tiny(), [replace(fact, id="mine") for fact in facts[:2]])


def test_rungs_stand_beside_each_other_and_the_default_is_the_two_of_scores(tiny, facts):
    lm = tiny()
    default = evaluate(lm, facts)
    assert list(default) == [*COLUMNS, "logprob_new", "logprob_true", "success", "accuracy"]
    assert list(summarize(default)) == ["ES", "PS", "NS", "S", "EA", "PA", "NA"]
    every = evaluate(lm, facts, rungs=("said", "magnitude", "accuracy", "success"))
    assert list(every) == [*default, "magnitude", "said", "exact", "text"]
    pd.testing.assert_frame_equal(every[list(default)], default)
    assert list(evaluate(lm, facts, rungs=["said"])) == [*COLUMNS, "said", "exact", "text"]
    assert list(summarize(evaluate(lm, facts, rungs=["accuracy"]))) == ["EA", "PA", "NA"]
    told = summarize(every)
    assert list(told) == [
        *summarize(default), "EM", "PM", "NM", "ESaid", "PSaid", "NSaid", "EExact", "PExact", "NExact",
    ]  # fmt: skip
    for kind, letter in (("rewrite", "E"), ("paraphrase", "P"), ("neighbourhood", "N")):
        assert told[f"{letter}M"] == pytest.approx(every.magnitude[every.kind == kind].mean())


def test_magnitude_is_the_difference_of_probabilities_in_favour_of_what_is_wanted(tiny, facts):
    frame = evaluate(tiny(), facts, rungs=["magnitude"])
    for row in frame.itertuples():
        by = math.exp(row.logprob_new) - math.exp(row.logprob_true)
        assert row.magnitude == pytest.approx(-by if row.kind == "neighbourhood" else by)


def test_said_is_what_the_model_writes_by_itself(tiny, facts):
    """Objects are made of what the model writes; on neighbourhood prompts the right answer is the one to say."""
    lm = tiny()
    fact = replace(facts[0], paraphrases=(facts[1].text,), neighbours=(facts[2].text,))
    texts = {text: one.text.strip() for text, one in _written(lm, fact)}
    words = {text: max(written.split(), key=lambda word: len(normalised(word))) for text, written in texts.items()}
    assert len(set(words.values())) == 3 and all(len(normalised(word)) > 1 for word in words.values())
    told = replace(fact, target_new=words[fact.text], target_true=words[facts[2].text])
    frame = evaluate(lm, [told], rungs=["said"]).set_index("kind")
    assert frame.said.to_dict() == {"rewrite": True, "paraphrase": False, "neighbourhood": True}
    assert not frame.exact.any()
    assert frame.text.tolist() == [texts[prompt] for prompt in frame.prompt]
    whole = evaluate(lm, [replace(fact, target_new=texts[fact.text])], rungs=["said"]).set_index("kind")
    assert whole.exact.to_dict() == {"rewrite": True, "paraphrase": False, "neighbourhood": False}
    answered = replace(told, target_true="nothing", neighbour_target=words[facts[2].text])  # as in zsRE
    assert evaluate(lm, [answered], rungs=["said"]).said.tolist() == [True, False, True]
    assert summarize(evaluate(lm, [told], rungs=["said"]))["NSaid"] == 1


def _written(lm, fact):
    prompts = [text for _, text, _ in scored_prompts(fact)]
    return zip(prompts, generate(lm, prompts, 24, stop="sentence"), strict=True)


def test_a_judge_reads_prompt_text_and_fact(tiny, facts):
    lm, asked = tiny(), []

    def judge(prompt, text, fact):
        asked.append((prompt, text, fact))
        return prompt == fact.text

    frame = evaluate(lm, facts, rungs=["said"], judge=judge)
    assert [(prompt, text) for prompt, text, _ in asked] == list(zip(frame.prompt, frame.text, strict=True))
    assert [fact.id for *_, fact in asked] == frame.fact.tolist()
    told = summarize(frame)
    assert (told["EJudged"], told["PJudged"], told["NJudged"]) == (1, 0, 0)
    with pytest.raises(ValueError, match="the judge answers 0.7 after .*True or False"):
        evaluate(lm, facts, rungs=["said"], judge=lambda *_: 0.7)
    with pytest.raises(ValueError, match="leaves that out: add 'said'"):
        evaluate(lm, facts, judge=judge)


@pytest.mark.parametrize("rungs", ["said", [], ["said", "sung"], ("S",)])
def test_unknown_rungs_are_refused(tiny, facts, rungs):
    with pytest.raises(ValueError, match="rungs = .* a list of some of success, accuracy, magnitude, said"):
        evaluate(tiny(), facts, rungs=rungs)


def test_free_texts_and_probes_are_rows_of_their_own(tiny, facts):
    lm = tiny()
    facts = [replace(fact, generation=(f"{fact.subject} is",)) for fact in facts[:3]] + [facts[3]]
    probes = read_probes("counterfact", facts, path="not read")
    plain, frame = evaluate(lm, facts), evaluate(lm, facts, rungs=("success", "accuracy", "GE"), probes=probes)
    own = frame[frame.kind.isin(["rewrite", "paraphrase", "neighbourhood"])]
    assert own.prompt.tolist() == plain.prompt.tolist() and own.success.tolist() == plain.success.tolist()
    texts, told = fluency(lm, facts), summarize(frame)
    assert frame.GE.dropna().tolist() == texts.GE.tolist() and told["GE"] == pytest.approx(texts.GE.mean())
    assert math.isnan(told["RS"]) and {**told, **summarize(plain)} == pytest.approx(told, nan_ok=True)
    asked = summarize_probes(evaluate_probes(lm, probes, [True] * len(probes)))
    for kind, row in asked.iterrows():
        assert told[f"{kind} accuracy"] == pytest.approx(row.accuracy)
        assert told[f"{kind} success"] == pytest.approx(row.success)
    bare = [replace(fact, paraphrases=(), neighbours=()) for fact in facts]
    some = [replace(probe, kind="portability", before=None, rival=None) for probe in probes[:2]]
    told = summarize(evaluate(lm, bare, rungs=["said"], probes=some))
    assert math.isnan(told["PSaid"]) and math.isnan(told["portability success"]) and "ES" not in told
    with pytest.raises(ValueError, match="and GE if wanted"):
        evaluate(lm, facts, rungs=["GE"])
