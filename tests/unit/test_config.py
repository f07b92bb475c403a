"""Parameters: what is accepted, and how the rest is refused."""

from pathlib import Path
from types import SimpleNamespace

import nbformat
import papermill
import pytest
import yaml

from editkit import METHODS, EditSpec, RunParams
from editkit.config import known_defaults, load_defaults

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
PARAMS = sorted((ROOT / "params").glob("*.yaml"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"method": "rime"}, r"method = 'rime'.*'rome'.*'alphaedit'"),
        ({"method": "rome", "v_learning": 1.0}, "unknown key 'v_learning'"),
        ({"method": "rome", "v_lrr": 1.0}, "unknown key 'v_lrr'; did you mean v_lr"),
        ({"method": "rome", "v_lr": yaml.safe_load("5e-1")}, r"v_lr = '5e-1'.*write 0\.5"),
        ({"method": "rome", "v_num_grad_steps": 2.5}, r"v_num_grad_steps = 2\.5"),
        ({"method": "rome", "v_num_grad_steps": 0}, "v_num_grad_steps = 0.*greater than or equal to 1"),
        ({"method": "rome", "l2": float("nan")}, "l2 = nan"),
        ({"method": "rome", "layers": []}, r"layers = \[\]"),
        ({"method": "rome", "target_mode": "quick"}, "target_mode = 'quick'.*'exact' or 'fast'"),
        ({"method": "rome", "stop_probability": 1.5}, r"stop_probability = 1\.5.*less than or equal to 1"),
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
    with pytest.raises(ValueError, match="no default layers, v_num_grad_steps.*'unheard-of'.*smollm2-135m"):
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


@pytest.mark.parametrize("path", PARAMS, ids=lambda path: path.name)
def test_parameter_files_are_valid_and_the_real_ones_leave_nothing_to_the_small_defaults(path):
    params = RunParams.load(path)
    if path.stem != "smoke":
        assert set(RunParams.model_fields) - params.model_fields_set == {"run_dir"}
    assert not any(params.n_facts % size for size in params.batch_sizes)


def test_a_parameter_file_is_refused_with_its_name(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("mehtods: [rome]")
    with pytest.raises(ValueError, match=r"mine\.yaml.*'mehtods'; did you mean methods"):
        RunParams.load(path)
    path.write_text("n_facts: 1e2")
    with pytest.raises(ValueError, match=r"n_facts = '1e2'.*1\.0e\+6"):
        RunParams.load(path)
    path.write_text("- a list")
    with pytest.raises(ValueError, match="'key: value' lines"):
        RunParams.load(path)
    with pytest.raises(ValueError, match="does not exist"):
        RunParams.load(tmp_path / "none.yaml")


def test_a_notebook_refuses_a_parameter_nobody_knows():
    namespace = {"In": [], "_hidden": 1, "n_facts": 4, "RunParams": RunParams}
    assert RunParams.from_notebook(namespace).n_facts == 4
    with pytest.raises(ValueError, match="unknown key 'n_fact'; did you mean n_facts"):
        RunParams.from_notebook(namespace | {"n_fact": 3})


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebook_parameters_are_known_and_default_to_the_same(path):
    declared = papermill.inspect_notebook(str(path))
    values = {name: yaml.safe_load(entry["default"]) for name, entry in declared.items()}
    defaults = RunParams().model_dump()
    assert values == {name: defaults[name] for name in values}
    assert "run_dir" in values


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks_use_allowed_tags_and_short_cells_and_commit_checked_outputs_only(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    allowed = {"parameters", "hide-input", "hide-output", "remove-cell"}
    for cell in notebook.cells:
        assert set(cell.metadata.get("tags", [])) <= allowed
        if cell.cell_type == "code":
            checked = cell.source.startswith("# NBVAL_CHECK_OUTPUT")
            assert bool(cell.outputs) == checked, "outputs are committed exactly where they are compared"
            assert (cell.execution_count is not None) == checked, "nbval compares cells that were run"
            assert "parameters" in cell.metadata.get("tags", []) or len(cell.source.splitlines()) <= 20
