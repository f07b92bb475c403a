"""The report builder on tiny notebooks: execution, HTML, PDF, and failures on the way."""

import json
import re
from pathlib import Path

import nbformat
import pytest
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from editkit import cli
from editkit.figures import find_browser
from editkit.report import build_report
from editkit.report import run as report_run
from editkit.report.execute import Chapter, Failure
from editkit.studies import places

BROWSER = find_browser()
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chrome, Chromium or Edge to open the report")

PARAMETERS = 'n_facts = 4\nseeds = [1]\nrun_dir = "."'
TABLES = """
from pathlib import Path
import sys
import pandas as pd
frame = pd.DataFrame({"method": ["ROME", "EMMET"], "ES": [0.98, 1.0], "edits": [n_facts, None]})
(Path(run_dir) / "results").mkdir(exist_ok=True)
frame.to_csv(Path(run_dir) / "results" / "scores.csv", index=False)
print("progress 10 %", file=sys.stderr)
print("two methods")
frame
"""
FIGURE = """
import plotly.graph_objects as go, plotly.io as pio
pio.renderers.default = "plotly_mimetype"
go.Figure(go.Scatter(x=[1, 2, 3], y=[1, 4, 9]), layout={"title": {"text": "Squares </script>"}})
"""
TEXT = r"""# First chapter

The update $\Delta W = R (K^\top M K + D^{-1})^{-1} K^\top M$ solves

$$\min_{\Delta W} \operatorname{tr}(\Delta W A \Delta W^\top)
+ \sum_i d_i \lVert \Delta W k_i - r_i \rVert^2$$

\begin{aligned} a &= b \\ c &= d \end{aligned}

See the [second](01_second.ipynb) and a [paper](https://arxiv.org/abs/2202.05262).

| name | value |
|---|---|
| a | 1 |

## Scores

## Scores
"""


def code(source: str, *tags: str):
    return new_code_cell(source.strip(), metadata={"tags": list(tags)})


def write(folder: Path, name: str, *cells) -> None:
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = new_notebook(cells=list(cells), metadata={"kernelspec": kernel, "language_info": {"name": "python"}})
    nbformat.write(notebook, folder / f"{name}.ipynb")


def project(folder: Path, second: str = "n_facts", third: bool = False) -> Path:
    """A checkout with two notebooks, or a third that reads what they wrote, and one parameter file."""
    (folder / "notebooks").mkdir()
    (folder / "params").mkdir()
    write(
        folder / "notebooks",
        "00_first",
        new_markdown_cell(TEXT),
        code(PARAMETERS, "parameters"),
        code(TABLES),
        code("secret = 1\nsecret", "remove-cell"),
        code("'only the output'", "hide-input"),
        code("'only the code'", "hide-output"),
    )
    cells = [code('seeds = [9]\nrun_dir = "."', "parameters"), code(FIGURE), code(second)]
    write(
        folder / "notebooks",
        "01_second",
        new_markdown_cell("# Second chapter\n\n## Scores"),
        *cells,
    )
    if third:
        write(
            folder / "notebooks", "02_third", new_markdown_cell("# Third chapter"), code('run_dir = "."', "parameters")
        )
    (folder / "params" / "tiny.yaml").write_text("n_facts: 8\nseeds: [1, 2]\nreport_title: A tiny <report>\n")
    return folder


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """One good run, shared by the tests that only look at it."""
    folder = project(tmp_path_factory.mktemp("good"), second="len(seeds)")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield build_report("params/tiny.yaml"), folder


@pytest.fixture
def no_browser(monkeypatch):
    monkeypatch.setattr(report_run, "find_browser", lambda: None)


def page(folder: Path) -> BeautifulSoup:
    return BeautifulSoup((folder / "reports/tiny/report.html").read_text(), "html.parser")


