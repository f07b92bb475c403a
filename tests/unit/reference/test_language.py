"""The plain passes over a language model, against the losses of transformers and definitions."""

import pytest
import torch

from editkit.language.keys import locate
from editkit.models.hooks import capture
from editkit.reference import language as reference
from tests.conftest import FAMILIES


def library_loss(lm, ids: list[int], target: list[int]) -> float:
    """Mean negative log-probability of ``target`` after ``ids``, as transformers computes it from labels."""
    tokens = torch.tensor([ids + target], device=lm.device)
    labels = tokens.clone()
    labels[:, : len(ids)] = -100
    with torch.no_grad():
        return lm.model(tokens, labels=labels).loss.item()


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_losses_of_the_library(tiny, family):
    lm = tiny(family)
    prompt, texts = "The capital of France is", ["Paris", "Rome in Italy"]
    wanted = [-library_loss(lm, lm.encode(prompt)[0], lm.encode_continuation(prompt, text)) for text in texts]
    assert reference.scores(lm, [(prompt, texts)]) == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_first_loss_of_a_target_is_the_librarys_and_steps_make_the_target_likelier(tiny, facts, full_spec, family):
    lm, contexts = tiny(family), ["a b c . ", "People speak . "]
    spec = full_spec(kl_factor=0.0, v_weight_decay=0.0, clamp_norm_factor=5.0).resolve(lm)
    target = lm.encode_continuation(facts[0].text, facts[0].target_new)
    rows = [locate(lm, facts[0].prompt, facts[0].subject, context) for context in ["", *contexts]]
    value, losses = reference.target(lm, facts[0], spec, contexts)
    assert losses[0] == pytest.approx(sum(library_loss(lm, row.ids, target) for row in rows) / len(rows), abs=1e-4)
    assert losses[-1] < losses[0] and torch.isfinite(value).all() and value.shape == (16,)


def test_the_second_moment_is_the_mean_of_keys_less_the_start_token(tiny):
    lm = tiny()
    chunks = [lm.encode(text)[0] for text in ("The capital of France is Paris", "a b c", "Rome lies in Italy .")]
    keys = []
    for ids in chunks:
        with torch.no_grad(), capture({"k": lm.mlp_out(2)}, side="input") as seen:
            lm.model(torch.tensor([ids], device=lm.device))
        keys += list(seen["k"][0, 1:].double())
    wanted = torch.stack([torch.outer(k, k) for k in keys]).mean(0)
    ours = reference.second_moment(lm, 2, chunks, batch_tokens=20)
    assert torch.allclose(ours, wanted, rtol=1e-4, atol=1e-5)
