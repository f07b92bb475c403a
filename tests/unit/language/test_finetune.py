"""Fine-tuning on the facts themselves, the control without an editor: by LoRA, and of one matrix."""

import copy
from dataclasses import replace
from functools import partial

import pytest
import torch

from editkit import AdapterStack, evaluate, summarize
from editkit.language.finetune import FinetuneSpec, LocFTSpec, TunedAdapter, finetune, finetune_matrix
from tests.conftest import agree


def test_finetuning_stops_when_it_has_learnt_and_refuses_to_diverge(tiny, facts, monkeypatch):
    monkeypatch.setattr("editkit.language.finetune.STOP_LOSS", 3.0)  # a random model of width 16 learns no further
    stack = AdapterStack(tiny())
    how = FinetuneSpec(layers=[2], rank=2, lr=0.05, steps=200)
    history = finetune(stack, "tuned", facts[:1], how, progress=False)
    assert len(history) < 200 and history.loss.iloc[-1] < 3.0 < history.loss.iloc[-2]
    again = finetune(AdapterStack(tiny()), "tuned", facts[:1], how, progress=False)
    assert again.loss.tolist() == history.loss.tolist(), "the start is drawn from the seed"
    stack.model.weight(3).fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="fine-tuning diverged at step 0"):
        finetune(stack, "other", facts[:1], how, progress=False)
    assert list(stack) == ["tuned"]


def test_finetuning_whose_last_step_leaves_the_finite_numbers_comes_off_again(tiny, facts):
    stack = AdapterStack(tiny(), alpha=1e3)
    mark = stack.model.fingerprint()
    with pytest.raises(FloatingPointError, match="not finite"):
        finetune(stack, "tuned", facts[:1], FinetuneSpec(layers=[2], rank=2, lr=1e37, steps=1), progress=False)
    assert not stack.model.has_adapters and stack.model.fingerprint() == mark


def test_finetuning_refuses_what_it_cannot_train_before_it_touches_the_model(tiny, facts):
    stack = AdapterStack(tiny())
    stack.add("mine", {2: (torch.ones(16, 1), torch.ones(1, 24))})
    mark = stack.model.fingerprint()
    good = {"layers": [2], "rank": 2, "lr": 0.05, "steps": 2}
    endless = [replace(facts[0], prompt="a " * 600 + "{} is")]
    for name, edited, message in (
        ("mine", facts, "there is an adapter 'mine' already"),
        ("new", [], "no facts"),
        ("new", endless, "512 positions"),
    ):
        with pytest.raises(ValueError, match=message):
            finetune(stack, name, edited, FinetuneSpec(**good), progress=False)
        assert list(stack) == ["mine"] and stack.model.fingerprint() == mark
    for changes, message in (
        ({"layers": []}, r"layers \[\]"),
        ({"rank": 0}, "rank = 0"),
        ({"steps": 0}, "steps = 0"),
    ):
        with pytest.raises(ValueError, match=message):
            FinetuneSpec(**(good | changes))


def test_an_adapter_comes_into_force_in_a_block_alone(tiny, facts):
    lm = tiny()
    mark, before = lm.fingerprint(), evaluate(lm, facts)
    how = FinetuneSpec(layers=[1, 2], rank=2, lr=0.05, steps=20)
    tuned = TunedAdapter.train(lm, facts, how, progress=False)
    assert lm.fingerprint() == mark and not lm.has_adapters
    stack = AdapterStack(lm)
    history = finetune(stack, "tuned", facts, how, progress=False)
    expected, changes = evaluate(lm, facts), [stack.delta(layer) for layer in (1, 2)]
    parameters = stack["tuned"].n_parameters
    stack.close()
    for _ in range(2):
        with tuned.apply() as model:
            assert evaluate(model, facts).equals(expected) and not expected.equals(before)
        assert lm.fingerprint() == mark and not lm.has_adapters
    assert tuned.delta_norm == pytest.approx(torch.stack(changes).norm().item()) and tuned.parameters == parameters
    assert tuned.history.loss.tolist() == history.loss.tolist() and tuned.seconds > 0


def by_hand(lm, facts, layer: int, spec: LocFTSpec) -> list[float]:
    """Fine-tune in place as fine-tune.py of ICT-STAR/LocFT does, by transformers' own loss, a fact a pass."""
    weight, to = lm.mlp_out(layer).weight.requires_grad_(), partial(torch.tensor, device=lm.device)
    optimiser = torch.optim.Adam([weight], lr=spec.lr)
    generator, history = torch.Generator().manual_seed(spec.seed), []
    for _ in range(spec.num_steps):
        losses = []
        for batch in torch.randperm(len(facts), generator=generator).split(spec.batch_size):
            each = []
            for fact in (facts[i] for i in batch.tolist()):
                prompt, joint = lm.encode(fact.text)[0], lm.encode(f"{fact.text} {fact.target_new}")[0]
                ids = joint + [lm.tokenizer.eos_token_id] * spec.end_token
                labels = [-100] * len(prompt) + ids[len(prompt) :]
                each.append(lm.model(to([ids]), labels=to([labels])).loss)
            loss = torch.stack(each).mean()
            losses.append(loss.item() * len(batch))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        history.append(sum(losses) / len(facts))
    weight.requires_grad_(False)
    return history


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize(("batch_size", "end_token"), [(100, True), (3, True), (100, False)])
def test_locft_is_the_published_loop(tiny, facts, family, batch_size, end_token):
    lm, oracle = tiny(family), tiny(family)
    spec = LocFTSpec(layer=1, lr=0.01, batch_size=batch_size, num_steps=4, end_token=end_token, seed=5)
    start = lm.weight(1).double()
    tuned = finetune_matrix(lm, facts, spec, progress=False)
    losses = by_hand(oracle, facts, 1, spec)
    assert tuned.history.loss.tolist() == pytest.approx(losses, rel=1e-5)
    change = oracle.weight(1).double() - start
    agree(tuned.weight.double() - start, change, 1e-3)  # Adam's first steps follow the signs of gradients
    assert tuned.delta_norm == pytest.approx(change.norm().item(), rel=1e-3)
    assert tuned.parameters == 16 * 24 and 0 < tuned.seconds == tuned.history.seconds.iloc[-1]


