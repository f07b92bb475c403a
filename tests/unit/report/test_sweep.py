"""The command that runs a sweep: what it prints, what it refuses, and its exit code."""

import builtins
import re

import pytest
import yaml

from editkit.cli import main
from editkit.report.sweep import SweepFile
from editkit.studies import sweep_cluster
from editkit.studies.sweep import SweepParams
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
    for path in sorted((pytestconfig.rootpath / "params").glob("*.yaml")):
        assert SweepFile.load(path).sweep_parts


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


def test_without_dask_it_says_what_to_install(file, capsys, monkeypatch):
    read = builtins.__import__

    def without(name, *rest):
        if name == "editkit.studies" and "sweep_cluster" in (rest[2] or ()):
            raise ModuleNotFoundError("No module named 'distributed'")
        return read(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    assert main(["sweep", file]) == 2
    assert "a sweep runs on Dask, but No module named 'distributed': pip install dask" in capsys.readouterr().err


def test_a_failed_cell_ends_in_exit_code_1(file, capsys, monkeypatch):
    found = {"a": Outcome("a", 1.0), "b": Outcome("b", 1.0, "ValueError: it cannot be")}
    plan = type("", (), {"seconds": {}, "cells": {"a": 1, "b": 2}})
    monkeypatch.setattr(sweep_cluster, "sweep", lambda *_, **__: (plan, found))
    assert main(["sweep", file]) == 1
    out = capsys.readouterr().out
    assert "1 of 2 cells are finished" in out and "1 cell failed; tracebacks are kept" in out
