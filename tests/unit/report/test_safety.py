"""Nothing from data is markup of the page, and a browser would run none of it anyway."""

import re

import nbformat
import pandas as pd
import plotly.graph_objects as go
import pytest
from bs4 import BeautifulSoup
from mistune import create_markdown
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from editkit.figures import find_browser
from editkit.plain import as_markdown
from editkit.report.execute import Chapter, Failure
from editkit.report.markdown import mathml
from editkit.report.page import Made, render_report
from editkit.report.safety import clean, content_policy
from editkit.studies.findings import bullets, setup_findings

BROWSER = find_browser()
HIT = "document.documentElement.dataset.hit=1"
HOSTILE = (
    f"<script>{HIT}</script>",
    f'<img src=x onerror="{HIT}">',
    f"<svg/onload={HIT}>",
    f'<iframe srcdoc="<script>parent.{HIT}</script>"></iframe>',
    f"<math><mtext><table><mglyph><style><!--</style><img title='--&gt;&lt;img src=1 onerror={HIT}&gt;'>",
    f"<a href='javascript:{HIT}'>a</a>",
    f"[a](javascript:{HIT})",
    "![a](http://127.0.0.1:9/pixel.png)",
    f"<!--<script>{HIT}//",
    "<base href='http://127.0.0.1:9/'><meta http-equiv='refresh' content='0;url=http://127.0.0.1:9/'>",
    "<style>body{display:none}</style><link rel=stylesheet href=http://127.0.0.1:9/a.css>",
    f"```mermaid\n<img src=x onerror={HIT}>\n```",
    f"$\\text{{<script>{HIT}</script>}}$",
    f'$\\text{{<svg/onload={HIT}>}}$ $\\href{{javascript:{HIT}}}{{x}}$ $\\color{{a" onclick="{HIT}}}{{x}}$',
    f"</script><script>{HIT}</script>",
)
LIVE = {"script", "img", "svg", "iframe", "base", "meta", "style", "link", "object", "embed", "form", "mglyph"}


def live(soup) -> list[str]:
    """What in a piece of a page runs, loads or leads out of it."""
    found = [str(tag) for tag in soup.find_all(LIVE)]
    for tag in soup.find_all(True):
        found += [f"{name}={value}" for name, value in tag.attrs.items() if name.startswith("on")]
        found += [tag["href"] for _ in [0] if str(tag.get("href", "#"))[:1] != "#"]
    return found


def output(**data):
    data = {name.replace("_", "/"): value for name, value in data.items()}
    return new_output("display_data", data=data)


@pytest.fixture
def hostile(tmp_path):
    """A page whose every text, as far as data reach it, is hostile."""
    name, worst = HOSTILE[0], "\n\n".join(HOSTILE)
    frame = pd.DataFrame({name: HOSTILE}, index=HOSTILE)
    figure = go.Figure(
        go.Bar(x=list(HOSTILE), y=[1] * len(HOSTILE)),
        layout={"title": {"text": worst}, "meta": {"picture": worst, "tables": [name]}},
    )
    cells = [
        new_markdown_cell("# First chapter"),
        new_code_cell("n = 1", metadata={"tags": ["parameters"]}),
        new_code_cell(worst, outputs=[new_output("stream", name="stdout", text=worst)]),
        new_code_cell("1", outputs=[output(text_markdown=text) for text in HOSTILE]),
        new_code_cell("1", outputs=[output(text_html=text) for text in HOSTILE]),
        new_code_cell("1", outputs=[output(text_latex=text) for text in HOSTILE]),
        new_code_cell("1", outputs=[output(text_plain=text) for text in HOSTILE]),
        new_code_cell("1", outputs=[output(text_html=frame.to_html()), output(**{"image_svg+xml": name})]),
        new_code_cell("1", outputs=[output(**{"application_vnd.plotly.v1+json": figure.to_plotly_json()})]),
        new_code_cell("1", outputs=[new_output("error", ename=name, evalue=name, traceback=[worst])]),
    ]
    executed, log = tmp_path / "00_first.ipynb", tmp_path / "00_first.log"
    nbformat.write(new_notebook(cells=cells), executed)
    chapter = Chapter(executed, executed, log, {}, {name: worst}, "failed", failure=Failure(name, worst, worst, worst))
    results = [{"file": f"results/{name}.csv", "rows": 1, "sha256": name}]
    page = tmp_path / "report.html"
    made = Made(tmp_path, worst, results)
    page.write_text(render_report(worst, {name: worst}, [chapter], made, BROWSER), encoding="utf-8")
    return page


