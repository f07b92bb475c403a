"""Figures of what things cost."""

import pandas as pd
import pytest

from editkit import figures

RATIOS = pd.DataFrame({"name": ["targets", "scores"], "ratio": [8.0, 3.0], "lowest": [7.0, 2.9], "highest": [9.0, 3.5]})
WIDTHS = pd.DataFrame({"d_k": [1024, 2048], "ours": [0.1, 0.2], "public code": [1.0, 8.0]})
TOKENS = pd.DataFrame(
    {"text": kind, "method": method, "tokens_per_dimension": n, "S": 0.8 + n / 100, "NS": 0.7}
    for kind in ("mine", "other")
    for method in ("emmet", "memit")
    for n in (1, 10)
)


def test_figures_are_labelled_and_vector(labelled):
    labelled(figures.speedups(RATIOS), bare=["yaxis"])
    labelled(figures.scores_by_tokens(TOKENS), bare=["yaxis2"])
    words = {"title": "Seconds by width", "subtitle": "one update", "axes": ("d_k", "seconds")}
    widths = figures.growth(WIDTHS, "d_k", {"ours": "ours", "public code": "public code"}, **words)
    labelled(widths)
    assert widths.layout.xaxis.ticktext == ("1024", "2048")


def test_scores_by_tokens_have_a_colour_a_method_and_a_dash_a_text():
    lines = {line.name: line for line in reversed(figures.scores_by_tokens(TOKENS).data)}
    assert list(lines)[::-1] == ["EMMET, mine", "MEMIT, mine", "EMMET, other", "MEMIT, other"]
    mine, other, memit = (lines[name] for name in ("EMMET, mine", "EMMET, other", "MEMIT, mine"))
    assert mine.line.color == other.line.color != memit.line.color
    assert mine.line.dash == memit.line.dash != other.line.dash and list(mine.y) == [0.81, 0.9]


def test_scores_by_search_have_a_line_a_precision_and_the_interval_of_the_difference(labelled):
    rows = [("exact", 20, 20.0, 0.8, 0.0, 0.0, 0.0), ("fast", 26, 4.0, 0.79, -0.01, -0.03, 0.01)]
    rows.append(("one gradient", 1, 1.0, 0.5, -0.3, -0.4, -0.2))
    columns = ["search", "steps", "targets", "S", "S_change", "S_low", "S_high"]
    frame = pd.concat(pd.DataFrame(rows, columns=columns).assign(method=name, edits=10) for name in ("memit", "emmet"))
    figure = figures.scores_by_search(frame)
    labelled(figure)
    assert [line.name for line in figure.data if line.showlegend] == ["MEMIT (C)", "EMMET (equality)"]
    apart, line = figure.data[:2] if len(figure.data[0].x) == 1 else figure.data[1::-1]
    assert apart.mode == "markers" and list(apart.customdata) == ["one gradient"]
    assert list(line.x) == [0.4, 2.0] and list(line.y) == [0.79, 0.8] and list(line.customdata) == ["fast", "exact"]
    assert line.error_y.array.tolist() == pytest.approx([0.02, 0]) == line.error_y.arrayminus.tolist()


def test_thousands_have_a_colour_a_method_a_dash_an_editor_and_a_mark_at_the_dimensions(labelled):
    rows = [("EMMET, one layer", "emmet", 100, 0.8, 20.0), ("EMMET, one layer", "emmet", 4000, 0.2, 2000.0)]
    rows += [("EMMET, 3 layers", "emmet", 100, 0.9, 18.0), ("EMMET, 3 layers", "emmet", 4000, 0.8, 40.0)]
    frame = pd.DataFrame(rows, columns=["editor", "method", "edits", "S", "perplexity"]).assign(
        d_k=1536, judged=50, perplexity_before=10.0
    )
    frame = frame.assign(S_low=frame.S - 0.1, S_high=frame.S + 0.1)
    figure = figures.thousands(frame)
    labelled(figure, bare=["yaxis2"])
    first, times, second, _ = figure.data
    assert first.name == "EMMET, one layer" and list(first.y) == [0.8, 0.2] and list(times.y) == [2.0, 200.0]
    assert first.line.color == second.line.color and first.line.dash != second.line.dash
    assert {shape.x0 for shape in figure.layout.shapes} == {1536}
    assert "EMMET, 3 layers S 0.90 to 0.80, EMMET, one layer S 0.80 to 0.20" in figure.layout.title.text
