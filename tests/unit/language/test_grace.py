"""The look-up beside the model: v* at an edit's own prompt, nothing anywhere else."""

from dataclasses import replace

import pytest
import torch

from editkit import evaluate
from editkit.language.grace import LookUp, radii
from editkit.language.keys import edit_keys, locate
from editkit.language.targets import optimise_targets
from editkit.models.hooks import capture
from tests.unit.models.test_hooks import live_hooks

NEAR = 1e-3  # share of a key's norm: no other prompt is that close


@pytest.fixture
def look_up(full_spec):
    def build(lm, facts, contexts=(), eps=NEAR) -> LookUp:
        spec = full_spec(layers=[2]).resolve(lm)
        return LookUp.of(lm, facts, spec, contexts, eps=eps, progress=False)

    return build


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "gptj", "opt", "olmo2", "gemma2"])
def test_an_edited_prompt_gets_its_target_exactly(tiny, facts, full_spec, look_up, family):
    lm = tiny(family)
    targets = optimise_targets(lm, facts, full_spec(layers=[2]).resolve(lm), (), progress=False)
    control = look_up(lm, facts)
    assert control.parameters == 4 * (24 + 16 + 1) and control.delta_norm != control.delta_norm
    assert control.seconds > 0
    with control.apply() as model:
        for i, fact in enumerate(facts):
            row = locate(lm, fact.prompt, fact.subject)
            with capture({"state": lm.target_module(2)}) as seen:
                model.forward(torch.tensor([row.ids], device=lm.device))
            assert torch.equal(seen["state"].view(len(row.ids), -1)[row.subject_last], targets.values[:, i])
        frame = evaluate(model, facts)
    new = frame[frame.kind == "rewrite"].logprob_new.to_numpy()
    torch.testing.assert_close(torch.tensor(new).float().exp(), targets.probability, rtol=1e-4, atol=1e-6)


def test_far_prompts_stay_bit_for_bit_and_no_hook_is_left(tiny, facts, look_up):
    lm = tiny()
    mark, before = lm.fingerprint(), evaluate(lm, facts)
    lm.tuple_layers  # noqa: B018  asked once, by a pass of its own
    control = look_up(lm, facts)
    assert live_hooks(lm) == 0
    with pytest.raises(ZeroDivisionError), control.apply() as model:
        frame = evaluate(model, facts)
        raise ZeroDivisionError
    assert live_hooks(lm) == 0 and lm.fingerprint() == mark
    edited = frame.kind == "rewrite"
    assert frame[~edited].equals(before[~edited])
    assert not (frame[edited].logprob_new == before[edited].logprob_new).any()
    with control.apply():
        pass  # nothing has to run
    assert evaluate(lm, facts).equals(before)


def test_the_nearest_key_decides_and_its_radius_alone(tiny):
    keys, values = torch.tensor([[0.0, 0.0], [4.0, 0.0]]), torch.tensor([[1.0, 1.0, 1.0], [2.0, 2.0, 2.0]])
    control = LookUp(tiny(), 2, keys, values, torch.tensor([3.0, 0.5]), 0.0)
    asked = torch.tensor([[[0.0, 0.0], [2.1, 0.0], [4.0, 0.5]], [[0.0, -3.0], [0.0, 3.1], [4.6, 0.0]]])
    states = torch.zeros(2, 3, 3, dtype=torch.bfloat16)
    found = control.replaced(asked, states)  # 2.1 lies within the first radius, but the second key is nearer
    assert found[..., 0].tolist() == [[1.0, 0.0, 2.0], [1.0, 0.0, 0.0]] and found.dtype == torch.bfloat16
    assert torch.equal(control.replaced(asked.flatten(0, 1), states), found), "OPT's MLP sees one long row"


def test_keys_of_two_labels_share_the_way_between_them():
    # The nearest key of another label lies at 2, 2, 8 and 8.5; GRACE's split leaves half of that to each side.
    keys = torch.tensor([[1.0, 0.0], [3.0, 0.0], [11.0, 0.0], [11.5, 0.0]])
    assert radii(keys, ["a", "b", "a", "a"], 0.5).tolist() == [0.5, 1.0, 4.0, 4.25]
    assert radii(keys, ["a"] * 4, 0.5).tolist() == [0.5, 1.5, 5.5, 5.75]


def test_of_edits_with_one_key_the_latest_is_kept(tiny, facts, look_up):
    lm = tiny()
    other = replace(facts[1], id="other", prompt="{} is in", target_new="Spain")
    with pytest.warns(UserWarning, match="1 of 3 edits have the key of a later edit that wants another answer"):
        control = look_up(lm, [facts[1], facts[2], other])
    torch.testing.assert_close(control.keys.T, edit_keys(lm, [facts[2], other], 2, ()))
    torch.testing.assert_close(control.values, look_up(lm, [facts[2], other]).values)


@pytest.mark.parametrize("eps", [0.0, -1.0, float("inf"), float("nan")])
def test_a_radius_that_is_none_is_refused(tiny, facts, look_up, eps):
    with pytest.raises(ValueError, match="eps = .*: must be positive and finite"):
        look_up(tiny(), facts, eps=eps)
    with pytest.raises(ValueError, match="no facts"):
        look_up(tiny(), [])
