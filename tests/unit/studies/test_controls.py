"""Controls on the same facts as editors: what a row holds, and that nothing is computed twice."""

import math
from dataclasses import replace
from typing import get_args

import pytest

from editkit import evaluate, summarize
from editkit.facts import part_of
from editkit.methods import CONTROLS
from editkit.studies import controls
from editkit.studies.controls import GRIDS, MAKERS, ControlName, ControlParams, run_controls, tune_control
from editkit.studies.runs import run_baselines

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


def test_rows_are_those_of_editors(setting, facts):
    here = setting({7: (facts, [])})
    mark = here.lm.fingerprint()
    params = ControlParams(controls=list(MAKERS), **QUICK)
    table, prompts = run_controls(here, params, [2, 4])
    assert here.lm.fingerprint() == mark
    names = [name for name in MAKERS if name != "pre"]
    cells = [("pre", 0), *((name, size) for name in names for size in (2, 4))]
    assert list(zip(table.method, table.batch_size, strict=True)) == cells
    assert table.moment.tolist() == ["pre"] + ["immediate"] * 10 and set(table.n_facts) == {4}
    rows = table.set_index(["method", "batch_size"])
    edited, own = run_baselines(here, {"memit": here.spec("memit")}, [4])
    assert {"ES", "PS", "NS", "S", "seconds", "delta_norm", "peak_memory_mb"} <= {*table} & {*edited}
    assert {*own} <= {*prompts}
    plain = evaluate(here.lm, facts)
    scores = list(summarize(plain))
    assert rows.loc[("pre", 0), scores].astype(float).to_dict() == pytest.approx(summarize(plain))
    assert rows.loc[("locft", 4), "parameters"] == 16 * 24 and rows.loc[("locft", 4), "locft_lr"] == 0.01
    assert rows.loc[("lora", 4), "delta_norm"] > 0 and math.isnan(rows.loc[("grace", 4), "delta_norm"])
    for (method, size), part in prompts[prompts.method != "pre"].groupby(["method", "batch_size"]):
        assert part.fact.tolist() == plain.fact.tolist()
        assert part.batch.nunique() == 4 // size and not part.logprob_new.equals(plain.logprob_new)
        assert rows.loc[(method, size), "ES"] == pytest.approx(part[part.kind == "rewrite"].success.mean())


def test_a_cell_is_computed_once_and_again_where_its_own_parameters_change(setting, facts, monkeypatch):
    here = setting({7: (facts, [])})
    params = ControlParams(controls=["locft"], **QUICK)
    first, prompts = run_controls(here, params, [4])
    monkeypatch.setitem(controls.MAKERS, "locft", lambda *_: pytest.fail("it is in the store"))
    table, again = run_controls(here, params.model_copy(update={"grace_eps": 0.5}), [4])
    assert table.equals(first) and again.equals(prompts)
    with pytest.raises(pytest.fail.Exception):
        run_controls(here, params.model_copy(update={"locft_lr": 0.02}), [4])
    with pytest.raises(ValueError, match="batch_sizes = \\[3\\]: 3 does not divide"):
        run_controls(here, params, [3])
    with pytest.raises(ValueError, match="controls"):
        ControlParams(controls=["rome"])


def test_a_grid_is_tried_on_facts_for_tuning_alone(setting, facts, tuning_facts):
    here = setting({7: (facts, [])}, tune=tuning_facts)
    params = ControlParams(**QUICK)
    grid = {"locft_lr": [1e37, 1e-5, 0.05], "locft_epochs": [5]}
    table = tune_control(here, "locft", params, n_facts=2, grid=grid)
    assert table.S[:2].is_monotonic_decreasing and table.locft_lr[2] == 1e37 and math.isnan(table.S[2])
    assert set(table.n_facts[:2]) == {2}
    with pytest.raises(ValueError, match="all of the tune part"):
        tune_control(setting({7: (facts, [])}), "locft", params, grid=grid)
    test = [replace(fact, subject=f"Rome {i}") for i in range(100) for fact in facts[:1]]
    with pytest.raises(ValueError, match="all of the tune part"):
        tune_control(setting({7: (facts, [])}, tune=test), "locft", params, grid=grid)
    with pytest.raises(ValueError, match="incontext has nothing to tune: give a grid, or take one of lora"):
        tune_control(here, "incontext", params)
