"""The page as a whole: its order, and links that lead somewhere."""

import nbformat
import plotly.graph_objects as go
import pytest
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from editkit.report.execute import Chapter
from editkit.report.figures import PLOTLY
from editkit.report.page import Made, render_report

LINKS = """See [](../figures/loss.png), [scores](02_second.ipynb#Some-scores), [gone](02_second.ipynb#Gone),
[nowhere](09_none.ipynb), [](../figures/none.png) and [@meng2022rome]. NS counts."""


def figure(title: str, picture: str, *tags: str):
    shown = go.Figure(go.Scatter(y=[1, 2]), {"title": title, "meta": {"picture": picture, "tables": []}})
    data = {PLOTLY: shown.to_plotly_json() | {"data": [{"type": "scatter", "y": [1, 2]}]}}
    return new_code_cell("1", metadata={"tags": list(tags)}, outputs=[new_output("display_data", data=data)])


def chapter(folder, name: str, *cells, **more) -> Chapter:
    nbformat.write(new_notebook(cells=list(cells)), folder / f"{name}.ipynb")
    path = folder / f"{name}.ipynb"
    return Chapter(path, path, folder / f"{name}.log", more, dict(more), "done")


@pytest.fixture
def soup(tmp_path):
    first = chapter(tmp_path, "01_first", new_markdown_cell("# First\n\n" + LINKS), figure("Body", "loss"), n=1)
    tagged = {"metadata": {"tags": ["appendix"]}}
    second = chapter(
        tmp_path,
        "02_second",
        new_markdown_cell("# Second \\}</style> chapter"),
        figure("Front", "key", "front", "hide-input"),
        new_markdown_cell("## Some scores\n\ntext"),
        new_markdown_cell("## The machine\n\nold", **tagged),
    )
    results = [{"file": "results/a.csv", "rows": 3, "sha256": "ab" * 32}]
    facts = {"Date": "today", "Device": "CPU", "Revision": "abc"}
    page = render_report("A <report>", facts, [first, second], Made(tmp_path, "params/a.yaml", results))
    return BeautifulSoup(page, "html.parser")


def test_first_come_title_and_front_then_contents_chapters_and_appendix(soup):
    assert [tag.name for tag in soup.body.find_all(True, recursive=False)][:4] == ["a", "header", "nav", "main"]
    assert soup.h1.get_text() == "A <report>" and len(soup.find_all("h1")) == 1
    assert soup.select_one("details.about summary").get_text() == "today · CPU"
    assert "Front" in soup.header.figure.get_text() and soup.header.figure.b.get_text() == "Figure 1."
    titles = [tag.get_text() for tag in soup.main.find_all("h2")]
    assert titles[0] == "First" and titles[2:] == ["Glossary", "References", "Appendix: how this was made"]
    appendix = soup.find(id="appendix").parent
    assert "old" in appendix.get_text() and "params/a.yaml" not in appendix.get_text()
    assert [cell.get_text() for cell in appendix.select("details.parameters tbody tr")[0].find_all(["th", "td"])] == [
        *("n", "1"),
    ]


def test_headings_are_in_order(soup):
    levels = [int(tag.name[1]) for tag in soup.find_all(["h1", "h2", "h3", "h4", "h5"])]
    assert levels[0] == 1 and all(b <= a + 1 for a, b in zip(levels, levels[1:], strict=False))


def test_every_link_leads_somewhere(soup):
    first = soup.find(id="nb-01_first").parent
    links = {link.get_text(): link["href"] for link in first.select("p a")}
    assert links == {
        "Figure 2": "#figure-loss",
        "scores": "#nb-02_second--some-scores",
        "gone": "#nb-02_second",
        "Meng et al., 2022": "#reference-meng2022rome",
        "NS": "#term-ns",
    }
    assert "nowhere" in first.get_text(), "a link that leads nowhere is its text"
    ids = [tag["id"] for tag in soup.find_all(id=True)]
    assert len(ids) == len(set(ids))
    assert {link["href"][1:] for link in soup.select("a[href^='#']")} <= set(ids)
    assert [item["id"] for item in soup.select(".references li")] == ["reference-meng2022rome"]
    assert "@software{editkit" in soup.find(id="references").parent.get_text()


def test_a_running_head_is_a_string_of_css_and_nothing_else(soup):
    style = soup.style.get_text()
    assert 'content: "First"' in style and r"\7d " in style and "}</style>" not in style


def test_a_chapter_can_be_made_again_alone_if_it_measures(soup, tmp_path):
    said = {figure.b.get_text(): figure.code.get_text() for figure in soup.select("figure[data-number]")}
    assert said == {
        "Figure 1.": "python -m editkit report params/a.yaml",
        "Figure 2.": "python -m editkit report params/a.yaml --only 01_first",
    }
