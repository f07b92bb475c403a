"""The command line: what is refused, what fails, and what it says of itself."""

import re
from pathlib import Path
from unittest.mock import Mock

import pandas as pd
import pytest
from pooch import HTTPDownloader

from editkit.cli import main
from editkit.studies.repair_spec import RepairSpec

BAD = {
    "missing": ({"data": "{tmp}/none.npz"}, "none.npz does not exist"),
    "truncated": ({"data": "{tmp}/cut.npz"}, "cut.npz is not a file in MedMNIST's layout"),
    "flag": ({"data": "pathmist"}, "unknown data set 'pathmist'.*pathmnist"),
    "number": ({"epochs": "x"}, "epochs = 'x': input should be a valid integer"),
    "layer": ({"edit_layers": 99}, "edit_layers = \\[99\\]: .* has 4 layers"),
    "twice": ({"edit_layers": [1, 1]}, "must be ascending, each once"),
    "layers": ({"num_edit_layers": 99}, "num_edit_layers = 99: .* has 4 layers"),
    "name": ({"run_name": "a/b"}, "--run-name 'a/b'"),
    "options": ({"edit_options": "nonsense"}, "edit_options = 'nonsense': input should be a valid dictionary"),
    "option": ({"edit_options": "{l3: 1}"}, "unknown key 'l3'"),
    "method": ({"edit_options": "{method: rome}"}, "edit_options .*edit_method"),
    "model": ({"model": "{tmp}/nowhere"}, "model '.*nowhere' could not be loaded"),
    "ratio": ({"held_out_ratio": 0.3}, "held_out_ratio = 0.3: under protocol 'official' .* has splits of its own"),
    "checkpoint": ({"checkpoint": "{tmp}/none"}, "none is not a checkpoint"),
}


@pytest.mark.parametrize("options, message", BAD.values(), ids=BAD)
def test_bad_input_ends_in_one_clear_line(run, made, tmp_path, capsys, options, message):
    (tmp_path / "cut.npz").write_bytes(Path(made).read_bytes()[:500])
    texts = {n: v.replace("{tmp}", str(tmp_path)) if isinstance(v, str) else v for n, v in options.items()}
    assert run("edit", **texts) == 2
    assert re.match("error: .*" + message, capsys.readouterr().err.splitlines()[-1])


def test_images_that_cannot_be_downloaded_are_a_failure_in_one_line(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(HTTPDownloader, "__call__", Mock(side_effect=OSError("no network")))
    assert run("edit", data="pathmnist", folder=tmp_path) == 1
    assert re.match("error: .*could not be .*put it at .*pathmnist.npz", capsys.readouterr().err.splitlines()[-1])


def test_training_that_diverges_is_a_failure_in_one_line(run, capsys):
    assert run("train", lr=1e20, fresh_head_lr=1e20, epochs=3) == 1
    assert "error: fine-tuning diverged in epoch" in capsys.readouterr().err.splitlines()[-1]


def test_the_help_of_an_option_stands_alone(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "1000")
    with pytest.raises(SystemExit):
        main(["vit", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    for name, field in RepairSpec.model_fields.items():
        assert f"--{name.replace('_', '-')}" in shown and " ".join(field.description.split()) in shown
        assert not re.match("(Its|Their|The same|Of|These|They)\\b", field.description), name


@pytest.mark.usefixtures("without_browser")
@pytest.mark.filterwarnings("ignore:no browser to draw")
def test_the_choice_of_layers_is_written_and_told(run, tmp_path, capsys):
    assert run("tune", layer_selection="swept", margins=[0.5, 2.0], edit_method="emmet", kept_budget=0.9) == 0
    out, results = capsys.readouterr().out, tmp_path / "runs" / "vit-made" / "results"
    sweep = pd.read_csv(results / "layer_sweep.csv")
    (best,) = sweep[sweep.best].itertuples()
    assert f"4 images to repair; layers to edit: {best.layers} (swept), margin {best.margin:g}" in out
    assert {path.name for path in results.iterdir()} == {"layer_sweep.csv", "layer_sweep.json"}
    assert sweep.chosen.tolist() == ["one layer", "one layer", "traced", "the last three", "margin"]
    assert all(place in out for place in ("the last three", "one layer", "generality"))


def test_where_layers_are_given_there_is_no_choice_to_write(run, tmp_path, capsys):
    assert run("tune", edit_layers=[1, 2]) == 0
    assert "layers to edit: [1, 2] (given), margin 0.5" in capsys.readouterr().out
    assert not (tmp_path / "runs" / "vit-made").exists()
