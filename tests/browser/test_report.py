"""The report as its readers see it: offline, light and dark, on a phone, on paper, without scripts, by keyboard."""

import json
import re
import shutil
from collections import Counter
from functools import cache
from pathlib import Path
from urllib.parse import unquote

import nbformat
import pytest
from axe_playwright_python.sync_playwright import Axe
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from playwright.sync_api import expect

from editkit.report import Report, build_report

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CONTRAST, KEYBOARD, PICTURES = ((HERE / name).read_text() for name in ("contrast.js", "keyboard.js", "pictures.js"))
SCREENS = {
    "light": {},
    "dark": {"color_scheme": "dark"},
    "phone": {"viewport": {"width": 390, "height": 844}},
    "paper": {
        "viewport": {"width": 657, "height": 972},
        "color_scheme": "dark",
    },  # A4 less its margins at 96 px an inch
    "no scripts": {"java_script_enabled": False},
}
GRAVE = ("serious", "critical")
TEXT = r"""# Everything at once

**Does every kind of content reach its reader?**

The update $\Delta W = R (K^\top M K + D^{-1})^{-1} K^\top M$ solves

$$\min_{\Delta W} \operatorname{tr}(\Delta W A \Delta W^\top) + \sum_i d_i \lVert \Delta W k_i - r_i \rVert^2
+ \lambda_1 \lVert \Delta W \rVert^2 + \lambda_2 \lVert \Delta W C^{1/2} \rVert^2
+ \lambda_3 \lVert \Delta W K_0 \rVert^2$$

as [@meng2022rome], [the appendix](06_speed.ipynb), [a section of it](06_speed.ipynb#How-the-cost-grows)
and [a paper](https://arxiv.org/abs/2202.05262) say.

| name | what it is |
|---|---|
| ES | *efficacy* |
| `l2` | a weight |

> A remark, set apart.

## Tables
"""
TABLES = """
import pandas as pd
from IPython.display import HTML, Markdown, display
print("two rows " * 40)
display(pd.DataFrame({f"a long heading, number {i}": [i / 7, "a cell with a few words in it"] for i in range(14)}))
scores = pd.DataFrame({"city": ["Rome", "Paris", "Lima"], "edits": [9, 10, 2]})
display(HTML(f'<div class="facts">{scores.to_html(index=False)}</div>'))
Markdown("- **ROME** holds 17 of 18 edits [0.74, 1.00].")
"""
CHIPS = """
from editkit.language.inspection import chips
HTML(chips([("The", False), (" city", False), (" Rome", True)]))
"""
FRONT = """
Markdown("**17 of 18** edits hold, the front says.")
"""


def code(source: str, *tags: str):
    return new_code_cell(source.strip(), metadata={"tags": list(tags)})


@pytest.fixture(scope="module")
def report(chromium_path, tmp_path_factory) -> Report:
    """A chapter with every kind of content, and the one real chapter that measures nothing."""
    root = tmp_path_factory.mktemp("checkout")
    for name in ("notebooks", "params", "benchmarks"):
        (root / name).mkdir()
    shutil.copy(ROOT / "notebooks" / "06_speed.ipynb", root / "notebooks")
    shutil.copy(ROOT / "benchmarks" / "results.json", root / "benchmarks")
    cells = [
        code('run_dir = "."', "parameters"),
        code(TABLES),
        code(CHIPS, "hide-input"),
        code(FRONT, "front", "hide-input"),
    ]
    about = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    chapter = new_notebook(cells=[new_markdown_cell(TEXT), *cells], metadata=about)
    nbformat.write(chapter, root / "notebooks" / "00_everything.ipynb")
    (root / "params" / "small.yaml").write_text("report_title: A small report\n")
    built = build_report(root / "params" / "small.yaml", root / "report", notebooks=root / "notebooks")
    assert built.ok, [chapter.failure for chapter in built.chapters]
    return built


@pytest.fixture(scope="module")
def opened(visit, report):
    """``opened("dark")``: the report on one of ``SCREENS`` with the network off; opened once, and scrolled through."""

    def look(screen: str):
        visited = visit(report.html, offline=True, **SCREENS[screen])
        if screen == "paper":
            visited.page.emulate_media(media="print")
        elif screen != "no scripts":
            for figure in visited.page.locator("figure").all():
                figure.scroll_into_view_if_needed()
                expect(figure.locator(".js-plotly-plot .main-svg").first).to_be_visible()
            visited.page.evaluate("scrollTo(0, 0)")
        return visited

    return cache(look)


def plots(report: Report) -> int:
    """How many figures plotly made in the executed notebooks."""
    texts = [chapter.executed.read_text(encoding="utf-8") for chapter in report.chapters]
    outputs = [output for text in texts for cell in json.loads(text)["cells"] for output in cell.get("outputs", [])]
    return sum("application/vnd.plotly.v1+json" in output.get("data", {}) for output in outputs)


@pytest.mark.parametrize("screen", ["light", "dark", "phone"])
def test_it_opens_with_the_network_off_and_every_figure_is_drawn(opened, report, screen):
    page, told, asked = opened(screen)
    assert plots(report) >= 5 and all(page.evaluate(PICTURES))
    expect(page.locator(".js-plotly-plot")).to_have_count(plots(report))
    expect(page).to_have_title("A small report")
    assert told == [] and asked == [report.html.as_uri()]


