"""Hooks see what passes, change what they should, and are always gone afterwards."""

import pytest
import torch

from editkit.models.hooks import StopForward, capture, count_tokens, edit_output, run_from, window
from tests.conftest import FAMILIES


def live_hooks(lm) -> int:
    return sum(len(module._forward_hooks) + ("forward" in module.__dict__) for module in lm.model.modules())


IDS = torch.tensor([[0, 5, 6, 7]])


@pytest.mark.parametrize("family", FAMILIES)
def test_capture_sees_layer_outputs_as_tensors(tiny, family):
    lm = tiny(family)
    with capture({i: layer for i, layer in enumerate(lm.layers)}) as seen:
        lm.model(IDS)
    assert live_hooks(lm) == 0
    expected = lm.model(IDS, output_hidden_states=True).hidden_states  # transformers leaves hooks of its own
    for i in range(lm.n_layers - 1):  # the last entry of hidden_states is after the final norm
        torch.testing.assert_close(seen[i], expected[i + 1])


def test_stop_ends_the_pass_once_everything_was_seen(tiny):
    lm = tiny()
    reached = []
    handle = lm.layers[2].register_forward_hook(lambda *_: reached.append(2))
    with capture({"key": lm.mlp_out(1)}, side="input", stop=True) as seen:
        lm.model(IDS)
    handle.remove()
    assert seen["key"].shape == (1, 4, 24) and not reached


def test_hooks_are_counted_in_nested_and_failing_contexts(tiny):
    lm = tiny()
    with capture({"a": lm.layers[0]}), capture({"b": lm.layers[1], "c": lm.layers[2]}):
        assert live_hooks(lm) == 3
        lm.model(IDS)
    assert live_hooks(lm) == 0
    with pytest.raises(ZeroDivisionError):
        lm.tuple_layers  # noqa: B018  asked once, by a pass of its own
        with (
            capture({"a": lm.layers[0]}),
            run_from(lm, 2, torch.zeros(1, 4, 16)),
            edit_output({lm.layers[3]: lambda x: x}),
        ):
            assert live_hooks(lm) == 4
            raise ZeroDivisionError
    assert live_hooks(lm) == 0


def test_tokens_are_counted_where_they_run_and_where_gradients_come_back(tiny):
    lm = tiny()
    outs = [lm.mlp_out(layer) for layer in range(lm.n_layers)]
    weight = lm.mlp_out(2).weight.requires_grad_()
    lm.tuple_layers  # noqa: B018  asked once, by a pass of its own
    with count_tokens(outs) as seen:
        lm.model(IDS).logits.sum().backward()
        assert seen == {"forward": 4 * 4, "backward": 4 * 2}, "four tokens, in four layers; back to the third"
        with torch.no_grad(), run_from(lm, 3, torch.zeros(1, 5, 16)):
            lm.model(torch.zeros(1, 5, dtype=torch.long))
        assert seen == {"forward": 4 * 4 + 5, "backward": 4 * 2}, "layers that are skipped cost nothing"
    weight.requires_grad_(False)
    assert live_hooks(lm) == 0


def test_a_module_that_never_ran_is_named(tiny):
    lm = tiny()
    with pytest.raises(RuntimeError, match="never ran.*'late'"):
        with capture({"late": lm.layers[3]}), capture({"early": lm.layers[0]}, stop=True):
            lm.model(IDS)
    assert live_hooks(lm) == 0


def test_modules_that_need_not_run_may_stay_unseen(tiny):
    lm = tiny()
    with capture({"key": lm.mlp_out(1)}, side="input", required=False) as seen:
        assert not seen
    assert live_hooks(lm) == 0 and not seen


def test_stop_is_no_error_of_the_model(tiny):
    assert not issubclass(StopForward, (RuntimeError, ValueError))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("start", range(5))
def test_a_pass_that_starts_from_a_known_activation_gives_the_same_output(tiny, family, start):
    lm = tiny(family)
    layer = lm.layers[min(start, 3)]
    with capture({"h": layer}, side="input" if start < 4 else "output") as seen:
        expected = lm.model(IDS).logits
    with run_from(lm, start, seen["h"]):
        torch.testing.assert_close(lm.model(torch.zeros_like(IDS)).logits, expected)
    assert live_hooks(lm) == 0
    below = [lm.mlp_out(i) for i in range(start)]
    reached = []
    handles = [module.register_forward_hook(lambda *_: reached.append(1)) for module in below]
    with run_from(lm, start, seen["h"]):
        lm.model(IDS)
    assert not reached, "layers below cost nothing"
    for handle in handles:
        handle.remove()
    torch.testing.assert_close(lm.model(IDS).logits, expected, rtol=0, atol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_from_until_on_are_skipped(tiny, family):
    lm = tiny(family)
    with capture({1: lm.layers[1]}) as seen:
        lm.model(IDS)
    norm = next(m for n, m in lm.model.base_model.named_children() if "norm" in n or n == "ln_f")
    with run_from(lm, 1, torch.zeros(1, 4, 16), until=1), capture({"out": norm}, side="input") as skipped:
        lm.model(IDS)
    assert torch.equal(skipped["out"], torch.zeros(1, 4, 16))
    with run_from(lm, 2, seen[1], until=2), capture({"out": norm}, side="input") as skipped:
        lm.model(IDS)
    assert torch.equal(skipped["out"], seen[1])


@pytest.mark.parametrize("family", FAMILIES)
def test_an_edited_output_is_what_the_next_layer_sees(tiny, family):
    lm = tiny(family)
    plain = lm.model(IDS).logits
    with edit_output({lm.layers[1]: lambda x: x + 1}), capture({"in": lm.layers[2]}, side="input") as changed:
        assert not torch.allclose(lm.model(IDS).logits, plain)
    with capture({"in": lm.layers[2]}, side="input") as before:
        assert torch.equal(lm.model(IDS).logits, plain)
    torch.testing.assert_close(changed["in"], before["in"] + 1)
    assert live_hooks(lm) == 0


def test_a_window_is_centred_and_cut_at_the_ends():
    assert [list(window(layer, 3, 4)) for layer in range(4)] == [[0, 1], [0, 1, 2], [1, 2, 3], [2, 3]]
    assert list(window(2, 2, 4)) == [1, 2] and list(window(0, 1, 4)) == [0]
