"""The folder of a run."""

import json

import pandas as pd
import pytest

from editkit.studies.params import RunParams
from editkit.studies.places import checkout
from editkit.studies.results import Results, elsewhere


def test_a_table_comes_back_with_its_provenance_beside_it(tmp_path):
    results = Results(tmp_path / "run")
    frame = pd.DataFrame({"method": ["memit", "none"], "note": ["", "NA"], "S": [0.1 + 0.2, None]})
    path = results.save("scores", frame, RunParams(model="gpt2", run_dir=str(tmp_path)), facts={1: "abc"})
    back = results.load("scores")
    assert back.S[0] == 0.1 + 0.2 and back.method.tolist() == ["memit", "none"] and back.note[1] == "NA"
    about = json.loads(path.with_suffix(".json").read_text())
    assert about["parameters"]["model"] == "gpt2" and about["facts"] == {"1": "abc"}
    assert str(tmp_path) not in path.with_suffix(".json").read_text()  # which may be given to others
    results.save("bare", frame)
    assert not (tmp_path / "run/results/bare.json").exists()
    assert results.figure("scores") == tmp_path / "run" / "figures" / "scores.png"
    with pytest.raises(ValueError, match="other.csv does not exist: run the notebook that writes it"):
        results.load("other")


def test_tables_that_are_missing_are_left_out(tmp_path):
    results = Results(tmp_path)
    results.save("scores", pd.DataFrame({"S": [0.5]}))
    assert {name: list(table) for name, table in results.tables("scores", "other").items()} == {"scores": ["S"]}


def test_tables_that_are_kept_share_what_is_said_of_them(tmp_path):
    results, tables = Results(tmp_path), {"scores": pd.DataFrame({"S": [0.5]}), "gaps": pd.DataFrame({"S": [0.1]})}
    assert results.keep(tables, RunParams(model="gpt2"), facts={1: "abc"}) == tables
    assert all(results.load(name).equals(table) for name, table in tables.items())
    first, other = (json.loads((tmp_path / f"results/{name}.json").read_text()) for name in tables)
    assert first == other and first["parameters"]["model"] == "gpt2" and first["facts"] == {"1": "abc"}


def test_what_is_no_number_is_null(tmp_path):
    about = {"bound": float("inf"), "scores": [{"S": float("nan")}, (1.5, -float("inf"))]}
    path = Results(tmp_path).save("scores", pd.DataFrame(), **about).with_suffix(".json")
    assert json.loads(path.read_text(), parse_constant=pytest.fail) == {
        "parameters": None,
        "bound": None,
        "scores": [{"S": None}, [1.5, None]],
    }


def test_tables_of_a_recorded_run_are_copied_and_say_where_they_are_from(tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks/00_setup.ipynb").touch()
    monkeypatch.chdir(tmp_path / "notebooks")
    source, results = Results(tmp_path / "reports/speech"), Results(tmp_path / "reports/own")
    for name, share in (("first", 0.5), ("other", 0.1 + 0.2)):
        source.save(name, pd.DataFrame({"S": [share]}))
    found = results.recorded("speech", "other", "first")
    assert list(found) == ["recorded_other", "recorded_first"] and found["recorded_other"].S[0] == 0.1 + 0.2
    assert results.load("recorded_other").equals(found["recorded_other"])
    about = json.loads((tmp_path / "reports/own/results/recorded_other.json").read_text())
    assert about["recorded_in"] == "reports/speech/results/other.csv"
    assert results.recorded("speech", "first", "missing") == {} == results.recorded("damage", "first")


@pytest.mark.parametrize("run", ["speech", "equal_cost", "survival", "questions", "ablations"])
def test_a_run_that_another_asks_is_recorded_and_can_be_made_again(run):
    assert f"reports/{run} (params/{run}.yaml)" in elsewhere("n_facts", run)
    root = checkout()
    assert (root / f"params/{run}.yaml").is_file() and (root / f"reports/{run}/README.md").is_file()
