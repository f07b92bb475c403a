"""nbconvert's exporter with our template: every kind of cell and output, and nothing live from data."""

import warnings

import pytest
from bs4 import BeautifulSoup
from jinja2 import Environment, PackageLoader
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from editkit.report.citations import References
from editkit.report.execute import Chapter
from editkit.report.exporter import ChapterExporter
from editkit.report.figures import PLOTLY, Figures
from editkit.report.tables import Tables


@pytest.fixture
def export(tmp_path):
    """Write cells of a chapter as HTML."""
    chapter = Chapter(tmp_path / "01_first.ipynb", tmp_path / "01_first.ipynb", tmp_path / "log", {})
    environment = Environment(loader=PackageLoader("editkit.report", "templates"), autoescape=True)
    figures = Figures(environment, None, {}, {"01_first": "make it"})
    exporter = ChapterExporter(figures, Tables(), References())

    def write(*cells, place="body", notice=""):
        text = exporter.write(new_notebook(cells=list(cells)), chapter, place, notice)
        return BeautifulSoup(text, "html.parser")

    return write


def showing(**data):
    data = {PLOTLY if name == "plotly" else name.replace("_", "/"): value for name, value in data.items()}
    return new_code_cell("show()", execution_count=3, outputs=[new_output("display_data", data=data)])


def test_code_is_folded_and_named_as_the_notebook_names_it(export):
    soup = export(new_code_cell("if x < 1:\n    pass", execution_count=3), new_code_cell("  "))
    assert [tag.get_text() for tag in soup.select("details.code summary")] == ["Code In [3]"]
    assert soup.pre.get_text().strip() == "if x < 1:\n    pass"


def test_the_richest_form_is_shown(export):
    soup = export(showing(text_html="<b>rich</b><script>a()</script>", text_plain="poor"))
    assert soup.b.get_text() == "rich" and "poor" not in soup.get_text() and not soup.script
    assert export(showing(text_markdown="a <i>b</i> *c*", text_plain="poor")).p.get_text() == "a <i>b</i> c"
    assert export(showing(text_latex="$x$", text_plain="poor")).select_one(".formula math")["alttext"] == "x"
    assert export(showing(text_plain="\x1b[1m<plain>\x1b[0m")).select_one("pre.output").get_text() == "<plain>"
    assert export(showing(plotly={"data": [], "layout": {}}, text_html="poor")).figure["id"] == "figure-1"


def test_scripts_and_what_nobody_knows_are_not_shown(export):
    soup = export(showing(application_javascript="a()"), showing(**{"application_x-unknown": "a()"}))
    assert "a()" not in soup.get_text()


def test_pictures_cannot_run_and_have_an_alternative(export):
    data = {"image/svg+xml": "<svg onload='a()'/>", "text/plain": "<Drawing>"}
    soup = export(new_code_cell("1", outputs=[new_output("display_data", data=data)]))
    assert soup.img["src"].startswith("data:image/svg+xml;base64,") and soup.img["alt"] == "<Drawing>"
    png = new_output("display_data", data={"image/png": "aa\nbb"}, metadata={"image/png": {"alt": "a map"}})
    soup = export(new_code_cell("1", outputs=[png]))
    assert soup.img["src"] == "data:image/png;base64,aabb" and soup.img["alt"] == "a map"


def test_errors_are_shown_as_text(export):
    error = new_output("error", ename="KeyError", evalue="x", traceback=["\x1b[31m<KeyError>\x1b[0m"])
    bare = new_output("error", ename="KeyError", evalue="<x>", traceback=[])
    soup = export(new_code_cell("1", outputs=[error]), new_code_cell("1", outputs=[bare]))
    assert [tag.get_text() for tag in soup.select("pre.error")] == ["<KeyError>", "KeyError: <x>"]


def test_a_notice_follows_the_first_cell_and_headings_follow_the_place(export):
    cells = new_markdown_cell("# Title"), new_markdown_cell("Text")
    soup = export(*cells, notice="<p class='failure'>failed</p>")
    assert [tag.name for tag in soup.find_all(True)] == ["h2", "p", "p"] and soup.p["class"] == ["failure"]
    assert export(new_markdown_cell("## A\n\na"), place="front").h2.get_text() == "A"
    assert export(new_markdown_cell("## A\n\na"), place="appendix").h4.get_text() == "A"


def test_it_needs_no_warning(export):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        export(new_markdown_cell("# Title"), showing(text_html="<table><tr><td>1</td></tr></table>"))
