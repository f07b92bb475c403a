"""The command that runs a sweep: what it prints, what it refuses, and its exit code."""

import re

import pytest
import yaml

from editkit.cli import main
from editkit.report.sweep import SweepFile
from editkit.studies import sweep_cluster
from editkit.studies.params import RunParams
from editkit.studies.sweep import SweepParams, facts_of, grid
from editkit.studies.sweep_cells import Outcome


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"sweep_parts": ["batches"], "n_facts": 2, "batch_sizes": [1]}))
    return str(path)


def test_a_reports_parameter_file_is_taken_with_the_sweeps_own(file, tmp_path):
    params = SweepFile.load(file)
    assert isinstance(params, SweepParams) and params.sweep_parts == ["batches"] and params.report_title
    (tmp_path / "mine.yaml").write_text("sweep_part: [batches]")
    with pytest.raises(ValueError, match="mine.yaml.*unknown key 'sweep_part'; did you mean sweep_parts"):
        SweepFile.load(file)


def test_parameters_of_the_committed_files_are_taken(pytestconfig):
    for path in sorted((pytestconfig.rootpath / "params").rglob("*.yaml")):
        assert SweepFile.load(path).sweep_parts


def test_the_committed_matrix_is_that_of_the_study(pytestconfig):
    """Batches {1, 8, 32, 128, 512, 1024}; singles, 32 × 32, one batch; r {0, .1, .3, .5}; rank {4, 8, 16}; 3 seeds."""
    params = SweepFile.load(pytestconfig.rootpath / "params" / "sweep" / "matrix.yaml")
    cells, left = grid(params)
    batches, sequences = ([cell for cell in cells if cell.part == part] for part in ("batches", "sequences"))
    assert {cell.batch_size for cell in batches} == {1, 8, 32, 128, 512, 1024}
    assert {cell.batch_size for cell in sequences} == {1, 32, 1024} and {cell.seed for cell in cells} == {1, 2, 3}
    assert {facts_of(params, part) for part in ("batches", "sequences")} == {1024}
    steps = [dict(cell.changes) for cell in sequences if cell.batch_size == 32]
    assert {changes.get("replay_rate", 0.0) for changes in steps} == {0.0, 0.1, 0.3, 0.5}
    assert {4, 8, 16} < {changes["lora_rank"] for changes in steps if "lora_rank" in changes}
    assert {"rome", "memit", "emmet", "alphaedit"} <= {cell.method for cell in sequences if cell.batch_size == 1}
    assert all(one.reason for one in left)


def test_the_help_tells_the_keys_of_the_matrix(capsys):
    with pytest.raises(SystemExit):
        main(["sweep", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    own = [name for name in SweepParams.model_fields if name not in RunParams.model_fields]
    assert {"sweep_parts", "sweep_replays", "sweep_edit_modes", "sweep_orders"} <= set(own)
    for name in own:
        field = SweepParams.model_fields[name]
        assert f"{name}: {' '.join(field.description.split())} Default: {field.default}." in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--scheduler", "here"], "scheduler = 'here': must be local, slurm or the address"),
        (["--scheduler", "tcp://here:1", "--workers", "2"], "workers = 2: the scheduler at tcp://here:1 has workers"),
        (["--workers", "-1"], "workers = -1: input should be greater than or equal to 0"),
        (["--workers", "two"], "workers = 'two': input should be a valid integer"),
    ],
)
def test_bad_options_end_in_one_line(file, capsys, words, message):
    assert main(["sweep", file, *words]) == 2
    assert re.match(f"error: .*{message}", capsys.readouterr().err.splitlines()[-1])


def test_a_missing_file_ends_in_one_line(tmp_path, capsys):
    assert main(["sweep", str(tmp_path / "none.yaml")]) == 2
    assert "none.yaml does not exist" in capsys.readouterr().err


def test_a_scheduler_that_does_not_answer_is_a_failure_in_one_line(file, capsys, monkeypatch):
    monkeypatch.setattr(sweep_cluster, "ANSWER", 0.3)
    assert main(["sweep", file, "--scheduler", "tcp://127.0.0.1:9"]) == 1
    assert "error: no Dask scheduler answers at tcp://127.0.0.1:9" in capsys.readouterr().err.splitlines()[-1]


def test_plan_and_failed_are_one_of_two(file, capsys):
    assert main(["sweep", file, "--plan", "--failed"]) == 2
    assert "error: plan and failed: one of the two can be printed" in capsys.readouterr().err


def test_a_failed_cell_ends_in_exit_code_1(file, capsys, monkeypatch):
    found = {"a": Outcome("a", 1.0), "b": Outcome("b", 1.0, "ValueError: it cannot be")}
    plan = type("", (), {"seconds": {}, "cells": {"a": 1, "b": 2}})
    monkeypatch.setattr(sweep_cluster, "sweep", lambda *_, **__: (plan, found))
    assert main(["sweep", file]) == 1
    out = capsys.readouterr().out
    assert "1 of 2 cells are finished" in out and "1 cell failed; --failed prints tracebacks" in out
