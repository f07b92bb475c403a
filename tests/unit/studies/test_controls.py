"""How controls are made, and the choice of their parameters."""

import math
from dataclasses import replace
from typing import get_args

import pytest

from editkit.facts import part_of
from editkit.methods import CONTROLS
from editkit.studies.controls import GRIDS, MAKERS, ControlName, ControlParams, tune_control

QUICK = {"lora_control_steps": 3, "locft_epochs": 3, "locft_lr": 0.01, "grace_eps": 0.01}


@pytest.fixture
def tuning_facts(facts):
    named = (replace(facts[1], id=f"f{i}", subject=f"Rome {i}", target_new="France") for i in range(100))
    return [fact for fact in named if part_of(fact) == "tune"][:3]


def test_every_control_has_a_look_and_parameters_by_its_name():
    assert get_args(ControlName) == tuple(MAKERS) and MAKERS.keys() <= CONTROLS.keys()
    fields = ControlParams.model_fields
    for name, grid in GRIDS.items():
        assert all(field.startswith(f"{name}_") and field in fields for field in grid)
        for field, values in grid.items():
            for value in values:
                ControlParams(**{field: value})


def test_a_grid_is_tried_on_facts_for_tuning_alone(setting, facts, tuning_facts):
    here = setting({7: (facts, [])}, tune=tuning_facts)
    params = ControlParams(**QUICK)
    grid = {"locft_lr": [1e37, 1e-5, 0.05], "locft_epochs": [5]}
    table = tune_control(here, "locft", params, n_facts=2, grid=grid)
    assert table.S[:2].is_monotonic_decreasing and table.locft_lr[2] == 1e37 and math.isnan(table.S[2])
    assert set(table.n_facts[:2]) == {2}
    with pytest.raises(ValueError, match="controls"):
        ControlParams(controls=["rome"])
    with pytest.raises(ValueError, match="all of the tune part"):
        tune_control(setting({7: (facts, [])}), "locft", params, grid=grid)
    test = [replace(fact, subject=f"Rome {i}") for i in range(100) for fact in facts[:1]]
    with pytest.raises(ValueError, match="all of the tune part"):
        tune_control(setting({7: (facts, [])}, tune=test), "locft", params, grid=grid)
    with pytest.raises(ValueError, match="incontext has nothing to tune: give a grid, or take one of lora"):
        tune_control(here, "incontext", params)
