"""The command line of a repair study: presets, switches, folders, and that every file has the name that is listed."""

import json
import re

import pandas as pd
import pytest

from editkit.cli import main, parser
from editkit.report import stages
from editkit.report.vit import PRESETS, VitOptions, files, study
from editkit.studies.repair_spec import RepairSpec
from editkit.vision import training
from tests.unit.conftest import WIDE, refuse
from tests.unit.vision.conftest import write

STUDY = (
    "--data-path --held-out-ratio --seed --epochs --batch-size --lr --resume --pin-memory --no-pin-memory "
    "--num-ablations --max-samples --edit-method --edit-layers --num-edit-layers --astra-layers --no-astra-layers "
    "--max-edits --head-lr --head-steps --ewc-lambda --closed-form --checkpoint-dir --log-dir --results-dir "
    "--timestamp --run-name --sequential --no-sequential --preset --stage"
).split()


def spec_of(*words):
    """What a command line asks of the study."""
    given = vars(parser().parse_args(["vit", *words]))
    own = {name: value for name, value in given.items() if name in VitOptions.model_fields}
    options = VitOptions.from_texts(own)
    return study({name: value for name, value in given.items() if name in RepairSpec.model_fields}, options)


def written(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_every_option_of_the_study_is_there_under_its_name(capsys):
    with pytest.raises(SystemExit):
        main(["vit", "--help"])
    shown = capsys.readouterr().out
    assert not [name for name in STUDY if not re.search(rf"(^|[\s,]){name}\b", shown)] and files() in shown


def test_the_preset_gives_the_defaults_of_the_study_and_what_is_said_wins():
    spec = spec_of("--preset", "pathmnist")
    assert (spec.data, spec.size, spec.model) == ("pathmnist", 224, "google/vit-base-patch16-224")
    assert (spec.protocol, spec.held_out_ratio, spec.seed) == ("held-out", 0.2, 42)
    assert (spec.epochs, spec.batch_size, spec.lr, spec.num_ablations, spec.max_samples) == (10, 32, 1e-4, 32, 50)
    assert (spec.layer_selection, spec.num_edit_layers, spec.max_edits, spec.sequential) == ("traced", 3, 30, True)
    assert (spec.head_lr, spec.head_steps, spec.ewc_lambda, spec.kept_budget) == (0.01, 50, 1000, 0)
    assert spec.compared == ("alphaedit", "head_ewc")
    said = spec_of("--lr", "3e-5", "--preset", "pathmnist", "--seed", "7", "--no-sequential", "--max-edits", "5")
    assert (said.lr, said.seed, said.sequential, said.max_edits, said.epochs) == (3e-5, 7, False, 5, 10)
    assert spec_of() == RepairSpec(), "without a preset every default is the study's own"


def test_switches_stand_alone_and_translate_to_the_study():
    assert spec_of("--sequential").sequential and not spec_of("--no-sequential").sequential
    assert spec_of().pin_memory and not spec_of("--no-pin-memory").pin_memory
    assert spec_of("--astra-layers").layer_selection == "traced"
    assert spec_of("--preset", "pathmnist", "--no-astra-layers").layer_selection == "last"
    assert spec_of("--data-path", "my.npz").data == spec_of("--data", "my.npz").data == "my.npz"
    assert spec_of("--preset", "pathmnist", "--data-path", "my.npz").size == 28, "a file has the size that it has"
    assert spec_of("--trained-layers", "null").trained_layers is None and spec_of("--controls").controls == []


def test_the_head_runs_alone_and_in_the_way_that_is_asked():
    assert spec_of("--edit-method", "head").compared == ("head_ewc",)
    assert spec_of("--preset", "pathmnist", "--edit-method", "head", "--closed-form").compared == ("head_closed",)
    assert spec_of("--edit-method", "memit", "head").compared == ("memit", "head_ewc")
    both = spec_of("--edit-method", "head", "--controls", "finetuning")
    assert both.compared == ("head_ewc", "finetuning")
    assert spec_of("--preset", "pathmnist", "--closed-form").compared == ("alphaedit", "head_closed")
    assert "head_ewc" not in spec_of("--closed-form").compared


def test_the_baseline_is_trained_on_the_official_splits():
    spec = spec_of("--preset", "pathmnist", "--stage", "baseline")
    assert (spec.protocol, spec.epochs, spec.seed) == ("official", 10, 42)
    assert spec_of("--preset", "pathmnist", "--stage", "train").protocol == "held-out"


BAD = {
    "unknown": (["--epoch", "3"], "unrecognized arguments: --epoch 3"),
    "switch": (["--sequential", "maybe"], "unrecognized arguments: maybe"),
    "stage": (["--stage", "all"], "stage = 'all': input should be 'data', .* 'full'"),
    "preset": (["--preset", "mnist"], "preset = 'mnist': input should be 'pathmnist'"),
    "type": (["--head-lr", "fast"], "head_lr = 'fast': input should be a valid number"),
    "several": (["--head-lr", "fast", "--epochs", "0"], "epochs = 0: input .*; head_lr = 'fast'"),
    "range": (["--held-out-ratio", "80"], "held_out_ratio = 80.0: input should be less than 1"),
    "no word": (["--seed"], "argument --seed: expected one argument"),
    "method": (["--edit-method", "haed"], "edit_method.0 = 'haed'"),
    "nothing": (["--edit-method", "--controls"], "edit_method and controls are empty"),
    "no head": (["--controls", "finetuning", "--closed-form"], "--closed-form: no head is repaired"),
    "twice": (["--astra-layers", "--layer-selection", "last"], "say the same: give one of them"),
    "baseline": (["--stage", "baseline", "--protocol", "held-out"], "--protocol held-out: the baseline is trained on"),
    "resume": (["--resume", "a", "--checkpoint", "b"], "--resume a and --checkpoint b: give one of them"),
    "checkpoint": (["--resume", "nowhere"], "nowhere is not a checkpoint"),
    "name": (["--run-name", "../x"], "--run-name '../x': must be the name of a folder"),
}


@pytest.mark.parametrize("words, message", BAD.values(), ids=BAD)
def test_what_is_wrong_is_told_in_one_line_and_nothing_is_written(folder, made, tmp_path, capfd, words, message):
    there = written(tmp_path)
    try:
        code = main(["vit", "--out", str(tmp_path / "runs"), "--data", made, "--model", folder(), *words])
    except SystemExit as stopped:
        code = stopped.code
    told = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error")]
    assert code == 2 and len(told) == 1 and re.search(message, told[0])
    assert {name for name in written(tmp_path) - there if name.startswith("runs/")} == set()


@pytest.mark.usefixtures("without_browser")
def test_the_preset_runs_whole_on_a_file(folder, tmp_path, capsys):
    source, model = write(tmp_path / "path.npz", n=12), folder(size=224, patch=16, layers=4)
    quick = {"epochs": 1, "num_ablations": 1, "max_samples": 2, "max_edits": 4, "copies": 1, "head_steps": 3}
    quick |= {"edit_options": WIDE | {"v_num_grad_steps": 5}, "model": model, "data_path": source, "run_name": "mine"}
    quick |= {f"{name}_dir": tmp_path / name for name in ("checkpoint", "log", "results")}
    words = [word for name, value in quick.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    with pytest.warns(UserWarning, match="no browser to draw"):
        assert main(["vit", "--preset", "pathmnist", *words]) == 0
    results = tmp_path / "results" / "mine"
    tables = {path.stem: pd.read_csv(path) for path in (results / "results").glob("*.csv")}
    assert tables.keys() == {name for names in stages.TABLES.values() for name in names} - {"layer_sweep"}
    assert tables["evaluation_report"].method.tolist() == ["pre", "alphaedit", "head_ewc"]
    assert tables["edit_log"].step.tolist() == [1, 2, 3, 4], "one by one"
    assert len(json.loads(tables["edit_log"].layers[0])) == 3 and len(tables["confusion_matrix"]) == 81
    assert tables["data_split_info"].split.value_counts()["test"] == 12, "a fifth of all is held out"
    weights = {"checkpoint.safetensors", "edits/alphaedit.safetensors", "edits/head_ewc.safetensors"}
    assert written(tmp_path / "checkpoint" / "mine") == weights and not (tmp_path / "runs").exists()
    log, out = (tmp_path / "log" / "mine" / "log.txt").read_text(), capsys.readouterr().out
    assert "test_accuracy" in out and '"preset": "pathmnist"' in log
    assert all(told in log for told in out.strip().split("\n\n"))
    assert "WARNING no browser to draw" in log


@pytest.mark.usefixtures("without_browser")
@pytest.mark.filterwarnings("ignore:no browser to draw")
def test_the_head_alone_touches_no_layer(run, tmp_path):
    assert run(edit_method="head", controls="head_closed") == 0
    path = tmp_path / "runs" / "vit-made"
    assert {name for name in written(path) if name.startswith("edits")} == {"edits/head_ewc.safetensors"}
    report = pd.read_csv(path / "results" / "evaluation_report.csv")
    assert report.method.tolist() == ["pre", "head_ewc"] and report.layers.tolist() == ["[]", "[]"]


def test_training_goes_on_unless_it_shall_begin_anew(run, tmp_path, monkeypatch):
    whole = training._epoch
    assert run("baseline") == 0
    assert written(tmp_path / "runs" / "vit-made") >= {"results/baseline_metrics.csv", "checkpoint.safetensors"}
    monkeypatch.setattr(training, "_epoch", refuse)
    assert run("train") == 0, "it was done before"
    seen = []
    monkeypatch.setattr(training, "_epoch", lambda *words: seen.append(words) or whole(*words))
    words = ["--epochs", "1", "--out", str(tmp_path / "runs"), "--data", str(tmp_path / "made.npz")]
    words += ["--model", str(tmp_path / "tiny-vit-28")]
    assert main(["vit", "--stage", "train", *words, "--no-resume"]) == 0 and len(seen) == 1


def test_an_error_ends_up_in_the_log(folder, made, tmp_path, capsys):
    words = ["--model", folder(), "--data", made, "--image-size", "30", "--run-name", "mine"]
    assert main(["vit", *words, "--out", str(tmp_path / "runs"), "--log-dir", str(tmp_path / "log")]) == 2
    assert "ERROR ValueError: image_size = 30" in (tmp_path / "log" / "mine" / "log.txt").read_text()


def test_presets_state_options_that_there_are():
    assert all(RepairSpec(**values) for values in PRESETS.values())