def test_the_run_is_recorded(built):
    report, folder = built
    record = json.loads((folder / "reports/tiny/run.json").read_text())
    assert report.ok and record["status"] == "done"
    assert record["parameters"] == {
        "n_facts": 8,
        "seeds": [1, 2],
        "report_title": "A tiny <report>",
    }
    first, second = record["notebooks"]
    assert first["parameters"] == {"n_facts": 8, "seeds": [1, 2]}
    assert second["parameters"] == {"seeds": [1, 2]}
    assert first["seconds"] > 0 and first["peak_memory_mb"] > 10 and len(first["sha256"]) == 64
    assert record["results"][0]["file"] == "results/scores.csv" and record["results"][0]["rows"] == 2
    assert {"python", "torch", "plotly"} <= set(record["versions"]) and record["device"]
    assert record["seeds"] == [1, 2] and record["git"] is None
    assert "8" in (folder / "reports/tiny/results/scores.csv").read_text()


def test_html_stands_alone(built):
    soup = page(built[1])
    for tag, attribute in (("script", "src"), ("link", "href"), ("img", "src"), ("iframe", "src")):
        assert not [e for e in soup.find_all(tag) if e.get(attribute, "data:")[:5] != "data:"]
    assert "@import" not in soup.style.get_text() and "url(" not in soup.style.get_text()
    assert str(built[1]) not in str(soup)
    assert len(soup.find_all("script", string=re.compile(r"\* plotly\.js v"))) == 1
    assert soup.html["lang"] == "en" and soup.title.string == "A tiny <report>"


def test_html_shows_what_the_notebooks_say(built):
    soup = page(built[1])
    text = soup.get_text()
    printed = [pre.get_text() for pre in soup.select("pre.output")]
    assert len(soup.select("section:has(#nb-00_first) math")) == 3 and len(soup.select(".formula math")) == 2
    assert "two methods" in printed and not [text for text in printed if "progress" in text]
    assert "secret" not in text and "only the output" in text
    assert len([text for text in printed if "only the" in text]) == 1
    assert all(block.find_parent("details") for block in soup.select(".highlight"))
    parameters = {row.th.string: row.td.get_text() for row in soup.select_one("details.parameters").select("tbody tr")}
    assert parameters == {"n_facts": "8", "seeds": "[1, 2]"}
    numbers = [cell.string for cell in soup.select("table.dataframe td.number")]
    assert numbers == ["0.98", "8", "1.00", "–"], "two figures, whole ones as they are"
    assert "results/scores.csv" in soup.find(id="results-index").parent.get_text()


def test_contents_lead_somewhere(built):
    soup = page(built[1])
    ids = [element["id"] for element in soup.find_all(id=True)]
    assert len(ids) == len(set(ids))
    links = [a["href"] for a in soup.find_all("a") if a["href"].startswith("#")]
    assert set(links) <= {f"#{name}" for name in ids}
    titles = [a.string for a in soup.select("nav a")]
    assert titles == [
        "First chapter",
        "Scores",
        "Scores",
        "Second chapter",
        "Scores",
        "Glossary",
        "References",
        "Appendix",
    ]
    assert soup.find("a", string="second")["href"] == "#nb-01_second"


def test_opens_in_a_browser_without_network(built, opened):
    done = opened(built[1] / "reports/tiny/report.html")
    assert done.soup.select(".plot svg.main-svg .scatterlayer path")
    assert not done.said and not done.asked


@needs_browser
def test_pdf_has_pages(built):
    content = built[0].pdf.read_bytes()
    assert content.startswith(b"%PDF-")
    assert len(re.findall(rb"/Type\s*/Page\b", content)) >= 4


def test_without_a_browser_there_is_html(tmp_path, monkeypatch, no_browser, capsys):
    monkeypatch.chdir(project(tmp_path, second="1"))
    assert cli.main(["report", "params/tiny.yaml"]) == 0
    record = json.loads(Path("reports/tiny/run.json").read_text())
    assert record["pdf"] is None and "apt-get install chromium" in record["pdf_reason"]
    assert Path("reports/tiny/report.html").is_file()
    assert "no PDF: no browser found" in capsys.readouterr().out