@pytest.mark.parametrize("screen", ["no scripts", "paper"])
def test_every_figure_is_there_where_nobody_scrolls(opened, report, screen):
    pictures = opened(screen).page.evaluate(PICTURES)
    assert len(pictures) >= plots(report) and all(pictures)


@pytest.mark.parametrize("screen", ["light", "phone"])
def test_the_answer_stands_on_the_first_screen(opened, screen):
    page = opened(screen).page
    page.evaluate("scrollTo({top: 0, behavior: 'instant'})")
    answer = page.get_by_text("edits hold, the front says")
    expect(answer).to_have_count(1)
    expect(answer).to_be_in_viewport()


def test_every_link_leads_somewhere(opened, report):
    page = opened("light").page
    ids = Counter(page.eval_on_selector_all("[id]", "found => found.map(element => element.id)"))
    links = page.eval_on_selector_all("a[href]", "found => found.map(a => a.getAttribute('href'))")
    inside = {unquote(link[1:]) for link in links if link.startswith("#")}
    assert len(inside) > 5 and not [name for name in inside if ids[name] != 1]
    files = [link for link in links if not re.match(r"#|https?://", link)]
    assert not [file for file in files if not (report.folder / unquote(file)).is_file()]
    assert "[@" not in page.inner_text("body")
    for words, heading in (("the appendix", "Appendix: what it costs"), ("a section of it", "How the cost grows")):
        page.get_by_role("link", name=words, exact=True).click()
        expect(page.get_by_role("heading", name=heading).first).to_be_in_viewport()


def test_a_citation_shows_under_pointer_and_focus_what_it_leads_to(opened):
    page = opened("light").page
    link, card = page.get_by_role("link", name="Meng et al., 2022").first, page.get_by_role("tooltip")
    title = "Locating and Editing Factual Associations in GPT"
    link.hover()
    expect(card).to_contain_text(title, ignore_case=True)
    page.mouse.move(0, 0)
    expect(card).to_be_hidden()
    link.focus()
    expect(card).to_contain_text(title, ignore_case=True)
    page.keyboard.press("Escape")
    expect(card).to_be_hidden()
    link.click()
    expect(page.get_by_text(title).last).to_be_in_viewport()


def test_a_table_of_facts_is_sorted_and_filtered(opened):
    page = opened("light").page
    table = page.get_by_role("table").filter(has_text="Lima")
    first = table.get_by_role("row").nth(1)
    head = table.get_by_role("columnheader", name="edits")
    for order, city in (("ascending", "Lima"), ("descending", "Paris")):
        head.get_by_role("button").click()
        expect(head).to_have_attribute("aria-sort", order)
        expect(first).to_contain_text(city)
    box = page.get_by_role("searchbox", name="Filter").first
    box.fill("ROM")
    expect(table.get_by_role("row")).to_have_count(2)
    expect(first).to_contain_text("Rome")
    expect(page.get_by_text("1 of 3")).to_be_visible()
    box.fill("")
    expect(table.get_by_role("row")).to_have_count(4)


def test_the_keyboard_alone_reaches_everything(opened):
    page = opened("light").page
    wanted = page.evaluate(KEYBOARD)
    assert wanted > 20
    for _ in range(0, 3 * wanted, 20):  # it may begin anywhere
        for _ in range(20):
            page.keyboard.press("Tab")
        if not page.evaluate("missed()"):
            break
    assert page.evaluate("missed()") == []
    assert page.evaluate("unmarked") == []


@pytest.mark.parametrize("screen", ["phone", "paper"])
def test_nothing_is_wider_than_the_screen_or_the_paper(opened, screen):
    width = opened(screen).page.evaluate("document.documentElement.scrollWidth")
    assert width <= SCREENS[screen]["viewport"]["width"]


@pytest.mark.parametrize(("screen", "least", "most"), [("light", 0.8, 1), ("dark", 0, 0.05), ("paper", 0.99, 1)])
def test_all_text_is_readable(opened, screen, least, most):
    found = opened(screen).page.evaluate(CONTRAST)
    assert least <= found["page"] <= most
    assert found["faint"] == []


def test_headings_are_in_order(opened):
    page = opened("light").page
    levels = page.eval_on_selector_all("h1, h2, h3, h4, h5, h6", "found => found.map(one => +one.tagName[1])")
    assert levels.count(1) == 1 and levels[0] == 1
    assert not [pair for pair in zip(levels, levels[1:], strict=False) if pair[1] > pair[0] + 1]


@pytest.mark.parametrize("screen", ["light", "dark", "phone"])
def test_axe_finds_nothing_serious(opened, screen):
    found = Axe().run(opened(screen).page).response
    assert len(found["passes"]) > 20
    grave = {rule["id"]: rule["nodes"] for rule in found["violations"] if rule["impact"] in GRAVE}
    assert {name: [node["html"][:120] for node in nodes] for name, nodes in grave.items()} == {}
