"""Figures of edits that arrive one batch after another."""

import numpy as np
import pandas as pd
import pytest

from editkit import figures

MATRIX = pd.DataFrame([[1.0, 0.5], [np.nan, 0.9]], index=[1, 2], columns=[1, 2])
CURVES = {score: pd.DataFrame({"EMMET, none": [1.0, 0.6]}, index=[0, 1]) for score in ("ES", "PS")}
STEPS = pd.DataFrame(
    {"run": "EMMET, none", "edits": [8, 16], **dict.fromkeys(("kl_text", "kl_prose", "kl_subjects"), [np.nan, 0.1])}
)
PAIRS = pd.DataFrame({"run": ["a", "b"], "value": [0.1, 0.0], "low": [0.05, -0.1], "high": [0.2, 0.1]})


def along_the_sequence():
    return figures.along_the_sequence(STEPS.assign(growth=[1.0, 1.1]))


def differences():
    return figures.differences(PAIRS, title="Against no replay", subtitle="paired")


NAMES = {"interference": "‖ΔW k‖", "age": "age"}
AREAS = pd.DataFrame(
    [("emmet", "success", "interference", 0.8, 0.7, 0.9), ("memit", "success", "interference", 0.6, 0.4, 0.8)]
    + [("emmet", "success", "age", 0.5, 0.4, 0.6), ("emmet", "accuracy", "age", np.nan, np.nan, np.nan)],
    columns=["method", "score", "predictor", "value", "low", "high"],
)


def test_areas_stand_in_the_row_of_their_predictor_and_unknown_ones_nowhere(labelled):
    figure = figures.foretold(AREAS, NAMES)
    labelled(figure, bare=["yaxis"])
    assert list(figure.layout.yaxis.ticktext) == list(NAMES.values()) and len(figure.data) == 2
    emmet = next(points for points in figure.data if points.name == "EMMET")
    assert list(emmet.x) == [0.8, 0.5] and [round(y) for y in emmet.y] == [0, 1]
    assert np.allclose(emmet.error_x.array, 0.1)
    with pytest.raises(ValueError, match="no area to show, of 1 rows"):
        figures.foretold(AREAS[-1:], NAMES)


GAPS = pd.DataFrame(
    [("memit", "none", "S", -0.2, -0.3, -0.1), ("memit", "none", "EA", -0.4, -0.5, -0.3)]
    + [("memit", "history", "S", 0.0, -0.1, 0.1), ("memit", "history", "EA", 0.1, 0.0, 0.2)],
    columns=["method", "switch", "score", "value", "low", "high"],
)
POINTS = pd.DataFrame(
    [
        (m, t, n, s, 0.5, 0.4, 0.7)
        for m in ("memit_rls", "alphaedit")
        for t, n in ((0.1, 3.0), (0.02, 2.0))
        for s in ("S", "kl_prose")
    ],
    columns=["method", "threshold", "norm", "score", "value", "low", "high"],
)


def test_what_a_way_changes_stands_in_its_row(labelled):
    ways = {"history": "pulled back", "layers": "several layers", "none": "no memory"}
    figure = figures.ways_compared(GAPS, "switch", ways, title="Made up", subtitle="against steps")
    labelled(figure, bare=["yaxis", "yaxis2"])
    assert list(figure.layout.yaxis.ticktext) == ["pulled back", "no memory"] and len(figure.data) == 2
    assert list(figure.data[0].x) == [0.0, -0.2] and np.allclose(figure.data[1].error_x.array, 0.1)


def test_ways_of_arriving_stand_in_rows_by_method(labelled):
    rows = [("pre", "no edit", 0, 0, 0.1, 45.0), ("rome", "ROME, none", 1, 8, 0.6, 50.0)]
    rows += [("memit", "MEMIT, none", 4, 2, 0.7, 60.0), ("memit", "MEMIT, none", 8, 1, 0.8, 400.0)]
    columns = ["method", "run", "batch_size", "steps", "value", "perplexity"]
    points = pd.DataFrame(rows, columns=columns).assign(low=0.05, high=0.9, n=8, seeds=1, clusters=8, ESaid=0.3)
    figure = figures.steps_or_at_once(pd.concat([points.assign(score="S"), points.assign(score="EA", value=0.2)]))
    labelled(figure, bare=["yaxis", "yaxis2", "yaxis3", "xaxis3"])
    assert list(figure.layout.yaxis.ticktext) == ["ROME, none, 8 × 1", "MEMIT, none, 2 × 4", "MEMIT, none, 1 × 8"]
    assert "8 edits" in figure.layout.title.text and "50 to 400" in figure.layout.title.text
    by = {(line.name, line.xaxis, line.marker.symbol): list(line.x) for line in figure.data}
    assert by["MEMIT", "x", "square"] == [0.7, 0.8] and by["MEMIT", "x2", "square"] == [0.2, 0.2]
    assert by["MEMIT", "x2", "square-open"] == [0.3, 0.3] and by["ROME", "x3", "circle"] == [50.0]
    assert [line.x0 for line in figure.layout.shapes] == [0.1, 0.2, 45.0]


def test_protection_is_drawn_against_what_is_written(labelled):
    figure = figures.protection(POINTS)
    labelled(figure)
    assert [line.name for line in figure.data[:2]] == ["AlphaEdit", "MEMIT, all held (RLS)"] and len(figure.data) == 4
    assert list(figure.data[0].x) == [2.0, 3.0] and list(figure.data[0].customdata) == [0.02, 0.1]
    assert np.allclose(figure.data[0].error_y.array, 0.2) and figure.layout.yaxis2.title.text == "nats"


def test_figures_are_labelled_and_vector(labelled):
    labelled(figures.retention_map(MATRIX, title="EMMET, none"))
    labelled(figures.forgetting_curves(CURVES))
    labelled(along_the_sequence())
    labelled(differences(), bare=["yaxis"])


def test_differences_are_filled_where_the_interval_excludes_zero():
    points = differences().data[0]
    assert points.marker.color[0] != "white" and points.marker.color[1] == "white"
    assert np.allclose(points.error_x.array, [0.1, 0.1]) and np.allclose(points.error_x.arrayminus, [0.05, 0.1])


def test_the_retention_map_is_blank_before_an_edit_and_reads_downwards():
    figure = figures.retention_map(MATRIX, title="EMMET, none")
    heat = figure.data[0]
    assert np.isnan(heat.z[1][0]) and heat.zmin == 0 and heat.zmax == 1
    assert figure.layout.yaxis.autorange == "reversed"
    assert heat.texttemplate == "%{z:.2f}" and figure.layout.height < 300, "few steps have their numbers in them"
    many = pd.DataFrame(np.ones((13, 13)))
    assert figures.retention_map(many, title="EMMET, none").data[0].texttemplate is None


def test_what_was_not_measured_is_left_out_of_its_panel():
    assert [list(line.x) for line in along_the_sequence().data] == [[16], [16], [16], [8, 16]]
