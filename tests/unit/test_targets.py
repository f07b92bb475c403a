"""The fast target optimiser against the plain one, for every family."""

import math

import pytest
import torch
from conftest import FAMILIES
from oracles import reference_target

from editkit import Fact
from editkit.language.keys import sample_contexts
from editkit.language.targets import optimise_targets


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layers", [[0], [1, 2]])  # at the last layer the gradient is noise, and Adam blows it up
def test_targets_and_loss_curves_are_those_of_the_published_algorithm(tiny, facts, full_spec, family, layers):
    lm = tiny(family)
    spec = full_spec(layers=layers, v_loss_layer=3).resolve(lm.name, lm.n_layers)
    contexts = sample_contexts(lm, 2, 4, seed=0)
    ours = optimise_targets(lm, facts, spec, contexts, progress=False)
    for i, fact in enumerate(facts):
        value, losses = reference_target(lm, fact, spec, contexts)
        assert (ours.values[:, i] - value).norm() <= 1e-5 * value.norm()
        torch.testing.assert_close(ours.losses[i], torch.tensor(losses), rtol=1e-4, atol=1e-5)
        assert losses[-1] < losses[0]


def test_early_stopping_finishes_each_edit_on_its_own(tiny, facts, full_spec):
    lm = tiny()
    plain = [reference_target(lm, fact, full_spec(v_lr=0.5, v_num_grad_steps=15), []) for fact in facts]
    threshold = sorted(min(losses) for _, losses in plain)[1] + 1e-3  # some reach it, some do not
    spec = full_spec(v_lr=0.5, v_num_grad_steps=15, early_stop_loss=threshold).resolve(lm.name, lm.n_layers)
    ours = optimise_targets(lm, facts, spec, [], progress=False)
    steps = (~ours.losses.isnan()).sum(1).tolist()
    assert min(steps) < 15 and max(steps) == 15
    for i, fact in enumerate(facts):
        value, losses = reference_target(lm, fact, spec, [])
        assert steps[i] == len(losses)
        assert (ours.values[:, i] - value).norm() <= 1e-5 * value.norm()


def test_a_target_does_not_depend_on_its_batch(tiny, facts, full_spec):
    lm = tiny()
    spec = full_spec().resolve(lm.name, lm.n_layers)
    together = optimise_targets(lm, facts, spec, [], progress=False).values
    for i, fact in enumerate(facts):
        alone = optimise_targets(lm, [fact], spec, [], progress=False).values[:, 0]
        torch.testing.assert_close(together[:, i], alone, rtol=1e-5, atol=1e-5)


def test_the_clamp_bounds_the_shift(tiny, facts, full_spec):
    lm = tiny()
    spec = full_spec(clamp_norm_factor=0.05, v_lr=1.0).resolve(lm.name, lm.n_layers)
    still = full_spec(v_num_grad_steps=1).resolve(lm.name, lm.n_layers)  # one step: no update yet
    before = optimise_targets(lm, facts, still, [], progress=False).values
    after = optimise_targets(lm, facts, spec, [], progress=False).values
    ratio = (after - before).norm(dim=0) / before.norm(dim=0)
    assert torch.allclose(ratio, torch.full_like(ratio, 0.05), rtol=1e-3)


def test_cached_targets_are_the_same_and_only_for_the_same_weights(tiny, facts, full_spec, store):
    lm = tiny()
    spec = full_spec().resolve(lm.name, lm.n_layers)
    first = optimise_targets(lm, facts[:3], spec, [], store=store, progress=False)
    again = optimise_targets(lm, facts, spec, [], store=store, progress=False)
    assert (first.cached, again.cached) == (0, 3)
    assert torch.equal(first.values, again.values[:, :3])
    lm.weight(0).add_(0.1)
    assert optimise_targets(lm, facts, spec, [], store=store, progress=False).cached == 0
    other = full_spec(v_lr=0.2).resolve(lm.name, lm.n_layers)
    assert optimise_targets(lm, facts, other, [], store=store, progress=False).cached == 0


def test_the_model_is_untouched_and_no_hook_stays(tiny, facts, full_spec):
    lm = tiny()
    before = lm.fingerprint()
    spec = full_spec().resolve(lm.name, lm.n_layers)
    optimise_targets(lm, facts, spec, [], progress=False)
    assert lm.fingerprint() == before
    for module in lm.model.modules():
        assert not module._forward_hooks and "forward" not in module.__dict__
    assert all(parameter.grad is None for parameter in lm.model.parameters())


def test_probability_is_that_of_the_model_with_the_target_in_place(tiny, full_spec):
    lm = tiny()
    fact = Fact.make(subject="Rome", prompt="{} lies in", target_new="France", target_true="Italy")
    spec = full_spec(v_num_grad_steps=1, kl_factor=0.0, v_weight_decay=0.0).resolve(lm.name, lm.n_layers)
    targets = optimise_targets(lm, [fact], spec, [], progress=False)
    ids, continuation = lm.encode(fact.text)[0], lm.encode_continuation(fact.text, "France")
    with torch.no_grad():
        table = lm.model(torch.tensor([ids + continuation])).logits[0].log_softmax(-1)
    mean = sum(table[len(ids) - 1 + j, token].item() for j, token in enumerate(continuation)) / len(continuation)
    assert targets.probability.item() == pytest.approx(math.exp(mean), rel=1e-4)
    assert targets.losses[0, 0].item() == pytest.approx(-mean, rel=1e-4)


def test_bad_input(tiny, facts, full_spec):
    lm = tiny()
    spec = full_spec().resolve(lm.name, lm.n_layers)
    with pytest.raises(ValueError, match="no facts"):
        optimise_targets(lm, [], spec, [], progress=False)
    lm.weight(3).fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="step 0"):
        optimise_targets(lm, facts, spec, [], progress=False)
