"""Markdown of notebooks: formulas, anchors, links that stay on the page, citations."""

import pytest
from bs4 import BeautifulSoup

from editkit.report.citations import References
from editkit.report.markdown import OutputRenderer, Renderer, mathml, plain, render, slug


def written(source: str, kind=Renderer, deeper: int = 1) -> BeautifulSoup:
    return BeautifulSoup(render(source, kind("01_first", set(), References(), ".", deeper)), "html.parser")


def test_a_formula_that_cannot_be_set_is_shown_as_source():
    with pytest.warns(UserWarning, match="unknown command"):
        assert mathml(r"\nonsense x", display=False) == r"<code>\nonsense x</code>"


def test_formulas_are_mathml_wherever_they_stand():
    soup = written("$a$ and\n\n$$b$$\n\n\\begin{aligned} a &= b \\end{aligned}")
    assert [tag["display"] for tag in soup.find_all("math")] == ["inline", "block", "block"]
    assert [tag["alttext"] for tag in soup.find_all("math")][:2] == ["a", "b"]


@pytest.mark.parametrize(
    ("deeper", "names"), [(0, ["h2", "h2", "h3"]), (1, ["h2", "h3", "h4"]), (2, ["h3", "h4", "h5"])]
)
def test_headings_are_lowered_and_anchored_once(deeper, names):
    soup = written("# Title\n\n## Some *scores*\n\n### Deep\n\n## Some scores", deeper=deeper)
    headings = soup.find_all(["h2", "h3", "h4", "h5"])
    assert [tag.name for tag in headings][:3] == names
    assert [tag.get("id") for tag in headings] == [
        "nb-01_first",
        "nb-01_first--some-scores",
        None,
        "nb-01_first--some-scores-2",
    ]


@pytest.mark.parametrize(
    ("url", "leads"),
    [
        ("02_next.ipynb", "#nb-02_next"),
        ("02_next.ipynb#Some-scores", "#nb-02_next--some-scores"),
        ("#Some-scores", "#nb-01_first--some-scores"),
        ("../figures/loss_curves.png", "#figure-loss_curves"),
        ("https://example.org/a.ipynb.html", "https://example.org/a.ipynb.html"),
    ],
)
def test_links_to_notebooks_and_figures_stay_on_the_page(url, leads):
    assert written(f"[there]({url})").a["href"] == leads


def test_jupyters_anchor_and_a_title_have_one_slug():
    title = "A budget instead of λ: why?"
    assert slug(title) == slug(title.replace(" ", "-")) == "a-budget-instead-of-λ-why"
    assert slug("?") == "section" and plain("<b>a</b>\n b &lt;") == "a b <"


@pytest.mark.parametrize("kind", [Renderer, OutputRenderer])
def test_citations_are_links_and_what_is_none_stays_text(kind):
    soup = written(
        "See [@meng2022rome] and arXiv 2210.07229, eq. 14; `[@meng2022rome]`, [@nobody], arXiv 1111.11111.", kind
    )
    assert {a["href"]: a.get_text() for a in soup.find_all("a")} == {
        "#reference-meng2022rome": "Meng et al., 2022",
        "#reference-meng2023memit": "Meng et al., 2023",
    }
    assert soup.code.get_text() == "[@meng2022rome]"
    assert "[@nobody], arXiv 1111.11111." in soup.get_text() and ", eq. 14" in soup.get_text()


def test_html_is_markup_where_we_wrote_it_and_text_where_code_did():
    assert written("a <b>b</b>").b and not written("a <b>b</b>", OutputRenderer).b
    assert written("<div>b</div>").div and not written("<div>b</div>", OutputRenderer).div
