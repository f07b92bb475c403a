"""Specs: which defaults they take, and what does not fit a model."""

from types import SimpleNamespace

import pytest

from editkit import METHODS, EditSpec
from editkit.editing.spec import known_defaults, load_defaults


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": [30]}, "layer 30 is out of range: smollm2-135m has layers 0 to 29"),
        ({"layers": [5, 4]}, "ascending"),
        ({"layers": [4, 4]}, "each once"),
        ({"v_loss_layer": 3}, "must not lie below layer 6"),
        ({"v_loss_layer": 30}, "out of range"),
    ],
)
def test_layers_are_checked_against_the_model(changes, message):
    with pytest.raises(ValueError, match=message):
        EditSpec(method="memit", **changes).resolve(
            SimpleNamespace(name="smollm2-135m", n_layers=30, d_k=1536, kind=None)
        )


def test_a_model_without_defaults_needs_every_value():
    with pytest.raises(ValueError, match="no default v_num_grad_steps, v_lr.*layers.*'unheard-of'.*smollm2-135m"):
        EditSpec(method="memit").resolve(SimpleNamespace(name="unheard-of", n_layers=12, d_k=64, kind=None))


@pytest.mark.parametrize("name", known_defaults())
@pytest.mark.parametrize("method", METHODS)
def test_every_default_is_complete_and_valid(name, method):
    model = SimpleNamespace(name=name, n_layers=48, d_k=1536, kind="vision-transformer")
    spec = EditSpec(method=method).resolve(model)
    assert all(value is not None for _, value in spec)
    assert set(load_defaults(name)) <= {"shared", *METHODS}
    assert EditSpec(method=method, v_lr=0.123).resolve(model).v_lr == 0.123
    assert spec.mom2_n_tokens == 10 * 1536 and spec.stop_probability == load_defaults(name)["shared"].get(
        "stop_probability", 1.0
    )
    assert EditSpec(method=method, target_mode="fast").resolve(model).stop_probability < 1.0
    assert EditSpec(method=method, mom2_n_tokens=500).resolve(model).mom2_n_tokens == 500


def test_defaults_are_found_by_the_last_part_of_a_hub_id():
    assert load_defaults("EleutherAI/gpt-j-6B") == load_defaults("gpt-j-6b") != {}
    assert {"gpt2-xl", "gpt-j-6b", "llama-2-7b-hf", "meta-llama-3-8b", "smollm2-135m"} == set(known_defaults()) - {
        "vision-transformer"
    }
