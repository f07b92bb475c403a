"""Parameters of a run: what files and notebooks state, and how the rest is refused."""

import ast
import re
from pathlib import Path

import numpy as np
import papermill
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from editkit import RunParams
from editkit.report.execute import is_chapter
from editkit.studies.params import BASE, read_values

ROOT = Path(__file__).parents[3]
CHAPTERS = sorted(filter(is_chapter, (ROOT / "notebooks").glob("*.ipynb")))
PARAMS = sorted((ROOT / "params").glob("*.yaml"))


@pytest.mark.parametrize("path", PARAMS, ids=lambda path: path.name)
def test_parameter_files_are_valid_and_state_only_what_differs_from_the_base(path):
    params, stated, base = RunParams.load(path), read_values(path), read_values(path.with_name(BASE))
    assert set(RunParams.model_fields) - params.model_fields_set == {"run_dir"}
    assert not any(params.n_facts % size for size in params.batch_sizes)
    same = [name for name, value in stated.items() if name in base and value == base[name]]
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
    path.write_text("n_facts: 1e-2")
    with pytest.raises(ValueError, match=r"mine\.yaml.*n_facts = 0\.01"):
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
    with pytest.raises(ValueError, match=r"mine\.yaml is not YAML: [^\n]*line 1[^\n]*$"):
        RunParams.load(path)
    path.write_text("1: 2")
    with pytest.raises(ValueError, match=r"mine\.yaml: key 1 must be the name of a parameter"):
        RunParams.load(path)
    for encoding in ("latin-1", "utf-16"):
        path.write_text("n_facts: 4\nreport_title: Z\u00fcrich", encoding=encoding)
        with pytest.raises(ValueError, match=r"mine\.yaml is not YAML:.* line [12] .*save it as UTF-8"):
            RunParams.load(path)
    path.write_text("n_facts: 6", encoding="utf-8-sig")
    assert RunParams.load(path).n_facts == 6
    with pytest.raises(ValueError, match="does not exist"):
        RunParams.load(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("n_facts: 2\nseeds: [1]\nn_facts: 4", "mine.yaml.*key 'n_facts' is stated twice.*line 1"),
        ("hyperparameters: {l2: 1.0, l2: 2.0}", "key 'l2' is stated twice"),
        ("1: 2", "key 1 must be the name of a parameter"),
        ("null: 2", "key None must"),
        ("n_facts:\t\t- 2\n\tseeds: 1", "is not YAML: .*line"),
        ("0", "'key: value' lines, got int"),
        ("''", "'key: value' lines, got str"),
        ("[]", "'key: value' lines, got list"),
        ("report_title: 2024-13-45", "is not YAML: month"),
        ("n_facts: !!int x", "is not YAML"),
        ("n_facts: !!bool x", "is not YAML"),
        ("n_facts: !!python/object:os.system {}", "is not YAML: .*constructor"),
        ("n_facts: " + "9" * 5000, "is not YAML: .*4300 digits"),
        ("n_facts: \x00", "is not YAML: byte 0x00 in line 1 is not UTF-8 text"),
        ("n_facts: " + "[" * 3000, "is not YAML: .*recursion"),
        ("n_facts: true", "n_facts = True: .*valid integer"),
        ("vit_lr: true", "vit_lr = True: .*valid number"),
        ("vit_lr: .nan", "vit_lr = nan"),
        ("vit_lr: .inf", "vit_lr = inf"),
        ("vit_lr: -.inf", "vit_lr = -inf"),
        ("trust_threshold: .nan", "trust_threshold = nan"),
        ("norm_clamps: [.nan]", r"norm_clamps\.0 = nan"),
        ("seeds: [-1]", r"seeds\.0 = -1"),
        ("vit_seeds: [4294967296]", r"vit_seeds\.0 = 4294967296"),
        ("text_seed: -1", "text_seed = -1"),
        ("hyperparameters: {v_lrr: 0.1}", "hyperparameters: .*'v_lrr'; did you mean v_lr"),
        ("hyperparameters: {v_lr: yes}", "hyperparameters: .*v_lr = True"),
        ("hyperparameters: {method: rome}", "hyperparameters holds 'method'"),
        ("hyperparameters: {1: 2}", "hyperparameters.* = 1: .*valid string"),
        ("vit_edit_options: {replay: soon}", "vit_edit_options: .*replay = 'soon'"),
        ("vit_data_options: {digits: {epoch: 2}}", "vit_data_options of digits: .*did you mean epochs"),
        ("vit_data_options: {digits: {seed: 2}}", "vit_data_options of digits: seed is said by"),
        ("vit_data_options: {pathmnist: {}}", "vit_data_options of 'pathmnist': vit_data has digits"),
        ("facts_path: none.json", r"mine\.yaml: facts_path = 'none\.json'"),
    ],
)
def test_what_a_file_cannot_say_is_refused_in_one_line(tmp_path, text, message):
    (path := tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ValueError, match=message) as refused:
        RunParams.load(path)
    assert len(str(refused.value).splitlines()) == 1 and str(path) in str(refused.value)


