"""Scores with shared prefixes against one full forward pass each."""

import math

import pandas as pd
import pytest
import torch

from editkit import evaluate, summarize
from editkit.language.forward.scoring import score
from editkit.reference import language as reference
from tests.conftest import FAMILIES

ITEMS = [
    ("The capital of France is", ["Paris", "Rome in Italy", "a"]),
    ("Rome", ["lies in Italy ."]),
    ("People in Spain speak Spanish , while the mother tongue of Anna is", ["Swedish", "b c d e f g"]),
]


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_those_of_full_passes(tiny, family):
    lm = tiny(family)
    for (prompt, texts), scores in zip(ITEMS, score(lm, ITEMS), strict=True):
        for text, ours in zip(texts, scores, strict=True):
            ids, more = lm.encode(prompt)[0], lm.encode_continuation(prompt, text)
            with torch.no_grad():
                table = lm.model(torch.tensor([ids + more])).logits[0, len(ids) - 1 : -1].log_softmax(-1)
            assert ours.logprob == pytest.approx(table[range(len(more)), more].mean().item(), abs=1e-4)
            assert ours.greedy == (table.argmax(-1).tolist() == more)


def test_scores_are_those_of_the_public_code(tiny):
    lm = tiny()
    ours = [one.logprob for scores in score(lm, ITEMS) for one in scores]
    assert ours == pytest.approx(reference.scores(lm, ITEMS), abs=1e-4)


def test_greedy_is_what_generation_says(tiny):
    lm = tiny()
    ids = torch.tensor([lm.encode("Rome lies in")[0]])
    new = lm.model.generate(ids, max_new_tokens=3, do_sample=False, pad_token_id=0)[0, ids.shape[1] :]
    said = lm.tokenizer.decode(new)
    if said.startswith(" ") and lm.encode_continuation("Rome lies in", said[1:]) == new.tolist():
        assert score(lm, [("Rome lies in", [said[1:], "Paris"])])[0][0].greedy
    assert not score(lm, [("Rome lies in", ["a b c d"])])[0][0].greedy


def test_evaluate_compares_the_right_way_round(tiny, facts):
    lm = tiny()
    frame = evaluate(lm, facts)
    assert len(frame) == 3 * len(facts)
    edit = frame[frame.kind != "neighbourhood"]
    keep = frame[frame.kind == "neighbourhood"]
    assert (edit.success == (edit.logprob_new > edit.logprob_true)).all()
    assert (keep.success == (keep.logprob_true > keep.logprob_new)).all()
    with pytest.raises(ValueError, match="no facts"):
        evaluate(lm, [])


def test_summary_by_hand():
    rows = [
        ("a", "rewrite", True, False), ("b", "rewrite", True, True),
        ("a", "paraphrase", True, False), ("a", "paraphrase", False, False), ("b", "paraphrase", True, True),
        ("a", "neighbourhood", True, True), ("b", "neighbourhood", False, True), ("b", "neighbourhood", False, False),
    ]  # fmt: skip
    frame = pd.DataFrame(rows, columns=["fact", "kind", "success", "accuracy"])
    scores = summarize(frame)
    assert (scores["ES"], scores["PS"], scores["NS"]) == (1.0, 0.75, 0.5)
    assert scores["S"] == pytest.approx(3 / (1 / 1 + 1 / 0.75 + 1 / 0.5))
    assert (scores["EA"], scores["PA"], scores["NA"]) == (0.5, 0.5, 0.75)
    without = summarize(frame[frame.kind != "paraphrase"])
    assert math.isnan(without["PS"]) and math.isnan(without["S"]) and without["ES"] == 1.0
