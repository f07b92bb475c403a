"""The file of defaults that a search writes, and the tables of its trials."""

import math
import re
from pathlib import Path

import pytest
import yaml

from editkit import METHODS, EditSpec
from editkit.editing.budget import BudgetSpec
from editkit.editing.spec import PUBLISHED
from editkit.facts import data_hash
from editkit.studies.tune import FINISHED, TuneParams, measured, search, studies
from editkit.studies.tune_file import best, importances, render, tell, trial_table, write, yaml_path


@pytest.fixture
def tuned(tuning):
    """A search that has run, and what it found."""

    def build(trials=4, methods=("memit",), **changes):
        given = tuning(method=list(methods), **changes)
        for method in methods:
            search(given, method, until=math.inf, trials=trials)
        return given, studies(given)

    return build


@pytest.mark.parametrize("folder", ["named", "here"])
def test_an_edit_takes_its_defaults_from_the_file(tuned, tune_params, tmp_path, monkeypatch, folder):
    given, found = tuned(methods=("memit", "alphaedit"))
    monkeypatch.chdir(tmp_path)
    if folder == "named":
        monkeypatch.setenv("EDITKIT_HPARAMS", str(tmp_path / "mine"))
    params, lm = tune_params(), given.setting.lm
    write(path := yaml_path(params), given, found, params)
    assert path.resolve() == tmp_path / ("mine" if folder == "named" else "hparams") / "tiny-llama.yaml"
    for method, study in found.items():
        wanted = given.spec(method, best(study).params).resolve(lm)
        assert EditSpec(method=method, seed=1).resolve(lm) == wanted
    for method in METHODS:
        spec = EditSpec(method=method).resolve(lm)
        assert {name for name, value in spec if value is None} == set(BudgetSpec.model_fields)
    assert EditSpec(method="rome").resolve(lm).layers == given.start["rome"]["layers"], "not tuned: the start"


def test_the_file_says_how_its_values_came_about(tuned, tune_params, facts):
    given, found = tuned(5, hyperparameters={"l2": 3.0, "nullspace": "kept"})
    text = render(given, found, tune_params())
    about = "\n".join(line for line in text.splitlines() if line.startswith("#"))
    trials, chosen = found["memit"].trials, best(found["memit"])
    assert f"MEMIT: S {chosen.value:.3f}, ES {chosen.user_attrs['ES']:.3f}" in about
    assert f"after 5 trials; S {trials[0].value:.3f} where it began" in about
    assert f"({len(measured(found['memit']))} on the whole batch, " in about and re.search(r"\d+ seconds\)", about)
    parts = ["4 of worldfacts", "tune part, seed 1", data_hash(facts)[:16], "prose.txt", given.key[:16], "optuna 5."]
    assert not [part for part in parts if part not in about]
    assert given.setting.lm.fingerprint() in about and "float32" in about and str(Path.cwd()) not in text
    values = yaml.safe_load(text)
    assert "Edits were made with nullspace: 'kept'" in about and "nullspace" not in values["shared"]
    assert values["shared"]["l2"] == 3.0 and "  l2: 3.0  # given\n" in text
    (rate,) = [line for line in text.splitlines() if line.startswith("  v_lr") and "tuned, 0.01 to 1" in line]
    assert values["memit"]["v_lr"] == yaml.safe_load(rate)["v_lr"]
    assert re.search(r"  layers: \[.*\]  # tuned, last one 0 to 2, number 1 to 4\n", text)
    assert "  kl_factor: 0.0625  # start, not tuned\n" in text
    assert max(map(len, text.splitlines())) <= 200


def test_the_start_of_a_published_model_is_said_to_be_published(tuning, tiny, tune_params):
    lm = tiny(num_hidden_layers=30)
    lm.name = "someone/SmolLM2-135M"
    given = tuning(lm=lm)
    search(given, "memit", until=math.inf, trials=1)
    text = render(given, studies(given), tune_params())
    assert text.startswith("# 'smollm2-135m': ")
    assert "mom2_update_weight: 100.0  # published, see editkit/hparams" in text
    assert yaml.safe_load(text)["memit"]["layers"] == [4, 5, 6]


def test_a_file_that_is_there_is_not_replaced(tuned, tune_params, tmp_path):
    (tmp_path / "tiny-llama.yaml").write_text("shared: {v_lr: 0.1}\n")
    with pytest.raises(ValueError, match="tiny-llama.yaml exists: --force replaces it, --out names another folder"):
        yaml_path(tune_params(out=str(tmp_path)))
    assert yaml_path(tune_params(out=str(tmp_path), force=True)) == tmp_path / "tiny-llama.yaml"


@pytest.mark.parametrize("force", [True, False])
def test_published_values_are_never_overwritten(force):
    before = (PUBLISHED / "gpt2-xl.yaml").read_bytes()
    for model in ("gpt2-xl", "openai-community/GPT2-XL"):
        with pytest.raises(ValueError, match="gpt2-xl.yaml holds published values and is never overwritten"):
            yaml_path(TuneParams(model=model, out=str(PUBLISHED), force=force))
    assert (PUBLISHED / "gpt2-xl.yaml").read_bytes() == before


@pytest.mark.parametrize("model", [".", "/", "a/.."])
def test_a_model_without_a_name_has_no_file(model):
    with pytest.raises(ValueError, match=re.escape(f"model = {model!r}: its last part names the file")):
        yaml_path(TuneParams(model=model))


def test_a_folder_that_is_a_file_is_refused(tune_params, tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(ValueError, match="out' is a file; a folder is needed"):
        yaml_path(tune_params(out=str(tmp_path / "out")))


def test_a_file_that_came_to_be_there_since_is_replaced_by_the_same_study_alone(tuned, tune_params, tmp_path):
    given, found = tuned(1)
    params = tune_params(out=str(tmp_path))
    write(path := yaml_path(params), given, found, params)
    search(given, "memit", until=math.inf, trials=2)  # by another process, at the same time
    write(path, given, studies(given), params)
    assert "after 2 trials" in path.read_text()
    path.write_text(mine := path.read_text().replace(given.key[:16], "another"))
    with pytest.raises(ValueError, match="exists: --force"):
        write(path, given, found, params)
    assert path.read_text() == mine


def test_trials_are_tabulated_with_their_scores(tuned):
    _, found = tuned(4)
    study = found["memit"]
    table = trial_table(study)
    assert len(table) == 4 * len(study.trials[0].params) and table.start.sum() == table.best.sum() == len(table) / 4
    one = table[table.trial == best(study).number].set_index("hyperparameter")
    assert one.value.to_dict() == best(study).params and one.best.all()
    assert set(one.S) == {best(study).value} and one.log["v_lr"] and not one.log["last_layer"]
    assert (table.seconds > 0).all()
    trials = study.get_trials(states=FINISHED)
    assert sum(trial.value is not None for trial in trials) == table[table.moment == "batch"].trial.nunique()


def test_importances_add_up_to_one_once_there_are_enough_trials(tuned):
    _, found = tuned(3)
    assert importances(found["memit"]).empty
    given, found = tuned(6)
    table = importances(found["memit"])
    assert set(table.hyperparameter) == set(given.space("memit")) and math.isclose(table.importance.sum(), 1)
    assert table.importance.is_monotonic_decreasing


def test_the_best_of_a_search_is_told_in_a_line(tuned):
    _, found = tuned(1)
    value = best(found["memit"]).value
    assert tell("memit", found["memit"]).startswith(f"MEMIT: S {value:.3f}, ES ")
    assert tell("memit", found["memit"]).endswith(f"after 1 trial; S {value:.3f} where it began")
