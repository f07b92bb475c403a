"""Parameters as they are written for readers: the committed files are current."""

from pathlib import Path

import nbformat
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_notebook

from editkit import RunParams
from editkit.studies.declare import base_yaml, declare, parameters_cell
from editkit.studies.params import BASE

ROOT = Path(__file__).parents[3]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))


def test_the_base_file_is_current():
    assert (ROOT / "params" / BASE).read_text(encoding="utf-8") == base_yaml()


def test_the_base_file_holds_every_default_under_its_documentation():
    assert yaml.safe_load(base_yaml()) == RunParams().model_dump(exclude={"run_dir"})
    assert "# Edits held by the model at once.\nbatch_sizes: [1, 2]\n" in base_yaml()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_parameters_cells_are_current(path, tmp_path):
    (tmp_path / "notebooks").mkdir()
    copy = tmp_path / "notebooks" / path.name
    copy.write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    declare(tmp_path)
    assert copy.read_text(encoding="utf-8") == path.read_text(encoding="utf-8")


def test_a_cell_keeps_its_names_and_gets_the_defaults_and_every_option_of_images():
    assert parameters_cell(["n_facts", "facts_path", "known_only"]) == 'n_facts = 2\nfacts_path = ""\nknown_only = True'
    lines = parameters_cell(["device", "vit_lr", "run_dir"]).splitlines()
    assert lines[:3] == ['device = "auto"', "vit_lr = 0.0001", 'run_dir = "../reports/notebook"']
    names = [line.split(" = ")[0] for line in lines]
    assert len(names) == len(set(names)) and {name for name in RunParams.model_fields if name[:4] == "vit_"} < set(
        names
    )


def test_only_the_parameters_cell_of_a_notebook_changes(tmp_path):
    (tmp_path / "notebooks").mkdir()
    cells = [
        new_code_cell("n_facts = 99\nseeds = [7]", metadata={"tags": ["parameters"]}),
        new_code_cell("n_facts = 5"),
    ]
    nbformat.write(new_notebook(cells=cells), path := tmp_path / "notebooks" / "00_mine.ipynb")
    declare(tmp_path)
    first, second = nbformat.read(path, as_version=4).cells
    assert (first.source, second.source) == ("n_facts = 2\nseeds = [1]", "n_facts = 5")
    assert (tmp_path / "params" / BASE).read_text() == base_yaml()