def test_a_notebook_without_parameters_is_no_chapter(tmp_path, monkeypatch, no_browser):
    monkeypatch.chdir(project(tmp_path, second="1"))
    write(tmp_path / "notebooks", "07_open", code("raise ValueError('not asked for')"))
    built = build_report("params/tiny.yaml")
    assert built.ok and [chapter.name for chapter in built.chapters] == ["00_first", "01_second"]
    with pytest.raises(ValueError, match="no notebook '07_open': must be one of 00_first, 01_second"):
        build_report("params/tiny.yaml", only=["07_open"])


def test_a_failing_notebook_is_named(tmp_path, monkeypatch, no_browser, capsys):
    monkeypatch.chdir(project(tmp_path, second="# why\nraise KeyError('gone')", third=True))
    assert cli.main(["report", "params/tiny.yaml"]) == 1
    out = capsys.readouterr().out
    assert "FAILED notebooks/01_second.ipynb at In [4]: # why" in out and "KeyError: 'gone'" in out
    assert "log: reports/tiny/logs/01_second.log" in out and "not run: 02_third" in out
    assert "KeyError" in Path("reports/tiny/logs/01_second.log").read_text()
    assert Path("reports/tiny/results/scores.csv").is_file()
    assert Path("reports/tiny/notebooks/01_second.ipynb").is_file()
    record = json.loads(Path("reports/tiny/run.json").read_text())
    assert record["status"] == "failed"
    assert [n["status"] for n in record["notebooks"]] == ["done", "failed", "not run"]
    soup = page(tmp_path)
    assert "01_second failed" in soup.select_one("div.failure").get_text()
    assert "two methods" in soup.get_text() and "Third chapter" in soup.nav.get_text()


def test_a_dying_kernel_is_named(tmp_path, monkeypatch, no_browser, capsys):
    monkeypatch.chdir(project(tmp_path, second="import os; os._exit(3)"))
    assert cli.main(["report", "params/tiny.yaml"]) == 1
    out = capsys.readouterr().out
    assert "at code cell 4: import os; os._exit(3)" in out and "Kernel died" in out


def test_a_second_run_leaves_nothing_stale(tmp_path, monkeypatch, no_browser):
    monkeypatch.chdir(project(tmp_path, second="1"))
    build_report("params/tiny.yaml")
    folder = Path("reports/tiny")
    (folder / "results/stale.csv").write_text("a\n1\n")
    (folder / "figures/stale.png").write_bytes(b"")
    (folder / "my-notes.txt").write_text("keep")
    build_report("params/tiny.yaml")
    assert not (folder / "results/stale.csv").exists() and not (folder / "figures/stale.png").exists()
    assert (folder / "my-notes.txt").is_file() and (folder / "results/scores.csv").is_file()


def test_a_foreign_folder_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(project(tmp_path))
    (tmp_path / "home").mkdir()
    (tmp_path / "home/thesis.txt").write_text("mine")
    assert cli.main(["report", "params/tiny.yaml", "--out", "home"]) == 2
    assert "home is not empty" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "home").iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("n_fact: 8", "did you mean n_facts"),
        ("n_examples: 2", "no notebook declares 'n_examples'"),
        ("run_dir: here", "--out"),
        ("n_facts: 1e-3", "n_facts = 0.001"),
    ],
)
def test_bad_parameters_are_refused(tmp_path, monkeypatch, capsys, text, message):
    monkeypatch.chdir(project(tmp_path))
    Path("params/bad.yaml").write_text(text + "\n")
    assert cli.main(["report", "params/bad.yaml"]) == 2
    error = capsys.readouterr().err
    assert message in error and "params/bad.yaml" in error and "Traceback" not in error
    assert not Path("reports").exists()


