"""zsRE's published scores: token by token, each from a full pass of its own."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from editkit.language.zsre import evaluate_tokens, summarize_tokens
from tests.conftest import FAMILIES


def published(lm, prompts: list[str], target: str) -> list[bool]:
    """What eval_utils_zsre.py gathers: for each token of the target, whether it is the argmax after those before it."""
    found = []
    for prompt in prompts:
        ids, more = lm.encode(prompt)[0], lm.encode_continuation(prompt, target)
        for i, token in enumerate(more):
            with torch.no_grad():
                logits = lm.model(torch.tensor([ids + more[:i]])).logits[0, -1]
            found.append(logits.argmax().item() == token)
    return found


def likely(lm, prompt: str) -> str:
    """A continuation of which a random model finds some tokens first, not all: what it says, and then something."""
    ids = torch.tensor([lm.encode(prompt)[0]])
    said = lm.model.generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=0)[0, ids.shape[1] :]
    return f"{lm.tokenizer.decode(said).strip()} Swedish"


@pytest.fixture
def questions(facts):
    """Facts with several paraphrases and neighbours, whose objects have several tokens."""
    return [
        replace(fact, paraphrases=("What is it ?", fact.text + " a"), neighbours=("Who is it ?", "Rome is"))
        for fact in facts
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_those_of_the_published_loop(tiny, questions, family):
    lm = tiny(family)
    facts = [replace(fact, target_new=likely(lm, fact.text)) for fact in questions]
    facts = [replace(fact, neighbour_target=likely(lm, fact.neighbours[0])) for fact in facts]
    frame = evaluate_tokens(lm, facts)
    per_case = {
        "efficacy": [np.mean(published(lm, [fact.text], fact.target_new)) for fact in facts],
        "paraphrase": [np.mean(published(lm, list(fact.paraphrases), fact.target_new)) for fact in facts],
        "specificity": [np.mean(published(lm, list(fact.neighbours), fact.neighbour_answer)) for fact in facts],
    }
    scores = summarize_tokens(frame)
    assert {name: np.mean(of) for name, of in per_case.items()} == pytest.approx({n: scores[n] for n in per_case})
    assert any(0 < share < 1 for of in per_case.values() for share in of), "some answers are right in part"
    pairs = zip(frame.prompt, wants(facts), strict=True)
    assert frame.right.tolist() == [sum(published(lm, [prompt], wanted)) for prompt, wanted in pairs]


def wants(facts) -> list[str]:
    return [
        wanted
        for fact in facts
        for wanted in [fact.target_new] * (1 + len(fact.paraphrases)) + [fact.neighbour_answer] * len(fact.neighbours)
    ]


def test_summary_by_hand():
    rows = [
        ("a", "rewrite", 2, 1), ("b", "rewrite", 3, 3),
        ("a", "paraphrase", 2, 2), ("a", "paraphrase", 6, 0), ("b", "paraphrase", 4, 2),
        ("a", "neighbourhood", 5, 1), ("b", "neighbourhood", 5, 2),
    ]  # fmt: skip
    frame = pd.DataFrame(rows, columns=["fact", "kind", "tokens", "right"])
    scores = summarize_tokens(frame)
    # Within a case all tokens weigh the same: summarize.py takes np.mean over rewrite_prompts_correct and so on.
    assert (scores["efficacy"], scores["paraphrase"]) == (0.75, (2 / 8 + 2 / 4) / 2)
    assert scores["specificity"] == pytest.approx(0.3)
    assert scores["score"] == pytest.approx(3 / (1 / 0.75 + 1 / 0.375 + 1 / 0.3))
    open_ = summarize_tokens(frame[frame.kind != "paraphrase"])
    assert np.isnan(open_["paraphrase"]) and np.isnan(open_["score"]) and open_["efficacy"] == 0.75


def test_no_facts_are_refused(tiny):
    with pytest.raises(ValueError, match="no facts"):
        evaluate_tokens(tiny(), [])
