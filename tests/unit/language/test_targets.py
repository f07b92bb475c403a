"""The fast target optimiser against the plain one, for every family."""

import math

import pytest
import torch

from editkit import Fact
from editkit.language import targets
from editkit.language.keys import locate, sample_contexts
from editkit.language.targets import automatic_batch, optimise_targets
from editkit.models.hooks import edit_output
from editkit.reference import language as reference
from tests.conftest import FAMILIES


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layers", [[0], [1, 2]])  # at the last layer the gradient is noise, and Adam blows it up
def test_targets_and_loss_curves_are_those_of_the_published_algorithm(tiny, facts, full_spec, family, layers):
    lm = tiny(family)
    spec = full_spec(layers=layers, v_loss_layer=3).resolve(lm)
    contexts = sample_contexts(lm, 2, 4, seed=0)
    ours = optimise_targets(lm, facts, spec, contexts, progress=False)
    for i, fact in enumerate(facts):
        value, losses = reference.target(lm, fact, spec, contexts)
        assert (ours.values[:, i] - value).norm() <= 1e-3 * value.norm()  # Adam blows rounding up
        torch.testing.assert_close(ours.losses[i], torch.tensor(losses), rtol=1e-3, atol=1e-3)
        assert losses[-1] < losses[0]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_steps_look_at_prompts_in_turn(tiny, facts, full_spec, family, count):
    lm = tiny(family)
    spec = full_spec(layers=[1], v_loss_layer=3, prompts_per_step=count, early_stop_loss=2.0).resolve(lm)
    contexts = sample_contexts(lm, 2, 4, seed=0)
    ours = optimise_targets(lm, facts, spec, contexts, progress=False)
    for i, fact in enumerate(facts):
        value, losses = reference.target(lm, fact, spec, contexts)
        assert (ours.values[:, i] - value).norm() <= 1e-3 * value.norm()  # Adam blows rounding up
        found = ours.losses[i, : len(losses)]
        torch.testing.assert_close(found, torch.tensor(losses), rtol=1e-3, atol=1e-3)
    every = full_spec(layers=[1], v_loss_layer=3, early_stop_loss=2.0).resolve(lm)
    whole = optimise_targets(lm, facts, every, contexts, progress=False)
    assert torch.equal(whole.values, ours.values) == (count == 3), "three prompts are all of them"


@pytest.mark.parametrize(("prompts", "count"), [(5, 1), (5, 2), (6, 4), (3, 3), (2, 5), (4, 0)])
def test_every_prompt_comes_as_often_as_every_other(prompts, count):
    found = targets.turns(prompts + 1, count)
    assert {turn[-1] for turn in found} == {prompts}, "the KL is taken in every step"
    assert {len(turn) - 1 for turn in found} == {min(count or prompts, prompts)}
    looked_at = [i for turn in found for i in turn[:-1]]
    assert all(looked_at.count(i) == len(looked_at) / prompts for i in range(prompts))


def test_early_stopping_finishes_each_edit_on_its_own(tiny, facts, full_spec):
    lm = tiny()
    plain = [reference.target(lm, fact, full_spec(v_lr=0.5, v_num_grad_steps=15), []) for fact in facts]
    threshold = sorted(min(losses) for _, losses in plain)[1] + 1e-3  # some reach it, some do not
    spec = full_spec(v_lr=0.5, v_num_grad_steps=15, early_stop_loss=threshold).resolve(lm)
    ours = optimise_targets(lm, facts, spec, [], progress=False)
    steps = (~ours.losses.isnan()).sum(1).tolist()
    assert min(steps) < 15 and max(steps) == 15
    for i, fact in enumerate(facts):
        value, losses = reference.target(lm, fact, spec, [])
        assert steps[i] == len(losses)
        assert (ours.values[:, i] - value).norm() <= 1e-3 * value.norm()  # Adam blows rounding up


def test_a_target_does_not_depend_on_its_batch(tiny, facts, full_spec):
    lm = tiny()
    spec = full_spec().resolve(lm)
    together = optimise_targets(lm, facts, spec, [], progress=False).values
    for i, fact in enumerate(facts):
        alone = optimise_targets(lm, [fact], spec, [], progress=False).values[:, 0]
        torch.testing.assert_close(together[:, i], alone, rtol=1e-3, atol=1e-3)


def test_the_clamp_bounds_the_shift(tiny, facts, full_spec):
    lm = tiny()
    spec = full_spec(clamp_norm_factor=0.05, v_lr=1.0).resolve(lm)
    still = full_spec(v_num_grad_steps=1).resolve(lm)  # one step: no update yet
    before = optimise_targets(lm, facts, still, [], progress=False).values
    after = optimise_targets(lm, facts, spec, [], progress=False).values
    ratio = (after - before).norm(dim=0) / before.norm(dim=0)
    assert torch.allclose(ratio, torch.full_like(ratio, 0.05), rtol=1e-3)


