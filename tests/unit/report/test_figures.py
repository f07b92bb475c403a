"""Figures of the page: caption, source, description, and what is left for the live one."""

import base64
import json

import numpy as np
import plotly.graph_objects as go
import pytest
from bs4 import BeautifulSoup
from jinja2 import Environment, PackageLoader

from editkit.report import figures
from editkit.report.execute import Chapter
from editkit.report.figures import Figures, caption, describe, numbers, untitled


def spec(*traces, **layout):
    return json.loads(go.Figure(list(traces), layout).to_json())


def environment():
    return Environment(loader=PackageLoader("editkit.report", "templates"), autoescape=True, trim_blocks=True)


def chapter(tmp_path):
    return Chapter(tmp_path / "01_first.ipynb", tmp_path / "01_first.ipynb", tmp_path / "log", {"n": 1})


def written(tmp_path, *specs, browser=None):
    hashes, commands = {"results/scores.csv": "ab" * 32}, {"01_first": "make it"}
    all_of_them = Figures(environment(), browser, hashes, commands)
    pieces = [all_of_them.write(one, chapter(tmp_path), {"execution_count": 7}) for one in specs]
    return BeautifulSoup("".join(pieces), "html.parser").find_all("figure")


@pytest.mark.parametrize(
    "title",
    [
        {"text": "A <b>claim</b>", "subtitle": {"text": "n = 3"}},
        {"text": "A claim<br><sup>n = 3</sup>"},
        "A<br>claim<br><sup>n = 3</sup>",
    ],
)
def test_the_caption_is_the_title_and_what_stands_below(title):
    assert caption({"title": title}) == ("A claim", "n = 3")
    assert caption({"title": {"text": "A claim", "subtitle": {"text": "over 3 facts"}}})[1] == "Over 3 facts"
    assert caption({}) == ("", "") and caption({"title": {"text": "&lt;a&gt;"}}) == ("<a>", "")


def test_figures_are_numbered_and_say_where_they_come_from(tmp_path):
    made = {"picture": "loss", "tables": ["scores", "gone"]}
    first, second = written(tmp_path, spec(title="A claim", meta=made), spec(title="Why?"))
    assert (first["id"], second["id"]) == ("figure-loss", "figure-2")
    assert first.b.get_text() == "Figure 1." and "A claim." in first.figcaption.get_text()
    assert "Why?" in second.figcaption.get_text() and "Why?." not in second.figcaption.get_text()
    source = " ".join(first.select_one(".source").get_text().split())
    assert source == "results/scores.csv (abababababab) · 01_first.ipynb, In [7] · make it"


def test_a_figure_of_recorded_tables_says_so(tmp_path):
    own, other = written(tmp_path, *(spec(meta={"tables": [name]}) for name in ("scores", "recorded_scores")))
    assert "Recorded" not in own.figcaption.get_text() and "Recorded by another run." in other.figcaption.get_text()


def test_without_its_title_a_figure_is_lower_and_as_large_where_it_draws():
    bare = untitled(spec(go.Scatter(y=[1, 2]), title="A", width=760, height=450, margin={"t": 90, "b": 60}))
    layout = bare["layout"]
    assert not {"title", "width"} & layout.keys()
    assert layout["height"] - layout["margin"]["t"] - layout["margin"]["b"] == 450 - 90 - 60
    assert untitled(spec(height=300))["layout"]["height"] == 300


def test_numbers_are_read_as_plotly_writes_them():
    values = np.array([1.5, np.nan, 2.0])
    wire = {"dtype": "f8", "bdata": base64.b64encode(values.tobytes()).decode()}
    assert numbers(wire)[0] == 1.5 and len(numbers(wire)) == 3
    assert numbers([1, None, "a"]) == [1, None, "a"] and numbers(None) == []


def test_a_description_says_what_is_seen():
    lines = [go.Scatter(x=[1, 2], y=np.array([0.25, 0.5]), name="ROME", mode="lines+markers")]
    text = describe(spec(*lines, xaxis={"title": "edits"}, yaxis={"title": "share"}))
    assert text == "Lines; across: edits; up: share; ROME from 0.25 to 0.5."
    assert describe(spec(go.Heatmap(z=[[1, 2], [3, 4]]))) == "A heat map; values from 1 to 4."
    assert describe(spec(go.Bar(x=[3, 4], y=["a", "b"], orientation="h", name="s"))) == "Bars; s 3, 4."
    long = describe(spec(*(go.Scatter(y=[1, 2], name=f"series {n}") for n in range(200))))
    assert long.endswith("…") and len(long) <= figures.WORDS + 1


def test_texts_are_no_markup(tmp_path):
    hostile = "<script>a()</script>"
    one = spec(go.Scatter(y=[1], name=hostile), title=hostile, meta={"picture": hostile, "tables": [hostile]})
    [figure] = written(tmp_path, one)
    assert [tag["type"] for tag in figure.find_all("script")] == ["application/json"]
    assert json.loads(figure.script.string)["data"][0]["name"] == hostile


def test_a_picture_that_cannot_be_drawn_is_left_to_the_live_figure(tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("no kaleido today")

    monkeypatch.setattr(figures, "as_svg", fail)
    with pytest.warns(UserWarning, match="no kaleido today"):
        [figure] = written(tmp_path, spec(go.Scatter(y=[1, 2])), browser="chromium")
    assert not figure.img and figure.select_one(".plot")
    monkeypatch.setattr(figures, "as_svg", lambda *_: b"<svg/>")
    [figure] = written(tmp_path, spec(go.Scatter(y=[1, 2])), browser="chromium")
    assert base64.b64decode(figure.img["src"].partition(",")[2]) == b"<svg/>" and figure.img["alt"]
