"""Hooks see what passes, change what they should, and are always gone afterwards."""

import pytest
import torch

from editkit.hooks import StopForward, capture, replace_forward
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
        with capture({"a": lm.layers[0]}), replace_forward(lm.layers[:2], lambda x: x, tuple_output=False):
            assert live_hooks(lm) == 3
            raise ZeroDivisionError
    assert live_hooks(lm) == 0


def test_a_module_that_never_ran_is_named(tiny):
    lm = tiny()
    with pytest.raises(RuntimeError, match="never ran.*'late'"):
        with capture({"late": lm.layers[3]}), capture({"early": lm.layers[0]}, stop=True):
            lm.model(IDS)
    assert live_hooks(lm) == 0


def test_stop_is_no_error_of_the_model(tiny):
    assert not issubclass(StopForward, (RuntimeError, ValueError))


@pytest.mark.parametrize("family", FAMILIES)
def test_replacing_known_activations_gives_the_same_output(tiny, family):
    lm = tiny(family)
    with capture({"h": lm.layers[1]}) as seen:
        expected = lm.model(IDS).logits
    known = seen["h"]
    with (
        replace_forward(lm.layers[:1], lambda x: x, tuple_output=lm.tuple_layers),
        replace_forward(lm.layers[1:2], lambda x: known, tuple_output=lm.tuple_layers),
    ):
        torch.testing.assert_close(lm.model(IDS).logits, expected)
    assert live_hooks(lm) == 0
    torch.testing.assert_close(lm.model(IDS).logits, expected, rtol=0, atol=0)