def test_a_search_tells_its_steps_and_ends_between_them(tiny, facts, full_spec, store):
    lm, spec, steps = tiny(), full_spec(v_num_grad_steps=4), []
    spec = spec.resolve(lm)
    found = optimise_targets(lm, facts[:2], spec, [], progress=False, watch=steps.append)
    assert [(step.number, step.of, step.edits) for step in steps] == [(n, 4, 2) for n in (1, 2, 3, 4)]
    torch.testing.assert_close(torch.tensor([step.loss for step in steps]), found.losses.mean(0))

    def stop(step):
        if step.number == 2:
            raise KeyError("enough")

    with pytest.raises(KeyError):
        optimise_targets(lm, facts[:2], spec, [], store=store, progress=False, watch=stop)
    assert not lm.layers[spec.layers[-1] + 1]._forward_hooks and not lm.layers[0]._forward_pre_hooks
    again = optimise_targets(lm, facts[:2], spec, [], store=store, progress=False)
    assert again.cached == 0 and torch.equal(again.values, found.values)


def test_cached_targets_are_the_same_and_only_for_the_same_weights(tiny, facts, full_spec, store):
    lm = tiny()
    spec = full_spec().resolve(lm)
    first = optimise_targets(lm, facts[:3], spec, [], store=store, progress=False)
    again = optimise_targets(lm, facts, spec, [], store=store, progress=False)
    assert (first.cached, again.cached) == (0, 3)
    assert torch.equal(first.values, again.values[:, :3])
    lm.weight(0).add_(0.1)
    assert optimise_targets(lm, facts, spec, [], store=store, progress=False).cached == 0
    other = full_spec(v_lr=0.2).resolve(lm)
    assert optimise_targets(lm, facts, other, [], store=store, progress=False).cached == 0


def test_the_model_is_untouched_and_no_hook_stays(tiny, facts, full_spec):
    lm = tiny()
    before = lm.fingerprint()
    spec = full_spec().resolve(lm)
    optimise_targets(lm, facts, spec, [], progress=False)
    assert lm.fingerprint() == before
    for module in lm.model.modules():
        assert not module._forward_hooks and "forward" not in module.__dict__
    assert all(parameter.grad is None for parameter in lm.model.parameters())


def test_probability_is_that_of_the_model_with_the_target_in_place(tiny, full_spec):
    lm = tiny()
    fact = Fact.make(subject="Rome", prompt="{} lies in", target_new="France", target_true="Italy")
    spec = full_spec(v_num_grad_steps=1, kl_factor=0.0, v_weight_decay=0.0).resolve(lm)
    found = optimise_targets(lm, [fact], spec, [], progress=False)
    ids, continuation = lm.encode(fact.text)[0], lm.encode_continuation(fact.text, "France")
    with torch.no_grad():
        table = lm.model(torch.tensor([ids + continuation])).logits[0].log_softmax(-1)
    mean = sum(table[len(ids) - 1 + j, token].item() for j, token in enumerate(continuation)) / len(continuation)
    assert found.probability.item() == pytest.approx(math.exp(mean), rel=1e-4)
    assert found.losses[0, 0].item() == pytest.approx(-mean, rel=1e-4)


def test_the_batch_budget_changes_nothing_but_the_cost(tiny, facts, full_spec):
    lm = tiny()
    found = [
        optimise_targets(lm, facts, full_spec(target_batch=budget).resolve(lm), [], progress=False).values
        for budget in (1, 30, 1000)
    ]
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found[0], found[2], rtol=1e-5, atol=1e-5)
    assert automatic_batch(lm, 2) >= 1


def test_a_group_that_does_not_fit_into_memory_is_halved(tiny, facts, full_spec, monkeypatch):
    lm = tiny()
    plain = optimise_targets(lm, facts, full_spec().resolve(lm), [], progress=False)
    sizes, optimise = [], targets._optimise

    def small_memory(lm, edits, *rest):
        sizes.append(len(edits))
        if len(edits) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return optimise(lm, edits, *rest)

    monkeypatch.setattr(targets, "_optimise", small_memory)
    monkeypatch.setattr("editkit.language.forward.prefix.GROUP_COST", 1000)
    with pytest.warns(UserWarning, match="4 targets do not fit into memory: target_batch is now"):
        found = optimise_targets(lm, facts, full_spec(target_batch=1000).resolve(lm), [], progress=False)
    assert sizes[0] == 4 and max(sizes[1:]) <= 2
    torch.testing.assert_close(found.values, plain.values, rtol=1e-5, atol=1e-5)


def test_one_edit_that_does_not_fit_is_an_error_and_others_keep_theirs(tiny, facts, full_spec, monkeypatch, store):
    lm = tiny()
    spec = full_spec(target_batch=1).resolve(lm)
    optimise, done = targets._optimise, []

    def fails_on_the_third(lm, edits, *rest):
        if len(done) == 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        done.append(1)
        return optimise(lm, edits, *rest)

    monkeypatch.setattr(targets, "_optimise", fails_on_the_third)
    with pytest.raises(RuntimeError, match="can't allocate"):
        optimise_targets(lm, facts, spec, [], store=store, progress=False)
    monkeypatch.setattr(targets, "_optimise", optimise)
    assert optimise_targets(lm, facts, spec, [], store=store, progress=False).cached == 2