def test_locft_changes_one_matrix_and_comes_off_bit_for_bit(tiny, facts):
    lm = tiny()
    before = {name: tensor.clone() for name, tensor in lm.model.state_dict().items()}
    tuned = finetune_matrix(lm, facts, LocFTSpec(layer=2, lr=0.01, num_steps=3), progress=False)

    def changed() -> list[str]:
        return [name for name, tensor in lm.model.state_dict().items() if not torch.equal(tensor, before[name])]

    assert changed() == [] and not any(p.requires_grad or p.grad is not None for p in lm.model.parameters())
    with pytest.raises(ZeroDivisionError), tuned.apply() as model:
        assert model is lm and changed() == [f"{lm.mlp_out_name(2)}.weight"]
        raise ZeroDivisionError
    assert changed() == []


def test_locft_learns_its_facts_with_enough_epochs_and_then_stops(tiny, facts):
    lm = tiny(hidden_size=64, intermediate_size=128)
    assert summarize(evaluate(lm, facts))["ES"] < 1
    spec = LocFTSpec(layer=1, lr=0.02, batch_size=2, num_steps=500)
    tuned = finetune_matrix(lm, facts, spec, progress=False)
    with tuned.apply() as model:
        scores = summarize(evaluate(model, facts))
    assert (scores["ES"], scores["EA"]) == (1.0, 1.0)
    assert len(tuned.history) < 500 and tuned.history.loss.iloc[-1] < 0.01 < tuned.history.loss.iloc[-2]


def test_locft_refuses_what_it_cannot_train_and_leaves_the_weights(tiny, facts):
    lm = tiny()
    mark, good = lm.fingerprint(), {"layer": 2, "lr": 0.01, "num_steps": 2}
    for edited, changes, error, message in (
        ([], {}, ValueError, "no facts"),
        (facts, {"layer": 4}, ValueError, "layer 4 is out of range: tiny-llama has layers 0 to 3"),
        (facts, {"lr": 1e37, "num_steps": 9}, FloatingPointError, r"diverged in epoch [0-9]: lower lr \(1e.37\)"),
    ):
        with pytest.raises(error, match=message):
            finetune_matrix(lm, edited, LocFTSpec(**(good | changes)), progress=False)
        assert lm.fingerprint() == mark and not lm.mlp_out(2).weight.requires_grad
    for changes in ({"layer": -1}, {"lr": 0}, {"batch_size": 0}, {"num_steps": 0}, {"weight_decay": -1.0}):
        with pytest.raises(ValueError, match=f"{next(iter(changes))} = "):
            LocFTSpec(**(good | changes))
    stack = AdapterStack(lm)
    stack.add("mine", {2: (torch.ones(16, 1), torch.ones(1, 24))})
    with pytest.raises(ValueError, match="carries adapters"):
        finetune_matrix(lm, facts, LocFTSpec(**good), progress=False)
    stack.close()
    lm.tokenizer = copy.deepcopy(lm.tokenizer)
    lm.tokenizer.eos_token = None
    with pytest.raises(ValueError, match="no end token to learn"):
        finetune_matrix(lm, facts, LocFTSpec(**good), progress=False)
    assert finetune_matrix(lm, facts, LocFTSpec(**good, end_token=False), progress=False).delta_norm > 0


def test_who_watches_sees_what_fewer_epochs_or_steps_would_end_with(tiny, facts):
    lm, seen = tiny(), {}
    mark = lm.fingerprint()
    how = {"layer": 2, "lr": 0.01, "batch_size": 3}

    def watch(done, now):
        seen[done] = now()

    last = finetune_matrix(lm, facts, LocFTSpec(**how, num_steps=3), progress=False, watch=watch)
    short = finetune_matrix(lm, facts, LocFTSpec(**how, num_steps=2), progress=False)
    assert list(seen) == [1, 2, 3] and torch.equal(seen[2].weight, short.weight)
    assert seen[2].delta_norm == short.delta_norm and torch.equal(seen[3].weight, last.weight)
    assert seen[1].seconds < seen[2].seconds < seen[3].seconds == last.seconds

    steps = FinetuneSpec(layers=[1, 2], rank=2, lr=0.05, steps=3)
    last = TunedAdapter.train(lm, facts, steps, progress=False, watch=watch)
    short = TunedAdapter.train(lm, facts, replace(steps, steps=2), progress=False)
    for ours, theirs in ((seen[2], short), (seen[3], last)):
        pairs = [(ours.factors[layer], theirs.factors[layer]) for layer in (1, 2)]
        assert all(torch.equal(a, b) for one, other in pairs for a, b in zip(one, other, strict=True))
    assert lm.fingerprint() == mark and not lm.has_adapters