def test_paths_lead_to_the_same_files_from_wherever_the_report_is_made(tmp_path, monkeypatch, no_browser):
    project(tmp_path)
    (tmp_path / "params/facts.json").write_text("[]")
    (tmp_path / "params/mine.yaml").write_text("facts_path: facts.json\n")
    cells = [code("facts_path = ''\nrun_dir = '.'", "parameters"), code("open(facts_path).read(), run_dir[0]")]
    write(tmp_path / "notebooks", "01_second", *cells)
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path / "home")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    built = build_report("../params/mine.yaml", "~/out", notebooks="../notebooks", only=["01_second"])
    assert built.ok and built.folder == tmp_path / "home/out"
    text = (built.folder / "run.json").read_text() + built.html.read_text()
    assert "facts.json" in text and str(tmp_path) not in text, "a report names no place of the machine that made it"


def test_what_is_missing_is_refused_before_any_notebook_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(project(tmp_path))
    write(tmp_path / "notebooks", "01_second", code("facts_path = ''\ntext_path = ''", "parameters"))
    monkeypatch.setattr(places, "find_spec", lambda name: None)
    for text, message in (("facts_path: none.json", "no such file"), ("text_path: wikipedia", "pip install datasets")):
        Path("params/bad.yaml").write_text(text)
        assert cli.main(["report", "params/bad.yaml"]) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert line.startswith("error: params/bad.yaml: ") and message in line and not Path("reports").exists()


def test_missing_files_are_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["report", "params/none.yaml"]) == 2
    assert "params/none.yaml" in capsys.readouterr().err
    Path("some.yaml").write_text("n_facts: 1\n")
    assert cli.main(["report", "some.yaml"]) == 2
    assert "no notebook with parameters" in capsys.readouterr().err


def test_the_base_file_counts_for_what_notebooks_declare(tmp_path, monkeypatch, no_browser):
    monkeypatch.chdir(project(tmp_path, second="seeds"))
    Path("params/base.yaml").write_text("n_facts: 3\nseeds: [5]\nn_examples: 7\n")
    assert build_report("params/tiny.yaml").ok
    record = json.loads(Path("reports/tiny/run.json").read_text())
    assert record["notebooks"][0]["parameters"] == {"n_facts": 8, "seeds": [1, 2]}
    Path("params/tiny.yaml").write_text("n_facts: 8\n")
    assert build_report("params/tiny.yaml").ok
    record = json.loads(Path("reports/tiny/run.json").read_text())
    assert record["notebooks"][0]["parameters"] == {"n_facts": 8, "seeds": [5]}
    assert record["notebooks"][1]["parameters"] == {"seeds": [5]} and record["parameters"]["n_examples"] == 7


def test_what_only_a_sweep_takes_is_left_to_it(tmp_path, monkeypatch, no_browser):
    monkeypatch.chdir(project(tmp_path, third=True))
    Path("params/tiny.yaml").write_text("n_facts: 8\nsweep_parts: [batches]\n")
    assert cli.main(["report", "params/tiny.yaml", "--only", "00_first", "02_third"]) == 0
    record = json.loads(Path("reports/tiny/run.json").read_text())
    assert [(chapter["name"], chapter["status"]) for chapter in record["notebooks"]] == [
        ("00_first", "done"),
        ("02_third", "done"),
    ]
    assert "sweep_parts" not in record["parameters"]


@pytest.mark.parametrize(
    "message", ["OutOfMemoryError: CUDA out of memory", "DeadKernelError: Kernel died", "KeyError"]
)
def test_what_a_chapter_without_memory_needs_is_said(tmp_path, message):
    failure = Failure("In [4]", "edit()", message, "")
    chapter = Chapter(tmp_path / "01_second.ipynb", tmp_path / "a", tmp_path / "log", {}, failure=failure)
    report = report_run.Report(tmp_path, tmp_path / "report.html", None, "no browser", (chapter,), 1.0)
    said = report_run.summarise(report)
    assert message in said and ("memory may have run out: lower --at-once" in said) == (message != "KeyError")
