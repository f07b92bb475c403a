"""LoRA fine-tuning on the facts themselves, the control without an editor."""

import pytest
import torch

from editkit import AdapterStack
from editkit.language.finetune import FinetuneSpec, finetune


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
    for name, edited, message in (("mine", facts, "there is an adapter 'mine' already"), ("new", [], "no facts")):
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
