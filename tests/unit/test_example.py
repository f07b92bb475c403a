"""The recorded example: one whole run of the parameters beside it, kept as it was written."""

import hashlib
import json
import re
from pathlib import Path

import pytest

from editkit.studies.params import BASE, read_values

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "reports/example"


@pytest.fixture(scope="module")
def record() -> dict:
    return json.loads((EXAMPLE / "run.json").read_text())


def test_every_chapter_is_there_and_of_one_revision(record):
    chapters = {chapter["name"]: chapter["status"] for chapter in record["notebooks"]}
    assert chapters == {path.stem: "done" for path in (ROOT / "notebooks").glob("0[0-6]_*.ipynb")}
    assert record["git"]["revision"] and not record["git"]["dirty"]


def test_it_ran_with_the_parameters_that_make_example_runs(record):
    stated = read_values(ROOT / "params/example.yaml")
    assert record["parameters_file"]["path"] == "params/example.yaml"
    assert {name: record["parameters"][name] for name in stated} == stated
    base = read_values(ROOT / "params" / BASE)
    assert not [name for name, value in stated.items() if value == base[name]], "it states what is the default"


def test_tables_and_figures_are_as_the_run_wrote_them_and_the_page_is_small(record):
    written = {entry["file"]: entry["sha256"] for entry in (*record["results"], *record["figures"])}
    kept = [*EXAMPLE.glob("results/*.csv"), *EXAMPLE.glob("figures/*.png")]
    assert len(kept) > 50
    for path in kept:
        assert hashlib.sha256(path.read_bytes()).hexdigest() == written[path.relative_to(EXAMPLE).as_posix()]
    assert (EXAMPLE / record["html"]).stat().st_size < 10e6


def test_every_picture_of_readme_comes_from_it():
    pictures = re.findall(r"!\[[^]]+\]\(([^)]+)\)", (ROOT / "README.md").read_text())
    assert len(pictures) > 3
    assert all((ROOT / picture).is_relative_to(EXAMPLE) and (ROOT / picture).is_file() for picture in pictures)
