"""What a model says of a fact, held against transformers' own outputs."""

from dataclasses import replace

import pytest
import torch

from editkit.lab.form import Form
from editkit.lab.reading import hold, look, next_tokens, read


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


def test_a_reading_has_every_prompt_and_rung(tiny, facts):
    lm, fact = tiny(), facts[0]
    reading = read(lm, fact)
    assert reading.probes is None and reading.says == next_tokens(lm, fact.text)
    assert list(reading.prompts.prompt) == [fact.text, *fact.paraphrases, *fact.neighbours]
    assert {"success", "accuracy", "magnitude", "said", "text"} <= {*reading.prompts}
    assert reading.text == reading.prompts.text[0]
    assert hold(lm, facts) == [probabilities_hold(lm, fact) for fact in facts]


def probabilities_hold(lm, fact):
    """Whether greedy decoding, a token at a time, says the new object."""
    text = fact.text
    for token in lm.tokenizer(" " + fact.target_new)["input_ids"]:
        if probabilities(lm, text).argmax() != token:
            return False
        text += lm.tokenizer.decode([token])
    return True