@pytest.mark.filterwarnings("ignore:formula")
def test_no_text_of_a_run_is_markup_of_its_page(hostile):
    soup = BeautifulSoup(hostile.read_text(encoding="utf-8"), "html.parser")
    policy, *_ = [tag["content"] for tag in soup.find_all("meta", {"http-equiv": True})]
    scripts = [tag.string for tag in soup.find_all("script") if tag.get("type") != "application/json"]
    assert policy == content_policy(scripts) and len(scripts) == 4, "plotly.js, figures, cards and tables"
    pictures = soup.main.find_all("img")
    assert {tag["src"][:26] for tag in pictures} == {"data:image/svg+xml;base64,"}, "a picture cannot run"
    assert len(pictures) == 1 + (BROWSER is not None)
    for tag in [*pictures, *soup.main.select("script[type='application/json']")]:
        tag.extract()
    assert not live(soup.body.header) and not live(soup.nav) and not live(soup.main)
    assert soup.main.get_text().count(HIT) > 100, "it is shown as text"


@pytest.mark.filterwarnings("ignore:formula")
def test_a_browser_runs_and_loads_nothing_of_it_and_draws_the_figure(hostile, opened):
    done = opened(hostile)
    assert "data-hit" not in done.html and not done.asked
    assert not [line for line in done.said if "MathJax is not loaded" not in line]  # formulas in labels stay text
    soup = done.soup
    assert len(soup.select(".plot svg.main-svg .barlayer .point path")) == len(HOSTILE)
    assert not live(BeautifulSoup("".join(map(str, soup.select(".plot .xtick text"))), "html.parser"))


@pytest.mark.filterwarnings("ignore:formula")
def test_what_would_reach_the_page_all_the_same_is_stopped_by_its_policy(hostile, opened):
    injected = f"<main id='main'>{HOSTILE[0]}<img src='data:,' onerror='{HIT}'><img src='http://127.0.0.1:9/pixel.png'>"
    hostile.write_text(hostile.read_text(encoding="utf-8").replace('<main id="main">', injected), encoding="utf-8")
    done = opened(hostile)
    assert "data-hit" not in done.html
    for kind in ("Executing inline script", "Executing inline event handler", "Loading the image"):
        assert re.search(f"{kind}.* violates the following Content Security Policy", "\n".join(done.said)), kind
    assert done.soup.select(".plot svg.main-svg"), "figures are drawn all the same"


def test_the_policy_names_scripts_by_their_hashes():
    """The example of https://www.w3.org/TR/CSP2/#script-src-hash-usage."""
    policy = content_policy(["alert('Hello, world.');"])
    assert "script-src 'sha256-qznLcsROx4GACP2dm0UCKCzCG+HiZ1guq6ZZDob/Tng='" in policy
    assert "default-src 'none'" in policy and "http" not in policy and "eval" not in policy
    assert "script-src 'none'" in content_policy([])


def test_tables_and_marked_texts_stay():
    frame = pd.DataFrame({"a": [1.5]}, index=pd.MultiIndex.from_tuples([("x", "y")]))
    cleaned = BeautifulSoup(clean(frame._repr_html_()), "html.parser")
    assert [cell.get_text() for cell in cleaned.select("table.dataframe tbody > tr > *")] == ["x", "y", "1.5"]
    assert "vertical-align" not in cleaned.get_text(), "a style sheet is no text"
    marked = '<code style="background-color: #d55e00; color: white;">token</code>'
    assert clean(marked) == marked
    assert clean("<p onclick='a()' style='position:fixed;color:red'>&lt;b&gt;</p>") == (
        '<p style="color:red;">&lt;b&gt;</p>'
    )


@pytest.mark.parametrize("formula", ["a < b", r"\text{a<b}", r"a > \mathrm{max}", r'\text{"x"}'])
def test_formulas_show_what_xml_would_take_for_its_own(formula):
    soup = BeautifulSoup(mathml(formula, display=False), "html.parser")
    assert soup.math["alttext"] == formula and {tag.name for tag in soup.find_all(True)} <= {
        *("math", "mrow", "mi", "mo", "mtext", "mn")
    }
    assert soup.get_text() == re.sub(r"\\\w+\{(.*?)\}", r"\1", formula).replace(" ", "")
    assert all(tag.get_text() not in "<>" for tag in soup.find_all("mi")), "it is an operator"


@pytest.mark.parametrize("text", HOSTILE)
def test_findings_and_names_in_markdown_are_no_markup(text):
    relations = pd.DataFrame({"facts": [3, 1]}, index=[text, "other"])
    norms = pd.DataFrame({"position": [0, 1] * 2, "layer": 1, "norm": 1.0, "start_token": [True, True, False, False]})
    told = setup_findings(relations, norms, pd.DataFrame())[0]
    shown = BeautifulSoup(create_markdown(escape=False, plugins=["table", "math"])(bullets([told])), "html.parser")
    assert {tag.name for tag in shown.find_all(True)} == {"ul", "li"}
    assert " ".join(text.split()) in " ".join(shown.get_text().split())
    raw = BeautifulSoup(create_markdown(escape=False)(bullets([f"names {text}"])), "html.parser")
    assert not raw.find_all({"script", "svg", "iframe", "base", "style", "mtext"}), "also where nobody escaped it"
    assert as_markdown("plain text, 3 × 4") == "plain text, 3 × 4"
