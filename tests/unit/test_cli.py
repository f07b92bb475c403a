"""The command line: what is refused, what fails, and what it says of itself."""

import contextlib
import io
import re
from pathlib import Path
from unittest.mock import Mock

import pandas as pd
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pooch import HTTPDownloader

from editkit.cli import main
from editkit.report.sweep import SweepOptions
from editkit.report.vit import VitOptions
from editkit.studies.params import RunParams, read_values
from editkit.studies.repair_spec import RepairSpec
from editkit.studies.tune import TuneParams
from tests.unit.studies.test_params import PARAMS, VALUES

STATED = {path: read_values(path) for path in PARAMS}

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


@pytest.mark.parametrize(("command", "options"), [("vit", RepairSpec), ("tune", TuneParams), ("sweep", SweepOptions)])
def test_the_help_of_an_option_stands_alone(command, options, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "1000")
    with pytest.raises(SystemExit):
        main([command, "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    for name, field in options.model_fields.items():
        if name == "facts_part":  # of a search it is always the part for tuning
            assert "--facts-part" not in shown
            continue
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


class Begun(BaseException):
    """The work would begin here: everything was accepted."""


def begin(*_, **__):
    raise Begun


def refusal(words) -> str:
    """What a refused command says; empty where its work would begin."""
    try:
        with contextlib.redirect_stderr(io.StringIO()) as shown:
            code = main(words)
    except Begun:
        return ""
    except SystemExit as refused:  # argparse
        code = refused.code
    *_, line = shown.getvalue().splitlines()
    assert code in (1, 2) and line.startswith("error: ") and line[7:].strip()
    return line


@settings(max_examples=60)  # 1,000 pass too
@given(data=st.data())
def test_a_report_on_any_parameter_file_begins_or_is_refused_in_one_line(data, tmp_path_factory):
    """Of valid files with keys changed, added and left out: nothing is written where one is refused."""
    folder = tmp_path_factory.mktemp("fuzz")
    values = data.draw(st.sampled_from([*STATED.values()]))
    names = st.sampled_from([*values, *RunParams.model_fields]) | st.text(max_size=9)
    changes = data.draw(st.dictionaries(names, VALUES, max_size=2))
    left_out = data.draw(st.lists(st.sampled_from([*values]), max_size=3))
    stated = {name: value for name, value in values.items() if name not in left_out} | changes
    (folder / "fuzz.yaml").write_text(yaml.safe_dump(stated, allow_unicode=False), encoding="ascii")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("editkit.report.run.execute_all", begin)
        refused = refusal(["report", str(folder / "fuzz.yaml"), "--out", str(folder / "out")])
    assert bool(refused) != (folder / "out" / "run.json").exists()


OPTIONS = sorted({*RepairSpec.model_fields, *VitOptions.model_fields} - {"log_dir"})
WORDS = st.text(max_size=9) | st.sampled_from(["1", "0.5", "-1", "1e400", "nan", "full", "null", "[]", "{a: 1}", "~"])


@settings(max_examples=200)  # 1,000 pass too
@given(st.dictionaries(st.sampled_from(OPTIONS), st.lists(WORDS, max_size=3), max_size=4))
def test_a_repair_study_with_any_options_begins_or_is_refused_in_one_line(options):
    words = [word for name, given in options.items() for word in (f"--{name.replace('_', '-')}", *given)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("editkit.report.vit.run", begin)
        refusal(["vit", *words])


TUNE_OPTIONS = sorted({*TuneParams.model_fields} - {"facts_part"})


@settings(max_examples=200)  # 1,000 pass too
@given(st.dictionaries(st.sampled_from(TUNE_OPTIONS), st.lists(WORDS, max_size=3), max_size=4))
def test_a_search_with_any_options_begins_or_is_refused_in_one_line(options):
    words = [word for name, given in options.items() for word in (f"--{name.replace('_', '-')}", *given)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("editkit.report.tune.prepare", begin)
        refusal(["tune", *words])


@settings(max_examples=200)  # 1,000 pass too
@given(st.dictionaries(st.sampled_from([*RunParams.model_fields]) | st.text(max_size=9), VALUES, max_size=3))
def test_a_notebooks_parameters_are_taken_or_refused_in_one_line(values):
    try:
        RunParams.from_notebook(values)
    except ValueError as refused:
        assert len(str(refused).splitlines()) == 1
