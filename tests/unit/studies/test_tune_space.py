"""The space of a search: what it begins with, what it may vary, and what a point of it means."""

from types import SimpleNamespace

import pytest
import torch

from editkit import METHODS, EditSpec
from editkit.editing.spec import known_defaults, load_defaults
from editkit.studies.tune_space import TARGETS, derived, setting_at, space, starting_point, threshold

LANGUAGE = [name for name in known_defaults() if name != "vision-transformer"]


def model(n_layers: int = 30, hidden: int = 576, d_k: int = 1536, norm: str | None = None):
    config, family = SimpleNamespace(config=SimpleNamespace(hidden_size=hidden)), SimpleNamespace(norm=norm)
    return SimpleNamespace(name="unheard-of", n_layers=n_layers, d_k=d_k, model=config, family=family)


def begin(defaults, method):
    return {**defaults["shared"], **defaults.get(method, {}), **METHODS[method].asks}


@pytest.mark.parametrize("n_layers", [1, 2, 3, 4, 6, 12, 30, 48, 100])
@pytest.mark.parametrize("norm", [None, "post"])
@pytest.mark.parametrize("method", METHODS)
def test_a_model_that_nobody_tuned_has_a_start_that_fits_it(method, n_layers, norm):
    lm = model(n_layers, norm=norm)
    defaults = derived(lm)
    given = {
        **begin(defaults, method),
        "nullspace_threshold": 0.1,
        "replay": "none",
        "v_loss_layer": n_layers - 1,
        "mom2_n_tokens": 10,
    }
    spec = EditSpec(method=method, **given)
    spec._check("unheard-of", n_layers)
    assert spec.layers[-1] <= max(0, n_layers / 2) and (len(spec.layers) == 1 or not norm)


@pytest.mark.parametrize(("n_layers", "last"), [(48, 13), (28, 8), (32, 9), (30, 8)])
def test_the_derived_depth_lies_among_the_published_ones(n_layers, last):
    assert derived(model(n_layers))["shared"]["layers"][-1] == last


def test_a_large_model_begins_at_the_smaller_rate():
    assert derived(model(hidden=1600))["shared"]["v_lr"] == 0.5 and derived(model(hidden=4096))["shared"]["v_lr"] == 0.1


def test_half_of_the_directions_are_free_at_first():
    C = torch.diag(torch.arange(1.0, 12.0))
    assert threshold(C) == 6.0
    singular = torch.diag(torch.tensor([0.0, 0.0, 0.0, 4.0]))
    assert threshold(singular) == 4e-6, "above 0, so that something is free"


@pytest.mark.parametrize("name", LANGUAGE)
@pytest.mark.parametrize("method", METHODS)
def test_every_published_setting_is_a_point_of_its_space(name, method):
    lm, start = model(48), begin(load_defaults(name), method)
    room = space(lm, method, start, {})
    point = starting_point(room, start)
    assert all(room[name].low <= value <= room[name].high for name, value in point.items())
    found = setting_at(point, start)
    ridge = found.pop("update_norm_lambda", 0.0)
    assert found == {name: start[name] for name in found}, "the search begins with the published values"
    assert ridge == pytest.approx(start["update_norm_lambda"], abs=1.001e-6 * start["mom2_update_weight"])
    assert set(METHODS[method].searched) <= room.keys()
    assert TARGETS[0] in room and (method == "ultraedit" or set(TARGETS) <= room.keys())


def test_a_method_searches_what_it_has():
    defaults = load_defaults("smollm2-135m")
    extra = {name: set(space(model(), name, begin(defaults, name), {})) - {*TARGETS, "n_layers"} for name in METHODS}
    assert extra == {
        "rome": set(),
        "memit": {"mom2_update_weight"},
        "emmet": {"update_norm_lambda"},
        "alphaedit": {"nullspace_threshold", "l2"},
        "memit_rls": {"mom2_update_weight"},
        "ultraedit": {"gradient_lr"},
        "encore": {"mom2_update_weight", "update_norm_lambda"},
        "betaedit": {"mom2_update_weight", "nullspace_threshold", "l2"},
    }


def test_what_is_held_is_not_searched():
    start = begin(load_defaults("smollm2-135m"), "memit")
    room = space(model(), "memit", start, {"layers": [3], "v_lr": 0.1})
    assert room.keys() == {"clamp_norm_factor", "v_num_grad_steps", "mom2_update_weight"}
    assert "layers" not in setting_at(starting_point(room, start), start)
    assert "n_layers" not in space(model(norm="post"), "memit", start | {"layers": [3]}, {}), "one layer alone"


def test_a_window_ends_at_its_depth_and_is_cut_at_the_first_layer():
    start = {"layers": [4, 5, 6]}
    assert setting_at({"last_layer": 9, "n_layers": 2}, start)["layers"] == [8, 9]
    assert setting_at({"last_layer": 1, "n_layers": 4}, start)["layers"] == [0, 1]
    assert setting_at({"last_layer": 9}, start)["layers"] == [7, 8, 9]
    assert setting_at({"n_layers": 1, "v_lr": 0.123456, "v_num_grad_steps": 1234}, start) == {
        "layers": [6],
        "v_lr": 0.123,
        "v_num_grad_steps": 1234,
    }