def test_probability_based_stopping(tiny, facts, full_spec):
    lm = tiny()
    full = optimise_targets(lm, facts, full_spec(v_lr=0.5, v_num_grad_steps=15).resolve(lm), [], progress=False)
    enough = full.probability.median().item() * 0.9
    spec = full_spec(v_lr=0.5, v_num_grad_steps=15, stop_probability=enough).resolve(lm)
    stopped = optimise_targets(lm, facts, spec, [], progress=False)
    steps = (~stopped.losses.isnan()).sum(1)
    assert steps.min() < 15
    assert (stopped.probability[steps < 15] >= enough).all()
    for i, count in enumerate(steps):
        torch.testing.assert_close(stopped.losses[i, :count], full.losses[i, :count], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_fast_targets_are_near_the_exact_ones_and_weights_come_back(tiny, facts, full_spec, family, monkeypatch, store):
    lm = tiny(family)
    before = lm.fingerprint()
    exact = optimise_targets(lm, facts, full_spec().resolve(lm), [], store=store, progress=False)
    monkeypatch.setattr(targets, "choose_precision", lambda lm, mode, store: "bfloat16")
    fast = optimise_targets(lm, facts, full_spec(target_mode="fast").resolve(lm), [], store=store, progress=False)
    assert (exact.precision, fast.precision, fast.cached) == ("float32", "bfloat16", 0)
    assert lm.fingerprint() == before and lm.model.dtype == torch.float32
    error = (fast.values - exact.values).norm() / exact.values.norm()
    assert 0 < error < 0.1
    torch.testing.assert_close(fast.losses[:, 0], exact.losses[:, 0], rtol=0.05, atol=0.05)


def test_bad_input(tiny, facts, full_spec):
    lm = tiny()
    spec = full_spec().resolve(lm)
    with pytest.raises(ValueError, match="no facts"):
        optimise_targets(lm, [], spec, [], progress=False)
    with pytest.raises(ValueError, match="target_mode = 'gradient': must be 'exact' or 'fast' where v\\* is asked for"):
        optimise_targets(lm, facts, full_spec("ultraedit").resolve(lm), [], progress=False)
    lm.weight(3).fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="step 0"):
        optimise_targets(lm, facts, spec, [], progress=False)


@pytest.fixture
def reachable():
    """Facts whose subject comes last, so that a shift there decides the object's first token; one has two tokens."""
    objects = {"Rome": "speak", "France": "b", "Stockholm": "d", "Anna Karlsson": "Spanish"}
    about = {"prompt": "People in {}", "target_true": "Italy", "relation": "made up"}
    return [Fact.make(subject=subject, target_new=new, **about) for subject, new in objects.items()]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_a_target_is_finished_once_it_was_most_probable_often_enough(tiny, reachable, full_spec, family, steps):
    lm, facts = tiny(family), reachable
    contexts = sample_contexts(lm, 2, 4, seed=0)
    spec = full_spec(layers=[1], v_lr=0.5, v_num_grad_steps=25, clamp_norm_factor=4.0, most_probable_steps=steps)
    spec = spec.resolve(lm)
    ours = optimise_targets(lm, facts, spec, contexts, progress=False)
    taken = (~ours.losses.isnan()).sum(1).tolist()
    assert steps < min(taken) < max(taken) == 25
    for i, fact in enumerate(facts):
        value, losses = reference.target(lm, fact, spec, contexts)
        assert taken[i] == len(losses)
        assert (ours.values[:, i] - value).norm() <= 1e-3 * value.norm()  # Adam blows rounding up


def test_without_contexts_the_bare_prompt_must_be_continued_by_the_new_object(tiny, reachable, full_spec):
    lm, facts = tiny(), reachable
    spec = full_spec(layers=[1], v_lr=0.5, v_num_grad_steps=25, clamp_norm_factor=4.0, most_probable_steps=1)
    found = optimise_targets(lm, facts, spec.resolve(lm), [], progress=False)
    taken = (~found.losses.isnan()).sum(1)
    assert taken.min() > 1 and taken.min() < 25
    for i, fact in enumerate(facts):
        if taken[i] == 25:
            continue
        prompt, target = lm.encode(fact.text)[0], lm.encode_continuation(fact.text, fact.target_new)
        place = locate(lm, fact.prompt, fact.subject).subject_last

        def put(hidden, i=i, place=place):
            return torch.cat([hidden[:, :place], found.values[:, i][None, None], hidden[:, place + 1 :]], dim=1)

        with torch.no_grad(), edit_output({lm.layers[1]: put}):
            logits = lm.model(torch.tensor([prompt + target[:-1]], device=lm.device)).logits[0]
        assert logits[len(prompt) - 1 :].argmax(-1).tolist() == target
