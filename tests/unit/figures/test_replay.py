"""Figures of edits that arrive one batch after another."""

import numpy as np
import pandas as pd

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


def test_what_was_not_measured_is_left_out_of_its_panel():
    assert [list(line.x) for line in along_the_sequence().data] == [[16], [16], [16], [8, 16]]
