"""README's figures: which runs they come from, and what is copied from a run."""

import re
from pathlib import Path

import papermill
import pytest

from editkit import RunParams
from editkit.report import run, showcase
from editkit.studies.params import BASE, read_values
from tests.unit.report.test_run import code, write

ROOT = Path(__file__).parents[3]
PARAMETERS = 'seeds = [1]\nrun_dir = "."'
FIGURE = """
from pathlib import Path
written = Path(run_dir, "figures", "curve.png").write_bytes(b"picture")
"""
FINDINGS = """
from IPython.display import Markdown
Markdown(f"- Seeds {seeds} were seen.")
"""


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """Two chapters, of which one is shown, and its parameters."""
    for name in ("notebooks", "params"):
        (tmp_path / name).mkdir()
    other = [code("seeds = [9]", "parameters"), code("raise ValueError('not asked for')")]
    write(tmp_path / "notebooks", "00_other", *other)
    write(tmp_path / "notebooks", "01_shown", code(PARAMETERS, "parameters"), code(FIGURE), code(FINDINGS))
    (tmp_path / showcase.PARAMS).mkdir()
    (tmp_path / showcase.PARAMS / "mine.yaml").write_text("seeds: [3, 4]\n")
    exhibit = showcase.Exhibit("Mine", "01_shown", "curve", "shown")
    monkeypatch.setattr(showcase, "EXHIBITS", {"mine": exhibit})
    monkeypatch.setattr(showcase, "find_browser", lambda: "browser")
    monkeypatch.setattr(run, "find_browser", lambda: None)  # nothing is printed
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", showcase.EXHIBITS)
def test_every_exhibit_has_parameters_that_its_chapter_declares(name):
    path, chapter = ROOT / showcase.PARAMS / f"{name}.yaml", showcase.EXHIBITS[name].chapter
    params, stated = RunParams.load(path), read_values(path)
    declared = papermill.inspect_notebook(str(ROOT / "notebooks" / f"{chapter}.ipynb"))
    assert set(stated) <= set(declared) | {"report_title"}
    base = read_values(ROOT / "params" / BASE)
    assert not [key for key, value in stated.items() if value == base[key]], "it states what is the default"
    assert (params.facts_source, params.facts_part, params.known_only) == ("worldfacts", "test", True)
    assert (params.text_path, params.model, params.vit_data) == ("", "smollm2-135m", ["digits"])


def test_readme_shows_every_exhibit_and_no_other_picture():
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", (ROOT / "README.md").read_text())
    assert pictures == [f"{showcase.SHOWN}/{exhibit.shown}.png" for exhibit in showcase.EXHIBITS.values()]
    assert all((ROOT / path).is_file() for path in pictures)
    assert {path.stem for path in (ROOT / showcase.PARAMS).glob("*.yaml")} == set(showcase.EXHIBITS)


def test_one_chapter_runs_and_its_figure_and_findings_are_copied(checkout):
    showcase.build()
    assert (checkout / showcase.SHOWN / "shown.png").read_bytes() == b"picture"
    page = (checkout / showcase.SHOWN / "findings.md").read_text()
    assert "## Mine\n\n![Mine](shown.png)\n\n`params/showcase/mine.yaml`, chapter `01_shown`, torch " in page
    assert page.endswith("- Seeds [3, 4] were seen.\n")
    assert not (checkout / showcase.RUNS / "mine" / "notebooks" / "00_other.ipynb").exists()


def test_a_chapter_that_fails_changes_nothing(checkout, capsys):
    write(checkout / "notebooks", "01_shown", code(PARAMETERS, "parameters"), code("raise KeyError('gone')"))
    assert showcase.main() == 2
    error = capsys.readouterr().err
    assert "params/showcase/mine.yaml: the run failed" in error and "KeyError: 'gone'" in error
    assert not (checkout / showcase.SHOWN).exists()


def test_findings_are_what_the_last_cell_wrote(checkout):
    built = run.build_report("params/showcase/mine.yaml", only=["01_shown"])
    assert showcase.findings(built) == "- Seeds [3, 4] were seen."
    write(checkout / "notebooks", "01_shown", code(PARAMETERS, "parameters"), code("seeds"))
    built = run.build_report("params/showcase/mine.yaml", only=["01_shown"])
    with pytest.raises(ValueError, match="wrote no findings"):
        showcase.findings(built)


def test_without_a_browser_nothing_runs(checkout, monkeypatch, capsys):
    monkeypatch.setattr(showcase, "find_browser", lambda: None)
    assert showcase.main() == 2 and "apt-get install chromium" in capsys.readouterr().err
    assert not (checkout / "reports").exists()


def test_an_unknown_chapter_is_refused(checkout):
    with pytest.raises(ValueError, match="no notebook '07_none': must be one of 00_other, 01_shown"):
        run.build_report("params/showcase/mine.yaml", only=["07_none"])
