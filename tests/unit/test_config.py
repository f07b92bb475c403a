"""Parameters: what is accepted, and how the rest is refused."""

import pytest
import yaml

from editkit import EditSpec


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"method": "rime"}, r"method = 'rime'.*'rome'.*'alphaedit'"),
        ({"method": "rome", "v_learning": 1.0}, "unknown key 'v_learning'"),
        ({"method": "rome", "v_lrr": 1.0}, "unknown key 'v_lrr'; did you mean v_lr"),
        ({"method": "rome", "v_lr": "0.5"}, r"v_lr = '0\.5': .*valid number"),
        ({"method": "rome", "v_lr": "-5e-1"}, r"v_lr = -0\.5: .*greater than 0"),
        ({"method": "rome", "v_lr": True}, "v_lr = True: .*valid number"),
        ({"method": "rome", "v_num_grad_steps": True}, "v_num_grad_steps = True: .*valid integer"),
        ({"method": "rome", "v_num_grad_steps": "25e-1"}, r"v_num_grad_steps = 2\.5: .*valid integer"),
        ({"method": "rome", "v_num_grad_steps": "1e999"}, "v_num_grad_steps = inf"),
        ({"method": "rome", "l2": 16**5000}, "l2 = a number of 20001 bits"),
        ({"method": "rome", "target_mode": "q" * 9999}, r"target_mode = 'q{50,200}\.\.\.q+'"),
        ({"method": "rome", "v_num_grad_steps": 2.5}, r"v_num_grad_steps = 2\.5"),
        ({"method": "rome", "v_num_grad_steps": 0}, "v_num_grad_steps = 0.*greater than or equal to 1"),
        ({"method": "rome", "l2": float("nan")}, "l2 = nan"),
        ({"method": "rome", "layers": []}, r"layers = \[\]"),
        ({"method": "rome", "target_mode": "quick"}, "target_mode = 'quick'.*'exact' or 'fast'"),
        ({"method": "rome", "stop_probability": 1.5}, r"stop_probability = 1\.5.*less than or equal to 1"),
        *(
            ({"method": "rome", f"{name}_budget": value}, rf"{name}_budget = {value}.*{limit}")
            for name in ("kept", "neighbour", "text")
            for value, limit in ((0.0, "greater than 0"), (-0.5, "greater than 0"), (1.01, "less than or equal to 1"))
        ),
        ({"method": "rome", "kept_budget": float("nan")}, "kept_budget = nan"),
        ({"method": "rome", "stop_margin": -0.1}, r"stop_margin = -0\.1.*greater than or equal to 0"),
        ({"method": "rome", "stop_margin": float("nan")}, "stop_margin = nan"),
        ({"method": "rome", "target_batch": -1}, "target_batch = -1"),
        ({"method": "rome", "layers": [-1]}, r"layers\.0 = -1"),
        ({}, "method"),
    ],
)
def test_a_bad_spec_names_key_value_and_what_is_allowed(values, message):
    with pytest.raises(ValueError, match=message):
        EditSpec(**values)


def test_all_problems_are_told_at_once():
    with pytest.raises(ValueError, match=r"(?s)v_lr = 'fast'.*l2 = -1"):
        EditSpec(method="memit", v_lr="fast", l2=-1.0)


@pytest.mark.parametrize("text", ["5e-1", "0.5", "5E-1", "+50e-2"])
def test_a_number_with_an_exponent_is_one_although_yaml_takes_it_for_text(text):
    spec = EditSpec(method="rome", v_lr=yaml.safe_load(text), layers=[yaml.safe_load("1e0"), 2])
    assert spec.v_lr == 0.5 and spec.layers == [1, 2] and type(spec.layers[0]) is int
