"""Figures of the whole run: the right points in the right panels."""

import numpy as np
import pandas as pd

from editkit import figures
from editkit.methods import look

METHODS = {"pre": 0.1, "memit": 0.8, "emmet": 0.7}


def rows(panel, methods=METHODS, **more):
    found = [{"panel": panel, "method": name, "configuration": name, "batch_size": 8} for name in methods]
    frame = pd.DataFrame(found).assign(n=16, seeds=2, seconds_an_edit=2.0, peak_memory_mb=100.0, replay="none")
    for score in ("ES", "PS", "NS", "S"):
        value = pd.Series(list(methods.values()))
        frame = frame.assign(**{score: value, f"{score}_low": value - 0.1, f"{score}_high": value + 0.05})
    return frame.assign(**more)


TWO = pd.concat([rows("at once"), rows("in steps", {"pre": 0.2, "emmet": 0.6})], ignore_index=True)


def bare(figure, titled):
    return [axis for axis in figure.layout if axis.startswith(("xaxis", "yaxis")) and axis not in titled]


def test_methods_have_a_block_a_panel_and_a_column_a_score(labelled):
    figure = figures.methods_compared(TWO, "a claim")
    labelled(figure, bare(figure, [f"xaxis{n}" for n in (5, 6, 7, 8)]))
    assert figure.layout.title.text == "a claim"
    dots = {(trace.name, trace.xaxis): trace for trace in figure.data}
    assert len(dots) == 4 * 2 + 4 and dots["MEMIT", "x"].x[0] == 0.8 and dots["EMMET", "x8"].x[0] == 0.6
    assert np.allclose(dots["MEMIT", "x"].error_x.array, 0.05)
    assert dots["MEMIT", "x"].marker.symbol == look("memit").marker
    assert list(figure.layout.yaxis.ticktext) == ["MEMIT", "EMMET"] and list(figure.layout.yaxis5.ticktext) == ["EMMET"]
    assert sorted(shape.x0 for shape in figure.layout.shapes) == [0.1, 0.2], "NS before any edit, in both blocks"
    names = {note.text for note in figure.layout.annotations}
    assert {"<b>at once</b>", "<b>in steps</b>", "efficacy (ES)", "harmonic mean (S)"} <= names


def test_costs_are_drawn_without_the_untouched_model(labelled):
    figure = figures.costs_compared(rows("at once"), "a claim")
    labelled(figure, bare(figure, ["xaxis", "xaxis2"]))
    assert {trace.name for trace in figure.data} == {"MEMIT", "EMMET"} and figure.layout.xaxis.type == "log"
    assert [trace.x[0] for trace in figure.data if trace.xaxis == "x2"] == [100, 100]


def test_sizes_are_dots_left_and_lines_right(labelled):
    batches = pd.concat([rows("", batch_size=size) for size in (1, 8, 32)])
    steps = [rows("", {"emmet": 0.6}, batch_size=size, replay=kind) for kind in ("none", "history") for size in (8, 1)]
    figure = figures.sizes_compared(batches, pd.concat(steps), "a claim")
    labelled(figure, bare(figure, ["xaxis", "xaxis2", "yaxis"]))
    left, right = ([trace for trace in figure.data if trace.xaxis == axis] for axis in ("x", "x2"))
    assert [trace.name for trace in left] == ["MEMIT", "EMMET"] and {trace.mode for trace in left} == {"markers"}
    assert all(np.round(trace.x).tolist() == [0, 1, 2] for trace in left)
    assert list(figure.layout.xaxis.ticktext) == ["1", "8", "32"]
    assert [trace.line.dash for trace in right] == ["solid", "dash"] and list(right[0].customdata) == [1, 8]
    assert figure.layout.title.subtitle.text == "95% intervals; right: no replay: solid, history: dash"
    shown = [trace.name for trace in figure.data if trace.showlegend is not False]
    assert sorted(shown) == ["EMMET", "MEMIT"], "a method enters the legend once"


def test_the_front_is_a_line_and_rims(labelled):
    points = {"memit": 0.8, "emmet": 0.7, "rome": 0.5}
    frame = rows("at once", points, NS=[0.2, 0.6, 0.4], NS_low=0.1, NS_high=0.9, front=[True, True, False])
    before = rows("at once", {"pre": 0.0}, NS=0.9, front=False)
    figure = figures.keep_against_learn(pd.concat([frame, before, rows("more", front=True)]), "a claim")
    labelled(figure)
    line = next(trace for trace in figure.data if trace.mode == "lines")
    assert list(line.x) == [0.7, 0.8] and list(line.y) == [0.6, 0.2] and line.line.shape == "vh"
    dots = {trace.name: trace for trace in figure.data if trace.mode == "markers" and trace.xaxis == "x"}
    assert dots.keys() == {"MEMIT", "EMMET", "ROME"}
    assert dots["ROME"].marker.line.width == (0,) and dots["MEMIT"].marker.line.width[0] > 0
    assert figure.layout.shapes[0].y0 == 0.9
    assert figure.layout.xaxis.range[0] < 0.4 < 0.85 < figure.layout.xaxis.range[1]


def test_scores_that_no_fact_has_leave_a_panel_empty():
    none = {f"PS{end}": np.nan for end in ("", "_low", "_high")}
    figure = figures.methods_compared(rows("at once", **none), "a claim")
    assert list(figure.layout.xaxis2.range) == [0, 1]
