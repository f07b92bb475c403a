"""The facts in the prompt: scores are those of prompts that hold them, written out by hand."""

from dataclasses import replace

import pytest
import torch

from editkit import complete, evaluate
from editkit.language.controls import measure
from editkit.language.generation import sample
from editkit.language.incontext import InContext, Oracle, Prefaced, preface, sentence
from editkit.language.keys import locate
from editkit.language.metrics import scored_prompts
from editkit.models.hooks import capture
from editkit.reference import language as reference

TOLD = (
    "The mother tongue of Anna Karlsson is Spanish. Rome lies in France. The capital of France is Rome. "
    "People in Stockholm speak Spanish. "
)


def by_hand(lm, facts, told: str) -> list[float]:
    """Score new and right objects by plain passes, with ``told`` before every prompt."""
    prompts = [(told + prompt, objects) for fact in facts for _, prompt, objects in scored_prompts(fact)]
    with torch.no_grad():
        return reference.scores(lm, prompts)


def of(frame) -> list[float]:
    return frame[["logprob_new", "logprob_true"]].to_numpy().flatten().tolist()


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "gptj", "mistral", "gemma2", "opt"])
def test_scores_are_those_of_the_prompt_that_was_built_by_hand(tiny, facts, family):
    lm = tiny(family)
    with InContext(lm, facts).apply() as model:
        frame = evaluate(model, facts)
        assert of(frame) == pytest.approx(by_hand(lm, facts, TOLD), abs=1e-5)
        assert complete(model, [facts[0].text], 4) == complete(lm, [TOLD + facts[0].text], 4)
        assert model.identity() != lm.identity()
        [text] = sample(model, ["Rome is"], len(lm.tokens(" Rome is")) + 3, top_k=1)
        assert text == "Rome is" + complete(lm, [TOLD + "Rome is"], 3)[0]
    plain = evaluate(lm, facts)
    assert frame.prompt.tolist() == plain.prompt.tolist() and of(frame) != pytest.approx(of(plain), abs=1e-2)


def test_the_preface_is_run_once_for_all_texts(tiny, facts):
    lm = tiny()
    with InContext(lm, facts).apply() as model:
        evaluate(model, facts[:1])
        with capture({"tokens": lm.layers[0]}) as seen:
            again = evaluate(model, facts)
    assert seen["tokens"].shape[1] < 40 < len(lm.encode(TOLD)[0])
    with torch.enable_grad():
        ids = torch.tensor([lm.encode(TOLD + "Rome")[0]], device=lm.device)
        mask = torch.zeros(1, 1, ids.shape[1], ids.shape[1], device=lm.device)
        given = {"attention_mask": mask, "position_ids": torch.arange(ids.shape[1], device=lm.device)[None]}
        torch.testing.assert_close(model.forward(ids, **given), lm.forward(ids, **given))  # whole where it is trained
    assert of(again) == pytest.approx(by_hand(lm, facts, TOLD), abs=1e-5)


def test_places_in_a_text_are_counted_from_its_own_beginning(tiny, facts):
    lm = tiny()
    model, fact = Prefaced(lm, TOLD), facts[1]
    assert locate(model, fact.prompt, fact.subject) == locate(lm, fact.prompt, fact.subject, TOLD)
    ids, spans = model.encode(fact.text)
    assert ids == lm.encode(TOLD + fact.text)[0]
    assert [span for span in spans if span[1]][-1] == (len(fact.text) - 3, len(fact.text))
    twice = Prefaced(model, "a b c. ")
    assert twice.encode(fact.text)[0] == lm.encode(f"{TOLD}a b c. {fact.text}")[0]


def test_a_sentence_ends_once_and_the_latest_of_a_topic_is_told(facts):
    assert sentence(replace(facts[0], target_new="Spanish.")) == "The mother tongue of Anna Karlsson is Spanish."
    assert preface([facts[1], facts[2], replace(facts[1], target_new="Spain")]) == (
        "Rome lies in Spain. The capital of France is Rome. "
    )


def test_an_oracle_tells_the_facts_of_the_subject_that_is_asked_for(tiny, facts):
    lm = tiny()
    more = replace(facts[1], subject="rome", prompt="The language of {} is", target_new="Swedish", relation="other")
    oracle = Oracle(lm, [*facts, more])
    frame = measure(oracle, facts)
    told = [sentence(fact) + " " for fact in facts]
    told[1] += "The language of rome is Swedish. "
    expected = [value for fact, text in zip(facts, told, strict=True) for value in by_hand(lm, [fact], text)]
    assert of(frame) == pytest.approx(expected, abs=1e-5) and frame.fact.tolist() == evaluate(lm, facts).fact.tolist()
    told[2] = told[0] + told[2]
    expected = [value for fact, text in zip(facts, told, strict=True) for value in by_hand(lm, [fact], text)]
    besides = measure(oracle, facts, besides={facts[2].id: [facts[0]]})
    assert of(besides) == pytest.approx(expected, abs=1e-5) and of(besides) != of(frame)
    with Oracle(lm, facts[:1]).about(facts[2]).apply() as model:
        assert model is lm, "it knows nothing of that subject"


def test_more_facts_than_there_are_positions_for_are_refused(tiny, facts):
    lm = tiny(max_position_embeddings=24)
    with pytest.raises(ValueError, match="tiny-llama has 24 positions: what it is told takes [0-9]+ tokens"):
        with InContext(lm, facts).apply():
            pass
    with InContext(lm, facts[1:2]).apply() as model:
        assert len(evaluate(model, [replace(facts[1], paraphrases=(), neighbours=())])) == 1
        with pytest.raises(ValueError, match="24 positions"):
            evaluate(model, [replace(facts[1], paraphrases=("a b c d e f g " * 6,))])