@pytest.mark.parametrize(
    ("content", "n_facts"),
    [
        ("\ufeffn_facts: 4".encode(), 4),
        (b"n_facts: 4\r\n", 4),
        (b"n_facts: 1e2", 100),
        (b"", 2),
        (b"# nothing differs from the base\n---\n", 2),
    ],
)
def test_what_editors_leave_in_a_file_is_read(tmp_path, content, n_facts):
    (path := tmp_path / "mine.yaml").write_bytes(content)
    assert RunParams.load(path).n_facts == n_facts


def test_a_file_that_is_no_text_is_refused_with_its_name(tmp_path):
    (path := tmp_path / "mine.yaml").write_bytes(b"report_title: \xff\xfe\xfd")
    with pytest.raises(ValueError, match=r"mine\.yaml is not YAML: .*not UTF-8 text"):
        RunParams.load(path)


def test_every_parameter_is_documented():
    assert not [name for name, field in RunParams.model_fields.items() if not field.description]


def test_a_notebook_refuses_a_parameter_nobody_knows():
    namespace = {"In": [], "_hidden": 1, "n_facts": 4, "RunParams": RunParams}
    assert RunParams.from_notebook(namespace).n_facts == 4
    with pytest.raises(ValueError, match="unknown key 'n_fact'; did you mean n_facts"):
        RunParams.from_notebook(namespace | {"n_fact": 3})


def test_a_notebook_takes_what_stands_for_plain_values():
    values = {"seeds": (1, 2), "batch_sizes": range(1, 3), "hyperparameters": {"layers": (1, 2), "l2": 5}}
    params = RunParams.from_notebook(values)
    assert (params.seeds, params.batch_sizes) == ([1, 2], [1, 2])
    assert params.hyperparameters == {"layers": [1, 2], "l2": 5}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("methods", {"emmet"}),
        ("methods", iter(["emmet"])),
        ("methods", {"emmet": 1}.keys()),
        ("methods", ["emmet", {"rome"}]),
        ("seeds", b"12"),
        ("n_facts", 2 + 0j),
        ("n_facts", len),
        ("hyperparameters", {"v_lr": object()}),
        ("dtype", torch.float32),
        ("mehtods", {"emmet"}),
        ("n_facts", np.int64(64)),
        ("sequence_seeds", np.array([3, 4])),
        ("trust_threshold", torch.tensor(0.25)),
        ("model", Path("models/mine")),
    ],
)
def test_a_notebook_drops_no_value_without_a_word(name, value):
    with pytest.raises(ValueError, match=rf"^{name} = .*allowed are numbers, texts") as refused:
        RunParams.from_notebook({name: value})
    assert len(str(refused.value).splitlines()) == 1


def test_a_notebook_drops_what_is_no_value():
    assert (
        RunParams.from_notebook({"methods": re, "np": np, "print": print, "Path": Path}).methods == RunParams().methods
    )


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.name)
def test_notebook_parameters_are_known_and_default_to_the_same(path):
    declared = papermill.inspect_notebook(str(path))
    values = {name: ast.literal_eval(entry["default"]) for name, entry in declared.items()}
    defaults = RunParams().model_dump()
    assert values == {name: defaults[name] for name in values}
    assert "run_dir" in values


def test_every_parameter_is_declared_by_a_notebook():
    declared = {name for path in CHAPTERS for name in papermill.inspect_notebook(str(path))}
    assert set(RunParams.model_fields) - declared == {"report_title"}


STATED = [read_values(path) for path in PARAMS]
SCALARS = (
    st.none() | st.booleans() | st.integers() | st.integers(10**17, 10**999) | st.floats() | st.text(max_size=9)
    | st.sampled_from(["5e-1", "1e6", "1e400", "~/x", "../x", "\ud800", "\u202e\n", "\0", "", "x" * 5000, -(10**300)])
)  # fmt: skip
VALUES = st.recursive(
    SCALARS, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=5), v, max_size=3), max_leaves=5
)


@settings(max_examples=200)  # 1,000 pass too
@given(st.data())
def test_a_file_is_valid_or_refused_by_one_line_that_names_what_is_wrong(tmp_path_factory, data):
    values = dict(data.draw(st.sampled_from(STATED), label="file"))
    names = st.sampled_from([*values, *RunParams.model_fields]) | st.text(max_size=9)
    changes = data.draw(st.dictionaries(names, VALUES, max_size=3), label="changes")
    deleted = data.draw(st.lists(st.sampled_from([*values]), max_size=9), label="deletions")
    values = {name: value for name, value in values.items() if name not in deleted}
    path = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    path.write_text(yaml.safe_dump(values | changes, allow_unicode=False), encoding="ascii")
    try:
        params = RunParams.load(path)
    except ValueError as error:
        line = str(error)
        assert line.startswith(str(path)) and len(line.splitlines()) == 1 and len(line) < 10_000
        assert "is not YAML" in line or any(repr(name)[1:-1] in line for name in (*changes, *deleted))
    else:
        assert params == RunParams(**params.model_dump())
