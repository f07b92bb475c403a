"""What a model says of a fact, held against transformers' own outputs."""

from dataclasses import replace

import pytest
import torch

from editkit.facts.statements import statement_probes
from editkit.lab import reading
from editkit.lab.form import Form
from editkit.lab.reading import WORDS, ask, hold, look, next_tokens, read, sentences, write
from editkit.language.generation import generate
from editkit.language.metrics import evaluate


@torch.no_grad()
def probabilities(lm, text):
    ids = torch.tensor([[lm.start_id, *lm.tokenizer(text)["input_ids"]]], device=lm.device)
    return lm.model(ids).logits[0, -1].float().softmax(-1)


def test_next_tokens_are_those_of_the_model(tiny):
    lm = tiny()
    wanted = probabilities(lm, "The capital of France is").topk(5)
    found = next_tokens(lm, "The capital of France is")
    assert [token for token, _ in found] == [lm.tokenizer.decode([i]) for i in wanted.indices.tolist()]
    assert [p for _, p in found] == pytest.approx(wanted.values.tolist(), rel=1e-4)


def test_a_look_follows_the_typing(tiny, facts):
    lm = tiny()
    assert look(lm, Form("", "{} lies in")) == ([], [], None, None)
    seen = look(lm, Form("Rome", "{} lies in"))
    assert "".join(token for token, _ in seen.tokens[1:]) == "Rome lies in"
    [edited] = [place for place, (_, here) in enumerate(seen.tokens) if here]
    assert "".join(token for token, _ in seen.tokens[1 : edited + 1]) == "Rome"
    assert seen.knows is None and seen.new_tokens is None
    first = lm.tokenizer.decode(probabilities(lm, "Rome lies in").argmax())
    form = Form("Rome", "{} lies in", "France", first.strip())
    if first.startswith(" "):
        assert look(lm, form).knows
    assert look(lm, replace(form, true="a b c d e f g")).knows is False
    assert look(lm, form).new_tokens == len(lm.tokenizer(" France")["input_ids"])


def test_a_reading_has_every_prompt_and_what_one_pass_tells(tiny, facts):
    lm, fact = tiny(), facts[0]
    first = read(lm, fact)
    assert first.probes is None and first.says == next_tokens(lm, fact.text)
    assert list(first.prompts.prompt) == [fact.text, *fact.paraphrases, *fact.neighbours]
    assert {"success", "accuracy", "magnitude"} <= {*first.prompts}
    assert first.text == "" and first.prompts.said.isna().all()
    whole = write(lm, fact, first)
    wanted = evaluate(lm, [fact], rungs=["said"], max_new_tokens=WORDS)
    assert list(whole.prompts.text) == list(wanted.text) and list(whole.prompts.said) == list(wanted.said)
    assert whole.text == wanted.text[0]
    assert hold(lm, facts) == [probabilities_hold(lm, fact) for fact in facts]


def probabilities_hold(lm, fact):
    """Whether greedy decoding, a token at a time, says the new object."""
    text = fact.text
    for token in lm.tokenizer(" " + fact.target_new)["input_ids"]:
        if probabilities(lm, text).argmax() != token:
            return False
        text += lm.tokenizer.decode([token])
    return True


def test_sentences_that_stay_are_not_written_again(tiny, facts, monkeypatch):
    """Whatever the other moment was, the sentences are those that are written from nothing."""
    before, after, asked = tiny(), tiny(), [fact.text for fact in facts]
    after.weight(3).add_(0.4 * after.weight(3).roll(1, 0))
    old, wanted = (generate(lm, asked, WORDS, stop="sentence") for lm in (before, after))
    stays = [a.ids == b.ids for a, b in zip(old, wanted, strict=True)]
    assert any(stays) and not all(stays), "the change is meant to turn some sentences"
    written = []

    def watched(lm, some, *rest, **how):
        written.extend(some)
        return generate(lm, some, *rest, **how)

    monkeypatch.setattr(reading, "generate", watched)
    assert sentences(after, asked, old) == wanted
    assert written == [prompt for prompt, stay in zip(asked, stays, strict=True) if not stay]
    assert sentences(after, asked) == wanted


def test_probes_are_asked_where_there_are_some(tiny, facts):
    lm, probes = tiny(), statement_probes(facts[0])
    asked = ask(lm, read(lm, facts[0]), probes)
    assert list(asked.probes.prompt) == [probe.prompt for probe in probes] and asked.probes.accuracy.notna().all()
    assert ask(lm, asked, []).probes is None
