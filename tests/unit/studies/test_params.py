"""Parameters of a run: what files and notebooks state, and how the rest is refused."""

import ast
from pathlib import Path

import papermill
import pytest

from editkit import RunParams
from editkit.studies.params import BASE, read_values

ROOT = Path(__file__).parents[3]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
PARAMS = sorted((ROOT / "params").glob("*.yaml"))


@pytest.mark.parametrize("path", PARAMS, ids=lambda path: path.name)
def test_parameter_files_are_valid_and_state_only_what_differs_from_the_base(path):
    params, stated, base = RunParams.load(path), read_values(path), read_values(path.with_name(BASE))
    assert set(RunParams.model_fields) - params.model_fields_set == {"run_dir"}
    assert not any(params.n_facts % size for size in params.batch_sizes)
    same = [name for name, value in stated.items() if value == base[name]]
    assert same == (list(base) if path.name == BASE else [])


def test_a_file_lies_over_the_base_beside_it(tmp_path):
    (tmp_path / BASE).write_text("n_facts: 4\nhyperparameters: {v_lr: 0.5, l2: 1.0}")
    (path := tmp_path / "mine.yaml").write_text("seeds: [3]\nhyperparameters: {v_lr: 0.1}")
    params = RunParams.load(path)
    assert (params.n_facts, params.seeds, params.hyperparameters) == (4, [3], {"v_lr": 0.1})
    assert params.model_fields_set == {"n_facts", "seeds", "hyperparameters"}
    (tmp_path / BASE).unlink()
    assert RunParams.load(path).n_facts == RunParams().n_facts


def test_a_parameter_file_is_refused_with_its_name(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("mehtods: [rome]")
    with pytest.raises(ValueError, match=r"mine\.yaml.*'mehtods'; did you mean methods"):
        RunParams.load(path)
    path.write_text("n_facts: 1e2")
    with pytest.raises(ValueError, match=r"n_facts = '1e2'.*1\.0e\+6"):
        RunParams.load(path)
    path.write_text("facts_source: wikidata")
    with pytest.raises(ValueError, match="facts_source = 'wikidata'.*'worldfacts'"):
        RunParams.load(path)
    path.write_text("vit_lrr: 0.1")
    with pytest.raises(ValueError, match="unknown key 'vit_lrr'; did you mean vit_lr"):
        RunParams.load(path)
    path.write_text("- a list")
    with pytest.raises(ValueError, match="'key: value' lines"):
        RunParams.load(path)
    path.write_text("a: [")
    with pytest.raises(ValueError, match=r"mine\.yaml is not YAML"):
        RunParams.load(path)
    with pytest.raises(ValueError, match="does not exist"):
        RunParams.load(tmp_path / "none.yaml")


def test_every_parameter_is_documented():
    assert not [name for name, field in RunParams.model_fields.items() if not field.description]


def test_a_notebook_refuses_a_parameter_nobody_knows():
    namespace = {"In": [], "_hidden": 1, "n_facts": 4, "RunParams": RunParams}
    assert RunParams.from_notebook(namespace).n_facts == 4
    with pytest.raises(ValueError, match="unknown key 'n_fact'; did you mean n_facts"):
        RunParams.from_notebook(namespace | {"n_fact": 3})


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebook_parameters_are_known_and_default_to_the_same(path):
    declared = papermill.inspect_notebook(str(path))
    values = {name: ast.literal_eval(entry["default"]) for name, entry in declared.items()}
    defaults = RunParams().model_dump()
    assert values == {name: defaults[name] for name in values}
    assert "run_dir" in values


def test_every_parameter_is_declared_by_a_notebook():
    declared = {name for path in NOTEBOOKS for name in papermill.inspect_notebook(str(path))}
    assert set(RunParams.model_fields) - declared == {"report_title"}
